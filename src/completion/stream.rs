//! A request's generations, told chunk by chunk as they go.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use serde::Serialize;
use tandem_core::Vocab;
use tandem_engine::{Event, Generation, Logprobs, Usage};
use tokio::time::{Sleep, sleep_until};

use super::answer::{AnswerForm, AnswerReader, Piece};
use super::respond::reason;
use super::started::{Label, total_usage};
use super::{Form, Settings, Started, engine_errors, logprobs};
use crate::models::Generator;
use crate::openai;
use crate::openai::chat::{ChatChunk, ChatLogprobs, ChunkChoice, Delta, FunctionCallDelta, ToolCallDelta};
use crate::openai::completions::{Completion, CompletionChoice, CompletionLogprobs};
use crate::openai::error::ApiError;

impl Started {
    /// The answer as it comes, in chunks of JSON.
    #[must_use]
    pub fn into_chunks(self) -> Chunks {
        Chunks::new(self)
    }
}

/// What each chunk is put between.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub before: &'static [u8],
    pub after: &'static [u8],
}

/// A stream on its way. Dropping it cancels the generations.
pub struct Chunks {
    events: Events,
    choices: Vec<Choice>,
    /// Whether the chunks that come before any event are written.
    begun: bool,
    /// Choices that have not ended.
    open: usize,
    envelope: Envelope,
    settings: Settings,
    /// Wakes the task when the request's time is over.
    deadline: Option<Pin<Box<Sleep>>>,
    label: Label,
    vocab: Arc<Vocab>,
    _lease: Generator,
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunks").field("label", &self.label).field("open", &self.open).finish_non_exhaustive()
    }
}

type IndexedEvents = Pin<Box<dyn Stream<Item = (usize, Event)> + Send>>;

/// Nearly every request has one choice, which needs no bookkeeping of who is ready.
enum Events {
    One(Generation),
    Many(SelectAll<IndexedEvents>),
}

impl Events {
    fn of(mut generations: Vec<Generation>) -> Self {
        if generations.len() == 1
            && let Some(generation) = generations.pop()
        {
            return Self::One(generation);
        }
        let indexed = |(index, generation): (usize, Generation)| -> IndexedEvents {
            Box::pin(generation.map(move |event| (index, event)))
        };
        Self::Many(select_all(generations.into_iter().enumerate().map(indexed)))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        match self {
            Self::One(generation) => generation.poll_next_unpin(cx).map(|event| Some((0, event?))),
            Self::Many(events) => events.poll_next_unpin(cx),
        }
    }
}

/// What all chunks of an answer have in common, as it stands around their choice.
struct Envelope {
    head: Vec<u8>,
    tail: &'static [u8],
}

impl Envelope {
    fn new(label: &Label, include_usage: bool) -> Self {
        let mut head = Vec::new();
        match label.form {
            Form::Chat => write_json(&mut head, &chat_chunk(label, Vec::new(), None)),
            Form::Text => write_json(&mut head, &text_chunk(label, Vec::new(), None)),
        }
        // A chunk without choices and usage ends with its empty list of choices.
        debug_assert!(head.ends_with(b"[]}"), "choices come last");
        head.truncate(head.len() - b"]}".len());
        Self { head, tail: if include_usage { b"],\"usage\":null}" } else { b"]}" } }
    }

    fn write(&self, out: &mut Vec<u8>, frame: Frame, choice: &impl Serialize) {
        out.extend_from_slice(frame.before);
        out.extend_from_slice(&self.head);
        write_json(out, choice);
        out.extend_from_slice(self.tail);
        out.extend_from_slice(frame.after);
    }
}

/// What has to be remembered of a choice between its events.
#[derive(Default)]
struct Choice {
    /// Of tokens whose text is still held back.
    untold: Vec<Logprobs>,
    /// Characters that the choice's tokens have, for the offsets of completions.
    offset: usize,
    /// Tells the parts of a message from its text.
    reader: Option<AnswerReader>,
    has_calls: bool,
    usage: Usage,
}

impl Chunks {
    fn new(started: Started) -> Self {
        let vocab = started.vocab();
        let Started { generations, settings, label, lease } = started;
        let open = generations.len();
        Self {
            events: Events::of(generations),
            choices: std::iter::repeat_with(|| Choice { reader: settings.answer.reader(), ..Choice::default() })
                .take(open)
                .collect(),
            begun: false,
            open,
            envelope: Envelope::new(&label, settings.include_usage),
            deadline: settings.deadline.map(|deadline| Box::pin(sleep_until(deadline))),
            settings,
            label,
            vocab,
            _lease: lease,
        }
    }

