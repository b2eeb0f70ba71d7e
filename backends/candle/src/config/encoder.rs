use super::{
    Fields,
    decoder::{MAX_HEADS, MAX_HIDDEN, MAX_LAYERS, MAX_MLP, MAX_POSITIONS, MAX_VOCAB},
};

/// What an encoder computes, all of it checked: tokens that see the whole text, and norms of what comes out of each block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EncoderConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    /// Width of the inner state of an MLP.
    pub(crate) inner_size: usize,
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    /// The row of a text's first token.
    pub(crate) first_position: usize,
    /// Rows of the table of token types, of which a single text has the first.
    pub(crate) token_types: Option<usize>,
    pub(crate) norm_eps: f32,
    pub(crate) activation: EncoderActivation,
    pub(crate) names: &'static EncoderNames,
    /// Of a model that ranks documents.
    pub(crate) head: Option<&'static HeadNames>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EncoderActivation {
    /// GELU as it is defined, by the error function.
    Gelu,
    /// GELU by its approximation with a hyperbolic tangent.
    GeluTanh,
}

/// What a family calls its tensors.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EncoderNames {
    /// What stands before all names in the files of those who saved the model as a part of a larger one.
    pub(crate) whole: &'static str,
    /// What stands before the number of a layer.
    pub(crate) layers: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) inner: &'static str,
    pub(crate) outer: &'static str,
    pub(crate) output_norm: &'static str,
}

/// What a family calls the tensors of its last two layers, of which the first has a hyperbolic tangent behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HeadNames {
    pub(crate) dense: &'static str,
    /// Whether that is a part of the model without its head, and named like one.
    pub(crate) within: bool,
    pub(crate) output: &'static str,
}

/// What a family calls the fields of its `config.json`.
#[derive(Debug)]
pub(crate) struct EncoderFields {
    pub(crate) hidden_size: &'static str,
    pub(crate) heads: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) inner_size: &'static str,
    pub(crate) activation: &'static str,
}

impl EncoderConfig {
    /// Reads what all families have; the rest is that of one whose texts begin at the first position and have no types.
    pub(crate) fn plain(
        fields: &Fields<'_>,
        called: &EncoderFields,
        names: &'static EncoderNames,
    ) -> Result<Self, String> {
        let hidden_size = fields.size(called.hidden_size, MAX_HIDDEN)?;
        let heads = fields.size(called.heads, MAX_HEADS)?;
        if !hidden_size.is_multiple_of(heads) {
            let field = called.hidden_size;
            return Err(format!("invalid config: {field}: {hidden_size} is no multiple of {heads} heads"));
        }
        Ok(Self {
            vocab_size: fields.size("vocab_size", MAX_VOCAB)?,
            hidden_size,
            heads,
            layers: fields.size(called.layers, MAX_LAYERS)?,
            inner_size: fields.size(called.inner_size, MAX_MLP)?,
            positions: fields.size("max_position_embeddings", MAX_POSITIONS)?,
            first_position: 0,
            token_types: None,
            norm_eps: fields.optional_positive("layer_norm_eps")?.unwrap_or(1e-12) as f32,
            activation: EncoderActivation::parse(fields, called.activation)?,
            names,
            head: None,
        })
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// Tokens of one text that there are positions for.
    pub(crate) fn max_positions(&self) -> u32 {
        (self.positions - self.first_position) as u32
    }
}

impl EncoderActivation {
    fn parse(fields: &Fields<'_>, field: &str) -> Result<Self, String> {
        match fields.optional::<String>(field)?.as_deref() {
            None | Some("gelu") => Ok(Self::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Self::GeluTanh),
            Some(other) => Err(format!(
                "invalid config: {field}: {other} is not supported; known: gelu, gelu_new, gelu_pytorch_tanh"
            )),
        }
    }
}
