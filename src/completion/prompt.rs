//! Messages to token ids.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use tandem_core::{TokenId, Tokenizer, Vocab};

use super::guard::{Guard, Piece};
use super::read::{Message, ToolCall};
use super::template::{ChatTemplate, Context, TemplateError};
use crate::openai::error::ApiError;

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversation<'a> {
    pub(super) messages: &'a [Message],
    pub(super) add_generation_prompt: bool,
    /// The prompt ends within the last message, for the answer to go on with it.
    pub(super) continue_final_message: bool,
    pub(super) variables: &'a Map<String, Value>,
}

/// Renders a conversation and tokenizes it. Only what the template writes becomes control tokens, the beginning of sequence included.
pub(super) fn of_chat(
    conversation: Conversation<'_>,
    template: &ChatTemplate,
    vocab: &Vocab,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<TokenId>, ApiError> {
    let Conversation { messages, variables, .. } = conversation;
    let texts = messages.iter().flat_map(Message::texts);
    let variable_texts = variables.values().filter_map(Value::as_str);
    let guard = Guard::new(vocab, texts.chain(variable_texts).chain([template.source()]));
    let Some(guard) = guard else {
        return Err(ApiError::invalid_value("messages", "Invalid 'messages': too many characters for private use."));
    };
    let mut rendered = render(conversation, template, vocab, &guard)?;
    if conversation.continue_final_message {
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
    Ok(ids)
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
    template: &ChatTemplate,
    vocab: &Vocab,
    guard: &Guard<'_>,
) -> Result<String, ApiError> {
    let spelling =
        |id: Option<TokenId>| id.and_then(|id| std::str::from_utf8(vocab.bytes(id)).ok()).unwrap_or_default();
    let variables =
        conversation.variables.iter().map(|(name, value)| (name.clone(), protected(value, guard))).collect();
    let context = Context {
        messages: conversation.messages.iter().map(|message| message_value(message, template, guard)).collect(),
        add_generation_prompt: conversation.add_generation_prompt,
        bos_token: spelling(vocab.bos()),
        eos_token: spelling(vocab.eos()),
        tools: None,
        documents: None,
        variables,
    };
    template.render(&context).map_err(|error| match error {
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
    if let Some(id) = &message.tool_call_id {
        value.insert("tool_call_id".to_owned(), guard.protect(id).into());
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| tool_call_value(call, guard)).collect();
        value.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Value::Object(value)
}

/// Templates write arguments as JSON themselves, so they get them parsed; what is not an object stays the text that it is.
fn tool_call_value(call: &ToolCall, guard: &Guard<'_>) -> Value {
    let arguments = match serde_json::from_str(&call.arguments) {
        Ok(Value::Object(arguments)) => protected(&Value::Object(arguments), guard),
        _ => guard.protect(&call.arguments).into(),
    };
    let function = json!({ "name": guard.protect(&call.name), "arguments": arguments });
    json!({ "id": guard.protect(&call.id), "type": "function", "function": function })
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
