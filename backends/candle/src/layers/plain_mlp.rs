use rayon::prelude::*;

use super::{
    Linear, ROWS_PER_TASK,
    activation::{gelu, gelu_tanh},
};
use crate::config::EncoderActivation;

/// An MLP without a gate: a projection, activated, and another that leads back.
#[derive(Debug)]
pub(crate) struct PlainMlp {
    inner: Linear,
    outer: Linear,
    width: usize,
    activation: EncoderActivation,
}

impl PlainMlp {
    /// `width` is that of the inner state.
    pub(crate) fn new(inner: Linear, outer: Linear, width: usize, activation: EncoderActivation) -> Self {
        Self { inner, outer, width, activation }
    }

    /// Replaces `y` by the results of the rows of `x`; `inner` is room for what is between.
    pub(crate) fn forward(&self, x: &[f32], inner: &mut Vec<f32>, y: &mut Vec<f32>) {
        self.inner.forward(x, inner);
        match self.activation {
            EncoderActivation::Gelu => self.activate(inner, gelu),
            EncoderActivation::GeluTanh => self.activate(inner, gelu_tanh),
        }
        self.outer.forward(inner, y);
    }

    fn activate(&self, inner: &mut [f32], activation: fn(&[f32], &mut [f32])) {
        let rows = inner.par_chunks_exact_mut(self.width).with_min_len(ROWS_PER_TASK);
        rows.for_each_init(
            || vec![0.0; self.width],
            |activated, row| {
                activation(row, activated);
                row.copy_from_slice(activated);
            },
        );
    }
}
