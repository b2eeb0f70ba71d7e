use rayon::prelude::*;

use super::ROWS_PER_TASK;
use crate::kernels::dots;

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
            let [[squares]] = dots([x], [x]);
            let scale = 1.0 / (squares / width as f32 + self.eps).sqrt();
            for ((y, x), weight) in y.iter_mut().zip(x).zip(&self.weight) {
                *y = x * scale * weight;
            }
        });
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
}
