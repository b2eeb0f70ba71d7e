//! How the engine's refusals and failures are told to a client.

use tandem_engine::{EmbedError, EngineError, SubmitError};

use crate::openai::error::ApiError;

/// `param` is what the client can shorten.
pub(super) fn of_submit(error: SubmitError, param: &str) -> ApiError {
    match error {
        SubmitError::Overloaded => ApiError::overloaded(),
        SubmitError::TooLarge { needed, available } => ApiError::context_length_exceeded(param, available, needed),
        // Names are looked up in the engine that the request is then submitted to.
        SubmitError::NoSuchAdapter { .. } => ApiError::internal(),
        SubmitError::Gone => ApiError::engine_gone(),
        // A lease of the right kind came first.
        SubmitError::WrongKind => ApiError::internal(),
    }
}

pub(super) fn of_embedding(error: EmbedError) -> ApiError {
    match error {
        EmbedError::NonFinite => ApiError::non_finite_embedding(),
        EmbedError::Gone => ApiError::engine_gone(),
    }
}

pub(super) fn of_ranking(error: EmbedError) -> ApiError {
    match error {
        EmbedError::NonFinite => ApiError::non_finite_score(),
        EmbedError::Gone => ApiError::engine_gone(),
    }
}

pub(super) fn of_generation(error: EngineError) -> ApiError {
    match error {
        EngineError::NonFinite => ApiError::non_finite_logits(),
        EngineError::NothingLeft => ApiError::no_token_left(),
        EngineError::GrammarDeadEnd => ApiError::grammar_dead_end(),
        // Whoever reads again may try again.
        EngineError::KvExhausted | EngineError::Stalled => ApiError::overloaded(),
        EngineError::Gone => ApiError::engine_gone(),
    }
}
