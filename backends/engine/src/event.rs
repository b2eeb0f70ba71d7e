use std::time::Duration;

use tandem_core::TokenId;
use thiserror::Error;

/// What happens to a generation. After [`Finished`](Event::Finished) or [`Failed`](Event::Failed) comes nothing more.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt's tokens but for the first, which nothing comes before: told once, before any token, when the request asked for them to
    /// be scored.
    Prompt(Vec<Logprobs>),
    /// One token was generated.
    Token {
        /// The token.
        id: TokenId,
        /// What became certain with it: empty while a character or a possible stop string is still open.
        text: String,
        /// Present when the request asked for log-probabilities.
        logprobs: Option<Logprobs>,
    },
    /// The generation ended well.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What stopped it, where that was the request's.
        stopped_by: Option<StoppedBy>,
        /// Text that was held back and turned out to be part of the answer.
        text: String,
        /// Tokens counted.
        usage: Usage,
        /// Where the time went.
        timing: Timing,
    },
    /// The generation ended badly.
    Failed(EngineError),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end of generation, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The output repeated itself.
    Repetition,
}

/// Which of a request's stops ended its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// A stop token.
    Token(TokenId),
    /// A stop string.
    Text(String),
}

/// Tokens of one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens whose KV was found in the cache when the sequence was first admitted.
    pub cached_tokens: u32,
    /// Tokens generated, the one that ended the generation included.
    pub completion_tokens: u32,
}

/// Where the time of one generation went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission to admission.
    pub queued: Duration,
    /// From submission to the first token.
    pub first_token: Duration,
    /// From submission to the end.
    pub total: Duration,
}

/// Log-probabilities of one token, under the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token.
    pub chosen: TokenText,
    /// The likeliest tokens, best first; or those that the request named, in its order.
    pub top: Vec<TokenText>,
}

/// A token with its bytes and log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenText {
    /// The token.
    pub id: TokenId,
    /// Its bytes; not always whole characters.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
}

/// Why a generation failed, by what the submitter can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// This generation alone: the model's logits for it were not finite.
    #[error("the model produced non-finite logits")]
    NonFinite,
    /// This generation alone: bans and biases left no token to choose.
    #[error("no token is left to sample")]
    NothingLeft,
    /// This generation alone: its grammar allows no further token, or following it costs too much.
    #[error("the grammar allows no further token")]
    GrammarDeadEnd,
    /// This generation alone: the backend cannot hold it, although its room was counted.
    #[error("the KV cache cannot hold this request")]
    KvExhausted,
    /// This generation alone: nobody has read what it generated for too long.
    #[error("the generation was not read")]
    Stalled,
    /// The engine ended; the request may be tried again on another.
    #[error("the engine has ended")]
    Gone,
}
