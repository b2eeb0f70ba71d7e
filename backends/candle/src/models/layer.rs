use tandem_core::LoadError;
use tandem_kernels::{Attention, Pages, Sight, Span};

use super::{
    tensors::{LayerTensors, NormNames, Product},
    trunk::norm,
};
use crate::{
    config::{DecoderConfig, LayerConfig, MlpConfig, Rope},
    layers::{ExpertBuffers, Experts, Linear, Mlp, MlpBuffers, RmsNorm, Rotation},
    weights::Weights,
};

type Loaded<T> = Result<T, LoadError>;

/// One layer of a decoder: an attention block and an MLP block, each added to the hidden state.
#[derive(Debug)]
pub(super) struct Layer {
    attention_norms: BlockNorms,
    /// Q, K and V as one product.
    qkv: Linear,
    qk_norms: Option<QkNorms>,
    /// Which of the decoder's angles; `None` leaves queries and keys without a position.
    rope: Option<usize>,
    attention: Attention,
    output: Linear,
    mlp_norms: BlockNorms,
    mlp: LayerMlp,
    /// Widths of all queries, and of all keys.
    q_width: usize,
    kv_width: usize,
    residual_scale: f32,
}

/// The norms of a block: of what goes in, and of what comes out.
#[derive(Debug)]
struct BlockNorms {
    before: Option<RmsNorm>,
    after: Option<RmsNorm>,
}

/// The norms of queries and of keys: over as many columns at a time as they have weights.
#[derive(Debug)]
struct QkNorms {
    queries: RmsNorm,
    keys: RmsNorm,
}

#[derive(Debug)]
enum LayerMlp {
    Dense(Mlp),
    Experts(Experts),
}

/// Activations, one row per token, which live from step to step.
#[derive(Debug, Default)]
pub(super) struct LayerBuffers {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    mlp: MlpBuffers,
    experts: ExpertBuffers,
    /// What a block adds to the hidden state.
    delta: Vec<f32>,
}

impl Layer {
    pub(super) fn load(
        config: &DecoderConfig,
        layer: &LayerConfig,
        prefix: String,
        ropes: &[&Rope],
        weights: &mut Weights,
    ) -> Loaded<Self> {
        let tensors = LayerTensors::new(config, prefix);
        let (attention_norms, mlp_norms) = tensors.block_norms();
        Ok(Self {
            attention_norms: BlockNorms::load(config, &attention_norms, weights)?,
            qkv: linear(weights, &tensors.qkv())?,
            qk_norms: match tensors.qk_norms() {
                None => None,
                Some(names) => Some(QkNorms {
                    queries: norm(config, weights, &names.queries.0, names.queries.1)?,
                    keys: norm(config, weights, &names.keys.0, names.keys.1)?,
                }),
            },
            rope: layer.rope.as_ref().map(|rope| {
                ropes.iter().position(|known| *known == rope).expect("the decoder has the angles of all layers")
            }),
            attention: Attention {
                group: config.heads / config.kv_heads,
                scale: config.score_scale,
                soft_cap: config.score_cap,
                sight: Sight::Back { window: layer.window },
            },
            output: linear(weights, &tensors.output())?,
            mlp_norms: BlockNorms::load(config, &mlp_norms, weights)?,
            mlp: LayerMlp::load(config, &layer.mlp, &tensors, weights)?,
            q_width: config.q_width(),
            kv_width: config.kv_width(),
            residual_scale: config.residual_scale,
        })
    }

    /// Adds attention and MLP to the hidden state of each token, of which `slots` says where its K and V go. `rotations` are those of the decoder's angles in this step.
    pub(super) fn forward(
        &self,
        hidden: &mut [f32],
        slots: &[usize],
        spans: &[Span<'_>],
        rotations: &[Rotation],
        cache: &mut Pages,
        buffers: &mut LayerBuffers,
    ) {
        let LayerBuffers { normed, qkv, attended, mlp, experts, delta } = buffers;
        self.qkv.forward(self.attention_norms.enter(hidden, normed), qkv);
        let (q, k) = (0..self.q_width, self.q_width..self.q_width + self.kv_width);
        let row_width = k.end + self.kv_width;
        if let Some(norms) = &self.qk_norms {
            norms.queries.apply(qkv, row_width, q);
            norms.keys.apply(qkv, row_width, k.clone());
        }
        if let Some(rope) = self.rope {
            rotations[rope].apply(qkv, row_width, k.end);
        }
        for (&slot, row) in slots.iter().zip(qkv.chunks_exact(row_width)) {
            let (key, value) = row[self.q_width..].split_at(self.kv_width);
            cache.store(slot, key, value);
        }
        self.attention.forward(qkv, row_width, spans, cache, attended);
        self.output.forward(attended, delta);
        self.attention_norms.leave(delta);
        self.add(hidden, delta);

        let x = self.mlp_norms.enter(hidden, normed);
        match &self.mlp {
            LayerMlp::Dense(dense) => dense.forward(x, mlp, delta),
            LayerMlp::Experts(chosen) => chosen.forward(x, experts, mlp, delta),
        }
        self.mlp_norms.leave(delta);
        self.add(hidden, delta);
    }

    fn add(&self, hidden: &mut [f32], delta: &[f32]) {
        hidden.iter_mut().zip(delta).for_each(|(hidden, delta)| *hidden += delta * self.residual_scale);
    }
}

impl BlockNorms {
    fn load(config: &DecoderConfig, names: &NormNames, weights: &mut Weights) -> Loaded<Self> {
        let mut load = |name: &Option<String>| {
            name.as_ref().map(|name| norm(config, weights, name, config.hidden_size)).transpose()
        };
        Ok(Self { before: load(&names.before)?, after: load(&names.after)? })
    }

    /// What the block works on; `normed` is room for it.
    fn enter<'a>(&self, hidden: &'a [f32], normed: &'a mut Vec<f32>) -> &'a [f32] {
        match &self.before {
            Some(norm) => {
                norm.forward(hidden, normed);
                normed
            }
            None => hidden,
        }
    }

    /// Finishes what the block made.
    fn leave(&self, delta: &mut [f32]) {
        if let Some(norm) = &self.after {
            norm.apply_to_rows(delta);
        }
    }
}

impl LayerMlp {
    fn load(
        config: &DecoderConfig,
        mlp: &MlpConfig,
        tensors: &LayerTensors<'_>,
        weights: &mut Weights,
    ) -> Loaded<Self> {
        let load = |weights: &mut Weights, name: &str, width| {
            let (gate_up, down) = tensors.mlp(name, width);
            Ok(Mlp::new(linear(weights, &gate_up)?, linear(weights, &down)?, width, config.activation))
        };
        match *mlp {
            MlpConfig::Dense { width } => load(weights, "mlp", width).map(Self::Dense),
            MlpConfig::Experts { width, experts, per_token, weights: of_experts } => {
                let router = linear(weights, &tensors.router(experts))?;
                let mlps = (0..experts).map(|at| load(weights, &format!("mlp.experts.{at}"), width));
                let mlps = mlps.collect::<Loaded<_>>()?;
                Ok(Self::Experts(Experts::new(router, mlps, config.hidden_size, per_token, of_experts)))
            }
        }
    }
}

fn linear(weights: &mut Weights, product: &Product) -> Loaded<Linear> {
    let parts: Vec<_> = product.parts.iter().map(|(name, outputs)| (name.as_str(), *outputs)).collect();
    weights.linear(&parts, product.inputs, product.has_bias)
}
