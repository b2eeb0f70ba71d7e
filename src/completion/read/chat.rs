use serde_json::{Map, Value};

use super::fields::{Fields, kind};
use super::messages::{Message, messages};
use super::options::Options;
use super::{text, unhonoured};
use crate::completion::Limits;
use crate::openai::error::ApiError;

/// A checked body of `POST /v1/chat/completions`.
#[derive(Clone, Debug)]
pub(in crate::completion) struct ChatRequest {
    pub(in crate::completion) model: String,
    pub(in crate::completion) messages: Vec<Message>,
    pub(in crate::completion) options: Options,
    pub(in crate::completion) add_generation_prompt: bool,
    /// The answer goes on with the last message.
    pub(in crate::completion) continue_final_message: bool,
    /// Put the last message in front of the answer, if it is the assistant's.
    pub(in crate::completion) echo: bool,
    /// Further variables for the template.
    pub(in crate::completion) variables: Map<String, Value>,
    /// How many of the likeliest tokens to report beside each chosen one.
    pub(in crate::completion) logprobs: Option<u8>,
    /// Fields that nothing here knows.
    pub(in crate::completion) ignored: Vec<String>,
}

/// Reads a chat request.
pub(in crate::completion) fn chat(body: &Map<String, Value>, limits: &Limits) -> Result<ChatRequest, ApiError> {
    let mut fields = Fields::new("", body);
    let model = text::model(&mut fields)?;
    let messages = messages(&mut fields)?;
    let mut options = Options::read(&mut fields, limits, 1)?;
    if let Some(limit) = options.max_tokens_named(&mut fields, "max_completion_tokens", 1)? {
        options.max_tokens = Some(limit);
    }
    let (add_generation_prompt, continue_final_message) = ending(&mut fields)?;
    let request = ChatRequest {
        model,
        messages,
        options,
        add_generation_prompt,
        continue_final_message,
        echo: fields.boolean("echo")?.unwrap_or(false),
        variables: variables(&mut fields)?,
        logprobs: logprobs(&mut fields)?,
        ignored: Vec::new(),
    };
    request.options.check_reported(request.logprobs)?;
    unhonoured::refuse_tools(&mut fields)?;
    unhonoured::harmless(&mut fields)?;
    let ignored = unhonoured::rest(&fields, limits)?;
    Ok(ChatRequest { ignored, ..request })
}

/// How the prompt ends: whether it opens the assistant's turn, and whether it leaves the last message open.
pub(in crate::completion) fn ending(fields: &mut Fields<'_>) -> Result<(bool, bool), ApiError> {
    let continues = fields.boolean("continue_final_message")?.unwrap_or(false);
    match fields.boolean("add_generation_prompt")? {
        Some(true) if continues => {
            let text = "Invalid 'continue_final_message': it cannot be true together with 'add_generation_prompt'.";
            Err(ApiError::invalid_value("continue_final_message", text))
        }
        opens => Ok((opens.unwrap_or(!continues), continues)),
    }
}

fn logprobs(fields: &mut Fields<'_>) -> Result<Option<u8>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?;
    match top {
        Some(_) if !wanted => Err(ApiError::invalid_value(
            "top_logprobs",
            "Invalid 'top_logprobs': when using 'top_logprobs', 'logprobs' must be set to true.",
        )),
        _ => Ok(wanted.then(|| top.unwrap_or(0) as u8)),
    }
}

/// Variables that a template may see beside the messages: `chat_template_kwargs` and `reasoning_effort`.
///
/// A variable must not stand in for something that is the server's to say, and holds one plain value.
fn variables(fields: &mut Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    const MAX_VARIABLES: usize = 32;
    const RESERVED: [&str; 15] = [
        "messages",
        "tools",
        "documents",
        "tokenize",
        "chat_template",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "continue_final_message",
        "raise_exception",
        "strftime_now",
        "return_dict",
        "return_tensors",
        "truncation",
        "padding",
    ];
    const NAME: &str = "chat_template_kwargs";
    const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

    let mut variables = Map::new();
    if let Some(effort) = fields.one_of("reasoning_effort", &EFFORTS)? {
        variables.insert("reasoning_effort".to_owned(), effort.into());
    }
    let Some(given) = fields.entries(NAME)? else { return Ok(variables) };
    if given.len() > MAX_VARIABLES {
        return Err(ApiError::object_too_large(NAME, MAX_VARIABLES, given.len()));
    }
    for (name, value) in given {
        let path = format!("{NAME}.{name}");
        if RESERVED.contains(&name.as_str()) {
            return Err(ApiError::unsupported_parameter(&path));
        }
        match value {
            Value::Array(_) | Value::Object(_) => {
                return Err(ApiError::invalid_type(&path, "a string, a number or a boolean", kind(value)));
            }
            Value::String(string) => text::without_nul(&path, string)?,
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        variables.insert(name.clone(), value.clone());
    }
    Ok(variables)
}
