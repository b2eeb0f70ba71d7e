use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tandem_core::{
    BackendSpec, Chunk, InferenceBackend, KvOp, SampleError, SampleRow, Sampled, Step, StepError, Vocab,
};

use crate::{
    EngineError, Stats,
    kv::{self, KvCache},
    sequence::{Progress, Sequence, Submission, Urgency},
};

/// After this many preemptions a sequence is passed over when another can be found.
const MAX_PREEMPTIONS: u32 = 3;

/// Refusals in a row after which a sequence that runs alone is given up.
const MAX_REFUSALS: u32 = 8;

/// Decides what each step computes. Synchronous and deterministic: no clock, no randomness, no I/O; time comes in as an argument.
pub(crate) struct Scheduler {
    spec: BackendSpec,
    vocab: Arc<Vocab>,
    kv: Box<dyn KvCache>,
    waiting: BTreeMap<Urgency, Sequence>,
    /// Most urgent first.
    running: Vec<Sequence>,
    arrivals: u64,
    /// What the backend has yet to do to its KV memory.
    kv_ops: Vec<KvOp>,
    sampled: Vec<Result<Sampled, SampleError>>,
    refusals: u32,
    last_step_was_prefill: bool,
    stats: Stats,
}

impl Scheduler {
    pub(crate) fn new(spec: BackendSpec, vocab: Arc<Vocab>, prefix_cache: bool) -> Self {
        let kv = kv::for_backend(&spec, prefix_cache);
        let stats = Stats { kv_capacity: spec.kv.capacity(), ..Stats::default() };
        Self {
            spec,
            vocab,
            kv,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            arrivals: 0,
            kv_ops: Vec::new(),
            sampled: Vec::new(),
            refusals: 0,
            last_step_was_prefill: false,
            stats,
        }
    }

