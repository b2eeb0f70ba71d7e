use std::ops::Range;

use rayon::prelude::*;
use tandem_kernels::sum_of_squares;

use super::ROWS_PER_TASK;

/// Scales each row to a root mean square of one, then each column by its weight.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    pub(crate) fn new(weight: Vec<f32>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// Replaces `y` by the normalized rows of `x`.
    pub(crate) fn forward(&self, x: &[f32], y: &mut Vec<f32>) {
        let width = self.weight.len();
        y.resize(x.len(), 0.0);
        let rows = x.par_chunks_exact(width).zip(y.par_chunks_exact_mut(width));
        rows.with_min_len(ROWS_PER_TASK).for_each(|(x, y)| {
            let scale = self.scale(x);
            for ((y, x), weight) in y.iter_mut().zip(x).zip(&self.weight) {
                *y = x * scale * weight;
            }
        });
    }

    /// Normalizes some columns of each of the `row_width` wide rows in place: each run of as many as there are weights by itself.
    pub(crate) fn apply(&self, rows: &mut [f32], row_width: usize, columns: Range<usize>) {
        rows.par_chunks_exact_mut(row_width).with_min_len(ROWS_PER_TASK).for_each(|row| {
            for run in row[columns.clone()].chunks_exact_mut(self.weight.len()) {
                let scale = self.scale(run);
                run.iter_mut().zip(&self.weight).for_each(|(x, weight)| *x = *x * scale * weight);
            }
        });
    }

    /// Normalizes rows in place.
    pub(crate) fn apply_to_rows(&self, rows: &mut [f32]) {
        self.apply(rows, self.weight.len(), 0..self.weight.len());
    }

    fn scale(&self, x: &[f32]) -> f32 {
        1.0 / (sum_of_squares(x) / x.len() as f32 + self.eps).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_scaled_by_their_root_mean_square() {
        let mut y = Vec::new();
        RmsNorm::new(vec![1.0, 2.0], 0.0).forward(&[3.0, 4.0, 0.5, 0.5], &mut y);
        let rms = 12.5f32.sqrt();
        for (got, expected) in y.iter().zip([3.0 / rms, 8.0 / rms, 1.0, 2.0]) {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
    }

    #[test]
    fn runs_of_columns_are_normalized_by_themselves() {
        let mut rows = [9.0, 3.0, 4.0, 0.5, 0.5, 9.0];
        RmsNorm::new(vec![1.0, 2.0], 0.0).apply(&mut rows, 6, 1..5);
        let rms = 12.5f32.sqrt();
        for (got, expected) in rows.iter().zip([9.0, 3.0 / rms, 8.0 / rms, 1.0, 2.0, 9.0]) {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
    }
}
