use tandem_core::LoadError;

use super::trunk::{Trunk, is_derived};
use crate::{
    config::{DecoderConfig, Head, LogitMap},
    layers::{Linear, soft_cap},
    paged::{KvCache, Ragged},
    weights::Weights,
};

/// A decoder as its description says: hidden states of tokens, and logits for those that a token is sampled after.
#[derive(Debug)]
pub(crate) struct Decoder {
    trunk: Trunk,
    head: Linear,
    logits: LogitMap,
}

impl Decoder {
    /// Takes its weights for sequences of up to `context` tokens.
    pub(crate) fn load(config: &DecoderConfig, context: u32, mut weights: Weights) -> Result<Self, LoadError> {
        let trunk = Trunk::load(config, context, "model.", &mut weights)?;
        let head = match config.head {
            Head::Tied => trunk.tied_head(),
            Head::Own => weights.linear(&[("lm_head", config.vocab_size)], config.hidden_size, false)?,
        };
        // Some files carry a copy of the tied embedding.
        let tied = config.head == Head::Tied;
        weights.finish(|name| is_derived(name) || (tied && name == "lm_head.weight"))?;
        Ok(Self { trunk, head, logits: config.logits })
    }

    /// One pass: fills the cache with the K and V of all tokens, and replaces `logits` by one row for each sampled one.
    pub(crate) fn forward(&mut self, ragged: &Ragged, cache: &mut KvCache, logits: &mut Vec<f32>) {
        // Only the sampled rows are worth the product with the whole vocabulary.
        self.head.forward(self.trunk.forward(ragged, cache, Some(&ragged.sampled)), logits);
        match self.logits {
            LogitMap::Plain => {}
            LogitMap::Divided(divisor) => logits.iter_mut().for_each(|logit| *logit /= divisor),
            LogitMap::Capped(cap) => soft_cap(logits, cap),
        }
    }
}