    /// Puts a sequence in the queue.
    pub(crate) fn add(&mut self, submission: Submission) {
        let sequence = Sequence::new(submission, self.arrivals, &self.vocab);
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
    /// # Errors
    /// When the backend is finished. Every sequence is still here, for [`Self::fail_all`].
    pub(crate) fn step(&mut self, backend: &mut dyn InferenceBackend, now: Instant) -> Result<(), StepError> {
        self.reap();
        self.plan(now);
        if cfg!(debug_assertions) {
            self.kv.check();
        }
        match self.forward(backend) {
            Ok(()) => {}
            Err(StepError::KvFull) => {
                self.make_smaller();
                return Ok(());
            }
            Err(error @ StepError::Device(_)) => return Err(error),
        }
        self.refusals = 0;
        self.sample(backend)?;
        self.apply(now);
        Ok(())
    }

    /// Ends every generation with an error, when the backend is finished.
    pub(crate) fn fail_all(&mut self, error: EngineError) {
        for sequence in self.running.drain(..).chain(std::mem::take(&mut self.waiting).into_values()) {
            sequence.fail(error);
            self.stats.failed += 1;
        }
    }

    /// Lets go of sequences whose submitter has left.
    fn reap(&mut self) {
        let waiting = self.waiting.len();
        self.waiting.retain(|_, sequence| !sequence.is_abandoned());
        self.stats.cancelled += (waiting - self.waiting.len()) as u64;
        let Self { running, kv, kv_ops, stats, .. } = self;
        running.retain_mut(|sequence| {
            let keep = !sequence.is_abandoned();
            if !keep {
                stats.cancelled += 1;
                release(kv.as_mut(), sequence, kv_ops);
            }
            keep
        });
    }

    /// Sets each running sequence's `planned`, admitting and preempting as room allows.
    fn plan(&mut self, now: Instant) {
        for sequence in &mut self.running {
            sequence.planned = 0;
        }
        let mut budget = self.spec.max_step_tokens;
        let preemptions = self.stats.preemptions;
        self.plan_single_tokens(&mut budget);
        for sequence in self.running.iter_mut().filter(|sequence| sequence.planned == 0) {
            sequence.planned = sequence.missing().min(budget);
            budget -= sequence.planned;
        }
        // Whoever had to give way waits for the next step, or it would come back at once and be thrown out again.
        if self.stats.preemptions == preemptions {
            self.admit(budget, now);
        }
        if !self.spec.mixes_phases {
            self.separate_phases();
        }
    }

    /// Sequences that lack one token come first: each costs little, and somebody may be reading along.
    fn plan_single_tokens(&mut self, budget: &mut u32) {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].missing() > 1 || *budget == 0 {
                at += 1;
            } else if self.make_room(at) {
                self.running[at].planned = 1;
                *budget -= 1;
                at += 1;
            }
        }
    }

    /// Room for the last token of the sequence at `at`, taken from less urgent ones if it must be. False when the sequence itself had to
    /// give way.
    fn make_room(&mut self, at: usize) -> bool {
        loop {
            let sequence = &self.running[at];
            let slot = sequence.slot.expect("a running sequence has a slot");
            if self.kv.grow(slot, sequence.tokens.len() as u32, &mut self.kv_ops) {
                return true;
            }
            let victim = self.least_urgent_from(at);
            self.preempt(victim);
            if victim == at {
                return false;
            }
        }
    }

    /// The least urgent running sequence, `at` itself being the most urgent that may be chosen. Those that gave way often are passed over.
    fn least_urgent_from(&self, at: usize) -> usize {
        let spared = |at: &usize| self.running[*at].preemptions >= MAX_PREEMPTIONS;
        (at..self.running.len()).rev().find(|at| !spared(at)).unwrap_or(self.running.len() - 1)
    }

    fn admit(&mut self, mut budget: u32, now: Instant) {
        while budget > 0 {
            let Some(entry) = self.waiting.first_entry() else { return };
            let Some(admitted) = self.kv.admit(&entry.get().tokens, &mut self.kv_ops) else {
                let priority = entry.key().priority;
                // Batch work gives way to somebody who is waiting.
                let gives_way = |sequence: &Sequence| {
                    sequence.urgency.priority > priority && sequence.preemptions < MAX_PREEMPTIONS
                };
                let Some(victim) = self.running.iter().rposition(gives_way) else { return };
                budget += self.running[victim].planned;
                self.preempt(victim);
                continue;
            };
            let mut sequence = entry.remove();
            if sequence.preemptions == 0 {
                self.stats.prompt_tokens += sequence.tokens.len() as u64;
                self.stats.cached_tokens += u64::from(admitted.cached);
            }
            sequence.admit(admitted.slot, admitted.cached, now);
            sequence.planned = sequence.missing().min(budget);
            budget -= sequence.planned;
            let place = self.running.partition_point(|other| other.urgency < sequence.urgency);
            self.running.insert(place, sequence);
        }
    }

    fn preempt(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        if let Some(slot) = sequence.preempt() {
            self.kv.release(slot, &mut self.kv_ops);
        }
        self.stats.preemptions += 1;
        self.waiting.insert(sequence.urgency, sequence);
    }

    /// For backends whose steps hold either chunks or single tokens: the two take turns.
    fn separate_phases(&mut self) {
        let is_chunk = |sequence: &Sequence| sequence.planned > 1;
        let chunks = self.running.iter().any(is_chunk);
        let singles = self.running.iter().any(|sequence| sequence.planned == 1);
        let prefill = chunks && !(singles && self.last_step_was_prefill);
        for sequence in self.running.iter_mut().filter(|sequence| is_chunk(sequence) != prefill) {
            sequence.planned = 0;
        }
        self.last_step_was_prefill = prefill;
    }

    fn forward(&mut self, backend: &mut dyn InferenceBackend) -> Result<(), StepError> {
        let chunks: Vec<Chunk<'_>> = self
            .running
            .iter()
            .filter(|sequence| sequence.planned > 0)
            .map(|sequence| {
                let slot = sequence.slot.expect("a running sequence has a slot");
                let range = sequence.computed as usize..(sequence.computed + sequence.planned) as usize;
                Chunk {
                    slot,
                    start: sequence.computed,
                    tokens: &sequence.tokens[range],
                    block_table: self.kv.block_table(slot),
                    sample: sequence.samples(),
                }
            })
            .collect();
        if chunks.is_empty() && self.kv_ops.is_empty() {
            return Ok(());
        }
        let step = Step { kv_ops: &self.kv_ops, chunks: &chunks };
        let tokens = step.tokens() as u64;
        let result = backend.forward(&step);
        // Whether or not the pass was refused, the operations took effect.
        self.kv_ops.clear();
        result?;
        self.stats.steps += 1;
        self.stats.computed_tokens += tokens;
        Ok(())
    }

    fn sample(&mut self, backend: &mut dyn InferenceBackend) -> Result<(), StepError> {
        self.sampled.clear();
        let rows: Vec<SampleRow<'_>> = self
            .running
            .iter()
            .filter(|sequence| sequence.samples())
            .filter_map(|sequence| Some(sequence.row(sequence.slot?)))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        backend.sample(&rows, &mut self.sampled)?;
        assert_eq!(self.sampled.len(), rows.len(), "the backend answers every row");
        Ok(())
    }

    /// Counts what was computed, appends what was sampled, and lets go of what is finished.
    fn apply(&mut self, now: Instant) {
        let Self { running, kv, kv_ops, sampled, stats, vocab, spec, .. } = self;
        let mut sampled = sampled.drain(..);
        running.retain_mut(|sequence| {
            if sequence.planned == 0 {
                return true;
            }
            let samples = sequence.samples();
            sequence.computed += sequence.planned;
            sequence.planned = 0;
            let slot = sequence.slot.expect("a running sequence has a slot");
            kv.commit(slot, &sequence.tokens[..sequence.computed as usize]);
            if !samples {
                return true;
            }
            let result = sampled.next().expect("one result for each sequence that samples");
            stats.generated_tokens += u64::from(result.is_ok());
            match sequence.push(result, vocab, spec.max_context, now) {
                Progress::Running => return true,
                Progress::Finished => stats.finished += 1,
                Progress::Failed => stats.failed += 1,
            }
            release(kv.as_mut(), sequence, kv_ops);
            false
        });
    }

    /// The backend could not hold a step that was thought to fit: forget what is only cached, and give up the least urgent sequence for now.
    fn make_smaller(&mut self) {
        self.refusals += 1;
        self.kv.evict_all(&mut self.kv_ops);
        if self.running.is_empty() {
            return;
        }
        if self.running.len() == 1 && self.refusals > MAX_REFUSALS {
            let mut sequence = self.running.remove(0);
            release(self.kv.as_mut(), &mut sequence, &mut self.kv_ops);
            sequence.fail(EngineError::KvExhausted);
            self.stats.failed += 1;
            self.refusals = 0;
            return;
        }
        let victim = self.least_urgent_from(0);
        self.preempt(victim);
    }
}

fn release(kv: &mut dyn KvCache, sequence: &mut Sequence, ops: &mut Vec<KvOp>) {
    if let Some(slot) = sequence.slot.take() {
        kv.release(slot, ops);
    }
}
