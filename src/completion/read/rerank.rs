use std::num::NonZero;

use serde_json::{Map, Value};

use super::fields::{Fields, kind};
use super::telling::{rank, request_id};
use super::truncation::{Side, Truncation};
use super::{text, unhonoured};
use crate::completion::Limits;
use crate::openai::error::ApiError;

/// As many as a request for embeddings may have inputs.
const MAX_DOCUMENTS: usize = 2048;

/// A checked body of `POST /v1/rerank`.
#[derive(Clone, Debug)]
pub(in crate::completion) struct RerankRequest {
    pub(in crate::completion) model: String,
    pub(in crate::completion) query: String,
    /// At least one.
    pub(in crate::completion) documents: Vec<Document>,
    pub(in crate::completion) limits: PairLimits,
    /// How many are told of; `None` is all of them.
    pub(in crate::completion) top_n: Option<NonZero<u32>>,
    pub(in crate::completion) return_documents: bool,
    /// Within the priority of the request; lower goes first.
    pub(in crate::completion) rank: i64,
    /// The client's own name for the request.
    pub(in crate::completion) request_id: Option<String>,
    /// Fields that nothing here knows.
    pub(in crate::completion) ignored: Vec<String>,
}

/// What is to be ranked, with its path for errors. It may be empty.
#[derive(Clone, Debug)]
pub(in crate::completion) struct Document {
    pub(in crate::completion) path: String,
    pub(in crate::completion) text: String,
}

/// What is left of long texts, in tokens.
#[derive(Clone, Copy, Debug)]
pub(in crate::completion) struct PairLimits {
    pub(in crate::completion) query: Option<NonZero<u32>>,
    pub(in crate::completion) document: Option<NonZero<u32>>,
    /// Of the whole input, by what is left of its document.
    pub(in crate::completion) input: Option<Truncation>,
    /// Where texts lose tokens.
    pub(in crate::completion) side: Side,
}

/// Reads a request to rank documents.
pub(in crate::completion) fn rerank(body: &Map<String, Value>, limits: &Limits) -> Result<RerankRequest, ApiError> {
    let mut fields = Fields::new("", body);
    let (input, side) = Truncation::read_with_side(&mut fields, Side::Right)?;
    let mut request = RerankRequest {
        model: text::model(&mut fields)?,
        query: query(&mut fields)?,
        documents: documents(&mut fields)?,
        limits: PairLimits {
            query: limit(&mut fields, "max_tokens_per_query")?,
            document: limit(&mut fields, "max_tokens_per_doc")?,
            input,
            side,
        },
        top_n: limit(&mut fields, "top_n")?,
        return_documents: fields.boolean("return_documents")?.unwrap_or(true),
        rank: rank(&mut fields)?.0,
        request_id: request_id(&mut fields)?,
        ignored: Vec::new(),
    };
    unhonoured::harmless(&mut fields)?;
    request.ignored = unhonoured::rest_of_reranking(&fields, limits)?;
    Ok(request)
}

/// As vLLM has it, 0 is no limit.
fn limit(fields: &mut Fields<'_>, name: &'static str) -> Result<Option<NonZero<u32>>, ApiError> {
    let number = fields.integer(name, 0..=i64::from(u32::MAX))?;
    Ok(number.and_then(|number| NonZero::new(number as u32)))
}

fn query(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    let query = fields.required_string("query")?;
    if query.is_empty() {
        return Err(ApiError::empty_string("query"));
    }
    text::without_nul("query", query)?;
    Ok(query.to_owned())
}

/// Texts, or objects with a text.
fn documents(fields: &mut Fields<'_>) -> Result<Vec<Document>, ApiError> {
    const NAME: &str = "documents";
    let items = fields.array(NAME)?.ok_or_else(|| ApiError::missing(NAME))?;
    match items.len() {
        0 => Err(ApiError::empty_array(NAME)),
        len if len > MAX_DOCUMENTS => Err(ApiError::array_too_long(NAME, MAX_DOCUMENTS, len)),
        _ => items.iter().enumerate().map(|(at, item)| document(format!("{NAME}[{at}]"), item)).collect(),
    }
}

fn document(path: String, item: &Value) -> Result<Document, ApiError> {
    let text = match item {
        Value::String(text) => text,
        Value::Object(map) => {
            let mut fields = Fields::new(path.as_str(), map);
            let text = fields.required_string("text")?;
            if let Some((name, _)) = fields.unread().find(|(_, value)| !value.is_null()) {
                return Err(ApiError::unsupported_parameter(&fields.path(name)));
            }
            text
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            return Err(ApiError::invalid_type(&path, "a string or an object", kind(item)));
        }
    };
    text::without_nul(&path, text)?;
    Ok(Document { text: text.to_owned(), path })
}
