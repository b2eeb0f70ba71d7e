use serde_json::{Map, Value};
use tandem_core::TokenId;

use super::fields::{Fields, integer, kind};
use super::options::Options;
use super::{text, unhonoured};
use crate::completion::Limits;
use crate::openai::error::ApiError;

const MAX_PROMPTS: usize = 2048;

/// A checked body of `POST /v1/completions`.
#[derive(Clone, Debug)]
pub(in crate::completion) struct CompletionRequest {
    pub(in crate::completion) model: String,
    pub(in crate::completion) prompts: Vec<Prompt>,
    pub(in crate::completion) options: Options,
    /// Put the prompt in front of the text.
    pub(in crate::completion) echo: bool,
    /// What is to come after the answer, for models that fill in the middle.
    pub(in crate::completion) suffix: Option<String>,
    pub(in crate::completion) logprobs: Option<u8>,
    pub(in crate::completion) ignored: Vec<String>,
}

/// What is to be continued, or turned into a vector, with its path for errors.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::completion) enum Prompt {
    Text { path: String, text: String },
    Tokens { path: String, ids: Vec<TokenId> },
}

/// Reads a completion request.
pub(in crate::completion) fn completions(
    body: &Map<String, Value>,
    limits: &Limits,
) -> Result<CompletionRequest, ApiError> {
    let mut fields = Fields::new("", body);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let mut request = CompletionRequest {
        model: text::model(&mut fields)?,
        prompts: prompts(&mut fields, "prompt")?,
        // With nothing to generate there is the prompt to tell of, or nothing at all.
        options: Options::read(&mut fields, limits, u32::from(!echo))?,
        echo,
        suffix: suffix(&mut fields)?,
        logprobs: fields.integer("logprobs", 0..=5)?.map(|top| top as u8),
        ignored: Vec::new(),
    };
    request.options.check_reported(request.logprobs)?;
    if request.suffix.is_some() && echo && request.logprobs.is_some() {
        let text =
            "Unsupported value: 'suffix' does not support a text together with 'echo' and 'logprobs' on this server.";
        return Err(ApiError::unsupported_value("suffix", text));
    }
    unhonoured::harmless(&mut fields)?;
    request.ignored = unhonoured::rest(&fields, limits)?;
    Ok(request)
}

fn suffix(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    // Nothing comes after the answer of a request whose suffix is empty.
    let Some(text) = fields.string("suffix")?.filter(|text| !text.is_empty()) else { return Ok(None) };
    text::without_nul("suffix", text)?;
    Ok(Some(text.to_owned()))
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
pub(super) fn prompts(fields: &mut Fields<'_>, name: &'static str) -> Result<Vec<Prompt>, ApiError> {
    let items = match fields.value(name) {
        None => return Err(ApiError::missing(name)),
        Some(Value::String(text)) => return Ok(vec![text_prompt(name, name.to_owned(), text)?]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(ApiError::invalid_type(name, "a string or an array", kind(other))),
    };
    match items.first() {
        None => Err(empty(name, name)),
        Some(Value::Number(_)) => Ok(vec![token_prompt(name, name.to_owned(), items)?]),
        Some(_) if items.len() > MAX_PROMPTS => Err(ApiError::array_too_long(name, MAX_PROMPTS, items.len())),
        Some(first) => (items.iter().enumerate())
            .map(|(at, item)| {
                let path = format!("{name}[{at}]");
                if first.is_string() {
                    let text = item.as_str().ok_or_else(|| ApiError::invalid_type(&path, "a string", kind(item)))?;
                    return text_prompt(name, path, text);
                }
                let ids = item.as_array();
                let ids = ids.ok_or_else(|| ApiError::invalid_type(&path, "an array of token ids", kind(item)))?;
                token_prompt(name, path, ids)
            })
            .collect(),
    }
}

fn text_prompt(name: &str, path: String, text: &str) -> Result<Prompt, ApiError> {
    if text.is_empty() {
        return Err(empty(name, &path));
    }
    text::without_nul(&path, text)?;
    Ok(Prompt::Text { path, text: text.to_owned() })
}

fn token_prompt(name: &str, path: String, items: &[Value]) -> Result<Prompt, ApiError> {
    if items.is_empty() {
        return Err(empty(name, &path));
    }
    let ids = (items.iter().enumerate())
        .map(|(at, item)| {
            let path = format!("{path}[{at}]");
            integer(&path, item, 0..=i64::from(u32::MAX))
                .map(|id| id as TokenId)
                .map_err(|_| ApiError::invalid_value(&path, format!("Invalid '{path}': expected a token id.")))
        })
        .collect::<Result<_, _>>()?;
    Ok(Prompt::Tokens { path, ids })
}

fn empty(name: &str, path: &str) -> ApiError {
    ApiError::invalid_value(path, format!("Invalid '{path}': the {name} must not be empty."))
}

impl Prompt {
    /// Roughly its bytes, to judge how long tokenizing takes.
    pub(in crate::completion) fn size(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Tokens { ids, .. } => ids.len(),
        }
    }
}