    /// Appends to `out` the chunks of what happens next, at least one; `None` when all is told. After an error comes nothing more.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
        frame: Frame,
    ) -> Poll<Option<Result<(), ApiError>>> {
        let start = out.len();
        if !self.begun {
            self.begun = true;
            self.begin(out, frame);
        }
        while out.len() == start {
            if self.open == 0 {
                return Poll::Ready(None);
            }
            let event = match self.events.poll(cx) {
                Poll::Ready(event) => event,
                Poll::Pending => {
                    let Some(deadline) = &mut self.deadline else { return Poll::Pending };
                    ready!(deadline.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(ApiError::generation_timeout(self.settings.timeout.as_secs()))));
                }
            };
            let told = match event {
                Some((index, event)) => self.tell(out, frame, index, event),
                None => Err(ApiError::engine_gone()),
            };
            if let Err(error) = told {
                return Poll::Ready(Some(Err(error)));
            }
        }
        Poll::Ready(Some(Ok(())))
    }

    /// A chat's choices begin with their role, an echoing completion's with its prompt.
    fn begin(&mut self, out: &mut Vec<u8>, frame: Frame) {
        for index in 0..self.choices.len() {
            match self.label.form {
                Form::Chat => {
                    let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
                    let choice = ChunkChoice { index, delta, logprobs: None, finish_reason: None };
                    self.envelope.write(out, frame, &choice);
                }
                Form::Text => {
                    if let Some(echo) = self.settings.echo.get(index / self.settings.n).cloned() {
                        self.choices[index].offset = echo.chars().count();
                        let choice = CompletionChoice { text: echo, index, logprobs: None, finish_reason: None };
                        self.envelope.write(out, frame, &choice);
                    }
                }
            }
        }
    }

    fn tell(&mut self, out: &mut Vec<u8>, frame: Frame, index: usize, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Token { id, text, logprobs } => {
                let told = logprobs.filter(|_| self.settings.is_told(&self.vocab, id));
                self.choices[index].untold.extend(told);
                // Without new text there is nothing to tell: the token's log-probabilities go with the text that it becomes part of.
                match &mut self.choices[index].reader {
                    Some(reader) => {
                        let pieces = reader.push(&text);
                        self.write_pieces(out, frame, index, pieces);
                    }
                    None if text.is_empty() => {}
                    None => self.write(out, frame, index, text, None),
                }
            }
            Event::Finished { reason: ended, text, usage, timing: _ } => {
                let rest = match &mut self.choices[index].reader {
                    Some(reader) => {
                        let pieces = reader.finish(&text);
                        self.write_pieces(out, frame, index, pieces);
                        String::new()
                    }
                    None => text,
                };
                if !rest.is_empty() || !self.choices[index].untold.is_empty() {
                    self.write(out, frame, index, rest, None);
                }
                let has_calls = self.choices[index].has_calls;
                let reason = match self.label.form {
                    Form::Chat => self.settings.answer.finish_reason(ended, has_calls),
                    Form::Text => reason(ended),
                };
                self.write(out, frame, index, String::new(), Some(reason));
                self.choices[index].usage = usage;
                self.open -= 1;
                if self.open == 0 && self.settings.include_usage {
                    self.write_usage(out, frame);
                }
            }
            Event::Failed(error) => return Err(engine_errors::of_generation(error)),
        }
        Ok(())
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        frame: Frame,
        index: usize,
        text: String,
        finish_reason: Option<&'static str>,
    ) {
        let choice = &mut self.choices[index];
        let untold = std::mem::take(&mut choice.untold);
        match self.label.form {
            Form::Chat => {
                let content = if finish_reason.is_none() { Some(text) } else { None };
                let logprobs = chat_logprobs(&untold);
                let delta = Delta { content, ..Delta::default() };
                self.envelope.write(out, frame, &ChunkChoice { index, delta, logprobs, finish_reason });
            }
            Form::Text => {
                let logprobs = (!untold.is_empty()).then(|| {
                    let mut list = CompletionLogprobs::default();
                    untold.iter().for_each(|one| logprobs::append(&mut list, one, &self.vocab, &mut choice.offset));
                    list
                });
                self.envelope.write(out, frame, &CompletionChoice { text, index, logprobs, finish_reason });
            }
        }
    }

    /// The parts of a message that a token made known; log-probabilities go with the first.
    fn write_pieces(&mut self, out: &mut Vec<u8>, frame: Frame, index: usize, pieces: Vec<Piece>) {
        for piece in pieces {
            let logprobs = chat_logprobs(&std::mem::take(&mut self.choices[index].untold));
            self.choices[index].has_calls |= matches!(piece, Piece::Call { .. });
            let delta = delta(piece, &self.settings.answer);
            self.envelope.write(out, frame, &ChunkChoice { index, delta, logprobs, finish_reason: None });
        }
    }

    fn write_usage(&self, out: &mut Vec<u8>, frame: Frame) {
        let usages: Vec<Usage> = self.choices.iter().map(|choice| choice.usage).collect();
        let readers = self.choices.iter().filter_map(|choice| choice.reader.as_ref());
        let reasoning_tokens = readers.map(AnswerReader::reasoning_tokens).sum();
        let usage = Some(Some(total_usage(&usages, self.settings.n, reasoning_tokens)));
        out.extend_from_slice(frame.before);
        match self.label.form {
            Form::Chat => write_json(out, &chat_chunk(&self.label, Vec::new(), usage)),
            Form::Text => write_json(out, &text_chunk(&self.label, Vec::new(), usage)),
        }
        out.extend_from_slice(frame.after);
    }
}

