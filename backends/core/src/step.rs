use crate::{AdapterId, BlockId, SamplingParams, SlotId, TokenId, TokenMask};

/// One forward pass: the next tokens of several sequences, as many of each as its chunk holds.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Changes to KV memory, in order, before the chunks. They take effect even if the pass then fails with
    /// [`KvFull`](crate::StepError::KvFull).
    pub kv_ops: &'a [KvOp],
    /// At most one chunk per slot. May be empty when only `kv_ops` are to be carried out.
    pub chunks: &'a [Chunk<'a>],
    /// The adapter that all chunks are computed with; `None` is the model as it is. KV that was computed with one adapter is never used
    /// with another: that is the engine's to see to.
    pub adapter: Option<AdapterId>,
}

impl Step<'_> {
    /// Tokens over all chunks.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }

    /// Rows that [`sample`](crate::InferenceBackend::sample) will be asked for.
    #[must_use]
    pub fn sampled_rows(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.sample).count()
    }
}

/// A change to KV memory. Only [`KvLayout::Slots`](crate::KvLayout::Slots) needs any: under `Blocks` the block tables say it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvOp {
    /// Forget the slot's cells at positions `from` and after.
    Truncate {
        /// The slot to cut.
        slot: SlotId,
        /// The first position that is forgotten; 0 empties the slot.
        from: u32,
    },
    /// Make positions `0..len` of `dst`, which is empty, those of `src`.
    CopyPrefix {
        /// The slot that holds the prefix.
        src: SlotId,
        /// An empty slot.
        dst: SlotId,
        /// Tokens shared.
        len: u32,
    },
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Where the sequence's KV is.
    pub slot: SlotId,
    /// Position of `tokens[0]`: as many tokens of this sequence are already in the cache.
    pub start: u32,
    /// Never empty.
    pub tokens: &'a [TokenId],
    /// The sequence's pages in order, enough for `start + tokens.len()` tokens; empty under
    /// [`KvLayout::Slots`](crate::KvLayout::Slots).
    pub block_table: &'a [BlockId],
    /// Whether a token will be sampled after `tokens.last()`.
    pub sample: bool,
    /// Whether log-probabilities will be asked for after every one of `tokens`: logits of all of them are needed, a whole row for each.
    pub score: bool,
}

/// What the model thought of tokens that it did not choose: those of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRow<'a> {
    /// The slot of the chunk that this row is about.
    pub slot: SlotId,
    /// For each of the chunk's first tokens the one that came after it; not more than the chunk has.
    pub targets: &'a [TokenId],
    /// How many of the likeliest tokens to report beside each.
    pub top: u8,
    /// Reported in the place of the likeliest, unless empty.
    pub reported: &'a [TokenId],
}

/// How to choose one token. The engine owns randomness and history.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    /// The slot of the chunk that this row follows.
    pub slot: SlotId,
    /// Validated before they get here.
    pub params: &'a SamplingParams,
    /// Uniform in `[0, 1)`.
    pub u: f32,
    /// For the repetition penalty.
    pub prompt: &'a [TokenId],
    /// For all penalties.
    pub output: &'a [TokenId],
    /// Tokens that may not be chosen now, such as the end of generation before `min_tokens`.
    pub banned: &'a [TokenId],
    /// The tokens that a grammar leaves to choose from now; `None` where none rules.
    pub allowed: Option<&'a TokenMask>,
    /// How many of the likeliest tokens to report with their log-probabilities; `None` to report nothing.
    pub logprobs: Option<u8>,
}

impl SampleRow<'_> {
    /// Whether anything but temperature and truncation stands between the model's logits and the choice.
    #[must_use]
    pub fn adjusts_logits(&self) -> bool {
        let SamplingParams { logit_bias, bad_words, allowed, .. } = self.params;
        let bans = !self.banned.is_empty() || !bad_words.is_empty();
        bans || !logit_bias.is_empty() || allowed.is_some() || self.allowed.is_some() || self.params.has_penalties()
    }
}

/// One chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Present when the row asked for it.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log-probabilities under the model's own distribution: before penalties, temperature and truncation.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// The likeliest tokens, best first; or those that were named, in their order.
    pub top: Vec<(TokenId, f32)>,
}
