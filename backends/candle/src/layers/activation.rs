use tandem_kernels::exp;

/// Replaces `y` by `x` times the logistic function of it.
pub(super) fn silu(x: &[f32], y: &mut [f32]) {
    through_exp(x, y, |x| -x, |x, power| x / (1.0 + power));
}

/// Replaces `y` by `x` times the probability of a standard normal number below it.
///
/// The tail beyond `z` is a polynomial of `1 / (1 + p z)` times `exp(-z²)` (Hastings), off by less than 1.5e-7; what is near zero on the left stays
/// exact because nothing is subtracted there.
pub(super) fn gelu(x: &[f32], y: &mut [f32]) {
    let z = |x: f32| x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let negated_square = |x| -z(x) * z(x);
    through_exp(x, y, negated_square, |x, power| {
        let t = 1.0 / (1.0 + 0.327_591_1 * z(x));
        let polynomial = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
        let tail = 0.5 * polynomial * power;
        x * if x < 0.0 { tail } else { 1.0 - tail }
    });
}

/// Replaces `y` by `x / 2 * (1 + tanh(z))` with `z = sqrt(2 / pi) * (x + 0.044715 x^3)`, by `(1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z))`.
pub(super) fn gelu_tanh(x: &[f32], y: &mut [f32]) {
    const DOUBLE: f32 = 2.0 * 0.797_884_6;
    let inner = |x: f32| -DOUBLE * (x + 0.044_715 * x * x * x);
    through_exp(x, y, inner, |x, power| x / (1.0 + power));
}

/// Replaces `y` by `after(x, exp(before(x)))`.
#[inline(always)]
fn through_exp(x: &[f32], y: &mut [f32], before: impl Fn(f32) -> f32, after: impl Fn(f32, f32) -> f32) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = before(x));
    exp(y);
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = after(x, *y));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(activation: fn(&[f32], &mut [f32]), x: f32) -> f32 {
        let mut y = [9.0];
        activation(&[x], &mut y);
        y[0]
    }

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
            let got = of(gelu, x as f32);
            assert!((f64::from(got) - expected).abs() < 2e-7 * (1.0 + x.abs()), "{x}: {got} for {expected}");
        }
        assert_eq!([of(gelu, 0.0), of(gelu, 60.0)], [0.0, 60.0]);
        assert!(of(gelu, -60.0).abs() < 1e-30);
        assert!(of(gelu, f32::NAN).is_nan());
    }

    #[test]
    fn gelu_tanh_is_its_approximation() {
        for x in [0.0f64, 0.5, -0.5, 2.0, -3.0, 20.0, -20.0] {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let expected = 0.5 * x * (1.0 + z.tanh());
            assert!((f64::from(of(gelu_tanh, x as f32)) - expected).abs() < 1e-6, "{x}");
        }
    }
}
