use rayon::prelude::*;

use super::ROWS_PER_TASK;
use crate::kernels::exp;

/// Replaces `y` by `silu(gate) * up`, where each row of `gate_up` holds `width` gates and then `width` values.
pub(crate) fn swiglu(gate_up: &[f32], width: usize, y: &mut Vec<f32>) {
    y.resize(gate_up.len() / 2, 0.0);
    let rows = gate_up.par_chunks_exact(2 * width).zip(y.par_chunks_exact_mut(width));
    rows.with_min_len(ROWS_PER_TASK).for_each(|(gate_up, y)| {
        let (gate, up) = gate_up.split_at(width);
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp(-gate)) * up;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_scale_values() {
        let mut y = Vec::new();
        swiglu(&[0.0, 1.0, 100.0, -100.0, 5.0, 3.0, 2.0, 7.0], 4, &mut y);
        for (got, expected) in y.iter().zip([0.0, 3.0 / (1.0 + (-1.0f32).exp()), 200.0, 0.0]) {
            assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
        }
    }
}
