use crate::isa::Isa;

/// `e` to the power of each value, within a few units in the last place. Powers that no normal float can hold are the smallest or the
/// largest that one does; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<I: Isa>(isa: I, x: I::Floats) -> I::Floats {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, so that r keeps its last bits.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting this rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let negated = |x| isa.mul(x, isa.splat(-1.0));
    // `max` gives its second operand where one is NaN, so that it survives.
    let x = isa.max(isa.splat(-87.0), x);
    let x = negated(isa.max(isa.splat(-88.0), negated(x)));
    let n = isa.add(isa.mul_add(x, isa.splat(std::f32::consts::LOG2_E), isa.splat(ROUND)), isa.splat(-ROUND));
    let r = isa.mul_add(n, isa.splat(-LN_2_LOW), isa.mul_add(n, isa.splat(-LN_2_HIGH), x));
    // The Taylor series to the seventh power: its remainder is below half a unit in the last place.
    let mut power = isa.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = isa.mul_add(power, r, isa.splat(coefficient));
    }
    isa.scale(power, n)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        PANEL,
        isa::{Work, on_each},
    };

    #[derive(Clone, Copy)]
    struct Exp([f32; PANEL]);

    impl Work for Exp {
        type Output = [f32; PANEL];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Self::Output {
            isa.store(exp(isa, isa.load(&self.0)))
        }
    }

    proptest! {
        #[test]
        fn exponentials_are_exact_to_a_few_units(x in prop::array::uniform16(-86.9f32..87.9)) {
            for powers in on_each(Exp(x)) {
                for (x, power) in x.iter().zip(powers) {
                    let expected = f64::from(*x).exp();
                    prop_assert!((f64::from(power) - expected).abs() <= 5e-7 * expected, "exp({}) is {}", x, power);
                }
            }
        }
    }

    #[test]
    fn exponentials_of_what_is_not_finite() {
        let mut x = [0.0; PANEL];
        x[..3].copy_from_slice(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY]);
        for [nan, small, large, one, ..] in on_each(Exp(x)) {
            assert!(nan.is_nan());
            assert!((0.0..1e-37).contains(&small));
            assert!(large > 1e38 && large.is_finite());
            assert_eq!(one, 1.0);
        }
    }
}
