//! Messages to token ids.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use tandem_core::{TokenId, Tokenizer, Vocab};

use super::guard::{Guard, Piece};
use super::read::{Message, Tool, ToolCall, texts};
use super::template::{ChatTemplate, Context, TemplateError};
use super::told;
use crate::openai::error::ApiError;

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversation<'a> {
    pub(super) messages: &'a [Message],
    /// The functions that the model may call.
    pub(super) tools: &'a [Tool],
    pub(super) add_generation_prompt: bool,
    /// The prompt ends within the last message, for the answer to go on with it.
    pub(super) continue_final_message: bool,
    pub(super) variables: &'a Map<String, Value>,
}

/// A rendered conversation.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) ids: Vec<TokenId>,
    /// The end of its text, if the template has written an answer's beginning.
    pub(super) end: Option<String>,
}

/// Renders a conversation and tokenizes it. Only what the template writes becomes control tokens, the beginning of sequence included.
pub(super) fn of_chat(
    conversation: Conversation<'_>,
    template: &ChatTemplate,
    vocab: &Vocab,
    tokenizer: &dyn Tokenizer,
) -> Result<Prompt, ApiError> {
    let Conversation { messages, variables, tools, add_generation_prompt, continue_final_message } = conversation;
    let tools: Vec<Value> = tools.iter().map(Tool::value).collect();
    let calls: Vec<Value> = messages.iter().flat_map(|message| &message.tool_calls).map(arguments).collect();
    let own_texts = messages.iter().flat_map(Message::texts);
    let variable_texts = variables.values().filter_map(Value::as_str);
    let value_texts = tools.iter().chain(&calls).flat_map(texts);
    let guard = Guard::new(vocab, own_texts.chain(variable_texts).chain(value_texts).chain([template.source()]));
    let Some(guard) = guard else {
        return Err(ApiError::invalid_value("messages", "Invalid 'messages': too many characters for private use."));
    };
    let mut rendered = render(conversation, &tools, template, vocab, &guard)?;
    if continue_final_message {
        end_within(&mut rendered, messages, &guard)?;
    }
    let mut ids = Vec::new();
    for piece in guard.split(&rendered) {
        match piece {
            Piece::Special(id) => ids.push(id),
            Piece::Text(text) => {
                ids.append(&mut tokenizer.encode(&text).map_err(|_| ApiError::not_encodable("messages"))?);
            }
        }
    }
    let end = add_generation_prompt.then(|| last_part(&rendered).to_owned());
    Ok(Prompt { ids, end })
}

/// As much of the end as the marks of reasoning take, and white space around them.
fn last_part(rendered: &str) -> &str {
    const BYTES: usize = 100;
    let from = (rendered.len().saturating_sub(BYTES)..=rendered.len()).find(|at| rendered.is_char_boundary(*at));
    &rendered[from.unwrap_or_default()..]
}

/// Cuts what the template wrote behind the last message, as `transformers` does: its text is found from the end, with the white space at its
/// edges where the template has left it there.
fn end_within(rendered: &mut String, messages: &[Message], guard: &Guard<'_>) -> Result<(), ApiError> {
    const NAME: &str = "continue_final_message";
    let text = messages.last().and_then(|message| message.content.as_deref()).unwrap_or_default();
    if text.trim().is_empty() {
        let message = "Invalid 'continue_final_message': the last message has no text to go on with.";
        return Err(ApiError::invalid_value(NAME, message));
    }
    let text = guard.protect(text);
    let Some(at) = rendered.rfind(text.trim()) else {
        let message = "Invalid 'continue_final_message': the model's chat template does not show the last message.";
        return Err(ApiError::invalid_value(NAME, message));
    };
    let whole = text.trim_start();
    let kept = if rendered[at..].starts_with(whole) { whole } else { whole.trim_end() };
    rendered.truncate(at + kept.len());
    Ok(())
}

/// Tokenizes a prompt as plain text. What the model's prompts begin with is not put in front.
pub(super) fn of_text(path: &str, text: &str, tokenizer: &dyn Tokenizer) -> Result<Vec<TokenId>, ApiError> {
    tokenizer.encode(text).map_err(|_| ApiError::not_encodable(path))
}

/// The same behind the beginning of sequence, if the model's prompts have one.
pub(super) fn opened(text: Vec<TokenId>, vocab: &Vocab) -> Vec<TokenId> {
    vocab.opening().into_iter().chain(text).collect()
}

/// Tokens that [`framed`] adds.
pub(super) fn frame_tokens(vocab: &Vocab) -> usize {
    vocab.opening().into_iter().chain(vocab.closing()).count()
}

/// A whole text between what the model was trained to find around one.
pub(super) fn framed(text: Vec<TokenId>, vocab: &Vocab) -> Vec<TokenId> {
    vocab.opening().into_iter().chain(text).chain(vocab.closing()).collect()
}

