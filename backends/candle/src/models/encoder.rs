use tandem_core::{LoadError, TokenId};
use tandem_kernels::{Attention, Pages, Sight, Span};

use crate::{
    config::EncoderConfig,
    layers::{Embedding, LayerNorm, Linear, PlainMlp},
    models::Head,
    paged::{KvCache, Ragged},
    weights::Weights,
};

type Loaded<T> = Result<T, LoadError>;

/// BERT and its kin: vectors of tokens and of their positions, and layers in which each token sees the whole text.
#[derive(Debug)]
pub(crate) struct Encoder {
    embedding: Embedding,
    /// By position from that of the first token of a text on, and with the type that all tokens of a single text have.
    positions: Vec<f32>,
    second_text: Option<SecondText>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    width: usize,
    buffers: Buffers,
}

/// Activations, one row per token, which live from pass to pass.
#[derive(Debug, Default)]
struct Buffers {
    hidden: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    delta: Vec<f32>,
}

/// The tokens of the second of two texts, which have a type of their own.
#[derive(Debug)]
struct SecondText {
    /// What the first one ends with.
    behind: TokenId,
    /// The vector of their type, less that of the others.
    differs_by: Vec<f32>,
}

/// One layer: attention and an MLP, each added to the hidden state, which is normalised after either.
#[derive(Debug)]
struct Layer {
    /// Q, K and V as one product.
    qkv: Linear,
    attention: Attention,
    output: Linear,
    attention_norm: LayerNorm,
    mlp: PlainMlp,
    output_norm: LayerNorm,
    width: usize,
}

impl Encoder {
    /// Of a model that ranks, its head too. `closing` is what a text ends with.
    pub(crate) fn load(
        config: &EncoderConfig,
        weights: Weights,
        closing: Option<TokenId>,
    ) -> Loaded<(Self, Option<Head>)> {
        Source::new(config, weights).encoder(closing)
    }

    /// The hidden state of each token of a pass over whole inputs, of which K and V lie in `cache` meanwhile.
    pub(crate) fn forward(&mut self, ragged: &Ragged, cache: &mut KvCache) -> &[f32] {
        let Self { embedding, positions, second_text, norm, layers, width, buffers } = self;
        embedding.forward(&ragged.tokens, &mut buffers.hidden);
        for (row, &position) in buffers.hidden.chunks_exact_mut(*width).zip(&ragged.positions) {
            let vector = &positions[position as usize * *width..][..*width];
            row.iter_mut().zip(vector).for_each(|(x, position)| *x += position);
        }
        if let Some(second) = second_text {
            second.add_to(&mut buffers.hidden, ragged);
        }
        norm.apply(&mut buffers.hidden);
        let spans = ragged.spans();
        for (at, layer) in layers.iter().enumerate() {
            layer.forward(&ragged.slots, &spans, cache.layer_mut(at), buffers);
        }
        &self.buffers.hidden
    }
}

impl SecondText {
    fn add_to(&self, hidden: &mut [f32], ragged: &Ragged) {
        let Self { behind, differs_by } = self;
        let mut has_begun = false;
        let tokens = std::iter::zip(&ragged.tokens, &ragged.positions);
        for (row, (&token, &position)) in hidden.chunks_exact_mut(differs_by.len()).zip(tokens) {
            has_begun &= position > 0;
            if has_begun {
                row.iter_mut().zip(differs_by).for_each(|(x, of_type)| *x += of_type);
            }
            has_begun |= token == *behind;
        }
    }
}

impl Layer {
    fn forward(&self, slots: &[usize], spans: &[Span<'_>], cache: &mut Pages, buffers: &mut Buffers) {
        let Buffers { hidden, qkv, attended, inner, delta } = buffers;
        self.qkv.forward(hidden, qkv);
        let row_width = 3 * self.width;
        for (&slot, row) in slots.iter().zip(qkv.chunks_exact(row_width)) {
            let (key, value) = row[self.width..].split_at(self.width);
            cache.store(slot, key, value);
        }
        self.attention.forward(qkv, row_width, spans, cache, attended);
        self.output.forward(attended, delta);
        self.attention_norm.apply_to_sums(hidden, delta);
        self.mlp.forward(hidden, inner, delta);
        self.output_norm.apply_to_sums(hidden, delta);
    }
}

/// Where the weights of an encoder come from.
struct Source<'a> {
    config: &'a EncoderConfig,
    weights: Weights,
    /// What stands before all names.
    whole: &'static str,
}

