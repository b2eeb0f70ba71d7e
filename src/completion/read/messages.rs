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
/// The deprecated role of a function's result, which is known by the function's name.
const FUNCTION: &str = "function";

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
    /// Of an assistant's message: what the model said to itself.
    pub(in crate::completion) reasoning: Option<String>,
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
        let own =
            [&self.content, &self.name, &self.tool_call_id, &self.reasoning].into_iter().flatten().map(String::as_str);
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
    let mut last_function: Option<ToolCall> = None;
    let mut messages = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let mut fields = Fields::of(format!("messages[{at}]"), item)?;
        let mut message = message(&mut fields, at)?;
        if message.role == FUNCTION {
            let answered = last_function.take().filter(|call| Some(&call.name) == message.name.as_ref());
            let Some(call) = answered else {
                let path = fields.path("name");
                let text = format!("Invalid '{path}': it does not answer a function call of the message before.");
                return Err(ApiError::invalid_value(&path, text));
            };
            (message.role, message.tool_call_id) = ("tool", Some(call.id));
        } else if fields.has("function_call") {
            last_function = message.tool_calls.first().cloned();
        }
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

fn message(fields: &mut Fields<'_>, at: usize) -> Result<Message, ApiError> {
    let role = role(fields)?;
    let is_assistant = role == "assistant";
    let mut tool_calls = if is_assistant { tool_calls(fields)? } else { Vec::new() };
    if is_assistant && let Some(call) = function_call(fields, at)? {
        if !tool_calls.is_empty() {
            let path = fields.path("function_call");
            let text = format!("Invalid '{path}': it cannot be used together with 'tool_calls'.");
            return Err(ApiError::invalid_value(&path, text));
        }
        tool_calls.push(call);
    }
    let reasoning = if is_assistant { reasoning(fields)? } else { None };
    let content = match fields.value("content") {
        Some(value) => Some(content(&fields.path("content"), value)?),
        None if is_assistant => None,
        None if fields.has("content") => {
            let path = fields.path("content");
            let text = format!("Invalid value for '{path}': expected a string, got null.");
            return Err(ApiError::invalid_value(&path, text));
        }
        None => return Err(ApiError::missing(&fields.path("content"))),
    };
    let tool_call_id = if role == "tool" { Some(tool_call_id(fields)?) } else { None };
    refuse_parts_of_no_text(fields)?;
    let name = checked_string(fields, "name")?;
    if role == FUNCTION && name.is_none() {
        return Err(ApiError::missing(&fields.path("name")));
    }
    Ok(Message { role, content, name, tool_calls, tool_call_id, reasoning })
}

fn role(fields: &mut Fields<'_>) -> Result<&'static str, ApiError> {
    let role = fields.required_string("role")?;
    (ROLES.into_iter().chain([FUNCTION]))
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

/// The deprecated form of a call. It has no id, so it is given one that no template minds.
fn function_call(fields: &mut Fields<'_>, at: usize) -> Result<Option<ToolCall>, ApiError> {
    let Some(mut call) = fields.object("function_call")? else { return Ok(None) };
    let (name, arguments) = (required_text(&mut call, "name")?, required_text(&mut call, "arguments")?);
    Ok(Some(ToolCall { id: format!("fc{at:07}"), name, arguments }))
}

/// By its two names: an answer of this server can be sent back as it is.
fn reasoning(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    let (older, newer) = (checked_string(fields, "reasoning_content")?, checked_string(fields, "reasoning")?);
    Ok(older.or(newer).filter(|text| !text.is_empty()))
}

/// What a message may carry at OpenAI and would be lost here.
fn refuse_parts_of_no_text(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    match fields.value("audio") {
        Some(_) => Err(ApiError::unsupported_parameter(&fields.path("audio"))),
        None => Ok(()),
    }
}

fn checked_string(fields: &mut Fields<'_>, name: &'static str) -> Result<Option<String>, ApiError> {
    let Some(text) = fields.string(name)? else { return Ok(None) };
    without_nul(&fields.path(name), text)?;
    Ok(Some(text.to_owned()))
}

fn required_text(fields: &mut Fields<'_>, name: &'static str) -> Result<String, ApiError> {
    checked_string(fields, name)?.ok_or_else(|| ApiError::missing(&fields.path(name)))
}
