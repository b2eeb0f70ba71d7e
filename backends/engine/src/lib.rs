//! The loop: one scheduler that drives any [`InferenceBackend`](tandem_core::InferenceBackend).
//!
//! [`Engine`] is a thread that owns a loaded model; [`Engine::submit`] starts a [`Generation`], a stream of [`Event`]s that is cancelled by
//! dropping it. Inside, a synchronous and deterministic scheduler (no clock, no randomness, no I/O) turns waiting and running sequences
//! into steps. There is no prefill phase and no decode phase: each step lets sequences catch up with their tokens, many tokens at once or
//! one, and prompts in chunks, cached prefixes and preempted sequences are all the same case.
//!
//! Over an [`EmbeddingBackend`](tandem_core::EmbeddingBackend) the same engine, with the same thread, queue and limits, packs inputs into
//! passes instead: [`Engine::embed`].

mod embedding;
mod engine;
mod event;
mod generation;
mod grammar;
#[doc(hidden)]
pub mod internals;
mod kv;
mod output;
mod places;
mod pulse;
mod repetition;
mod request;
mod room;
mod scheduler;
mod scores;
mod sequence;
#[cfg(test)]
mod simulation;
mod stats;

pub use embedding::{EmbedError, EmbedRequest, Embedding, Vectors};
pub use engine::{EmbedderInfo, End, Engine, EngineLimits, ModelInfo, ModelKind};
pub use event::{EngineError, Event, FinishReason, Logprobs, StoppedBy, Timing, TokenText, Usage};
pub use generation::Generation;
pub use grammar::{Grammar, GrammarError, GrammarSpec, Grammars, JsonForm, Part, WhiteSpace, check_pattern, is_ebnf};
pub use request::{GenerateRequest, Priority, Repetition, StopRules, SubmitError};
pub use stats::Stats;
