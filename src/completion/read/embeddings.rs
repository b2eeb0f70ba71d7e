use serde_json::{Map, Value};

use super::fields::Fields;
use super::prompts::{Prompt, prompts};
use super::telling::{rank, request_id};
use super::truncation::{Side, Truncation};
use super::{text, unhonoured};
use crate::completion::Limits;
use crate::openai::error::ApiError;

/// A checked body of `POST /v1/embeddings`.
#[derive(Clone, Debug)]
pub(in crate::completion) struct EmbeddingRequest {
    pub(in crate::completion) model: String,
    pub(in crate::completion) inputs: Vec<Prompt>,
    pub(in crate::completion) options: EmbeddingOptions,
    /// The client's own name for the request.
    pub(in crate::completion) request_id: Option<String>,
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
    /// Within the priority of the request; lower goes first.
    pub(in crate::completion) rank: i64,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) enum Encoding {
    Float,
    Base64,
}

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
        truncation: Truncation::read(&mut fields, Side::Right)?,
        normalize: fields.boolean("normalize")?.unwrap_or(true),
        rank: rank(&mut fields)?.0,
    };
    let request_id = request_id(&mut fields)?;
    unhonoured::harmless(&mut fields)?;
    let ignored = unhonoured::rest_of_embeddings(&fields, limits)?;
    Ok(EmbeddingRequest { model, inputs, options, request_id, ignored })
}
