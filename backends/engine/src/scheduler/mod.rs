//! Decides what each step computes, and what comes of it.

mod ahead;
mod describe;
mod plan;
#[cfg(test)]
mod tests;
mod turns;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_core::{
    AheadChunk, AheadStep, BackendSpec, Choice, Chunk, InferenceBackend, Input, KvOp, SampleError, SampleRow, Sampled,
    Step, StepError, TokenId, Vocab,
};

use crate::{
    EngineError, FinishReason, Stats,
    kv::{self, KvCache},
    places::Places,
    scores::MAX_SCORED,
    sequence::{Progress, Sequence, Submission, Urgency},
};
use ahead::{Flight, Seat};
use turns::Turns;

#[cfg(test)]
pub(crate) use turns::TURN_STEPS;

/// Turns waiting and running sequences into steps. Synchronous and deterministic: no clock of its own, no randomness, no I/O.
#[expect(clippy::vec_box, reason = "sequences are large and go from list to list")]
pub(crate) struct Scheduler {
    spec: BackendSpec,
    vocab: Arc<Vocab>,
    options: Options,
    kv: Box<dyn KvCache>,
    waiting: BTreeMap<Urgency, Box<Sequence>>,
    /// Most urgent first.
    running: Vec<Box<Sequence>>,
    /// Without a slot already; their last token is still to be told.
    leaving: Vec<Box<Sequence>>,
    arrivals: u64,
    /// What the backend has yet to do to its KV memory.
    kv_ops: Vec<KvOp>,
    /// Tokens that the next step may have: less than the backend's limit after it refused a step.
    step_limit: u32,
    /// Prompt tokens that the step being planned may still score.
    score_limit: u32,
    refusals: u32,
    /// Steps in a row that batch work was left out of.
    held_back: u32,
    /// When somebody waited for an answer last.
    asked_at: Option<Instant>,
    turns: Turns,
    /// A sequence lost its slot while it paused: whether it may go on is to be found out among those that wait.
    some_pause_without_a_slot: bool,
    departures: usize,
    stats: Stats,
    /// The step whose tokens the device has chosen, or will, and nobody has read yet: all later ones are asked for while it is computed.
    flight: Option<Flight>,
    /// The step being planned lacks what only a plan with all known can give: somebody's room, which another would have to give up.
    needs_all: bool,
    sampled: Vec<Result<Sampled, SampleError>>,
    collected: Vec<Result<TokenId, SampleError>>,
    choices: Vec<Choice>,
    seats: Vec<Seat>,
    /// Empty between steps: the memory of their lists is kept.
    chunks: Vec<Chunk<'static>>,
    ahead_chunks: Vec<AheadChunk<'static>>,
    rows: Vec<SampleRow<'static>>,
}

/// What the scheduler is told beside the backend's limits.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Whether KV outlives its sequence, to serve prompts that begin alike.
    pub(crate) prefix_cache: bool,
    /// What the hashes of prefixes begin with.
    pub(crate) hash_seed: u64,
    /// How long a generation that nobody reads keeps its place.
    pub(crate) stall_timeout: Duration,
    /// Where submitters leave word that they have left.
    pub(crate) places: Arc<Places>,
}

/// What a call of [`Scheduler::step`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is more to do.
    Worked,
    /// All sequences pause until somebody reads; nothing was computed.
    Paused,
}

