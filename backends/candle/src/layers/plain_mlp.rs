use rayon::prelude::*;

use super::{Linear, ROWS_PER_TASK, gelu};
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
            EncoderActivation::Gelu => self.activate(inner, gelu::gelu),
            EncoderActivation::GeluTanh => self.activate(inner, gelu::gelu_tanh),
        }
        self.outer.forward(inner, y);
    }

    fn activate(&self, inner: &mut [f32], activation: impl Fn(f32) -> f32 + Sync) {
        let rows = inner.par_chunks_exact_mut(self.width).with_min_len(ROWS_PER_TASK);
        rows.for_each(|row| row.iter_mut().for_each(|x| *x = activation(*x)));
    }
}
