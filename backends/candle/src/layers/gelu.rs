use crate::kernels::exp;

/// `x` times the probability of a standard normal number below it.
///
/// The tail beyond `z` is a polynomial of `1 / (1 + p z)` times `exp(-z²)` (Hastings), off by less than 1.5e-7; what is near zero on the left stays
/// exact because nothing is subtracted there.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let polynomial = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * polynomial * exp(-z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// `x / 2 * (1 + tanh(z))` with `z = sqrt(2 / pi) * (x + 0.044715 x^3)`, by `(1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z))`.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const DOUBLE: f32 = 2.0 * 0.797_884_6;
    x / (1.0 + exp(-DOUBLE * (x + 0.044_715 * x * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its series, which converges everywhere.
    fn erf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn gelu_is_its_definition() {
        for at in -800..=800 {
            let x = f64::from(at) / 200.0;
            let expected = 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
            assert!(
                (f64::from(gelu(x as f32)) - expected).abs() < 2e-7 * (1.0 + x.abs()),
                "{x}: {} for {expected}",
                gelu(x as f32)
            );
        }
        assert_eq!([gelu(0.0), gelu(60.0)], [0.0, 60.0]);
        assert!(gelu(-60.0).abs() < 1e-30);
        assert!(gelu(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_tanh_is_its_approximation() {
        for x in [0.0f64, 0.5, -0.5, 2.0, -3.0, 20.0, -20.0] {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let expected = 0.5 * x * (1.0 + z.tanh());
            assert!((f64::from(gelu_tanh(x as f32)) - expected).abs() < 1e-6, "{x}");
        }
    }
}
