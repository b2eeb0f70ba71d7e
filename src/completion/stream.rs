//! A request's generations, told chunk by chunk as they go.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use serde::Serialize;
use tandem_core::{TokenId, Vocab};
use tandem_engine::{Event, FinishReason, Generation, Logprobs, StoppedBy, Usage};
use tokio::time::{Sleep, sleep_until};

use super::asker::Spent;
use super::logprobs::Lists;
use super::read::StreamUsage;
use super::respond::{extras, reason};
use super::started::{Label, total_usage};
use super::{Form, Settings, Started, ToldPrompt, engine_errors, logprobs};
use crate::models::Generator;
use crate::openai::chat::{ChatChunk, ChatLogprobs, ChunkChoice, Delta};
use crate::openai::completions::{Completion, CompletionChoice};
use crate::openai::error::ApiError;
use crate::openai::{self, ChoiceExtras, PromptExtras};

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
    spent: Spent,
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
    fn new(label: &Label, usage: StreamUsage) -> Self {
        let mut head = Vec::new();
        match label.form {
            Form::Chat => write_json(&mut head, &chat_chunk(label, Vec::new(), None)),
            Form::Text => write_json(&mut head, &text_chunk(label, Vec::new(), None)),
        }
        // A chunk without choices and usage ends with its empty list of choices.
        debug_assert!(head.ends_with(b"[]}"), "choices come last");
        head.truncate(head.len() - b"]}".len());
        Self { head, tail: if usage.at_end { b"],\"usage\":null}" } else { b"]}" } }
    }

    fn write(&self, out: &mut Vec<u8>, frame: Frame, choice: &impl Serialize, usage: Option<openai::Usage>) {
        out.extend_from_slice(frame.before);
        out.extend_from_slice(&self.head);
        write_json(out, choice);
        match usage {
            None => out.extend_from_slice(self.tail),
            Some(usage) => {
                out.extend_from_slice(b"],\"usage\":");
                write_json(out, &usage);
                out.push(b'}');
            }
        }
        out.extend_from_slice(frame.after);
    }
}

/// What has to be remembered of a choice between its events.
#[derive(Default)]
struct Choice {
    /// Of tokens whose text is still held back.
    untold: Vec<Logprobs>,
    /// The ids of tokens that are not told yet, where they are told.
    untold_ids: Vec<TokenId>,
    /// Characters that the choice's tokens have, for the offsets of completions.
    offset: usize,
    /// So far.
    usage: Usage,
    /// What is told with the first chunk.
    prompt: PromptExtras,
    /// The prompt's text and first token, to be told with its log-probabilities when they come.
    echo: Option<(String, TokenId)>,
}

impl Chunks {
    fn new(started: Started) -> Self {
        let vocab = started.vocab();
        let Started { generations, settings, label, spent, lease } = started;
        let open = generations.len();
        let choice = |index: usize| {
            let prompt = settings.prompts.get(index / settings.n);
            let usage = Usage { prompt_tokens: prompt.map_or(0, |prompt| prompt.tokens), ..Usage::default() };
            let echo = prompt.and_then(|prompt| Some((prompt.echo.clone()?, prompt.first?)));
            // A chat has one prompt, which is told once.
            let is_told = label.form == Form::Text || index == 0;
            let prompt = prompt.filter(|_| is_told).map(ToldPrompt::extras).unwrap_or_default();
            Choice { usage, prompt, echo, ..Choice::default() }
        };
        Self {
            events: Events::of(generations),
            choices: (0..open).map(choice).collect(),
            begun: false,
            open,
            envelope: Envelope::new(&label, settings.telling.usage),
            deadline: settings.deadline.map(|deadline| Box::pin(sleep_until(deadline))),
            settings,
            label,
            vocab,
            spent,
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
            let prompt = self.settings.prompts.get(index / self.settings.n);
            let echo = prompt.and_then(|prompt| prompt.echo.clone());
            match self.label.form {
                Form::Chat => {
                    let delta = Delta { role: Some("assistant"), content: Some(echo.unwrap_or_default()) };
                    let extras = ChoiceExtras::default();
                    let choice = ChunkChoice { index, delta, logprobs: None, finish_reason: None, extras };
                    self.write_chat(out, frame, choice);
                }
                Form::Text => {
                    // With log-probabilities it comes when they do.
                    if let Some(echo) = echo
                        && self.choices[index].echo.is_none()
                    {
                        self.choices[index].offset = echo.chars().count();
                        self.write_text(
                            out,
                            frame,
                            index,
                            CompletionChoice { text: echo, ..CompletionChoice::default() },
                        );
                    }
                }
            }
        }
    }

