use tandem_core::LoadError;
use tandem_kernels::{Attention, Pages, Span};

use super::decoder::norm;
use crate::{
    config::{DecoderConfig, LayerConfig, MlpConfig, NormPlacement, Projections, QkNorm, Rope},
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

/// The norms of a block.
#[derive(Debug)]
enum BlockNorms {
    Before(RmsNorm),
    After(RmsNorm),
    Around { before: RmsNorm, after: RmsNorm },
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
        at: usize,
        ropes: &[&Rope],
        weights: &mut Weights,
    ) -> Loaded<Self> {
        let mut source = Source { config, weights, prefix: format!("model.layers.{at}") };
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let (attention_norms, mlp_norms) = source.block_norms()?;
        Ok(Self {
            attention_norms,
            qkv: source.qkv()?,
            qk_norms: source.qk_norms()?,
            rope: layer.rope.as_ref().map(|rope| {
                ropes.iter().position(|known| *known == rope).expect("the decoder has the angles of all layers")
            }),
            attention: Attention {
                group: config.heads / config.kv_heads,
                scale: config.score_scale,
                soft_cap: config.score_cap,
                window: layer.window,
            },
            output: source.linear(&[("self_attn.o_proj", config.hidden_size)], q_width, config.biases.output)?,
            mlp_norms,
            mlp: source.layer_mlp(&layer.mlp)?,
            q_width,
            kv_width,
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
    /// What the block works on; `normed` is room for it.
    fn enter<'a>(&self, hidden: &'a [f32], normed: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::Before(norm) | Self::Around { before: norm, .. } => {
                norm.forward(hidden, normed);
                normed
            }
            Self::After(_) => hidden,
        }
    }

    /// Finishes what the block made.
    fn leave(&self, delta: &mut [f32]) {
        match self {
            Self::After(norm) | Self::Around { after: norm, .. } => norm.apply_to_rows(delta),
            Self::Before(_) => {}
        }
    }
}

/// Where the weights of one layer come from.
struct Source<'a> {
    config: &'a DecoderConfig,
    weights: &'a mut Weights,
    prefix: String,
}

impl Source<'_> {
    fn linear(&mut self, parts: &[(&str, usize)], inputs: usize, has_bias: bool) -> Loaded<Linear> {
        let names: Vec<_> = parts.iter().map(|(part, outputs)| (format!("{}.{part}", self.prefix), *outputs)).collect();
        let parts: Vec<_> = names.iter().map(|(name, outputs)| (name.as_str(), *outputs)).collect();
        self.weights.linear(&parts, inputs, has_bias)
    }

    fn norm(&mut self, part: &str, width: usize) -> Loaded<RmsNorm> {
        norm(self.config, self.weights, &format!("{}.{part}", self.prefix), width)
    }

    /// Those of attention and of the MLP. The same name stands for different norms in different families.
    fn block_norms(&mut self) -> Loaded<(BlockNorms, BlockNorms)> {
        let (hidden, placement) = (self.config.hidden_size, self.config.norms);
        let mut norm = |part: &str| self.norm(part, hidden);
        Ok(match placement {
            NormPlacement::Before => {
                (BlockNorms::Before(norm("input_layernorm")?), BlockNorms::Before(norm("post_attention_layernorm")?))
            }
            NormPlacement::After => (
                BlockNorms::After(norm("post_attention_layernorm")?),
                BlockNorms::After(norm("post_feedforward_layernorm")?),
            ),
            NormPlacement::Around => (
                BlockNorms::Around { before: norm("input_layernorm")?, after: norm("post_attention_layernorm")? },
                BlockNorms::Around {
                    before: norm("pre_feedforward_layernorm")?,
                    after: norm("post_feedforward_layernorm")?,
                },
            ),
        })
    }

    fn qkv(&mut self) -> Loaded<Linear> {
        let (q, kv) = (self.config.q_width(), self.config.kv_width());
        let (hidden, bias) = (self.config.hidden_size, self.config.biases.qkv);
        match self.config.projections {
            Projections::Separate => {
                let parts = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
                self.linear(&parts, hidden, bias)
            }
            Projections::Fused => self.linear(&[("self_attn.qkv_proj", q + 2 * kv)], hidden, bias),
        }
    }

    fn qk_norms(&mut self) -> Loaded<Option<QkNorms>> {
        let (q, k) = match self.config.qk_norm {
            None => return Ok(None),
            Some(QkNorm::PerHead) => (self.config.head_dim, self.config.head_dim),
            Some(QkNorm::AllHeads) => (self.config.q_width(), self.config.kv_width()),
        };
        Ok(Some(QkNorms { queries: self.norm("self_attn.q_norm", q)?, keys: self.norm("self_attn.k_norm", k)? }))
    }

    fn layer_mlp(&mut self, mlp: &MlpConfig) -> Loaded<LayerMlp> {
        match *mlp {
            MlpConfig::Dense { width } => self.mlp("mlp", width).map(LayerMlp::Dense),
            MlpConfig::Experts { width, experts, per_token, weights } => {
                let hidden = self.config.hidden_size;
                let router = self.linear(&[("mlp.gate", experts)], hidden, false)?;
                let mlps = (0..experts).map(|at| self.mlp(&format!("mlp.experts.{at}"), width));
                let mlps = mlps.collect::<Loaded<_>>()?;
                Ok(LayerMlp::Experts(Experts::new(router, mlps, hidden, per_token, weights)))
            }
        }
    }

    fn mlp(&mut self, name: &str, width: usize) -> Loaded<Mlp> {
        let (hidden, bias) = (self.config.hidden_size, self.config.biases.mlp);
        let part = |part: &str| format!("{name}.{part}");
        let gate_up = match self.config.projections {
            Projections::Separate => {
                self.linear(&[(&part("gate_proj"), width), (&part("up_proj"), width)], hidden, bias)?
            }
            Projections::Fused => self.linear(&[(&part("gate_up_proj"), 2 * width)], hidden, bias)?,
        };
        let down = self.linear(&[(&part("down_proj"), hidden)], width, bias)?;
        Ok(Mlp::new(gate_up, down, width, self.config.activation))
    }
}
