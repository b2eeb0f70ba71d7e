use tandem_core::LoadError;
use tandem_kernels::{Attention, Pages, Span};

use crate::{
    config::LlamaConfig,
    layers::{Embedding, Linear, RmsNorm, RotaryEmbedding, swiglu},
    paged::{KvCache, Ragged},
    weights::Weights,
};

/// Llama: pre-norm, rotary positions, grouped-query attention, a gated MLP.
#[derive(Debug)]
pub(crate) struct Llama {
    config: LlamaConfig,
    embedding: Embedding,
    rope: RotaryEmbedding,
    attention: Attention,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    buffers: Buffers,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    /// Q, K and V as one product.
    qkv: Linear,
    output: Linear,
    mlp_norm: RmsNorm,
    /// Gate and up projection as one product.
    gate_up: Linear,
    down: Linear,
}

/// Activations, one row per token, which live from step to step.
#[derive(Debug, Default)]
struct Buffers {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    /// What a block adds to `hidden`.
    delta: Vec<f32>,
}

impl Llama {
    pub(crate) fn load(config: LlamaConfig, mut weights: Weights) -> Result<Self, LoadError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights.embedding("model.embed_tokens.weight", vocab, hidden)?;
        let layers =
            (0..config.layers).map(|layer| Layer::load(&config, layer, &mut weights)).collect::<Result<_, _>>()?;
        let norm = RmsNorm::new(weights.vector("model.norm.weight", hidden)?, config.rms_norm_eps);
        let lm_head = match config.tied {
            true => embedding.head(),
            false => weights.linear(&[("lm_head", vocab)], hidden, false)?,
        };
        // Old files carry the rotary frequencies, which follow from the configuration, and some a copy of the tied embedding.
        weights.finish(|name| name.ends_with(".rotary_emb.inv_freq") || (config.tied && name == "lm_head.weight"))?;
        Ok(Self {
            embedding,
            rope: RotaryEmbedding::new(&config.rope, config.head_dim),
            attention: Attention {
                group: config.group(),
                scale: 1.0 / (config.head_dim as f32).sqrt(),
                soft_cap: None,
                window: None,
            },
            layers,
            norm,
            lm_head,
            buffers: Buffers::default(),
            config,
        })
    }

    /// One pass: fills the cache with the K and V of all tokens, and replaces `logits` by one row for each sampled one.
    pub(crate) fn forward(&mut self, ragged: &Ragged, cache: &mut KvCache, logits: &mut Vec<f32>) {
        let Self { config, embedding, rope, attention, layers, norm, lm_head, buffers } = self;
        let width = config.hidden_size;
        embedding.forward(&ragged.tokens, &mut buffers.hidden);
        let spans = ragged.spans();
        let rotation = rope.rotation(&ragged.positions);
        for (layer, cache) in layers.iter().zip(cache.layers_mut()) {
            layer.attention_norm.forward(&buffers.hidden, &mut buffers.normed);
            layer.qkv.forward(&buffers.normed, &mut buffers.qkv);
            let (q, kv) = (config.q_width(), config.kv_width());
            rotation.apply(&mut buffers.qkv, q + 2 * kv, q + kv);
            layer.attend(&ragged.slots, &spans, cache, attention, buffers, (q, kv));
            layer.mlp_norm.forward(&buffers.hidden, &mut buffers.normed);
            layer.mlp(buffers, config.intermediate_size);
        }
        // Only these rows are worth the product with the whole vocabulary.
        buffers.delta.clear();
        for &row in &ragged.sampled {
            buffers.delta.extend_from_slice(&buffers.hidden[row * width..][..width]);
        }
        norm.forward(&buffers.delta, &mut buffers.normed);
        lm_head.forward(&buffers.normed, logits);
    }
}

impl Layer {
    fn load(config: &LlamaConfig, layer: usize, weights: &mut Weights) -> Result<Self, LoadError> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.q_width(), config.kv_width());
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let mut norm = |part: &str| Ok(RmsNorm::new(weights.vector(&name(part), hidden)?, config.rms_norm_eps));
        let (attention_norm, mlp_norm) = (norm("input_layernorm.weight")?, norm("post_attention_layernorm.weight")?);
        let mut linear = |parts: &[(&str, usize)], inputs: usize, has_bias: bool| {
            let names: Vec<_> = parts.iter().map(|(part, _)| name(part)).collect();
            let parts: Vec<_> = names.iter().zip(parts).map(|(name, (_, outputs))| (name.as_str(), *outputs)).collect();
            weights.linear(&parts, inputs, has_bias)
        };
        let qkv = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let gate_up = [("mlp.gate_proj", intermediate), ("mlp.up_proj", intermediate)];
        Ok(Self {
            attention_norm,
            qkv: linear(&qkv, hidden, config.attention_bias)?,
            output: linear(&[("self_attn.o_proj", hidden)], q, config.attention_bias)?,
            mlp_norm,
            gate_up: linear(&gate_up, hidden, config.mlp_bias)?,
            down: linear(&[("mlp.down_proj", hidden)], intermediate, config.mlp_bias)?,
        })
    }

    fn attend(
        &self,
        slots: &[usize],
        spans: &[Span<'_>],
        cache: &mut Pages,
        attention: &Attention,
        buffers: &mut Buffers,
        (q_width, kv_width): (usize, usize),
    ) {
        let stride = q_width + 2 * kv_width;
        for (&slot, row) in slots.iter().zip(buffers.qkv.chunks_exact(stride)) {
            let (key, value) = row[q_width..].split_at(kv_width);
            cache.store(slot, key, value);
        }
        attention.forward(&buffers.qkv, stride, spans, cache, &mut buffers.attended);
        self.output.forward(&buffers.attended, &mut buffers.delta);
        add(&mut buffers.hidden, &buffers.delta);
    }

    fn mlp(&self, buffers: &mut Buffers, width: usize) {
        self.gate_up.forward(&buffers.normed, &mut buffers.gate_up);
        swiglu(&buffers.gate_up, width, &mut buffers.gated);
        self.down.forward(&buffers.gated, &mut buffers.delta);
        add(&mut buffers.hidden, &buffers.delta);
    }
}

fn add(hidden: &mut [f32], delta: &[f32]) {
    hidden.iter_mut().zip(delta).for_each(|(hidden, delta)| *hidden += delta);
}