    fn tell(&mut self, out: &mut Vec<u8>, frame: Frame, index: usize, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Prompt(scores) => self.write_prompt(out, frame, index, &scores),
            Event::Token { id, text, logprobs } => {
                self.spent.add(1);
                self.write_prompt(out, frame, index, &[]);
                let told = logprobs.filter(|_| self.settings.is_told(&self.vocab, id));
                let choice = &mut self.choices[index];
                choice.untold.extend(told);
                choice.usage.completion_tokens += 1;
                if self.settings.telling.token_ids {
                    choice.untold_ids.push(id);
                }
                // Without new text there is nothing to tell: the token's log-probabilities go with the text that it becomes part of.
                if !text.is_empty() {
                    self.write(out, frame, index, text, None);
                }
            }
            Event::Finished { reason, stopped_by, text, usage, timing: _ } => {
                self.write_prompt(out, frame, index, &[]);
                let choice = &self.choices[index];
                if !text.is_empty() || !choice.untold.is_empty() || !choice.untold_ids.is_empty() {
                    self.write(out, frame, index, text, None);
                }
                self.choices[index].usage = usage;
                self.write(out, frame, index, String::new(), Some((reason, stopped_by)));
                self.open -= 1;
                if self.open == 0 && self.settings.telling.usage.at_end {
                    self.write_usage(out, frame);
                }
            }
            Event::Failed(error) => return Err(engine_errors::of_generation(error)),
        }
        Ok(())
    }

    /// The prompt in front of a completion with log-probabilities, the first time. One of a single token has none to wait for.
    fn write_prompt(&mut self, out: &mut Vec<u8>, frame: Frame, index: usize, scores: &[Logprobs]) {
        let Some((text, first)) = self.choices[index].echo.take() else { return };
        let mut lists = Lists::new(&self.vocab, &self.settings.telling, 0);
        lists.push_prompt(first, scores);
        self.choices[index].offset = lists.offset;
        let choice = CompletionChoice { text, logprobs: Some(lists.lists), ..CompletionChoice::default() };
        self.write_text(out, frame, index, choice);
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        frame: Frame,
        index: usize,
        text: String,
        end: Option<(FinishReason, Option<StoppedBy>)>,
    ) {
        let choice = &mut self.choices[index];
        let (untold, ids) = (std::mem::take(&mut choice.untold), std::mem::take(&mut choice.untold_ids));
        let ids = (!ids.is_empty()).then_some(ids);
        let (finish_reason, extras) = match end {
            None => (None, ChoiceExtras { stop_reason: None, token_ids: ids }),
            Some((ended, stopped_by)) => (Some(reason(ended)), extras(ended, stopped_by, ids)),
        };
        let telling = &self.settings.telling;
        match self.label.form {
            Form::Chat => {
                let content = if finish_reason.is_none() { Some(text) } else { None };
                let logprobs = (!untold.is_empty()).then(|| ChatLogprobs {
                    content: untold.iter().map(|one| logprobs::chat(one, telling)).collect(),
                    refusal: None,
                });
                let delta = Delta { role: None, content };
                self.write_chat(out, frame, ChunkChoice { index, delta, logprobs, finish_reason, extras });
            }
            Form::Text => {
                let mut lists = Lists::new(&self.vocab, telling, choice.offset);
                untold.iter().for_each(|one| lists.push(one));
                choice.offset = lists.offset;
                let logprobs = (!untold.is_empty()).then_some(lists.lists);
                let choice = CompletionChoice { text, logprobs, finish_reason, extras, ..CompletionChoice::default() };
                self.write_text(out, frame, index, choice);
            }
        }
    }

    fn write_chat(&mut self, out: &mut Vec<u8>, frame: Frame, choice: ChunkChoice) {
        let prompt = std::mem::take(&mut self.choices[choice.index].prompt);
        let usage = self.usage_so_far();
        if prompt == PromptExtras::default() {
            self.envelope.write(out, frame, &choice, usage);
            return;
        }
        let usage = usage.map(Some).or(self.settings.telling.usage.at_end.then_some(None));
        let chunk = ChatChunk { prompt, ..chat_chunk(&self.label, vec![choice], usage) };
        out.extend_from_slice(frame.before);
        write_json(out, &chunk);
        out.extend_from_slice(frame.after);
    }

    fn write_text(&mut self, out: &mut Vec<u8>, frame: Frame, index: usize, choice: CompletionChoice) {
        let prompt = std::mem::take(&mut self.choices[index].prompt);
        self.envelope.write(out, frame, &CompletionChoice { index, prompt, ..choice }, self.usage_so_far());
    }

    /// Of all choices, where each chunk tells it.
    fn usage_so_far(&self) -> Option<openai::Usage> {
        self.settings.telling.usage.always.then(|| self.usage())
    }

    fn usage(&self) -> openai::Usage {
        let usages: Vec<Usage> = self.choices.iter().map(|choice| choice.usage).collect();
        total_usage(&usages, self.settings.n)
    }

    fn write_usage(&self, out: &mut Vec<u8>, frame: Frame) {
        let usage = Some(Some(self.usage()));
        out.extend_from_slice(frame.before);
        match self.label.form {
            Form::Chat => write_json(out, &chat_chunk(&self.label, Vec::new(), usage)),
            Form::Text => write_json(out, &text_chunk(&self.label, Vec::new(), usage)),
        }
        out.extend_from_slice(frame.after);
    }
}

