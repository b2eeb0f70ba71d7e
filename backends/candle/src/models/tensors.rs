use crate::config::{DecoderConfig, NormPlacement, Projections, QkNorm};

/// Which tensors of a file a layer of a decoder is made of: the same on whatever it is computed.
#[derive(Debug)]
pub(crate) struct LayerTensors<'a> {
    config: &'a DecoderConfig,
    /// What all names begin with.
    prefix: String,
}

/// A product whose outputs are those of several layers of the file, behind each other.
#[derive(Debug)]
pub(crate) struct Product {
    /// Names, without `.weight` or `.bias`, and outputs.
    pub(crate) parts: Vec<(String, usize)>,
    pub(crate) inputs: usize,
    pub(crate) has_bias: bool,
}

/// The norms of a block, by the names of their layers; where there is none before it, there is one after it.
#[derive(Debug)]
pub(crate) struct NormNames {
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

/// The norms of queries and of keys: names, and weights of each.
#[derive(Debug)]
pub(crate) struct QkNormNames {
    pub(crate) queries: (String, usize),
    pub(crate) keys: (String, usize),
}

impl<'a> LayerTensors<'a> {
    pub(crate) fn new(config: &'a DecoderConfig, prefix: String) -> Self {
        Self { config, prefix }
    }

    /// Those of attention and of the MLP. The same name stands for different norms in different families.
    pub(crate) fn block_norms(&self) -> (NormNames, NormNames) {
        let name = |part: &str| Some(self.name(part));
        match self.config.norms {
            NormPlacement::Before => (
                NormNames { before: name("input_layernorm"), after: None },
                NormNames { before: name("post_attention_layernorm"), after: None },
            ),
            NormPlacement::After => (
                NormNames { before: None, after: name("post_attention_layernorm") },
                NormNames { before: None, after: name("post_feedforward_layernorm") },
            ),
            NormPlacement::Around => (
                NormNames { before: name("input_layernorm"), after: name("post_attention_layernorm") },
                NormNames { before: name("pre_feedforward_layernorm"), after: name("post_feedforward_layernorm") },
            ),
        }
    }

    pub(crate) fn qk_norms(&self) -> Option<QkNormNames> {
        let (q, k) = match self.config.qk_norm? {
            QkNorm::PerHead => (self.config.head_dim, self.config.head_dim),
            QkNorm::AllHeads => (self.config.q_width(), self.config.kv_width()),
        };
        Some(QkNormNames { queries: (self.name("self_attn.q_norm"), q), keys: (self.name("self_attn.k_norm"), k) })
    }

    pub(crate) fn qkv(&self) -> Product {
        let (q, kv) = (self.config.q_width(), self.config.kv_width());
        let parts = match self.config.projections {
            Projections::Separate => vec![
                (self.name("self_attn.q_proj"), q),
                (self.name("self_attn.k_proj"), kv),
                (self.name("self_attn.v_proj"), kv),
            ],
            Projections::Fused => vec![(self.name("self_attn.qkv_proj"), q + 2 * kv)],
        };
        Product { parts, inputs: self.config.hidden_size, has_bias: self.config.biases.qkv }
    }

    pub(crate) fn output(&self) -> Product {
        Product {
            parts: vec![(self.name("self_attn.o_proj"), self.config.hidden_size)],
            inputs: self.config.q_width(),
            has_bias: self.config.biases.output,
        }
    }

    /// What picks experts.
    pub(crate) fn router(&self, experts: usize) -> Product {
        Product { parts: vec![(self.name("mlp.gate"), experts)], inputs: self.config.hidden_size, has_bias: false }
    }

    /// Gates and values of an MLP, and its result; `mlp` is `mlp`, or an expert's name.
    pub(crate) fn mlp(&self, mlp: &str, width: usize) -> (Product, Product) {
        let (hidden, has_bias) = (self.config.hidden_size, self.config.biases.mlp);
        let name = |part: &str| self.name(&format!("{mlp}.{part}"));
        let parts = match self.config.projections {
            Projections::Separate => vec![(name("gate_proj"), width), (name("up_proj"), width)],
            Projections::Fused => vec![(name("gate_up_proj"), 2 * width)],
        };
        let down = vec![(name("down_proj"), hidden)];
        (Product { parts, inputs: hidden, has_bias }, Product { parts: down, inputs: width, has_bias })
    }

    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.prefix)
    }
}
