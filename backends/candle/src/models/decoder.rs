use tandem_core::LoadError;

use super::layer::{Layer, LayerBuffers};
use crate::{
    config::{DecoderConfig, Head, LogitMap, NormWeight, Rope},
    layers::{Embedding, Linear, RmsNorm, RotaryEmbedding, Rotation, soft_cap},
    paged::{KvCache, Ragged},
    weights::Weights,
};

/// A decoder as its description says: attention and an MLP by turns, between the vectors of tokens and logits.
#[derive(Debug)]
pub(crate) struct Decoder {
    embedding: Embedding,
    embedding_scale: f32,
    /// The angles that layers have in common.
    ropes: Vec<RotaryEmbedding>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    logits: LogitMap,
    width: usize,
    buffers: Buffers,
}

/// Activations, one row per token, which live from step to step.
#[derive(Debug, Default)]
struct Buffers {
    hidden: Vec<f32>,
    /// The rows that logits are wanted of.
    sampled: Vec<f32>,
    normed: Vec<f32>,
    layer: LayerBuffers,
}

impl Decoder {
    /// Takes its weights for sequences of up to `context` tokens.
    pub(crate) fn load(config: &DecoderConfig, context: u32, mut weights: Weights) -> Result<Self, LoadError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights.embedding("model.embed_tokens.weight", vocab, hidden)?;
        let ropes = distinct_ropes(config);
        let layer = |(at, layer)| Layer::load(config, layer, at, &ropes, &mut weights);
        let layers = config.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        let norm = norm(config, &mut weights, "model.norm", hidden)?;
        let head = match config.head {
            Head::Tied => embedding.head().map_err(refused)?,
            Head::Own => weights.linear(&[("lm_head", vocab)], hidden, false)?,
        };
        // Old files carry the rotary frequencies, which follow from the configuration, and some a copy of the tied embedding.
        let tied = config.head == Head::Tied;
        weights.finish(|name| name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight"))?;
        Ok(Self {
            embedding,
            embedding_scale: config.embedding_scale,
            ropes: ropes.iter().map(|rope| RotaryEmbedding::new(rope, config.head_dim, context)).collect(),
            layers,
            norm,
            head,
            logits: config.logits,
            width: hidden,
            buffers: Buffers::default(),
        })
    }

    /// One pass: fills the cache with the K and V of all tokens, and replaces `logits` by one row for each sampled one.
    pub(crate) fn forward(
        &mut self,
        ragged: &Ragged<'_>,
        cache: &mut KvCache,
        logits: &mut Vec<f32>,
    ) -> candle_core::Result<()> {
        let Buffers { hidden, sampled, normed, layer: buffers } = &mut self.buffers;
        self.embedding.forward(&ragged.tokens, hidden)?;
        if self.embedding_scale != 1.0 {
            hidden.iter_mut().for_each(|value| *value *= self.embedding_scale);
        }
        let rotations: Vec<Rotation> = self.ropes.iter().map(|rope| rope.rotation(&ragged.positions)).collect();
        for (layer, cache) in self.layers.iter().zip(cache.layers_mut()) {
            layer.forward(hidden, ragged, &rotations, cache, buffers)?;
        }
        // Only these rows are worth the product with the whole vocabulary.
        sampled.clear();
        for &row in &ragged.sampled {
            sampled.extend_from_slice(&hidden[row * self.width..][..self.width]);
        }
        self.norm.forward(sampled, normed);
        self.head.forward(normed, logits)?;
        match self.logits {
            LogitMap::Plain => {}
            LogitMap::Divided(divisor) => logits.iter_mut().for_each(|logit| *logit /= divisor),
            LogitMap::Capped(cap) => soft_cap(logits, cap),
        }
        Ok(())
    }
}

/// A norm over `width` values.
pub(super) fn norm(
    config: &DecoderConfig,
    weights: &mut Weights,
    name: &str,
    width: usize,
) -> Result<RmsNorm, LoadError> {
    let mut weight = weights.vector(&format!("{name}.weight"), width)?;
    match config.norm_weight {
        NormWeight::Factor => {}
        NormWeight::FactorLessOne => weight.iter_mut().for_each(|weight| *weight += 1.0),
    }
    Ok(RmsNorm::new(weight, config.norm_eps))
}

/// The angles of all layers, each once.
fn distinct_ropes(config: &DecoderConfig) -> Vec<&Rope> {
    let mut ropes = Vec::new();
    for rope in config.layers.iter().filter_map(|layer| layer.rope.as_ref()) {
        if !ropes.contains(&rope) {
            ropes.push(rope);
        }
    }
    ropes
}

fn refused(error: candle_core::Error) -> LoadError {
    LoadError::Other { context: "candle refused a weight".to_owned(), source: error.into() }
}
