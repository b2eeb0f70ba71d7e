use tandem_core::{BlockId, Chunk, DeviceError, EmbeddingBackend, EmbeddingSpec, Pooling, SlotId, Step, TokenId};

use tandem_kernels::{KvFormat, KvShape};

use crate::{
    config::EmbedderConfig,
    models::{Encoder, Head, Trunk},
    paged::{KvCache, Ragged},
    settings::CandleSettings,
};

/// Inputs of one pass over several, as on the other backend.
const MAX_INPUTS: u32 = 256;

/// A model that turns texts into vectors, and the threads that compute.
///
/// Inputs are packed one behind the other without padding. K and V are kept for the layer that is being computed alone, since every input is
/// computed whole.
pub(crate) struct CandleEmbedder {
    spec: EmbeddingSpec,
    body: Body,
    /// Of a model that ranks documents.
    head: Option<Head>,
    cache: KvCache,
    threads: rayon::ThreadPool,
}

/// What makes hidden states of tokens.
#[derive(Debug)]
pub(crate) enum Body {
    /// Tokens see the whole text.
    Encoder(Encoder),
    /// Tokens look back only.
    Decoder(Trunk),
}

impl CandleEmbedder {
    /// `cache` has room for a pass.
    pub(crate) fn new(
        spec: EmbeddingSpec,
        (body, head): (Body, Option<Head>),
        cache: KvCache,
        threads: rayon::ThreadPool,
    ) -> Self {
        Self { spec, body, head, cache, threads }
    }

    /// How K and V are kept. Pages of one layer serve all, and last for a pass: too few to save bits on.
    pub(crate) const KV: KvFormat = KvFormat::F32;

    /// What the settings and a model allow together. Inputs are packed into passes up to a step's size.
    pub(crate) fn spec_of(settings: &CandleSettings, config: &EmbedderConfig) -> EmbeddingSpec {
        let trained = config.body.max_positions();
        EmbeddingSpec {
            name: "candle",
            vocab_size: config.body.vocab_size() as u32,
            dimensions: if config.pooling == Pooling::Rank { 1 } else { config.body.hidden_size() as u32 },
            max_input_tokens: settings.context.unwrap_or(trained).min(trained),
            max_inputs: MAX_INPUTS.min(settings.max_step_tokens),
            max_pass_tokens: settings.max_step_tokens,
            pooling: config.pooling,
        }
    }

    /// Pages that any pass fits into: none is shared by two inputs.
    pub(crate) fn shape(settings: &CandleSettings, config: &EmbedderConfig) -> KvShape {
        let (spec, page_len) = (Self::spec_of(settings, config), settings.block_size);
        let of_several = (spec.max_pass_tokens / page_len).saturating_add(spec.max_inputs);
        let pages = of_several.max(spec.max_input_tokens.div_ceil(page_len));
        let (kv_heads, head_dim) = config.body.kv_heads();
        KvShape { pages: pages as usize, page_len: page_len as usize, kv_heads, head_dim }
    }
}

impl EmbeddingBackend for CandleEmbedder {
    fn spec(&self) -> &EmbeddingSpec {
        &self.spec
    }

    fn embed(&mut self, inputs: &[&[TokenId]], out: &mut Vec<f32>) -> Result<(), DeviceError> {
        let Self { spec, body, head, cache, threads } = self;
        debug_assert!(inputs.len() <= spec.max_inputs as usize, "more inputs than the limit");
        let ragged = ragged(inputs, cache.page_len());
        let states = threads.install(|| match body {
            Body::Encoder(encoder) => encoder.forward(&ragged, cache),
            Body::Decoder(trunk) => trunk.forward(&ragged, cache, None),
        });
        let width = states.len() / ragged.tokens.len().max(1);
        let mut rows = states.chunks_exact(width);
        for input in inputs {
            let start = out.len();
            pool(spec.pooling, rows.by_ref().take(input.len()), width, out);
            if let Some(head) = head {
                let score = head.score(&out[start..]);
                out.truncate(start);
                out.push(score);
            }
        }
        Ok(())
    }
}

/// The pass as one matrix, each input in pages of its own.
fn ragged(inputs: &[&[TokenId]], page_len: usize) -> Ragged {
    let mut free = (0..).map(BlockId);
    let tables: Vec<Vec<BlockId>> =
        inputs.iter().map(|input| free.by_ref().take(input.len().div_ceil(page_len)).collect()).collect();
    let chunks: Vec<_> = (0..)
        .map(SlotId)
        .zip(std::iter::zip(inputs, &tables))
        .map(|(slot, (tokens, block_table))| Chunk { slot, start: 0, tokens, block_table, sample: false, score: false })
        .collect();
    Ragged::new(&Step { kv_ops: &[], chunks: &chunks, adapter: None }, page_len)
}

/// Appends the vector of an input, by the `width` wide rows of its tokens. They are added up in order, so that a pass does not change them.
fn pool<'a>(pooling: Pooling, mut rows: impl ExactSizeIterator<Item = &'a [f32]>, width: usize, out: &mut Vec<f32>) {
    match pooling {
        Pooling::Mean => {
            let len = rows.len() as f32;
            let start = out.len();
            out.resize(start + width, 0.0);
            let sums = &mut out[start..];
            rows.for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
            sums.iter_mut().for_each(|sum| *sum /= len);
        }
        // A score is made of the first one.
        Pooling::Cls | Pooling::Rank => {
            out.extend_from_slice(rows.next().unwrap_or_default());
            // The iterator goes on at the next input.
            rows.for_each(drop);
        }
        Pooling::Last => out.extend_from_slice(rows.last().unwrap_or_default()),
    }
}
