use std::collections::HashSet;

use serde_json::Value;

use super::fields::{Fields, kind};
use super::text::without_nul;
use crate::openai::error::ApiError;

const MAX_MESSAGES: usize = 2048;
const MAX_PARTS: usize = 4096;
const MAX_TOOL_CALLS: usize = 128;

const DEVELOPER: &str = "developer";
const ROLES: [&str; 5] = ["system", DEVELOPER, "user", "assistant", "tool"];

/// One message of a conversation.
#[derive(Clone, Debug, Default)]
pub(in crate::completion) struct Message {
    pub(in crate::completion) role: &'static str,
    /// Parts of text are joined by line breaks. Only an assistant's message may have none.
    pub(in crate::completion) content: Option<String>,
    pub(in crate::completion) name: Option<String>,
    pub(in crate::completion) tool_calls: Vec<ToolCall>,
    /// Of a tool's message: the call that it answers.
    pub(in crate::completion) tool_call_id: Option<String>,
}

/// A call that the assistant made earlier in the conversation.
#[derive(Clone, Debug)]
pub(in crate::completion) struct ToolCall {
    pub(in crate::completion) id: String,
    pub(in crate::completion) name: String,
    /// JSON as the model wrote it, which need not be valid.
    pub(in crate::completion) arguments: String,
}

impl Message {
    /// The texts in it that came from the client.
    pub(in crate::completion) fn texts(&self) -> impl Iterator<Item = &str> {
        let own = [&self.content, &self.name, &self.tool_call_id].into_iter().flatten().map(String::as_str);
        let calls = self.tool_calls.iter().flat_map(|call| [call.id.as_str(), &call.name, &call.arguments]);
        own.chain(calls)
    }
}

/// Reads `messages`.
pub(in crate::completion) fn messages(fields: &mut Fields<'_>) -> Result<Vec<Message>, ApiError> {
    let items = fields.array("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
    if items.is_empty() {
        return Err(ApiError::empty_array("messages"));
    }
    if items.len() > MAX_MESSAGES {
        return Err(ApiError::array_too_long("messages", MAX_MESSAGES, items.len()));
    }
    let mut called = HashSet::new();
    let mut messages = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let mut fields = Fields::of(format!("messages[{at}]"), item)?;
        let message = message(&mut fields)?;
        if let Some(id) = &message.tool_call_id
            && !called.contains(id)
        {
            let path = fields.path("tool_call_id");
            let text = format!("Invalid '{path}': it does not answer a tool call of an earlier message.");
            return Err(ApiError::invalid_value(&path, text));
        }
        called.extend(message.tool_calls.iter().map(|call| call.id.clone()));
        messages.push(message);
    }
    Ok(messages)
}

fn message(fields: &mut Fields<'_>) -> Result<Message, ApiError> {
    let role = role(fields)?;
    let tool_calls = if role == "assistant" { tool_calls(fields)? } else { Vec::new() };
    let content = match fields.value("content") {
        Some(value) => Some(content(&fields.path("content"), value)?),
        None if role == "assistant" => None,
        None if fields.has("content") => {
            let path = fields.path("content");
            let text = format!("Invalid value for '{path}': expected a string, got null.");
            return Err(ApiError::invalid_value(&path, text));
        }
        None => return Err(ApiError::missing(&fields.path("content"))),
    };
    let tool_call_id = if role == "tool" { Some(tool_call_id(fields)?) } else { None };
    refuse_parts_of_no_text(fields)?;
    Ok(Message { role, content, name: checked_string(fields, "name")?, tool_calls, tool_call_id })
}

fn role(fields: &mut Fields<'_>) -> Result<&'static str, ApiError> {
    let role = fields.required_string("role")?;
    ROLES
        .into_iter()
        .find(|known| *known == role)
        .ok_or_else(|| ApiError::not_one_of(&fields.path("role"), role, &ROLES))
}

/// A string, or an array of parts of type `text`.
fn content(path: &str, value: &Value) -> Result<String, ApiError> {
    if let Value::String(text) = value {
        without_nul(path, text)?;
        return Ok(text.clone());
    }
    let Value::Array(parts) = value else {
        return Err(ApiError::invalid_type(path, "a string or an array", kind(value)));
    };
    if parts.is_empty() {
        return Err(ApiError::empty_array(path));
    }
    if parts.len() > MAX_PARTS {
        return Err(ApiError::array_too_long(path, MAX_PARTS, parts.len()));
    }
    let mut text = String::new();
    for (at, part) in parts.iter().enumerate() {
        let mut part = Fields::of(format!("{path}[{at}]"), part)?;
        if part.one_of("type", &["text"])?.is_none() {
            return Err(ApiError::missing(&part.path("type")));
        }
        let piece = part.required_string("text")?;
        without_nul(&part.path("text"), piece)?;
        if at > 0 {
            text.push('\n');
        }
        text.push_str(piece);
    }
    Ok(text)
}

fn tool_calls(fields: &mut Fields<'_>) -> Result<Vec<ToolCall>, ApiError> {
    let path = fields.path("tool_calls");
    let Some(items) = fields.array("tool_calls")? else { return Ok(Vec::new()) };
    if items.is_empty() {
        return Err(ApiError::empty_array(&path));
    }
    if items.len() > MAX_TOOL_CALLS {
        return Err(ApiError::array_too_long(&path, MAX_TOOL_CALLS, items.len()));
    }
    items.iter().enumerate().map(|(at, item)| tool_call(&mut Fields::of(format!("{path}[{at}]"), item)?)).collect()
}

fn tool_call(fields: &mut Fields<'_>) -> Result<ToolCall, ApiError> {
    if fields.one_of("type", &["function"])?.is_none() {
        return Err(ApiError::missing(&fields.path("type")));
    }
    let id = required_text(fields, "id")?;
    let mut function = fields.object("function")?.ok_or_else(|| ApiError::missing(&fields.path("function")))?;
    let name = required_text(&mut function, "name")?;
    let arguments = required_text(&mut function, "arguments")?;
    Ok(ToolCall { id, name, arguments })
}

fn tool_call_id(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    checked_string(fields, "tool_call_id")?.ok_or_else(|| {
        let path = fields.path("tool_call_id");
        let text = format!("Invalid '{path}': a message of role 'tool' needs the id of the call that it answers.");
        ApiError::invalid_value(&path, text)
    })
}

/// What a message may carry at OpenAI and would be lost here.
fn refuse_parts_of_no_text(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    for name in ["audio", "function_call"] {
        if fields.value(name).is_some() {
            return Err(ApiError::unsupported_parameter(&fields.path(name)));
        }
    }
    Ok(())
}

fn checked_string(fields: &mut Fields<'_>, name: &'static str) -> Result<Option<String>, ApiError> {
    let Some(text) = fields.string(name)? else { return Ok(None) };
    without_nul(&fields.path(name), text)?;
    Ok(Some(text.to_owned()))
}

fn required_text(fields: &mut Fields<'_>, name: &'static str) -> Result<String, ApiError> {
    checked_string(fields, name)?.ok_or_else(|| ApiError::missing(&fields.path(name)))
}
