use super::{Fields, Rope, RopeFrame};

pub(super) const MAX_HIDDEN: usize = 1 << 20;
pub(super) const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 12;
pub(super) const MAX_LAYERS: usize = 1 << 12;
pub(super) const MAX_VOCAB: usize = 1 << 24;
pub(super) const MAX_POSITIONS: usize = 1 << 30;
/// Widest MLP.
pub(crate) const MAX_MLP: usize = 1 << 22;

/// What a decoder computes, all of it checked: the families of models differ in nothing that is not written here.
///
/// Heads have the same number and size in all layers, so that pages of the KV cache are of one shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Tokens of one sequence that the model was made for.
    pub(crate) max_positions: u32,
    /// What the vectors of tokens are multiplied with.
    pub(crate) embedding_scale: f32,
    pub(crate) layers: Vec<LayerConfig>,
    pub(crate) projections: Projections,
    pub(crate) biases: Biases,
    pub(crate) qk_norm: Option<QkNorm>,
    pub(crate) norms: NormPlacement,
    pub(crate) norm_weight: NormWeight,
    pub(crate) norm_eps: f32,
    /// What the products of queries and keys are multiplied with.
    pub(crate) score_scale: f32,
    pub(crate) score_cap: Option<f32>,
    pub(crate) activation: Activation,
    /// What each block's result is multiplied with before it is added to the hidden state.
    pub(crate) residual_scale: f32,
    pub(crate) head: Head,
    pub(crate) logits: LogitMap,
}

/// What one layer does its own way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerConfig {
    /// Tokens that a token attends to, itself among them; `None` is all before it.
    pub(crate) window: Option<usize>,
    /// `None` leaves queries and keys as they are, without a position.
    pub(crate) rope: Option<Rope>,
    pub(crate) mlp: MlpConfig,
}

/// The MLP of a layer; `width` is that of its inner state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MlpConfig {
    Dense {
        width: usize,
    },
    /// Each token goes through `per_token` of many MLPs.
    Experts {
        width: usize,
        experts: usize,
        per_token: usize,
        weights: RouteWeights,
    },
}

/// How much the result of each chosen expert counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteWeights {
    /// Its probability among all experts.
    OfAll,
    /// Its probability among the chosen ones, so that they add up to one.
    OfChosen,
}

/// How the file keeps the projections that are computed as one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projections {
    /// `q_proj`, `k_proj`, `v_proj`; `gate_proj`, `up_proj`.
    Separate,
    /// `qkv_proj`; `gate_up_proj`.
    Fused,
}

/// Which products have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) output: bool,
    pub(crate) mlp: bool,
}

/// What queries and keys are normalized over, before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkNorm {
    /// Each head by itself, all with the same weights.
    PerHead,
    /// All heads of a token together.
    AllHeads,
}

/// Where the norms of a block (attention or MLP) are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormPlacement {
    /// Of what goes in.
    Before,
    /// Of what comes out.
    After,
    /// Of both.
    Around,
}

/// What the weights of a norm are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormWeight {
    Factor,
    /// The factor less one.
    FactorLessOne,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    /// GELU by its approximation with a hyperbolic tangent.
    GeluTanh,
}

/// What turns hidden states into logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// The vectors of the tokens.
    Tied,
    /// Weights of its own.
    Own,
}

/// What becomes of the head's products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LogitMap {
    Plain,
    Divided(f32),
    /// Softly kept between the number and its negative.
    Capped(f32),
}

/// What a family assumes where its `config.json` says nothing. The default is Llama's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    /// `None` is as many as there are heads.
    pub(crate) kv_heads: Option<usize>,
    /// `None` is the hidden size shared out among the heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) head: Head,
    /// The field that names the activation, and the one it is without.
    pub(crate) activation: (&'static str, Activation),
    /// What reads the angles of a layer that sees everything.
    pub(crate) rope: fn(&Fields<'_>, &RopeFrame) -> Result<Rope, String>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            kv_heads: None,
            head_dim: None,
            norm_eps: 1e-6,
            rope_theta: 10_000.0,
            head: Head::Own,
            activation: ("hidden_act", Activation::Silu),
            rope: Rope::parse,
        }
    }
}

impl DecoderConfig {
    /// The decoder that all families vary: that of Llama without biases. Reads the fields that all of them have.
    pub(crate) fn plain(fields: &Fields<'_>, defaults: &Defaults) -> Result<Self, String> {
        let activation = Activation::parse(fields, defaults.activation)?;
        let hidden_size = fields.size("hidden_size", MAX_HIDDEN)?;
        let heads = fields.size("num_attention_heads", MAX_HEADS)?;
        let kv_heads =
            fields.nullable("num_key_value_heads", defaults.kv_heads, |fields, name| fields.size(name, heads))?;
        let kv_heads = kv_heads.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("invalid config: num_key_value_heads: {heads} heads cannot be shared by {kv_heads}"));
        }
        let head_dim = match fields.optional_size("head_dim", MAX_HEAD_DIM)?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return Err(format!("invalid config: hidden_size: {hidden_size} is no multiple of {heads} heads")),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(format!("invalid config: head_dim: {head_dim} is odd, rotary positions need pairs"));
        }
        let positions = fields.size("max_position_embeddings", MAX_POSITIONS)? as u32;
        let frame = RopeFrame { head_dim, positions, theta: defaults.rope_theta };
        let rope = (defaults.rope)(fields, &frame)?;
        let layer = LayerConfig {
            window: None,
            rope: Some(rope.clone()),
            mlp: MlpConfig::Dense { width: fields.size("intermediate_size", MAX_MLP)? },
        };
        let head = match fields.optional("tie_word_embeddings")? {
            Some(true) => Head::Tied,
            Some(false) => Head::Own,
            None => defaults.head,
        };
        Ok(Self {
            vocab_size: fields.size("vocab_size", MAX_VOCAB)?,
            hidden_size,
            heads,
            kv_heads,
            head_dim,
            max_positions: rope.reach(positions),
            embedding_scale: 1.0,
            layers: vec![layer; fields.size("num_hidden_layers", MAX_LAYERS)?],
            projections: Projections::Separate,
            biases: Biases::default(),
            qk_norm: None,
            norms: NormPlacement::Before,
            norm_weight: NormWeight::Factor,
            norm_eps: fields.optional_positive("rms_norm_eps")?.unwrap_or(defaults.norm_eps) as f32,
            score_scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            score_cap: None,
            activation,
            residual_scale: 1.0,
            head,
            logits: LogitMap::Plain,
        })
    }

    /// The same, with the window of each layer.
    pub(crate) fn with_windows(mut self, windows: Vec<Option<usize>>) -> Self {
        for (layer, window) in self.layers.iter_mut().zip(windows) {
            layer.window = window;
        }
        self
    }

    /// Width of all query heads together.
    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all K (or all V) heads together.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl Biases {
    /// Those that the flags `attention_bias` and `mlp_bias` ask for.
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, String> {
        let attention = fields.flag("attention_bias")?;
        Ok(Self { qkv: attention, output: attention, mlp: fields.flag("mlp_bias")? })
    }
}

impl Activation {
    fn parse(fields: &Fields<'_>, (field, absent): (&str, Self)) -> Result<Self, String> {
        match fields.optional::<String>(field)?.as_deref() {
            None => Ok(absent),
            Some("silu") => Ok(Self::Silu),
            Some("gelu_pytorch_tanh") => Ok(Self::GeluTanh),
            Some(other) => {
                Err(format!("invalid config: {field}: {other} is not supported; known: silu, gelu_pytorch_tanh"))
            }
        }
    }
}
