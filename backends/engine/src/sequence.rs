use std::time::Instant;

use tandem_core::{
    AdapterId, Choice, Input, SampleError, SampleRow, Sampled, ScoreRow, SlotId, TokenId, TokenLogprobs, TokenMask,
    Vocab, sampling::uniform,
};

use crate::{
    EngineError, Event, FinishReason, GenerateRequest, Logprobs, Priority, StoppedBy, Timing, TokenText, Usage,
    generation::EventSender,
    grammar::{DeadEnd, GrammarState},
    kv::{Candidate, Keys, Salt},
    output::{Output, Pushed},
    places::Ticket,
    repetition::Repeats,
    request::StopRules,
    scores::Scores,
};

/// After this many preemptions a sequence keeps its slot to its end: it is given room for all that it may come to need.
pub(crate) const MAX_PREEMPTIONS: u32 = 3;

/// The engine's record of a generation.
///
/// `computed` catches up with `tokens`; there is no other state to a sequence's progress. A preempted sequence starts again at 0 with the
/// tokens that it has.
pub(crate) struct Sequence {
    pub(crate) urgency: Urgency,
    pub(crate) tokens: Vec<TokenId>,
    /// Tokens whose KV is in the slot, or will be once what was asked for is computed: one that is not known yet may be among them.
    pub(crate) computed: u32,
    /// Tokens that the step being planned computes.
    pub(crate) planned: u32,
    pub(crate) slot: Option<SlotId>,
    /// Times that it lost its slot.
    pub(crate) preemptions: u32,
    /// Its end was told while a step still computed for it.
    pub(crate) has_ended: bool,
    /// Of the steps that were asked for and whose tokens were not collected yet, those that it takes part in.
    pub(crate) flights: Flights,
    /// Since when nobody reads what it has generated.
    pub(crate) stalled_since: Option<Instant>,
    request: GenerateRequest,
    prompt_len: usize,
    keys: Keys,
    /// What may not be sampled before `min_tokens`.
    enders: Vec<TokenId>,
    grammar: Option<Constraint>,
    /// What the model thinks of the prompt, when that was asked for.
    scores: Option<Scores>,
    repeats: Option<Repeats>,
    output: Output,
    /// The last token, while its text is not told.
    untold: Option<Untold>,
    events: EventSender,
    submitted: Instant,
    queued_until: Option<Instant>,
    first_token: Option<Instant>,
    cached: u32,
    _ticket: Ticket,
}

/// What is asked for a sequence and not collected yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flights {
    /// Steps. Until they are collected it keeps its slot, whatever becomes of it.
    pub(crate) steps: u32,
    /// Tokens that are chosen for it and not known; after its end, those that never will be.
    pub(crate) tokens: u32,
}

/// A token whose text is still to be made out and sent.
struct Untold {
    token: TokenId,
    is_text: bool,
    logprobs: Option<TokenLogprobs>,
    /// The token ends the generation, whatever its text is.
    end: Option<FinishReason>,
    stopped_by: Option<StoppedBy>,
}

/// A grammar that the output follows.
struct Constraint {
    state: GrammarState,
    /// What it allows next, while a step is under way.
    allowed: TokenMask,
    /// It allows nothing but an end.
    must_end: bool,
}

/// Smaller goes first. No two sequences have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Urgency {
    pub(crate) priority: Priority,
    pub(crate) rank: i64,
    pub(crate) arrival: u64,
}

impl Urgency {
    /// Before and behind all others of a priority.
    pub(crate) fn bounds(priority: Priority) -> (Self, Self) {
        (Self { priority, rank: i64::MIN, arrival: 0 }, Self { priority, rank: i64::MAX, arrival: u64::MAX })
    }
}

/// What a submitter hands to the engine.
pub(crate) struct Submission {
    pub(crate) request: GenerateRequest,
    /// The beginning of the request's grammar, if it has one.
    pub(crate) grammar: Option<GrammarState>,
    pub(crate) events: EventSender,
    pub(crate) submitted: Instant,
    pub(crate) ticket: Ticket,
}

