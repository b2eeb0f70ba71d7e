//! A request's generations, told chunk by chunk as they go.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all, unfold};
use serde::Serialize;
use tandem_core::Vocab;
use tandem_engine::{Event, Logprobs, Usage};

use super::respond::reason;
use super::started::{Label, total_usage};
use super::{Endpoint, Settings, Started, engine_errors, logprobs};
use crate::models::Lease;
use crate::openai;
use crate::openai::chat::{ChatChunk, ChatLogprobs, ChunkChoice, Delta};
use crate::openai::completions::{Completion, CompletionChoice, CompletionLogprobs};
use crate::openai::error::ApiError;

type IndexedEvents = Pin<Box<dyn Stream<Item = (usize, Event)> + Send>>;

impl Started {
    /// The answer as it comes: each item is a chunk's JSON. An error is the last item.
    pub fn into_stream(self) -> impl Stream<Item = Result<String, ApiError>> + Send {
        unfold(Some(Telling::new(self)), |telling| async move {
            let mut telling = telling?;
            match telling.next().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(telling))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

/// A stream on its way.
struct Telling {
    events: SelectAll<IndexedEvents>,
    choices: Vec<Choice>,
    /// Chunks that are ready.
    ready: VecDeque<String>,
    /// Choices that have not ended.
    open: usize,
    settings: Settings,
    label: Label,
    vocab: Arc<Vocab>,
    _lease: Lease,
}

/// What has to be remembered of a choice between its events.
#[derive(Default)]
struct Choice {
    /// Of tokens whose text is still held back.
    untold: Vec<Logprobs>,
    /// Characters that the choice's tokens have, for the offsets of completions.
    offset: usize,
    usage: Usage,
}

impl Telling {
    fn new(started: Started) -> Self {
        let vocab = started.vocab();
        let Started { generations, settings, label, lease } = started;
        let open = generations.len();
        let events = select_all(
            generations
                .into_iter()
                .enumerate()
                .map(|(index, generation)| -> IndexedEvents { Box::pin(generation.map(move |event| (index, event))) }),
        );
        let choices = std::iter::repeat_with(Choice::default).take(open).collect();
        let mut telling = Self { events, choices, ready: VecDeque::new(), open, settings, label, vocab, _lease: lease };
        telling.begin();
        telling
    }

    async fn next(&mut self) -> Result<Option<String>, ApiError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if self.open == 0 {
                return Ok(None);
            }
            let event = match self.settings.deadline {
                None => self.events.next().await,
                Some(deadline) => tokio::time::timeout_at(deadline, self.events.next())
                    .await
                    .map_err(|_| ApiError::generation_timeout(self.settings.timeout.as_secs()))?,
            };
            let Some((index, event)) = event else { return Err(ApiError::engine_gone()) };
            self.tell(index, event)?;
        }
    }

    /// A chat's choices begin with their role, an echoing completion's with its prompt.
    fn begin(&mut self) {
        for index in 0..self.choices.len() {
            match self.label.endpoint {
                Endpoint::ChatCompletions => {
                    let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
                    self.push_chat(ChunkChoice { index, delta, logprobs: None, finish_reason: None });
                }
                Endpoint::Completions => {
                    if let Some(echo) = self.settings.echo.get(index / self.settings.n).cloned() {
                        self.choices[index].offset = echo.chars().count();
                        self.push_text(CompletionChoice { text: echo, index, logprobs: None, finish_reason: None });
                    }
                }
            }
        }
    }

    fn tell(&mut self, index: usize, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Token { id, text, logprobs } => {
                let told = logprobs.filter(|_| self.settings.is_told(&self.vocab, id));
                self.choices[index].untold.extend(told);
                // Without new text there is nothing to tell: the token's log-probabilities go with the text that it becomes part of.
                if !text.is_empty() {
                    self.push(index, text, None);
                }
            }
            Event::Finished { reason: ended, text, usage, timing: _ } => {
                if !text.is_empty() || !self.choices[index].untold.is_empty() {
                    self.push(index, text, None);
                }
                self.push(index, String::new(), Some(reason(ended)));
                self.choices[index].usage = usage;
                self.open -= 1;
                if self.open == 0 && self.settings.include_usage {
                    self.push_usage();
                }
            }
            Event::Failed(error) => return Err(engine_errors::of_generation(error)),
        }
        Ok(())
    }

    fn push(&mut self, index: usize, text: String, finish_reason: Option<&'static str>) {
        let choice = &mut self.choices[index];
        let untold = std::mem::take(&mut choice.untold);
        match self.label.endpoint {
            Endpoint::ChatCompletions => {
                let content = if finish_reason.is_none() { Some(text) } else { None };
                let logprobs = (!untold.is_empty())
                    .then(|| ChatLogprobs { content: untold.iter().map(logprobs::chat).collect(), refusal: None });
                self.push_chat(ChunkChoice { index, delta: Delta { role: None, content }, logprobs, finish_reason });
            }
            Endpoint::Completions => {
                let logprobs = (!untold.is_empty()).then(|| {
                    let mut list = CompletionLogprobs::default();
                    untold.iter().for_each(|one| logprobs::append(&mut list, one, &self.vocab, &mut choice.offset));
                    list
                });
                self.push_text(CompletionChoice { text, index, logprobs, finish_reason });
            }
        }
    }

    fn push_chat(&mut self, choice: ChunkChoice) {
        let usage = self.settings.include_usage.then_some(None);
        let chunk = json(&chat_chunk(&self.label, vec![choice], usage));
        self.ready.push_back(chunk);
    }

    fn push_text(&mut self, choice: CompletionChoice) {
        let usage = self.settings.include_usage.then_some(None);
        let chunk = json(&text_chunk(&self.label, vec![choice], usage));
        self.ready.push_back(chunk);
    }

    fn push_usage(&mut self) {
        let usages: Vec<Usage> = self.choices.iter().map(|choice| choice.usage).collect();
        let usage = Some(Some(total_usage(&usages, self.settings.n)));
        let chunk = match self.label.endpoint {
            Endpoint::ChatCompletions => json(&chat_chunk(&self.label, Vec::new(), usage)),
            Endpoint::Completions => json(&text_chunk(&self.label, Vec::new(), usage)),
        };
        self.ready.push_back(chunk);
    }
}

fn chat_chunk(label: &Label, choices: Vec<ChunkChoice>, usage: Option<Option<openai::Usage>>) -> ChatChunk<'_> {
    ChatChunk {
        id: &label.id,
        object: "chat.completion.chunk",
        created: label.created,
        model: &label.model,
        system_fingerprint: &label.fingerprint,
        choices,
        usage,
    }
}

fn text_chunk(label: &Label, choices: Vec<CompletionChoice>, usage: Option<Option<openai::Usage>>) -> Completion<'_> {
    Completion {
        id: &label.id,
        object: "text_completion",
        created: label.created,
        model: &label.model,
        system_fingerprint: &label.fingerprint,
        choices,
        usage,
    }
}

fn json<T: Serialize>(chunk: &T) -> String {
    serde_json::to_string(chunk).expect("chunks have string keys and finite numbers")
}
