use std::time::Instant;

use tandem_core::{SampleError, SampleRow, Sampled, SlotId, TokenId, Vocab, sampling::uniform};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    EngineError, Event, FinishReason, GenerateRequest, Logprobs, Priority, Timing, TokenText, Usage,
    output::{Output, Pushed},
    request::StopRules,
    stats::Ticket,
};

/// The engine's record of a generation.
///
/// `computed` catches up with `tokens`; there is no other state to a sequence's progress. A preempted sequence starts again at 0 with the
/// tokens that it has.
pub(crate) struct Sequence {
    pub(crate) urgency: Urgency,
    pub(crate) tokens: Vec<TokenId>,
    /// Tokens whose KV is in the slot.
    pub(crate) computed: u32,
    /// Tokens that the step being planned computes.
    pub(crate) planned: u32,
    pub(crate) slot: Option<SlotId>,
    /// Times that it lost its slot.
    pub(crate) preemptions: u32,
    request: GenerateRequest,
    prompt_len: usize,
    /// What may not be sampled before `min_tokens`.
    enders: Vec<TokenId>,
    output: Output,
    events: UnboundedSender<Event>,
    submitted: Instant,
    queued_until: Option<Instant>,
    first_token: Option<Instant>,
    cached: u32,
    _ticket: Ticket,
}

/// Smaller goes first. No two sequences have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Urgency {
    pub(crate) priority: Priority,
    pub(crate) arrival: u64,
}

/// What a submitter hands to the engine.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) request: GenerateRequest,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) submitted: Instant,
    pub(crate) ticket: Ticket,
}

/// Whether a sequence goes on after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Running,
    Finished,
    Failed,
}

impl Sequence {
    pub(crate) fn new(submission: Submission, arrival: u64, vocab: &Vocab) -> Self {
        let Submission { mut request, events, submitted, ticket } = submission;
        let tokens = std::mem::take(&mut request.prompt);
        let stop = &mut request.stop;
        let output = Output::new(std::mem::take(&mut stop.strings));
        let enders = match stop.min_tokens {
            0 => Vec::new(),
            _ => vocab.eog().iter().chain(&stop.token_ids).copied().collect(),
        };
        Self {
            urgency: Urgency { priority: request.priority, arrival },
            prompt_len: tokens.len(),
            tokens,
            computed: 0,
            planned: 0,
            slot: None,
            preemptions: 0,
            request,
            enders,
            output,
            events,
            submitted,
            queued_until: None,
            first_token: None,
            cached: 0,
            _ticket: ticket,
        }
    }

    /// Tokens that are still to be computed; at least 1.
    pub(crate) fn missing(&self) -> u32 {
        self.tokens.len() as u32 - self.computed
    }

    /// Whether the planned chunk ends with the last token, after which the next is sampled.
    pub(crate) fn samples(&self) -> bool {
        self.planned > 0 && self.planned == self.missing()
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Takes a slot in which `cached` of the tokens are already computed.
    pub(crate) fn admit(&mut self, slot: SlotId, cached: u32, now: Instant) {
        self.slot = Some(slot);
        self.computed = cached;
        if self.queued_until.is_none() {
            self.queued_until = Some(now);
            self.cached = cached;
        }
    }

    /// Loses its slot, to be computed again.
    pub(crate) fn preempt(&mut self) -> Option<SlotId> {
        self.computed = 0;
        self.planned = 0;
        self.preemptions += 1;
        self.slot.take()
    }

    pub(crate) fn row(&self, slot: SlotId) -> SampleRow<'_> {
        let (prompt, output) = self.tokens.split_at(self.prompt_len);
        let early = (output.len() as u32) < self.request.stop.min_tokens;
        SampleRow {
            slot,
            params: &self.request.sampling,
            u: uniform(self.request.seed, output.len() as u32),
            prompt,
            output,
            banned: if early { &self.enders } else { &[] },
            allowed: None,
            logprobs: self.request.logprobs,
        }
    }

    /// Appends the sampled token, tells the submitter, and decides whether to go on.
    pub(crate) fn push(
        &mut self,
        sampled: Result<Sampled, SampleError>,
        vocab: &Vocab,
        max_context: u32,
        now: Instant,
    ) -> Progress {
        let sampled = match sampled {
            Ok(sampled) => sampled,
            Err(SampleError::NonFinite) => return self.fail(EngineError::NonFinite),
            Err(SampleError::NothingLeft) => return self.fail(EngineError::NothingLeft),
        };
        let token = sampled.token;
        self.tokens.push(token);
        self.first_token.get_or_insert(now);
        let stop: &StopRules = &self.request.stop;
        let generated = (self.tokens.len() - self.prompt_len) as u32;
        let ends = vocab.is_eog(token) && !stop.ignore_eos || stop.token_ids.contains(&token);
        let is_last = generated >= stop.max_tokens || self.tokens.len() >= max_context as usize;
        let bytes = if vocab.is_text(token) && !ends { vocab.bytes(token) } else { &[] };
        let (text, stopped) = match self.output.push(bytes) {
            Pushed::Text(text) => (text, false),
            Pushed::Stopped(text) => (text, true),
        };
        let logprobs = sampled.logprobs.map(|found| Logprobs {
            chosen: token_text(vocab, token, found.logprob),
            top: found.top.into_iter().map(|(id, logprob)| token_text(vocab, id, logprob)).collect(),
        });
        self.send(Event::Token { id: token, text, logprobs });
        let reason = if ends || stopped { FinishReason::Stop } else { FinishReason::Length };
        if !ends && !stopped && !is_last {
            return Progress::Running;
        }
        let text = if stopped { String::new() } else { self.output.finish() };
        self.send(Event::Finished { reason, text, usage: self.usage(), timing: self.timing(now) });
        Progress::Finished
    }

    /// Ends the generation badly.
    pub(crate) fn fail(&self, error: EngineError) -> Progress {
        self.send(Event::Failed(error));
        Progress::Failed
    }

    /// A submitter that has left is noticed before the next step, not here.
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len as u32,
            cached_tokens: self.cached,
            completion_tokens: (self.tokens.len() - self.prompt_len) as u32,
        }
    }

    fn timing(&self, now: Instant) -> Timing {
        let until = |instant: Option<Instant>| instant.unwrap_or(now) - self.submitted;
        Timing { queued: until(self.queued_until), first_token: until(self.first_token), total: now - self.submitted }
    }
}

fn token_text(vocab: &Vocab, id: TokenId, logprob: f32) -> TokenText {
    TokenText { id, bytes: vocab.bytes(id).to_vec(), logprob }
}