/// The text of token ids, for people to read: bytes that are no characters are replaced.
pub(super) fn text_of(ids: &[TokenId], vocab: &Vocab) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| vocab.bytes(*id)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn render(
    conversation: Conversation<'_>,
    tools: &[Value],
    template: &ChatTemplate,
    vocab: &Vocab,
    guard: &Guard<'_>,
) -> Result<String, ApiError> {
    let spelling =
        |id: Option<TokenId>| id.and_then(|id| std::str::from_utf8(vocab.bytes(id)).ok()).unwrap_or_default();
    let variables =
        conversation.variables.iter().map(|(name, value)| (name.clone(), protected(value, guard))).collect();
    let mut messages: Vec<Value> =
        conversation.messages.iter().map(|message| message_value(message, template, guard)).collect();
    let tools: Vec<Value> = tools.iter().map(|tool| protected(tool, guard)).collect();
    if !template.knows_calls() {
        told::calls_as_text(&mut messages);
    }
    let has_calls = conversation.messages.iter().any(|message| !message.tool_calls.is_empty());
    let told = !tools.is_empty() && !template.knows_tools();
    let plain = messages.clone();
    if told {
        told::tools_in_system_message(&mut messages, &tools);
    }
    let mut context = Context {
        messages,
        add_generation_prompt: conversation.add_generation_prompt,
        bos_token: spelling(vocab.bos()),
        eos_token: spelling(vocab.eos()),
        tools: (!tools.is_empty() && !told).then(|| tools.clone()),
        documents: None,
        variables,
    };
    let mut rendered = template.render(&context);
    if matches!(rendered, Err(TemplateError::Broken(_))) && has_calls {
        // Some templates write arguments as they are given, so they get them as text.
        context.messages.iter_mut().for_each(arguments_as_text);
        rendered = template.render(&context);
    }
    if told && matches!(rendered, Err(TemplateError::Raised(_))) {
        // A model without a system message is told by its user.
        context.messages = plain;
        told::tools_in_first_message(&mut context.messages, &tools);
        rendered = template.render(&context);
    }
    rendered.map_err(|error| match error {
        TemplateError::Raised(message) => ApiError::refused_by_template(guard.strip(&message).into_owned()),
        TemplateError::Broken(reason) => {
            tracing::error!(reason, "a chat template gave no prompt");
            ApiError::chat_template_error()
        }
    })
}

/// A message as templates expect it. Roles are the server's own words, everything else is the client's.
fn message_value(message: &Message, template: &ChatTemplate, guard: &Guard<'_>) -> Value {
    // OpenAI's newer name for the system role; a template that has never heard of it would drop the message.
    let role = match message.role {
        "developer" if !template.mentions("developer") => "system",
        role => role,
    };
    let mut value = Map::new();
    value.insert("role".to_owned(), role.into());
    value.insert("content".to_owned(), guard.protect(message.content.as_deref().unwrap_or_default()).into());
    if let Some(name) = &message.name {
        value.insert("name".to_owned(), guard.protect(name).into());
    }
    if let Some(text) = &message.reasoning {
        value.insert("reasoning_content".to_owned(), guard.protect(text).into());
    }
    if let Some(id) = &message.tool_call_id {
        value.insert("tool_call_id".to_owned(), guard.protect(id).into());
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| tool_call_value(call, guard)).collect();
        value.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Value::Object(value)
}

fn tool_call_value(call: &ToolCall, guard: &Guard<'_>) -> Value {
    let arguments = protected(&arguments(call), guard);
    let function = json!({ "name": guard.protect(&call.name), "arguments": arguments });
    json!({ "id": guard.protect(&call.id), "type": "function", "function": function })
}

fn arguments_as_text(message: &mut Value) {
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let arguments = &mut call["function"]["arguments"];
        if !arguments.is_string() {
            *arguments = arguments.to_string().into();
        }
    }
}

/// Templates write arguments as JSON themselves, so they get them parsed; what is not an object stays the text that it is.
fn arguments(call: &ToolCall) -> Value {
    match serde_json::from_str(&call.arguments) {
        Ok(Value::Object(arguments)) => Value::Object(arguments),
        _ => call.arguments.clone().into(),
    }
}

/// The value with all of its texts protected.
fn protected(value: &Value, guard: &Guard<'_>) -> Value {
    match value {
        Value::String(text) => guard.protect(text).into(),
        Value::Array(items) => items.iter().map(|item| protected(item, guard)).collect(),
        Value::Object(entries) => {
            let key = |key: &str| -> String { Cow::into_owned(guard.protect(key)) };
            entries.iter().map(|(name, value)| (key(name), protected(value, guard))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