fn chat_chunk(label: &Label, choices: Vec<ChunkChoice>, usage: Option<Option<openai::Usage>>) -> ChatChunk<'_> {
    ChatChunk {
        id: &label.id,
        object: "chat.completion.chunk",
        created: label.created,
        model: &label.model,
        system_fingerprint: &label.fingerprint,
        service_tier: label.service_tier,
        prompt: PromptExtras::default(),
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
        service_tier: label.service_tier,
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
        Label { form, id, created: 1_700_000_000, model, fingerprint: "fp_0".to_owned(), service_tier: Some("flex") }
    }

    /// What is written in parts is what serde writes as a whole.
    #[test]
    fn an_envelope_around_a_choice_is_the_chunk() {
        let frame = Frame { before: b"<", after: b">" };
        let so_far = openai::Usage { completion_tokens: 3, ..openai::Usage::default() };
        for (at_end, told, usage) in
            [(false, None, None), (true, None, Some(None)), (true, Some(so_far), Some(Some(so_far)))]
        {
            let stream_usage = StreamUsage { at_end, always: told.is_some() };
            for text in ["a", "", "\"\n\u{2028}\u{1f600}]}"] {
                let label = label(Form::Chat);
                let delta = Delta { role: None, content: Some(text.to_owned()) };
                let extras = ChoiceExtras { stop_reason: None, token_ids: Some(vec![1, 2]) };
                let choice = ChunkChoice { index: 3, delta, logprobs: None, finish_reason: Some("stop"), extras };
                let (mut parts, mut whole) = (Vec::new(), b"<".to_vec());
                Envelope::new(&label, stream_usage).write(&mut parts, frame, &choice, told);
                write_json(&mut whole, &chat_chunk(&label, vec![choice], usage));
                assert_eq!(String::from_utf8(parts), String::from_utf8([whole, b">".to_vec()].concat()));

                let label = self::label(Form::Text);
                let choice = CompletionChoice { text: text.to_owned(), ..CompletionChoice::default() };
                let (mut parts, mut whole) = (Vec::new(), b"<".to_vec());
                Envelope::new(&label, stream_usage).write(&mut parts, frame, &choice, told);
                write_json(&mut whole, &text_chunk(&label, vec![choice], usage));
                assert_eq!(String::from_utf8(parts), String::from_utf8([whole, b">".to_vec()].concat()));
            }
        }
    }
}
