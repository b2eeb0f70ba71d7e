use rayon::prelude::*;

use super::{
    Linear, ROWS_PER_TASK,
    activation::{gelu_tanh, silu},
};
use crate::config::Activation;

/// A gated MLP: one projection, activated, scales another, and a third leads back.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// Gate and up projection as one product.
    gate_up: Linear,
    down: Linear,
    width: usize,
    activation: Activation,
}

/// Activations of an MLP, which live from step to step.
#[derive(Debug, Default)]
pub(crate) struct MlpBuffers {
    gate_up: Vec<f32>,
    gated: Vec<f32>,
}

impl Mlp {
    /// `width` is that of the inner state.
    pub(crate) fn new(gate_up: Linear, down: Linear, width: usize, activation: Activation) -> Self {
        Self { gate_up, down, width, activation }
    }

    /// Replaces `y` by the results of the rows of `x`.
    pub(crate) fn forward(&self, x: &[f32], buffers: &mut MlpBuffers, y: &mut Vec<f32>) {
        let MlpBuffers { gate_up, gated } = buffers;
        self.gate_up.forward(x, gate_up);
        match self.activation {
            Activation::Silu => gate(gate_up, self.width, gated, silu),
            Activation::GeluTanh => gate(gate_up, self.width, gated, gelu_tanh),
        }
        self.down.forward(gated, y);
    }
}

/// Replaces `y` by `activation(gate) * up`, where each row of `gate_up` holds `width` gates and then `width` values.
fn gate(gate_up: &[f32], width: usize, y: &mut Vec<f32>, activation: fn(&[f32], &mut [f32])) {
    y.resize(gate_up.len() / 2, 0.0);
    let rows = gate_up.par_chunks_exact(2 * width).zip(y.par_chunks_exact_mut(width));
    rows.with_min_len(ROWS_PER_TASK).for_each(|(gate_up, y)| {
        let (gate, up) = gate_up.split_at(width);
        activation(gate, y);
        y.iter_mut().zip(up).for_each(|(y, up)| *y *= up);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_scale_values() {
        let mut y = Vec::new();
        gate(&[0.0, 1.0, 100.0, -100.0, 5.0, 3.0, 2.0, 7.0], 4, &mut y, silu);
        for (got, expected) in y.iter().zip([0.0, 3.0 / (1.0 + (-1.0f32).exp()), 200.0, 0.0]) {
            assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
        }
    }
}
