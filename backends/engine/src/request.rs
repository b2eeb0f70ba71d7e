use tandem_core::{AdapterId, SamplingParams, TokenId};
use thiserror::Error;

use crate::Grammar;

/// What to generate: everything is checked and resolved before it gets here.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Never empty; all ids within the vocabulary.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopRules,
    /// The randomness of token *i* is a function of this and *i* alone.
    pub seed: u64,
    /// Who goes first.
    pub priority: Priority,
    /// Within a priority lower numbers go first; of equal ones, who came first.
    pub rank: i64,
    /// How many of the likeliest tokens to report beside each chosen one; `None` reports no log-probabilities.
    pub logprobs: Option<u8>,
    /// The prefix cache is shared with requests of the same salt alone.
    pub cache_salt: u64,
    /// What the output must look like; `None` leaves it free.
    pub grammar: Option<Grammar>,
    /// Report the log-probabilities of the prompt's tokens, with as many of the likeliest as `logprobs` says: the whole prompt is then
    /// computed, whatever of it is cached.
    pub score_prompt: bool,
    /// Control tokens are told as text, by their spelling.
    pub special_tokens: bool,
    /// One of the model's adapters; `None` is the model as it is. The prefix cache is shared with requests of the same adapter alone.
    pub adapter: Option<AdapterId>,
}

/// When a generation ends.
#[derive(Clone, Debug)]
pub struct StopRules {
    /// Tokens to generate at most; 0 ends with the prompt. The context may end a generation earlier.
    pub max_tokens: u32,
    /// No end of generation before this many tokens.
    pub min_tokens: u32,
    /// Texts that end the generation and are not part of it. None is empty.
    pub strings: Vec<String>,
    /// Tokens that end the generation, beside the model's own.
    pub token_ids: Vec<TokenId>,
    /// Go on past the model's own end of generation.
    pub ignore_eos: bool,
    /// What ended the generation, a stop string or a token, is part of its text.
    pub include_end: bool,
    /// End when the output repeats itself.
    pub repetition: Option<Repetition>,
}

/// When an output counts as one that repeats itself: it ends with `count` copies of a run of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repetition {
    /// Tokens of the shortest run that is looked for; at least 1.
    pub shortest: u32,
    /// Tokens of the longest; not less, and at most [`Self::MAX_RUN`].
    pub longest: u32,
    /// Copies in a row; at least 2.
    pub count: u32,
}

impl Repetition {
    /// Looking for runs costs as many comparisons for each token as there are lengths.
    pub const MAX_RUN: u32 = 512;
}

impl StopRules {
    /// At most `max_tokens`, and whatever the model ends with.
    #[must_use]
    pub fn max_tokens(max_tokens: u32) -> Self {
        Self {
            max_tokens,
            min_tokens: 0,
            strings: Vec::new(),
            token_ids: Vec::new(),
            ignore_eos: false,
            include_end: false,
            repetition: None,
        }
    }
}

/// Who goes first when not all fit; within a priority, who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody is waiting for the answer.
    Interactive,
    /// A line of a batch: fills what interactive work leaves, and gives way to it.
    Batch,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// The queue is full; try again later.
    #[error("the engine's queue is full")]
    Overloaded,
    /// The request could never run: a generation that needs more KV memory than there is, even alone, or an input that is too long.
    #[error("the request needs {needed} tokens where {available} can be had")]
    TooLarge {
        /// Prompt and output tokens, or those of an input.
        needed: u64,
        /// Tokens that one sequence, or one input, can have.
        available: u64,
    },
    /// The model does not do what is asked of it: it generates, or it has vectors.
    #[error("the model is of another kind")]
    WrongKind,
    /// The model has no such adapter.
    #[error("the model has {adapters} adapters, and not number {}", .adapter.0)]
    NoSuchAdapter {
        /// What was asked for.
        adapter: AdapterId,
        /// How many there are.
        adapters: usize,
    },
    /// The engine has ended.
    #[error("the engine has ended")]
    Gone,
}
