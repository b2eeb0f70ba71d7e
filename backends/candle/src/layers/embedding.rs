use candle_core::{Result, Tensor};
use tandem_core::TokenId;

use super::{Linear, linear::with_values};

/// The vector of each token, in F32 as `[tokens, width]`.
#[derive(Debug)]
pub(crate) struct Embedding {
    weight: Tensor,
}

impl Embedding {
    pub(crate) fn new(weight: Tensor) -> Self {
        Self { weight }
    }

    /// Replaces `y` by the vectors of `tokens`, one row each.
    pub(crate) fn forward(&self, tokens: &[TokenId], y: &mut Vec<f32>) -> Result<()> {
        y.clear();
        let (_, width) = self.weight.dims2()?;
        with_values(&self.weight, |rows| {
            tokens.iter().for_each(|&token| y.extend_from_slice(&rows[token as usize * width..][..width]));
        })
    }

    /// The layer that turns hidden states into logits by the same weights, which are not copied.
    pub(crate) fn head(&self) -> Result<Linear> {
        Linear::new(self.weight.clone(), None)
    }
}
