use serde_json::{Map, Value};

use super::fields::Fields;
use super::prompts::{Prompt, prompts};
use super::{text, unhonoured};
use crate::completion::Limits;
use crate::openai::error::ApiError;

/// A checked body of `POST /v1/embeddings`.
#[derive(Clone, Debug)]
pub(in crate::completion) struct EmbeddingRequest {
    pub(in crate::completion) model: String,
    pub(in crate::completion) inputs: Vec<Prompt>,
    pub(in crate::completion) options: EmbeddingOptions,
    /// Fields that nothing here knows.
    pub(in crate::completion) ignored: Vec<String>,
}

/// What is the same for all inputs.
#[derive(Clone, Debug)]
pub(in crate::completion) struct EmbeddingOptions {
    pub(in crate::completion) encoding: Encoding,
    pub(in crate::completion) dimensions: Option<u32>,
    /// Put around texts what the model was trained to find there.
    pub(in crate::completion) add_special_tokens: bool,
    pub(in crate::completion) truncation: Option<Truncation>,
    /// Bring vectors to length 1.
    pub(in crate::completion) normalize: bool,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) enum Encoding {
    Float,
    Base64,
}

/// Inputs that are longer lose tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) struct Truncation {
    /// What is left; `None` is as much as the model takes.
    pub(in crate::completion) tokens: Option<u32>,
    /// Cut at the beginning instead of the end.
    pub(in crate::completion) left: bool,
}

/// The field that asks for long inputs to be cut.
pub(in crate::completion) const TRUNCATE: &str = "truncate_prompt_tokens";

/// Reads a request for embeddings.
pub(in crate::completion) fn embeddings(
    body: &Map<String, Value>,
    limits: &Limits,
) -> Result<EmbeddingRequest, ApiError> {
    let mut fields = Fields::new("", body);
    let (model, inputs) = (text::model(&mut fields)?, prompts(&mut fields, "input")?);
    let options = EmbeddingOptions {
        encoding: match fields.one_of("encoding_format", &["float", "base64"])? {
            Some("base64") => Encoding::Base64,
            _ => Encoding::Float,
        },
        dimensions: fields.count("dimensions", u32::MAX)?,
        add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(true),
        truncation: truncation(&mut fields)?,
        normalize: fields.boolean("normalize")?.unwrap_or(true),
    };
    unhonoured::harmless(&mut fields)?;
    let ignored = unhonoured::rest_of_embeddings(&fields, limits)?;
    Ok(EmbeddingRequest { model, inputs, options, ignored })
}

/// As vLLM has it: a number of tokens, or -1 for what the model takes.
fn truncation(fields: &mut Fields<'_>) -> Result<Option<Truncation>, ApiError> {
    let left = fields.one_of("truncation_side", &["left", "right"])? == Some("left");
    let Some(tokens) = fields.integer(TRUNCATE, -1..=i64::from(u32::MAX))? else { return Ok(None) };
    match u32::try_from(tokens) {
        Ok(0) => Err(ApiError::nothing_left(TRUNCATE)),
        Ok(tokens) => Ok(Some(Truncation { tokens: Some(tokens), left })),
        Err(_) => Ok(Some(Truncation { tokens: None, left })),
    }
}
