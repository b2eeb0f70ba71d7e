//! Steps that are asked for before the tokens of the last one are known to the host.

use crate::{AdapterId, BlockId, Chunk, InferenceBackend, KvOp, SampleError, SampleRow, SlotId, StepError, TokenId};

/// A backend that chooses tokens on its device and goes on from them there.
///
/// So a step can be asked for while the one before it is still computed: the host need not know its tokens.
///
/// Everything happens in the order of the calls, as on one stream. At most two choices may be open at a time: one is collected before the
/// third is asked for. Only backends of [`KvLayout::Blocks`](crate::KvLayout::Blocks) look ahead: what a sequence that turned out to have ended
/// was computed beyond its end lies in blocks that are simply given to others, while slots would have to be cut.
pub trait LookAhead: InferenceBackend {
    /// As [`InferenceBackend::forward`], of chunks whose tokens may be those that the last [`choose`](Self::choose) chose. The rows of this
    /// pass are asked for by `choose`, or by [`sample`](InferenceBackend::sample) and [`score`](InferenceBackend::score) as those of any other.
    ///
    /// # Errors
    /// Those of [`InferenceBackend::forward`].
    fn forward_ahead(&mut self, step: &AheadStep<'_>) -> Result<(), StepError>;

    /// Asks for a token after each chunk of the last pass that has `sample` set, in the same order, each exactly once. Waits for nothing.
    ///
    /// # Errors
    /// [`StepError::Device`] when the backend is finished.
    fn choose(&mut self, choices: &[Choice]) -> Result<Chosen, StepError>;

    /// Waits until these tokens are chosen, not for what was asked for since, and appends one for each choice to `out`.
    ///
    /// # Errors
    /// [`StepError::Device`] when the backend is finished. Logits that are not finite are an `Err` in `out`; whatever follows on such a row is
    /// computed as well, and worth nothing.
    fn collect(&mut self, chosen: Chosen, out: &mut Vec<Result<TokenId, SampleError>>) -> Result<(), StepError>;
}

/// A [`Step`](crate::Step) of which the host need not know all tokens.
#[derive(Clone, Copy, Debug)]
pub struct AheadStep<'a> {
    /// As [`Step::kv_ops`](crate::Step::kv_ops) has it.
    pub kv_ops: &'a [KvOp],
    /// As [`Step::chunks`](crate::Step::chunks) has it.
    pub chunks: &'a [AheadChunk<'a>],
    /// As [`Step::adapter`](crate::Step::adapter) has it.
    pub adapter: Option<AdapterId>,
}

impl AheadStep<'_> {
    /// Tokens over all chunks.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }

    /// Rows that a token will be asked for after.
    #[must_use]
    pub fn sampled_rows(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.sample).count()
    }
}

/// A [`Chunk`] of which the host need not know the token.
#[derive(Clone, Copy, Debug)]
pub struct AheadChunk<'a> {
    /// As [`Chunk::slot`] has it.
    pub slot: SlotId,
    /// As [`Chunk::start`] has it.
    pub start: u32,
    /// What is computed.
    pub tokens: Input<'a>,
    /// As [`Chunk::block_table`] has it.
    pub block_table: &'a [BlockId],
    /// As [`Chunk::sample`] has it.
    pub sample: bool,
    /// As [`Chunk::score`] has it.
    pub score: bool,
}

impl<'a> From<Chunk<'a>> for AheadChunk<'a> {
    fn from(chunk: Chunk<'a>) -> Self {
        let Chunk { slot, start, tokens, block_table, sample, score } = chunk;
        Self { slot, start, tokens: Input::Known(tokens), block_table, sample, score }
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// These; never none.
    Known(&'a [TokenId]),
    /// The one that was chosen for this slot by the last [`LookAhead::choose`].
    Chosen,
}

impl Input<'_> {
    /// How many tokens it is.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::Known(tokens) => tokens.len(),
            Self::Chosen => 1,
        }
    }
}

/// How to choose a token where nothing but temperature and truncations stands before the logits.
///
/// It is all that a device has to be able to do, and is made of a [`SampleRow`] that asks for no more, by [`SampleRow::choice`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The slot of the chunk that it follows.
    pub slot: SlotId,
    /// 0 for the likeliest token.
    pub temperature: f32,
    /// As [`SamplingParams::top_k`](crate::SamplingParams::top_k) has it.
    pub top_k: u32,
    /// As [`SamplingParams::top_p`](crate::SamplingParams::top_p) has it.
    pub top_p: f32,
    /// As [`SamplingParams::min_p`](crate::SamplingParams::min_p) has it.
    pub min_p: f32,
    /// Uniform in `[0, 1)`.
    pub u: f32,
}

impl SampleRow<'_> {
    /// The row as a choice; `None` where it asks for more.
    #[must_use]
    pub fn choice(&self) -> Option<Choice> {
        let params = self.params;
        if self.logprobs.is_some() || self.adjusts_logits() || params.typical_p < 1.0 {
            return None;
        }
        Some(Choice {
            slot: self.slot,
            temperature: if params.is_greedy() { 0.0 } else { params.temperature },
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            u: self.u,
        })
    }
}

/// Tokens that were asked for and not collected yet. Whoever holds it has to collect it: the backend keeps a place for it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what was chosen is collected"]
pub struct Chosen(u64);

impl Chosen {
    /// For a backend to know it by.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// What it is known by.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0
    }
}
