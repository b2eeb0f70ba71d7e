//! Passes over whole rows, written so that the compiler makes vector code of them and that their results do not depend on which: sums have
//! a fixed number of lanes, and products are not fused with sums.

use crate::TokenId;

/// Elements whose sum is taken in single precision before it is added in double.
pub(super) const BLOCK: usize = 256;
const LANES: usize = 16;

/// Below this `exp` is 0: the result would not be a normal number.
const LOWEST: f32 = -87.336_54;

/// `e` to the power of `x`, for `x` of at most 0; within 2.5e-7 of it, relatively, and 0 below -87.3.
///
/// Reduction to a power of two times `exp` of at most half of ln 2, and a polynomial of degree five for that (Cephes' `expf`, Moshier 1989).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = clamped - power * 0.693_359_4;
    let r = r + power * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    p = p * (r * r) + r + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x > LOWEST { scaled } else { 0.0 }
}

/// The largest of a row; `None` when one is NaN or positively infinite, or none is finite.
pub(super) fn finite_max(row: &[f32]) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [0u32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
            nan[lane] |= u32::from(chunk[lane].is_nan());
        }
    }
    let any_nan = nan.iter().any(|nan| *nan != 0) || rest.iter().any(|value| value.is_nan());
    let max = max.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    (!any_nan && max.is_finite()).then_some(max)
}

/// The first place of `value`, which is in the row.
pub(super) fn position(row: &[f32], value: f32) -> usize {
    const RUN: usize = 64;
    let (runs, _) = row.as_chunks::<RUN>();
    let holds = |run: &[f32; RUN]| run.iter().fold(false, |found, one| found | (*one == value));
    let start = runs.iter().position(holds).unwrap_or(runs.len()) * RUN;
    start + row[start..].iter().position(|one| *one == value).unwrap_or(0)
}

/// How many elements are such.
pub(super) fn count(row: &[f32], is: impl Fn(f32) -> bool) -> usize {
    row.chunks(BLOCK).map(|block| block.iter().map(|one| u32::from(is(*one))).sum::<u32>() as usize).sum()
}

/// Calls `found` for each element that is such, quickly where few are.
pub(super) fn find(row: &[f32], is: impl Fn(f32) -> bool, mut found: impl FnMut(TokenId, f32)) {
    const RUN: usize = 32;
    for (run, start) in row.chunks(RUN).zip((0..).step_by(RUN)) {
        if run.iter().fold(false, |any, one| any | is(*one)) {
            for (token, &one) in std::iter::zip(start.., run).filter(|(_, one)| is(**one)) {
                found(token, one);
            }
        }
    }
}

/// The largest of each `RUN` elements; the last run may be shorter.
pub(super) fn maxima<const RUN: usize>(row: &[f32], out: &mut Vec<f32>) {
    let max = |run: &[f32]| {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = run.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        // Halved until one is left, which stays vector code for longer than one after the other.
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] = if lanes[lane + width] > lanes[lane] { lanes[lane + width] } else { lanes[lane] };
            }
            width /= 2;
        }
        rest.iter().fold(lanes[0], |max, one| if *one > max { *one } else { max })
    };
    let (runs, rest) = row.as_chunks::<RUN>();
    out.clear();
    out.extend(runs.iter().map(|run| max(run)));
    if !rest.is_empty() {
        out.push(max(rest));
    }
}

/// The weights `exp((logit - max) * scale)`, into `weights`.
pub(super) fn weigh(row: &[f32], max: f32, scale: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(row.iter().map(|logit| exp((logit - max) * scale)));
}

/// The sum of each [`BLOCK`] of the row, into `sums`; and of all.
pub(super) fn sum_blocks(row: &[f32], sums: &mut Vec<f64>) -> f64 {
    sums.clear();
    sums.extend(row.chunks(BLOCK).map(sum));
    sums.iter().sum()
}

/// The logarithm of the sum of a row's exponentials.
pub(super) fn log_sum_exp(row: &[f32], max: f32) -> f32 {
    let mut weights = [0.0; BLOCK];
    let mut total = 0.0;
    for block in row.chunks(BLOCK) {
        for (weight, logit) in weights.iter_mut().zip(block) {
            *weight = exp(logit - max);
        }
        total += sum(&weights[..block.len()]);
    }
    max + total.ln() as f32
}

/// The sum of at most [`BLOCK`] numbers.
fn sum(block: &[f32]) -> f64 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    lanes.iter().chain(rest).map(|one| f64::from(*one)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_as_near_as_it_says() {
        let mut worst = 0f64;
        for step in 0..=2_000_000u32 {
            let x = -87.3 * (step as f32 / 2_000_000.0);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        for x in [-88.0, -1e9, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0);
        }
    }

    #[test]
    fn the_first_of_the_largest_is_found_wherever_it_stands() {
        for len in [1, 15, 16, 17, 63, 64, 65, 200] {
            for at in 0..len {
                let mut row = vec![-1.0; len];
                row[at] = 3.0;
                row[len - 1] = 3.0;
                assert_eq!(finite_max(&row), Some(3.0));
                assert_eq!(position(&row, 3.0), at);
                row[at] = f32::NAN;
                assert_eq!(finite_max(&row), None);
            }
        }
    }

    #[test]
    fn sums_are_those_of_the_exponentials() {
        for len in [1usize, 31, 256, 257, 5_000] {
            let row: Vec<f32> = (0..len).map(|at| -(at as f32 % 37.0) / 5.0).collect();
            let exact: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            assert!((f64::from(log_sum_exp(&row, 0.0)) - exact.ln()).abs() < 1e-5);
            let (mut weights, mut sums) = (Vec::new(), Vec::new());
            weigh(&row, 0.0, 1.0, &mut weights);
            let total = sum_blocks(&weights, &mut sums);
            assert!((total / exact - 1.0).abs() < 1e-5);
            assert_eq!(sums.len(), len.div_ceil(BLOCK));
        }
    }
}
