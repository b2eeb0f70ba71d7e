use rayon::prelude::*;
use tandem_kernels::{sum, sum_of_squares};

use super::ROWS_PER_TASK;

/// Moves each row to a mean of zero and scales it to a variance of one, then scales and moves each column.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    /// `weight` and `bias` are of one width.
    pub(crate) fn new(weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Self {
        Self { weight, bias, eps }
    }

    /// Normalizes rows in place.
    pub(crate) fn apply(&self, rows: &mut [f32]) {
        let rows = rows.par_chunks_exact_mut(self.weight.len()).with_min_len(ROWS_PER_TASK);
        rows.for_each(|row| self.apply_to_row(row));
    }

    /// The same for the sums of `rows` and `deltas`.
    pub(crate) fn apply_to_sums(&self, rows: &mut [f32], deltas: &[f32]) {
        let width = self.weight.len();
        let rows = rows.par_chunks_exact_mut(width).zip(deltas.par_chunks_exact(width)).with_min_len(ROWS_PER_TASK);
        rows.for_each(|(row, deltas)| {
            row.iter_mut().zip(deltas).for_each(|(x, delta)| *x += delta);
            self.apply_to_row(row);
        });
    }

    /// The mean goes first: squares of what is far from zero would swallow the variance.
    fn apply_to_row(&self, row: &mut [f32]) {
        let mean = sum(row) / row.len() as f32;
        row.iter_mut().for_each(|x| *x -= mean);
        let scale = 1.0 / (sum_of_squares(row) / row.len() as f32 + self.eps).sqrt();
        for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
            *x = *x * scale * weight + bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_moved_and_scaled() {
        let norm = LayerNorm::new(vec![1.0, 2.0, 1.0], vec![0.0, 0.5, -1.0], 0.0);
        let mut rows = [1001.0, 1002.0, 1003.0, 4.0, 4.0, 10.0];
        norm.apply(&mut rows);
        let unit = 1.5f32.sqrt();
        let other = [-0.5f32.sqrt(), 0.5 - 2.0 * 0.5f32.sqrt(), 2.0f32.sqrt() - 1.0];
        for (got, expected) in rows.iter().zip([-unit, 0.5, unit - 1.0].iter().chain(&other)) {
            assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
        }
    }

    #[test]
    fn sums_are_normalized() {
        let norm = LayerNorm::new(vec![1.0; 3], vec![0.0; 3], 1e-12);
        let (mut sums, mut rows) = ([5.0, -1.0, 2.0], [4.0, 0.0, 0.0]);
        norm.apply(&mut sums);
        norm.apply_to_sums(&mut rows, &[1.0, -1.0, 2.0]);
        assert_eq!(rows, sums);
    }
}