impl<'a> Source<'a> {
    fn new(config: &'a EncoderConfig, weights: Weights) -> Self {
        let whole = config.names.whole;
        let is_part = weights.has(&format!("{whole}embeddings.word_embeddings.weight"));
        Self { config, weights, whole: if is_part { whole } else { "" } }
    }

    fn encoder(mut self, closing: Option<TokenId>) -> Loaded<(Encoder, Option<Head>)> {
        let &EncoderConfig { vocab_size, hidden_size, .. } = self.config;
        let name = format!("{}embeddings.word_embeddings.weight", self.whole);
        let embedding = self.weights.embedding(&name, vocab_size, hidden_size)?;
        let (positions, differs_by) = self.positions()?;
        let second_text = closing.zip(differs_by).map(|(behind, differs_by)| SecondText { behind, differs_by });
        let norm = self.norm(&format!("{}embeddings.LayerNorm", self.whole))?;
        let layers = (0..self.config.layers).map(|at| self.layer(at)).collect::<Loaded<_>>()?;
        let Self { mut weights, whole, config } = self;
        let head = config.head.map(|names| Head::load(names, whole, hidden_size, &mut weights)).transpose()?;
        // The pooler is a head for another task, where the model does not rank, and the ids only count.
        let (pooler, ids) = (format!("{whole}pooler.dense."), format!("{whole}embeddings.position_ids"));
        weights.finish(|name| name.starts_with(&pooler) || name == ids)?;
        let buffers = Buffers::default();
        Ok((Encoder { embedding, positions, second_text, norm, layers, width: hidden_size, buffers }, head))
    }

    /// With the first type of tokens; and of a model that ranks, what the second differs by from it.
    fn positions(&mut self) -> Loaded<(Vec<f32>, Option<Vec<f32>>)> {
        let &EncoderConfig { hidden_size, positions: rows, first_position, token_types, .. } = self.config;
        let name = |table: &str| format!("{}embeddings.{table}_embeddings.weight", self.whole);
        let mut positions = self.weights.table(&name("position"), rows, hidden_size)?;
        positions.drain(..first_position * hidden_size);
        let mut differs_by = None;
        if let Some(types) = token_types {
            let types = self.weights.table(&name("token_type"), types, hidden_size)?;
            for row in positions.chunks_exact_mut(hidden_size) {
                row.iter_mut().zip(&types).for_each(|(x, of_type)| *x += of_type);
            }
            let (first, others) = types.split_at(hidden_size);
            let second = others.get(..hidden_size).filter(|_| self.config.head.is_some());
            differs_by = second.map(|second| second.iter().zip(first).map(|(b, a)| b - a).collect());
        }
        Ok((positions, differs_by))
    }

    fn layer(&mut self, at: usize) -> Loaded<Layer> {
        let &EncoderConfig { hidden_size: hidden, inner_size, names, activation, .. } = self.config;
        let prefix = format!("{}{}.{at}", self.whole, names.layers);
        let name = |part: &str| format!("{prefix}.{part}");
        let (query, key, value) = (name(names.query), name(names.key), name(names.value));
        let mut linear = |parts: &[(&str, usize)], inputs| self.weights.linear(parts, inputs, true);
        let qkv = linear(&[(&query, hidden), (&key, hidden), (&value, hidden)], hidden)?;
        let output = linear(&[(&name(names.attention_output), hidden)], hidden)?;
        let inner = linear(&[(&name(names.inner), inner_size)], hidden)?;
        let outer = linear(&[(&name(names.outer), hidden)], inner_size)?;
        let scale = (1.0 / (self.config.head_dim() as f64).sqrt()) as f32;
        Ok(Layer {
            qkv,
            attention: Attention { group: 1, scale, soft_cap: None, sight: Sight::Whole },
            output,
            attention_norm: self.norm(&name(names.attention_norm))?,
            mlp: PlainMlp::new(inner, outer, inner_size, activation),
            output_norm: self.norm(&name(names.output_norm))?,
            width: hidden,
        })
    }

    fn norm(&mut self, name: &str) -> Loaded<LayerNorm> {
        let width = self.config.hidden_size;
        let weight = self.weights.vector(&format!("{name}.weight"), width)?;
        let bias = self.weights.vector(&format!("{name}.bias"), width)?;
        Ok(LayerNorm::new(weight, bias, self.config.norm_eps))
    }
}
