use tandem_core::LoadError;

use super::layer::{Layer, LayerBuffers};
use crate::{
    config::{DecoderConfig, NormWeight, Rope},
    layers::{Embedding, Linear, RmsNorm, RotaryEmbedding, Rotation},
    paged::{KvCache, Ragged},
    weights::Weights,
};

/// A decoder without what makes logits of its hidden states: attention and an MLP by turns, and the last norm.
#[derive(Debug)]
pub(crate) struct Trunk {
    embedding: Embedding,
    embedding_scale: f32,
    /// The angles that layers have in common.
    ropes: Vec<RotaryEmbedding>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    width: usize,
    buffers: Buffers,
}

/// Activations, one row per token, which live from step to step.
#[derive(Debug, Default)]
struct Buffers {
    hidden: Vec<f32>,
    /// The rows that are wanted.
    wanted: Vec<f32>,
    normed: Vec<f32>,
    layer: LayerBuffers,
}

impl Trunk {
    /// Takes its weights for sequences of up to `context` tokens; `root` is what their names begin with.
    pub(super) fn load(
        config: &DecoderConfig,
        context: u32,
        root: &str,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights.embedding(&format!("{root}embed_tokens.weight"), vocab, hidden)?;
        let ropes = distinct_ropes(config);
        let mut load = |(at, layer)| Layer::load(config, layer, format!("{root}layers.{at}"), &ropes, weights);
        let layers = config.layers.iter().enumerate().map(&mut load).collect::<Result<_, _>>()?;
        let norm = norm(config, weights, &format!("{root}norm"), hidden)?;
        Ok(Self {
            embedding,
            embedding_scale: config.embedding_scale,
            ropes: ropes.iter().map(|rope| RotaryEmbedding::new(rope, config.head_dim, context)).collect(),
            layers,
            norm,
            width: hidden,
            buffers: Buffers::default(),
        })
    }

    /// That of an embedding model, whose files may have been saved as a part of a model with a head or without one.
    pub(crate) fn load_alone(config: &DecoderConfig, context: u32, mut weights: Weights) -> Result<Self, LoadError> {
        let root = if weights.has("model.embed_tokens.weight") { "model." } else { "" };
        let trunk = Self::load(config, context, root, &mut weights)?;
        weights.finish(|name| is_derived(name) || name == "lm_head.weight")?;
        Ok(trunk)
    }

    /// The layer that turns hidden states into logits by the vectors of the tokens.
    pub(super) fn tied_head(&self) -> Linear {
        self.embedding.head()
    }

    /// One pass: fills the cache with the K and V of all tokens, and gives the hidden states, normalised, of the tokens in `rows`; of all
    /// where there are none given.
    pub(crate) fn forward(&mut self, ragged: &Ragged, cache: &mut KvCache, rows: Option<&[usize]>) -> &[f32] {
        let Buffers { hidden, wanted, normed, layer: buffers } = &mut self.buffers;
        self.embedding.forward(&ragged.tokens, hidden);
        if self.embedding_scale != 1.0 {
            hidden.iter_mut().for_each(|value| *value *= self.embedding_scale);
        }
        let rotations: Vec<Rotation> = self.ropes.iter().map(|rope| rope.rotation(&ragged.positions)).collect();
        let spans = ragged.spans();
        for (at, layer) in self.layers.iter().enumerate() {
            layer.forward(hidden, &ragged.slots, &spans, &rotations, cache.layer_mut(at), buffers);
        }
        match rows {
            None => self.norm.forward(hidden, normed),
            Some(rows) => {
                wanted.clear();
                for &row in rows {
                    wanted.extend_from_slice(&hidden[row * self.width..][..self.width]);
                }
                self.norm.forward(wanted, normed);
            }
        }
        normed
    }
}

/// Whether a tensor holds the rotary frequencies, which old files carry though they follow from the configuration.
pub(crate) fn is_derived(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// A norm over `width` values.
pub(super) fn norm(
    config: &DecoderConfig,
    weights: &mut Weights,
    name: &str,
    width: usize,
) -> Result<RmsNorm, LoadError> {
    Ok(RmsNorm::new(norm_weight(config, weights, name, width)?, config.norm_eps))
}

/// The factors of a norm over `width` values.
pub(crate) fn norm_weight(
    config: &DecoderConfig,
    weights: &mut Weights,
    name: &str,
    width: usize,
) -> Result<Vec<f32>, LoadError> {
    let mut weight = weights.vector(&format!("{name}.weight"), width)?;
    match config.norm_weight {
        NormWeight::Factor => {}
        NormWeight::FactorLessOne => weight.iter_mut().for_each(|weight| *weight += 1.0),
    }
    Ok(weight)
}

/// The angles of all layers, each once.
pub(crate) fn distinct_ropes(config: &DecoderConfig) -> Vec<&Rope> {
    let mut ropes = Vec::new();
    for rope in config.layers.iter().filter_map(|layer| layer.rope.as_ref()) {
        if !ropes.contains(&rope) {
            ropes.push(rope);
        }
    }
    ropes
}
