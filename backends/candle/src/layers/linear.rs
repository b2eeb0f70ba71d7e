use std::sync::Arc;

use tandem_kernels::Packed;

/// `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Arc<Packed>,
}

impl Linear {
    /// `weight` may be shared with another layer, as that of tied embeddings is.
    pub(crate) fn new(weight: Arc<Packed>) -> Self {
        Self { weight }
    }

    /// Replaces `y` by the product of all rows of `x`.
    pub(crate) fn forward(&self, x: &[f32], y: &mut Vec<f32>) {
        self.weight.forward(x, y);
    }
}
