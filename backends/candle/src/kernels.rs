//! The inner loops, in safe Rust written so that the compiler turns them into vector instructions.

/// Floats that one accumulator holds: a register of AVX2. Wider ones spill the larger tiles to memory, at a tenth of the speed.
const LANES: usize = 8;

/// The inner products of `R` rows with `C` columns, all of one length.
///
/// A tile rather than single products: each value that is loaded is used `C` or `R` times, and the accumulators hide each other's latency.
pub(crate) fn dots<const R: usize, const C: usize>(rows: [&[f32]; R], columns: [&[f32]; C]) -> [[f32; C]; R] {
    let len = columns[0].len();
    let (whole, tail) = (len / LANES, len - len % LANES);
    let row_lanes = rows.map(|row| &row.as_chunks::<LANES>().0[..whole]);
    let column_lanes = columns.map(|column| &column.as_chunks::<LANES>().0[..whole]);
    let mut sums = [[[0.0; LANES]; C]; R];
    for at in 0..whole {
        for (sums, row) in sums.iter_mut().zip(&row_lanes) {
            for (sum, column) in sums.iter_mut().zip(&column_lanes) {
                for lane in 0..LANES {
                    sum[lane] = multiply_add(row[at][lane], column[at][lane], sum[lane]);
                }
            }
        }
    }
    let mut products = sums.map(|sums| sums.map(|lanes| lanes.iter().sum()));
    for (products, row) in products.iter_mut().zip(&rows) {
        for (product, column) in products.iter_mut().zip(&columns) {
            let rest = std::iter::zip(&row[tail..len], &column[tail..]);
            *product = rest.fold(*product, |sum, (&a, &b)| multiply_add(a, b, sum));
        }
    }
    products
}

/// The sum of all values.
pub(crate) fn sum(values: &[f32]) -> f32 {
    let (lanes, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for lanes in lanes {
        for (sum, value) in sums.iter_mut().zip(lanes) {
            *sum += value;
        }
    }
    sums.iter().chain(rest).sum()
}

/// `e` to the power of `x` within a few units in the last place, without a branch. Infinities are taken for the largest and the smallest
/// power that a normal float can hold; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, so that r keeps its last bits.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = multiply_add(n, -LN_2_LOW, multiply_add(n, -LN_2_HIGH, x));
    // The Taylor series to the seventh power: its remainder is below half a unit in the last place.
    let mut power = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = multiply_add(power, r, coefficient);
    }
    power * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// `a * b + c`, fused where the machine can; elsewhere fusing would call a library function for each.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(got: f32, expected: f64, scale: f64) -> bool {
        (f64::from(got) - expected).abs() <= 1e-5 * scale + 1e-30
    }

    proptest! {
        #[test]
        fn tiles_are_inner_products(len in 0usize..70, seed in any::<u64>()) {
            let value = |row: u64, at: usize| tandem_core::sampling::uniform(seed ^ row, at as u32) - 0.5;
            let vectors: Vec<Vec<f32>> = (0..5).map(|row| (0..len).map(|at| value(row, at)).collect()).collect();
            let (rows, columns) = ([&vectors[0][..], &vectors[1], &vectors[2]], [&vectors[3][..], &vectors[4]]);
            let got = dots(rows, columns);
            for (row, got) in rows.iter().zip(got) {
                for (column, got) in columns.iter().zip(got) {
                    let products = row.iter().zip(*column).map(|(&a, &b)| f64::from(a) * f64::from(b));
                    prop_assert!(close(got, products.clone().sum(), products.map(f64::abs).sum()));
                }
            }
        }

        #[test]
        fn exponentials_are_exact_to_a_few_units(x in -87.0f32..88.0) {
            let expected = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) - expected).abs() <= 4e-7 * expected, "exp({x})");
        }
    }

    #[test]
    fn sums_are_of_all_values() {
        for len in 0..30 {
            let values: Vec<_> = (0..len as u8).map(f32::from).collect();
            assert_eq!(sum(&values), (0..len).sum::<usize>() as f32);
        }
    }

    #[test]
    fn exponentials_of_what_is_not_finite() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::INFINITY) > 1e38);
        assert_eq!(exp(0.0), 1.0);
    }
}
