//! Loops over values one by one, for what lies between products. A result depends on its values alone, and sums on their number.

use crate::{
    PANEL, exponential,
    isa::{Isa, Work, dispatch},
};

/// Replaces each value by `e` to its power, within a few units in the last place. Powers that no normal float can hold are the smallest or
/// the largest that one does; NaN stays NaN.
pub fn exp(values: &mut [f32]) {
    dispatch(Exp(values));
}

/// The sum of all values.
#[must_use]
pub fn sum(values: &[f32]) -> f32 {
    dispatch(Sum(values))
}

/// The sum of the squares of all values.
#[must_use]
pub fn sum_of_squares(values: &[f32]) -> f32 {
    dispatch(SumOfSquares(values))
}

struct Exp<'a>(&'a mut [f32]);

impl Work for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (whole, rest) = self.0.as_chunks_mut();
        for values in whole {
            *values = isa.store(exponential::exp(isa, isa.load(values)));
        }
        let powers = isa.store(exponential::exp(isa, isa.load(&filled(rest))));
        rest.copy_from_slice(&powers[..rest.len()]);
    }
}

#[derive(Clone, Copy)]
struct Sum<'a>(&'a [f32]);

impl Work for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let (whole, rest) = self.0.as_chunks();
        let sums = whole.iter().fold(isa.load(&filled(rest)), |sums, values| isa.add(sums, isa.load(values)));
        isa.sum(sums)
    }
}

#[derive(Clone, Copy)]
struct SumOfSquares<'a>(&'a [f32]);

impl Work for SumOfSquares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let (whole, rest) = self.0.as_chunks();
        let rest = isa.load(&filled(rest));
        let sums = whole.iter().fold(isa.mul(rest, rest), |sums, values| {
            let values = isa.load(values);
            isa.mul_add(values, values, sums)
        });
        isa.sum(sums)
    }
}

/// The values that are no whole vector, and zeros.
#[inline(always)]
fn filled(values: &[f32]) -> [f32; PANEL] {
    let mut filled = [0.0; PANEL];
    filled[..values.len()].copy_from_slice(values);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;

    #[test]
    fn all_values_count_whatever_their_number() {
        for len in 0..50u8 {
            let values: Vec<f32> = (0..len).map(|at| f32::from(at) - 7.0).collect();
            let expected: f32 = values.iter().sum();
            assert!(on_each(Sum(&values)).into_iter().all(|sum| sum == expected), "{len}");
            let expected: f32 = values.iter().map(|value| value * value).sum();
            assert!(on_each(SumOfSquares(&values)).into_iter().all(|sum| sum == expected), "{len}");
            let mut powers = values.clone();
            exp(&mut powers);
            for (value, power) in values.iter().zip(powers) {
                assert!((power - value.exp()).abs() <= 1e-6 * value.exp(), "{power} for {value}");
            }
        }
    }
}
