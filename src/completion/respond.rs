//! A request's generations, folded into one answer.

use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::to_raw_value;
use tandem_core::Vocab;
use tandem_engine::{Event, FinishReason, Generation, Logprobs, Usage};

use super::answer::{AnswerForm, AnswerReader, Piece};
use super::started::total_usage;
use super::{Answer, Form, Settings, Started, engine_errors, logprobs};
use crate::openai;
use crate::openai::chat::{AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs, FunctionCall, ToolCall};
use crate::openai::completions::{Completion, CompletionChoice, CompletionLogprobs};
use crate::openai::error::ApiError;

/// One generation, ended.
#[derive(Debug)]
struct Ended {
    /// Of a chat with parts, the text alone.
    text: String,
    reasoning: String,
    reasoning_tokens: u64,
    calls: Vec<FunctionCall>,
    logprobs: Option<Vec<Logprobs>>,
    reason: FinishReason,
    usage: Usage,
}

impl Started {
    /// Waits for the whole answer.
    ///
    /// # Errors
    /// When a generation fails, or the request's time is over.
    pub async fn collect(mut self) -> Result<Answer, ApiError> {
        let generations = std::mem::take(&mut self.generations);
        let all = gather(generations, &self.vocab(), &self.settings).await?;
        let usages: Vec<Usage> = all.iter().map(|ended| ended.usage).collect();
        let reasoning_tokens = all.iter().map(|ended| ended.reasoning_tokens).sum();
        let usage = total_usage(&usages, self.settings.n, reasoning_tokens);
        let body = match self.label.form {
            Form::Chat => raw(&self.chat_completion(all, usage)),
            Form::Text => raw(&self.completion(all, usage)),
        }?;
        Ok(Answer { body, usage })
    }

    fn chat_completion(&self, all: Vec<Ended>, usage: openai::Usage) -> ChatCompletion<'_> {
        let label = &self.label;
        let choice = |(index, ended): (usize, Ended)| ChatChoice {
            index,
            logprobs: ended
                .logprobs
                .as_ref()
                .map(|all| ChatLogprobs { content: all.iter().map(logprobs::chat).collect(), refusal: None }),
            finish_reason: self.settings.answer.finish_reason(ended.reason, !ended.calls.is_empty()),
            message: self.message(ended),
        };
        ChatCompletion {
            id: &label.id,
            object: "chat.completion",
            created: label.created,
            model: &label.model,
            choices: all.into_iter().enumerate().map(choice).collect(),
            usage,
            system_fingerprint: &label.fingerprint,
        }
    }

    fn message(&self, ended: Ended) -> AssistantMessage {
        let Ended { text, reasoning, mut calls, .. } = ended;
        let answer = &self.settings.answer;
        let reasoning = (!reasoning.is_empty()).then_some(reasoning);
        let is_deprecated = answer.is_deprecated();
        let content = (calls.is_empty() || !text.is_empty()).then_some(text);
        let function_call = if is_deprecated { calls.pop() } else { None };
        let call = |function| ToolCall { id: answer.call_id(), kind: "function", function };
        AssistantMessage {
            role: "assistant",
            content,
            refusal: None,
            reasoning_content: reasoning.clone(),
            reasoning,
            tool_calls: calls.into_iter().map(call).collect(),
            function_call,
        }
    }

    fn completion(&self, all: Vec<Ended>, usage: openai::Usage) -> Completion<'_> {
        let Self { label, settings, .. } = self;
        let vocab = self.vocab();
        let choice = |(index, ended): (usize, Ended)| {
            let echo = settings.echo.get(index / settings.n).map(String::as_str).unwrap_or_default();
            let mut offset = echo.chars().count();
            let logprobs = ended.logprobs.map(|all| {
                let mut list = CompletionLogprobs::default();
                all.iter().for_each(|one| logprobs::append(&mut list, one, &vocab, &mut offset));
                list
            });
            let text = format!("{echo}{}", ended.text);
            CompletionChoice { text, index, logprobs, finish_reason: Some(reason(ended.reason)) }
        };
        Completion {
            id: &label.id,
            object: "text_completion",
            created: label.created,
            model: &label.model,
            system_fingerprint: &label.fingerprint,
            choices: all.into_iter().enumerate().map(choice).collect(),
            usage: Some(Some(usage)),
        }
    }
}

/// The generations run side by side in the engine; their events wait here in turn.
async fn gather(generations: Vec<Generation>, vocab: &Vocab, settings: &Settings) -> Result<Vec<Ended>, ApiError> {
    let all = async {
        let mut ended = Vec::with_capacity(generations.len());
        for generation in generations {
            ended.push(end(generation, vocab, settings).await?);
        }
        Ok(ended)
    };
    match settings.deadline {
        None => all.await,
        Some(deadline) => tokio::time::timeout_at(deadline, all)
            .await
            .unwrap_or_else(|_| Err(ApiError::generation_timeout(settings.timeout.as_secs()))),
    }
}

async fn end(mut generation: Generation, vocab: &Vocab, settings: &Settings) -> Result<Ended, ApiError> {
    let mut message = Message::default();
    let mut reader = settings.answer.reader();
    let mut logprobs: Option<Vec<Logprobs>> = None;
    while let Some(event) = generation.next().await {
        match event {
            Event::Token { id, text, logprobs: of_token } => {
                match &mut reader {
                    Some(reader) => message.extend(reader.push(&text)),
                    None => message.text.push_str(&text),
                }
                if let Some(of_token) = of_token {
                    let told = logprobs.get_or_insert_default();
                    if settings.is_told(vocab, id) {
                        told.push(of_token);
                    }
                }
            }
            Event::Finished { reason, text, usage, timing: _ } => {
                let reasoning_tokens = reader.as_ref().map_or(0, AnswerReader::reasoning_tokens);
                match &mut reader {
                    Some(reader) => message.extend(reader.finish(&text)),
                    None => message.text.push_str(&text),
                }
                let Message { text, reasoning, calls } = message;
                return Ok(Ended { text, reasoning, reasoning_tokens, calls, logprobs, reason, usage });
            }
            Event::Failed(error) => return Err(engine_errors::of_generation(error)),
        }
    }
    Err(ApiError::engine_gone())
}

/// What has come of an answer.
#[derive(Debug, Default)]
struct Message {
    text: String,
    reasoning: String,
    calls: Vec<FunctionCall>,
}

impl Message {
    fn extend(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => self.reasoning.push_str(&text),
                Piece::Content(text) => self.text.push_str(&text),
                Piece::Call { index: _, name } => self.calls.push(FunctionCall { name, arguments: String::new() }),
                Piece::Arguments { index, text } => self.calls[index].arguments.push_str(&text),
            }
        }
    }
}

impl Settings {
    /// Whether a token is part of the answer. The one that ends it is not.
    pub(super) fn is_told(&self, vocab: &Vocab, id: tandem_core::TokenId) -> bool {
        self.ignore_eos || !vocab.is_eog(id)
    }
}

impl AnswerForm {
    /// How a chat's end is told.
    pub(super) fn finish_reason(&self, ended: FinishReason, has_calls: bool) -> &'static str {
        match ended {
            FinishReason::Stop if has_calls && self.is_deprecated() => "function_call",
            FinishReason::Stop if has_calls => "tool_calls",
            FinishReason::Stop | FinishReason::Length => reason(ended),
        }
    }
}

pub(super) fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

pub(super) fn raw<T: Serialize>(body: &T) -> Result<Box<serde_json::value::RawValue>, ApiError> {
    to_raw_value(body).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        ApiError::internal()
    })
}