fn chat_logprobs(untold: &[Logprobs]) -> Option<ChatLogprobs> {
    (!untold.is_empty()).then(|| ChatLogprobs { content: untold.iter().map(logprobs::chat).collect(), refusal: None })
}

fn delta(piece: Piece, answer: &AnswerForm) -> Delta {
    let (index, id, function) = match piece {
        Piece::Content(text) => return Delta { content: Some(text), ..Delta::default() },
        Piece::Reasoning(text) => {
            return Delta { reasoning_content: Some(text.clone()), reasoning: Some(text), ..Delta::default() };
        }
        Piece::Call { index, name } => {
            let function = FunctionCallDelta { name: Some(name), arguments: String::new() };
            (index, Some(answer.call_id()), function)
        }
        Piece::Arguments { index, text } => (index, None, FunctionCallDelta { name: None, arguments: text }),
    };
    if answer.is_deprecated() {
        return Delta { function_call: Some(function), ..Delta::default() };
    }
    let kind = id.is_some().then_some("function");
    Delta { tool_calls: vec![ToolCallDelta { index, id, kind, function }], ..Delta::default() }
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

fn write_json(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("chunks have string keys and finite numbers");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(form: Form) -> Label {
        let (id, model) = ("chatcmpl-\"1".to_owned(), "org/\u{e9}\\]}".to_owned());
        Label { form, id, created: 1_700_000_000, model, fingerprint: "fp_0".to_owned() }
    }

    /// What is written in parts is what serde writes as a whole.
    #[test]
    fn an_envelope_around_a_choice_is_the_chunk() {
        let frame = Frame { before: b"<", after: b">" };
        for (include_usage, usage) in [(false, None), (true, Some(None))] {
            for text in ["a", "", "\"\n\u{2028}\u{1f600}]}"] {
                let label = label(Form::Chat);
                let delta = Delta { content: Some(text.to_owned()), ..Delta::default() };
                let choice = ChunkChoice { index: 3, delta, logprobs: None, finish_reason: Some("stop") };
                let (mut parts, mut whole) = (Vec::new(), b"<".to_vec());
                Envelope::new(&label, include_usage).write(&mut parts, frame, &choice);
                write_json(&mut whole, &chat_chunk(&label, vec![choice], usage));
                assert_eq!(String::from_utf8(parts), String::from_utf8([whole, b">".to_vec()].concat()));

                let label = self::label(Form::Text);
                let choice = CompletionChoice { text: text.to_owned(), index: 0, logprobs: None, finish_reason: None };
                let (mut parts, mut whole) = (Vec::new(), b"<".to_vec());
                Envelope::new(&label, include_usage).write(&mut parts, frame, &choice);
                write_json(&mut whole, &text_chunk(&label, vec![choice], usage));
                assert_eq!(String::from_utf8(parts), String::from_utf8([whole, b">".to_vec()].concat()));
            }
        }
    }
}