impl Scheduler {
    pub(crate) fn new(spec: BackendSpec, vocab: Arc<Vocab>, options: Options) -> Self {
        let kv = kv::for_backend(&spec, options.prefix_cache, options.hash_seed);
        let stats = Stats { kv_capacity: spec.kv.capacity(), ..Stats::default() };
        Self {
            step_limit: spec.max_step_tokens,
            score_limit: MAX_SCORED,
            turns: Turns::new(spec.adapters.len(), spec.max_step_tokens),
            spec,
            vocab,
            options,
            kv,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            leaving: Vec::new(),
            arrivals: 0,
            kv_ops: Vec::new(),
            refusals: 0,
            held_back: 0,
            asked_at: None,
            some_pause_without_a_slot: false,
            departures: 0,
            stats,
            flight: None,
            needs_all: false,
            sampled: Vec::new(),
            collected: Vec::new(),
            choices: Vec::new(),
            seats: Vec::new(),
            chunks: Vec::new(),
            ahead_chunks: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Puts a sequence in the queue.
    pub(crate) fn add(&mut self, submission: Submission) {
        let sequence = Box::new(Sequence::new(submission, self.arrivals, &self.vocab, self.spec.vocab_size));
        self.arrivals += 1;
        self.waiting.insert(sequence.urgency, sequence);
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            kv_used: self.kv.used(),
            ..self.stats
        }
    }

    /// Plans one step, has the backend carry it out, and applies what comes of it.
    ///
    /// Where the backend computes on a device, the texts of the step before are made out and sent while it does. Where it looks ahead, a step
    /// of which the device chooses all tokens is left to it, and what comes of the one before is applied in the meantime.
    ///
    /// # Errors
    /// When the backend is finished. Every sequence is still here, for [`Self::fail_all`].
    pub(crate) fn step(
        &mut self,
        backend: &mut dyn InferenceBackend,
        clock: &dyn Fn() -> Instant,
    ) -> Result<Outcome, StepError> {
        self.plan(clock());
        if cfg!(debug_assertions) {
            self.kv.check();
        }
        let tokens = match self.forward(backend) {
            Ok(tokens) => tokens,
            Err(refused) => {
                // Those that wait here are told before anybody has to give way.
                self.tell(clock());
                self.remove_ended();
                match refused {
                    Refused::KvFull { tokens } => {
                        self.land(backend, clock)?;
                        self.remove_ended();
                        self.make_smaller(tokens, clock());
                    }
                    Refused::Device(error) => return Err(error),
                }
                return Ok(Outcome::Worked);
            }
        };
        self.refusals = 0;
        self.step_limit = self.step_limit.saturating_mul(2).min(self.spec.max_step_tokens);
        let flight = self.take_off(backend)?;
        if self.spec.overlaps {
            self.tell(clock());
        }
        let landed = self.land(backend, clock)?;
        self.flight = flight;
        if self.flight.is_none() {
            self.score(backend)?;
            self.constrain();
            self.sample(backend)?;
            self.apply(clock());
        }
        self.remove_ended();
        // Without a next step in sight nobody waits for it.
        if !self.spec.overlaps || self.running.is_empty() {
            self.tell(clock());
            self.remove_ended();
        }
        Ok(if tokens == 0 && !landed && self.stats.stalled > 0 { Outcome::Paused } else { Outcome::Worked })
    }

    /// Ends every generation with an error, when the backend is finished.
    pub(crate) fn fail_all(&mut self, error: EngineError, now: Instant) {
        self.flight = None;
        self.tell(now);
        for sequence in self.running.drain(..).chain(std::mem::take(&mut self.waiting).into_values()) {
            if !sequence.has_ended {
                sequence.fail(error);
                self.stats.failed += 1;
            }
        }
    }

    /// Hands the plan to the backend; the number of tokens in it.
    fn forward(&mut self, backend: &mut dyn InferenceBackend) -> Result<u64, Refused> {
        let planned = self.running.iter().filter(|sequence| sequence.planned > 0);
        let tokens: u64 = planned.clone().map(|sequence| u64::from(sequence.planned)).sum();
        if tokens == 0 && self.kv_ops.is_empty() {
            return Ok(0);
        }
        let chunks = planned.map(|sequence| chunk(sequence, self.kv.as_ref()));
        let (kv_ops, adapter) = (&self.kv_ops, self.turns.adapter());
        let result = match backend.look_ahead() {
            None => {
                let mut list = reuse(std::mem::take(&mut self.chunks));
                list.extend(chunks.map(known));
                let result = backend.forward(&Step { kv_ops, chunks: &list, adapter });
                self.chunks = reuse(list);
                result
            }
            Some(ahead) => {
                let mut list = reuse(std::mem::take(&mut self.ahead_chunks));
                list.extend(chunks);
                let result = ahead.forward_ahead(&AheadStep { kv_ops, chunks: &list, adapter });
                self.ahead_chunks = reuse(list);
                result
            }
        };
        // Whether or not the pass was refused, the operations took effect.
        self.kv_ops.clear();
        match result {
            Ok(()) => {}
            Err(StepError::KvFull) => return Err(Refused::KvFull { tokens: tokens as u32 }),
            Err(error @ (StepError::Device(_) | StepError::Lost(_))) => return Err(Refused::Device(error)),
        }
        self.stats.steps += 1;
        self.stats.computed_tokens += tokens;
        self.turns.count(tokens);
        Ok(tokens)
    }

    /// Finds out what grammars allow next. Whoever is in a dead end fails; its row is still computed, and passed over.
    fn constrain(&mut self) {
        let sampling = self.running.iter_mut().filter(|sequence| sequence.samples() && !sequence.has_ended);
        for sequence in sampling {
            if sequence.constrain().is_err() {
                sequence.fail(EngineError::GrammarDeadEnd);
                sequence.has_ended = true;
                self.stats.failed += 1;
            }
        }
    }

    /// Asks what the model thinks of the prompt tokens that were computed, where that is wanted.
    fn score(&mut self, backend: &mut dyn InferenceBackend) -> Result<(), StepError> {
        let Self { running, vocab, stats, .. } = self;
        let rows: Vec<_> = running.iter().filter_map(|sequence| sequence.score_row()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let counts: Vec<_> = rows.iter().map(|row| row.targets.len()).collect();
        let mut scored = Vec::with_capacity(counts.iter().sum());
        backend.score(&rows, &mut scored)?;
        assert_eq!(scored.len(), counts.iter().sum::<usize>(), "the backend answers every target");
        let mut scored = scored.into_iter();
        let scoring = running.iter_mut().filter(|sequence| sequence.score_row().is_some());
        for (sequence, count) in std::iter::zip(scoring, counts) {
            if sequence.take_scores(scored.by_ref().take(count), vocab) == Progress::Failed {
                sequence.has_ended = true;
                stats.failed += 1;
            }
        }
        Ok(())
    }

    fn sample(&mut self, backend: &mut dyn InferenceBackend) -> Result<(), StepError> {
        self.sampled.clear();
        let mut rows = reuse(std::mem::take(&mut self.rows));
        let sampling = self.running.iter().filter(|sequence| sequence.samples());
        rows.extend(sampling.filter_map(|sequence| Some(sequence.row(sequence.slot?))));
        if rows.is_empty() {
            return Ok(());
        }
        backend.sample(&rows, &mut self.sampled)?;
        assert_eq!(self.sampled.len(), rows.len(), "the backend answers every row");
        self.rows = reuse(rows);
        Ok(())
    }

    /// Counts what was computed, appends what was sampled, and takes the slots of those whose last token it is.
    fn apply(&mut self, now: Instant) {
        let Self { running, leaving, kv, kv_ops, sampled, stats, vocab, spec, .. } = self;
        let mut sampled = sampled.drain(..);
        for sequence in running.iter_mut().filter(|sequence| sequence.planned > 0) {
            let samples = sequence.samples();
            sequence.computed += sequence.planned;
            sequence.planned = 0;
            let slot = sequence.slot.expect("a running sequence has a slot");
            let (tokens, keys) = sequence.committed();
            kv.commit(slot, tokens, keys);
            if !samples {
                if sequence.is_spent() && !sequence.has_ended {
                    sequence.finish(FinishReason::Length, None, String::new(), now);
                    sequence.has_ended = true;
                    stats.finished += 1;
                }
                continue;
            }
            let result = sampled.next().expect("one result for each sequence that samples");
            if sequence.has_ended {
                continue;
            }
            stats.generated_tokens += u64::from(result.is_ok());
            match sequence.append(result, vocab, spec.max_context, now) {
                Progress::Running => continue,
                Progress::Ended => {}
                Progress::Failed => {
                    stats.failed += 1;
                    sequence.has_ended = true;
                }
            }
            release(kv.as_mut(), sequence, kv_ops);
        }
        // Without a slot now: those that failed are done with, the others are still to be told of.
        leaving
            .extend(running.extract_if(.., |sequence| sequence.slot.is_none()).filter(|sequence| !sequence.has_ended));
    }

    /// Makes out and sends the texts of the tokens that were sampled last.
    fn tell(&mut self, now: Instant) {
        let Self { running, leaving, stats, vocab, .. } = self;
        for mut sequence in leaving.drain(..) {
            let ended = sequence.tell(vocab, now);
            debug_assert!(ended, "a sequence leaves with its last token");
            stats.finished += 1;
        }
        for sequence in running.iter_mut().filter(|sequence| !sequence.has_ended) {
            if sequence.tell(vocab, now) {
                sequence.has_ended = true;
                stats.finished += 1;
            }
        }
    }

    /// Lets go of sequences that turned out to have ended with what was told, once nothing is computed for them any more.
    fn remove_ended(&mut self) {
        let Self { running, kv, kv_ops, .. } = self;
        running.retain_mut(|sequence| {
            let is_over = sequence.has_ended && sequence.flights.steps == 0;
            if is_over {
                release(kv.as_mut(), sequence, kv_ops);
            }
            !is_over
        });
    }

    /// Lets go of sequences whose submitter has left.
    fn reap(&mut self) {
        let departures = self.options.places.departures();
        if departures == self.departures {
            return;
        }
        self.departures = departures;
        let Self { waiting, running, kv, kv_ops, stats, .. } = self;
        let all = waiting.len();
        waiting.retain(|_, sequence| !sequence.is_abandoned());
        stats.cancelled += (all - waiting.len()) as u64;
        running.retain_mut(|sequence| {
            if sequence.has_ended || !sequence.is_abandoned() {
                return true;
            }
            stats.cancelled += 1;
            end(kv.as_mut(), sequence, kv_ops)
        });
    }
}

/// Why a step was not carried out.
enum Refused {
    KvFull { tokens: u32 },
    Device(StepError),
}

/// The next tokens of a sequence that takes part in the step.
fn chunk<'a>(sequence: &'a Sequence, kv: &'a dyn KvCache) -> AheadChunk<'a> {
    let slot = sequence.slot.expect("a running sequence has a slot");
    AheadChunk {
        slot,
        start: sequence.computed,
        tokens: sequence.input(),
        block_table: kv.block_table(slot),
        sample: sequence.samples(),
        score: sequence.score_row().is_some(),
    }
}

/// The same for a backend that does not look ahead.
fn known(chunk: AheadChunk<'_>) -> Chunk<'_> {
    let AheadChunk { slot, start, tokens, block_table, sample, score } = chunk;
    let Input::Known(tokens) = tokens else { unreachable!("nothing is on its way where nobody looks ahead") };
    Chunk { slot, start, tokens, block_table, sample, score }
}

/// A sequence ends before its time: its slot is taken, unless a step that is on its way still computes for it. Whether it has to stay until
/// that has landed.
fn end(kv: &mut dyn KvCache, sequence: &mut Sequence, ops: &mut Vec<KvOp>) -> bool {
    sequence.has_ended = true;
    let stays = sequence.flights.steps > 0;
    if !stays {
        release(kv, sequence, ops);
    }
    stays
}

fn release(kv: &mut dyn KvCache, sequence: &mut Sequence, ops: &mut Vec<KvOp>) {
    if let Some(slot) = sequence.slot.take() {
        kv.release(slot, ops);
    }
}

/// An empty list for items of another lifetime, in the memory of the old one: collecting a list into one of the same layout happens in
/// place. Steps borrow from sequences, so their lists cannot outlive them, but their memory can.
fn reuse<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    list.into_iter().map(|_| -> U { unreachable!("the list is empty") }).collect()
}
