//! Fields that change nothing here. The rule: nothing that would change the answer is accepted and passed over in silence.
//!
//! A field is either harmless, and accepted; or asks for something that this server does not do, and refused by its name unless its value
//! asks for nothing; or unknown, and reported back to the client (or refused, with `strict_params`).

use serde_json::Value;

use super::fields::{Fields, kind};
use crate::completion::Limits;
use crate::openai::error::ApiError;

/// Accepted whatever their value: notes of the client about itself, and hints.
const HINTS: [&str; 7] = [
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "verbosity",
    "prediction",
];

/// Refused by name, unless null or the value beside it, by which nothing is asked for.
const NOT_OFFERED: &[(&str, Neutral)] = &[
    ("api_base", Neutral::Never),
    ("audio", Neutral::Never),
    ("base_url", Neutral::Never),
    ("best_of", Neutral::One),
    ("cache_prompt", Neutral::Is(true)),
    ("chat_template", Neutral::Never),
    ("documents", Neutral::Empty),
    ("grammar", Neutral::Never),
    ("guided_decoding_backend", Neutral::Never),
    ("json_schema", Neutral::Never),
    ("kv_transfer_params", Neutral::Never),
    ("length_penalty", Neutral::One),
    ("lora_path", Neutral::Never),
    ("mm_processor_kwargs", Neutral::Never),
    ("moderation", Neutral::Never),
    ("n_discard", Neutral::Never),
    ("prompt_embeds", Neutral::Never),
    ("prompt_logprobs", Neutral::Never),
    ("slot_id", Neutral::Never),
    ("store", Neutral::Is(false)),
    ("suffix", Neutral::Never),
    ("thinking_token_budget", Neutral::Never),
    ("trust_remote_code", Neutral::Never),
    ("use_beam_search", Neutral::Is(false)),
    ("web_search_options", Neutral::Never),
];

/// The same for embeddings, beside the others.
const NOT_OFFERED_FOR_EMBEDDINGS: &[(&str, Neutral)] = &[
    ("embed_dtype", Neutral::Word(&["float32"])),
    ("endianness", Neutral::Word(&["little"])),
    ("messages", Neutral::Never),
    ("stream", Neutral::Is(false)),
    ("truncate_sequence", Neutral::Is(false)),
    ("use_activation", Neutral::Is(true)),
];

/// The same for reranking, by the names that Cohere, Jina, Voyage and vLLM have.
const NOT_OFFERED_FOR_RERANKING: &[(&str, Neutral)] = &[
    ("activation", Neutral::Is(true)),
    ("instruct", Neutral::Never),
    ("instruction", Neutral::Never),
    ("max_chunks_per_doc", Neutral::Never),
    ("max_doc_length", Neutral::Never),
    ("max_query_length", Neutral::Never),
    ("messages", Neutral::Never),
    ("normalize", Neutral::Is(true)),
    ("rank_fields", Neutral::Never),
    ("raw_scores", Neutral::Is(false)),
    ("return_embeddings", Neutral::Is(false)),
    ("softmax", Neutral::Is(true)),
    ("stream", Neutral::Is(false)),
    ("top_k", Neutral::Never),
    ("truncate", Neutral::Is(false)),
    ("truncation", Neutral::Is(false)),
    ("use_activation", Neutral::Is(true)),
];

/// The value of a field by which nothing is asked for.
enum Neutral {
    Never,
    Is(bool),
    Word(&'static [&'static str]),
    One,
    Empty,
}

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Never => false,
            Self::Is(neutral) => value.as_bool() == Some(*neutral),
            Self::Word(neutral) => value.as_str().is_some_and(|word| neutral.contains(&word)),
            Self::One => value.as_f64() == Some(1.0),
            Self::Empty => value.as_array().is_some_and(Vec::is_empty),
        }
    }
}

/// Reads what may be there and changes nothing.
pub(super) fn harmless(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    for name in HINTS {
        fields.value(name);
    }
    if let Some(modalities) = fields.value("modalities")
        && modalities.as_array().is_none_or(|items| items.iter().any(|item| item != "text"))
    {
        return Err(ApiError::unsupported_value(
            "modalities",
            "Unsupported value: 'modalities' supports only [\"text\"] on this server.",
        ));
    }
    metadata(fields)
}

/// Fields that are left when all known ones have been read.
pub(super) fn rest(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    rest_but(fields, limits, &[])
}

/// The same for a request for embeddings.
pub(super) fn rest_of_embeddings(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    rest_but(fields, limits, NOT_OFFERED_FOR_EMBEDDINGS)
}

/// The same for a request to rank documents.
pub(super) fn rest_of_reranking(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    rest_but(fields, limits, NOT_OFFERED_FOR_RERANKING)
}

/// Refuses what no request may ask for, where there is no place to name what was passed over.
pub(in crate::completion) fn nothing_else(fields: &Fields<'_>, limits: &Limits) -> Result<(), ApiError> {
    rest(fields, limits).map(|_| ())
}

fn rest_but(fields: &Fields<'_>, limits: &Limits, more: &[(&str, Neutral)]) -> Result<Vec<String>, ApiError> {
    let mut ignored = Vec::new();
    for (name, value) in fields.unread() {
        match NOT_OFFERED.iter().chain(more).find(|(known, _)| *known == name) {
            Some((_, neutral)) if value.is_null() || neutral.is(value) => {}
            Some(_) => return Err(ApiError::unsupported_parameter(name)),
            None if limits.strict_params => return Err(ApiError::unknown_parameter(name)),
            None => ignored.push(name.to_owned()),
        }
    }
    Ok(ignored)
}

/// At most 16 pairs of short strings, checked although nothing keeps them: a client finds its mistake here as at OpenAI.
fn metadata(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    const MAX_PAIRS: usize = 16;
    const MAX_KEY_CHARS: usize = 64;
    const MAX_VALUE_CHARS: usize = 512;

    let Some(pairs) = fields.entries("metadata")? else { return Ok(()) };
    let invalid = |path: &str, what: String| Err(ApiError::invalid_value(path, format!("Invalid '{path}': {what}")));
    if pairs.len() > MAX_PAIRS {
        return invalid("metadata", format!("expected at most {MAX_PAIRS} pairs, but got {} instead.", pairs.len()));
    }
    for (key, value) in pairs {
        if key.chars().count() > MAX_KEY_CHARS {
            return invalid("metadata", format!("a key is longer than {MAX_KEY_CHARS} characters."));
        }
        let path = format!("metadata.{key}");
        let Value::String(text) = value else { return Err(ApiError::invalid_type(&path, "a string", kind(value))) };
        if text.chars().count() > MAX_VALUE_CHARS {
            return invalid(&path, format!("the value is longer than {MAX_VALUE_CHARS} characters."));
        }
    }
    Ok(())
}