/// Whether a sequence goes on after a token, as far as the token alone can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Running,
    /// The token is the last one. Its text is still to be told.
    Ended,
    Failed,
}

impl Sequence {
    pub(crate) fn new(submission: Submission, arrival: u64, vocab: &Vocab, vocab_size: u32) -> Self {
        let Submission { mut request, grammar, events, submitted, ticket } = submission;
        let tokens = std::mem::take(&mut request.prompt);
        let stop = &mut request.stop;
        let output = Output::new(std::mem::take(&mut stop.strings));
        let enders = match stop.min_tokens {
            0 => Vec::new(),
            _ => vocab.eog().iter().chain(&stop.token_ids).copied().collect(),
        };
        Self {
            urgency: Urgency { priority: request.priority, rank: request.rank, arrival },
            prompt_len: tokens.len(),
            tokens,
            computed: 0,
            planned: 0,
            slot: None,
            preemptions: 0,
            has_ended: false,
            flights: Flights::default(),
            stalled_since: None,
            keys: Keys::default(),
            enders,
            grammar: grammar.map(|state| Constraint { state, allowed: TokenMask::empty(vocab_size), must_end: false }),
            scores: request.score_prompt.then(Scores::default),
            repeats: request.stop.repetition.map(Repeats::new),
            output,
            untold: None,
            events,
            submitted,
            queued_until: None,
            first_token: None,
            cached: 0,
            request,
            _ticket: ticket,
        }
    }

    /// Tokens that it has, those that are chosen and not known yet among them.
    pub(crate) fn len(&self) -> u32 {
        self.tokens.len() as u32 + self.flights.tokens
    }

    /// Tokens that are still to be computed; at least 1.
    pub(crate) fn missing(&self) -> u32 {
        self.len() - self.computed
    }

    /// Whether there is anything more to compute for it, as far as can be known: nobody computes what follows on a last token.
    pub(crate) fn goes_on(&self, max_context: u32) -> bool {
        if self.has_ended || self.is_spent() {
            return false;
        }
        // What was chosen and is not known may end it by its number, which is known.
        self.flights.tokens == 0 || self.end_by_length(self.len(), max_context).is_none()
    }

    /// Why a sequence of this length has ended, if it has.
    fn end_by_length(&self, len: u32, max_context: u32) -> Option<FinishReason> {
        let generated = len - self.prompt_len as u32;
        (generated >= self.request.stop.max_tokens || len >= max_context).then_some(FinishReason::Length)
    }

