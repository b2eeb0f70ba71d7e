use std::sync::Arc;

use rayon::prelude::*;
use tandem_core::TokenId;
use tandem_kernels::Packed;

use super::{Linear, ROWS_PER_TASK};

/// The vector of each token.
#[derive(Debug)]
pub(crate) struct Embedding {
    weight: Arc<Packed>,
}

impl Embedding {
    /// The weight has an output for each token.
    pub(crate) fn new(weight: Packed) -> Self {
        Self { weight: Arc::new(weight) }
    }

    /// Replaces `y` by the vectors of `tokens`, one row each.
    pub(crate) fn forward(&self, tokens: &[TokenId], y: &mut Vec<f32>) {
        let width = self.weight.inputs();
        y.resize(tokens.len() * width, 0.0);
        let rows = tokens.par_iter().zip(y.par_chunks_exact_mut(width)).with_min_len(ROWS_PER_TASK);
        rows.for_each(|(&token, row)| self.weight.row(token as usize, row));
    }

    /// The layer that turns hidden states into logits by the same weights, which are not copied.
    pub(crate) fn head(&self) -> Linear {
        Linear::new(Arc::clone(&self.weight))
    }
}
