//! The loop: one scheduler that drives any [`InferenceBackend`](tandem_core::InferenceBackend).
//!
//! [`Engine`] is a thread that owns a loaded model; [`Engine::submit`] starts a [`Generation`], a stream of [`Event`]s that is cancelled by
//! dropping it. Inside, a synchronous and deterministic scheduler (no clock, no randomness, no I/O) turns waiting and running sequences
//! into steps. There is no prefill phase and no decode phase: each step lets sequences catch up with their tokens, many tokens at once or
//! one, and prompts in chunks, cached prefixes and preempted sequences are all the same case.

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
mod request;
mod scheduler;
mod sequence;
#[cfg(test)]
mod simulation;
mod stats;

pub use engine::{Engine, EngineLimits, ModelInfo};
pub use event::{EngineError, Event, FinishReason, Logprobs, Timing, TokenText, Usage};
pub use generation::Generation;
pub use grammar::{Grammar, GrammarError, GrammarSpec, Grammars, is_ebnf};
pub use request::{GenerateRequest, Priority, StopRules, SubmitError};
pub use stats::Stats;