    /// The tokens of the planned chunk.
    pub(crate) fn input(&self) -> Input<'_> {
        match self.tokens.get(self.computed as usize..(self.computed + self.planned) as usize) {
            Some(known) => Input::Known(known),
            None => Input::Chosen,
        }
    }

    /// Whether the planned chunk ends with the last token, after which the next is sampled.
    pub(crate) fn samples(&self) -> bool {
        self.planned > 0 && self.planned == self.missing() && self.request.stop.max_tokens > 0
    }

    /// Whether nothing was to be generated, and the prompt is computed.
    pub(crate) fn is_spent(&self) -> bool {
        self.missing() == 0
    }

    /// Whether tokens of the prompt are still to be scored.
    pub(crate) fn is_scoring(&self) -> bool {
        self.scores.as_ref().is_some_and(|scores| scores.is_open(self.prompt_len))
    }

    /// What is asked about the planned chunk, if anything.
    pub(crate) fn score_row(&self) -> Option<ScoreRow<'_>> {
        let (scores, slot) = (self.scores.as_ref()?, self.slot?);
        let prompt = &self.tokens[..self.prompt_len];
        let targets = scores.targets(self.computed as usize, self.planned as usize, prompt)?;
        let GenerateRequest { logprobs, sampling, .. } = &self.request;
        Some(ScoreRow { slot, targets, top: logprobs.unwrap_or(0), reported: &sampling.reported })
    }

    /// Takes the answer to [`Self::score_row`], and tells of the prompt when that was the last one.
    pub(crate) fn take_scores(
        &mut self,
        results: impl Iterator<Item = Result<TokenLogprobs, SampleError>>,
        vocab: &Vocab,
    ) -> Progress {
        let Some(scores) = &mut self.scores else { return Progress::Running };
        if scores.take(self.computed as usize, results).is_err() {
            return self.fail(EngineError::NonFinite);
        }
        if let Some(all) = scores.complete(self.prompt_len) {
            let told = std::iter::zip(&self.tokens[1..], all).map(|(&token, found)| logprobs(vocab, token, found));
            self.events.send(Event::Prompt(told.collect()));
        }
        Progress::Running
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether it gave way as often as anyone has to.
    pub(crate) fn is_protected(&self) -> bool {
        self.preemptions >= MAX_PREEMPTIONS
    }

    /// Whether the reader is so far behind that the sequence has to pause; notes since when.
    pub(crate) fn is_stalled(&mut self, now: Instant) -> bool {
        if self.events.has_room() {
            self.stalled_since = None;
        } else {
            self.stalled_since.get_or_insert(now);
        }
        self.stalled_since.is_some()
    }

    pub(crate) fn adapter(&self) -> Option<AdapterId> {
        self.request.adapter
    }

    /// With whom it shares KV.
    pub(crate) fn salt(&self) -> Salt {
        // A prompt of which every token is scored is computed as a whole.
        let alone = self.scores.is_some().then_some(self.urgency.arrival);
        Salt { cache: self.request.cache_salt, adapter: self.request.adapter, alone }
    }

    /// What the sequence asks of the KV cache, where one token may hold up to `max_context`.
    pub(crate) fn candidate(&mut self, max_context: u32) -> Candidate<'_> {
        let held = self.tokens.len() as u32;
        let all = (self.prompt_len as u64 + u64::from(self.request.stop.max_tokens)).min(max_context.into()) as u32;
        let reserve = if self.is_protected() { all.max(held + 1) } else { held + 1 };
        Candidate { salt: self.salt(), tokens: &self.tokens, reserve, keys: &mut self.keys }
    }

    /// What is computed of the tokens, as far as they are known, for the KV cache to know.
    pub(crate) fn committed(&mut self) -> (&[TokenId], &mut Keys) {
        (&self.tokens[..self.tokens.len().min(self.computed as usize)], &mut self.keys)
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

    /// Finds out what the grammar allows next, if there is one.
    ///
    /// # Errors
    /// When that is nothing.
    pub(crate) fn constrain(&mut self) -> Result<(), DeadEnd> {
        let Some(Constraint { state, allowed, must_end }) = &mut self.grammar else { return Ok(()) };
        state.mask(allowed)?;
        *must_end = !self.enders.is_empty() && {
            let ends = self.enders.iter().filter(|token| allowed.contains(**token)).count();
            ends == allowed.len()
        };
        Ok(())
    }

    /// What is asked for the token after all that are known.
    pub(crate) fn row(&self, slot: SlotId) -> SampleRow<'_> {
        self.row_after(slot, 0)
    }

    /// What is asked for the token after all that it has, where that can be asked for without knowing them.
    pub(crate) fn choice(&self, slot: SlotId) -> Option<Choice> {
        // All that looks at what came before is more than a choice.
        self.row_after(slot, self.flights.tokens).choice()
    }

    fn row_after(&self, slot: SlotId, unknown: u32) -> SampleRow<'_> {
        let (prompt, output) = self.tokens.split_at(self.prompt_len);
        let generated = output.len() as u32 + unknown;
        // Whoever has nothing else to say may end before `min_tokens`.
        let must_end = self.grammar.as_ref().is_some_and(|grammar| grammar.must_end);
        let early = generated < self.request.stop.min_tokens && !must_end;
        SampleRow {
            slot,
            params: &self.request.sampling,
            u: uniform(self.request.seed, generated),
            prompt,
            output,
            banned: if early { &self.enders } else { &[] },
            allowed: self.grammar.as_ref().map(|grammar| &grammar.allowed),
            logprobs: self.request.logprobs,
        }
    }

    /// Appends the sampled token, and decides whether to go on as far as the token alone can tell. Its text is told by [`Self::tell`].
    pub(crate) fn append(
        &mut self,
        sampled: Result<Sampled, SampleError>,
        vocab: &Vocab,
        max_context: u32,
        now: Instant,
    ) -> Progress {
        debug_assert!(self.untold.is_none(), "each token is told before the next one");
        let Sampled { token, logprobs } = match sampled {
            Ok(sampled) => sampled,
            Err(SampleError::NonFinite) => return self.fail(EngineError::NonFinite),
            Err(SampleError::NothingLeft) => return self.fail(EngineError::NothingLeft),
        };
        self.tokens.push(token);
        self.first_token.get_or_insert(now);
        let stop: &StopRules = &self.request.stop;
        let output = &self.tokens[self.prompt_len..];
        let repeats = self.repeats.as_mut().is_some_and(|repeats| repeats.notice(output));
        let generated = (self.tokens.len() - self.prompt_len) as u32;
        // A grammar allows an end only where the output is whole; there is nothing behind it to go on to.
        let eos_ends = !stop.ignore_eos || self.grammar.is_some();
        let is_eos = vocab.is_eog(token) && eos_ends;
        let ends = is_eos || stop.token_ids.contains(&token);
        let mut is_whole = ends;
        if let Some(Constraint { state, .. }) = &mut self.grammar
            && !ends
        {
            if state.accept(token).is_err() {
                return self.fail(EngineError::GrammarDeadEnd);
            }
            is_whole = state.is_complete();
        }
        let end = if is_whole {
            Some(FinishReason::Stop)
        } else if let Some(reason) = self.end_by_length(self.tokens.len() as u32, max_context) {
            Some(reason)
        } else if repeats && generated >= stop.min_tokens {
            Some(FinishReason::Repetition)
        } else {
            None
        };
        let is_shown = self.request.special_tokens && vocab.is_control(token) || self.request.shown.contains(&token);
        let is_text = (vocab.is_text(token) || is_shown) && (!ends || stop.include_end);
        let stopped_by = (ends && !is_eos).then_some(StoppedBy::Token(token));
        self.untold = Some(Untold { token, is_text, logprobs, end, stopped_by });
        if end.is_some() { Progress::Ended } else { Progress::Running }
    }

    /// Makes out the text of the last token, if that is still to be done, and sends it. True when the generation has ended with it.
    pub(crate) fn tell(&mut self, vocab: &Vocab, now: Instant) -> bool {
        let Some(told) = self.untold.take() else { return false };
        let Untold { token, is_text, logprobs: found, mut end, mut stopped_by } = told;
        let mut stopped = false;
        let text = match self.output.push(if is_text { vocab.bytes(token) } else { &[] }) {
            Pushed::Text(text) => text,
            Pushed::Stopped { mut text, stop } => {
                if self.request.stop.include_end {
                    text.push_str(&stop);
                }
                (stopped, end, stopped_by) = (true, Some(FinishReason::Stop), Some(StoppedBy::Text(stop)));
                text
            }
        };
        let logprobs = found.map(|found| logprobs(vocab, token, found));
        self.events.send(Event::Token { id: token, text, logprobs });
        let Some(reason) = end else { return false };
        let text = if stopped { String::new() } else { self.output.finish() };
        self.finish(reason, stopped_by, text, now);
        true
    }

    /// Ends the generation well.
    pub(crate) fn finish(&self, reason: FinishReason, stopped_by: Option<StoppedBy>, text: String, now: Instant) {
        let (usage, timing) = (self.usage(), self.timing(now));
        self.events.send(Event::Finished { reason, stopped_by, text, usage, timing });
    }

    /// Ends the generation badly.
    pub(crate) fn fail(&self, error: EngineError) -> Progress {
        self.events.send(Event::Failed(error));
        Progress::Failed
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

fn logprobs(vocab: &Vocab, token: TokenId, found: TokenLogprobs) -> Logprobs {
    Logprobs {
        chosen: token_text(vocab, token, found.logprob),
        top: found.top.into_iter().map(|(id, logprob)| token_text(vocab, id, logprob)).collect(),
    }
}

fn token_text(vocab: &Vocab, id: TokenId, logprob: f32) -> TokenText {
    TokenText { id, bytes: vocab.bytes(id).to_vec(), logprob }
}
