//! Plans as text: what the backend is asked to compute, step by step, for a person to review.

mod ahead;

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_core::{
    AdapterId, AheadChunk, AheadStep, BackendLoader as _, BackendSpec, Choice, Chosen, InferenceBackend, Input, KvOp,
    LookAhead, SampleError, SampleRow, Sampled, SamplingParams, ScoreRow, Step, StepError, TokenId, TokenLogprobs,
};
use tandem_sim::{Faults, SimLayout, SimLoader, SimSettings};

use super::{Options, Outcome, Scheduler};
use crate::{
    EngineError, Event, GenerateRequest, Generation, Priority, StopRules,
    places::{Places, Ticket},
    sequence::Submission,
};

const SLOTS: SimLayout = SimLayout::Slots { cells: 128, partial_reuse: true };
const BLOCKS: SimLayout = SimLayout::Blocks { count: 32, block_size: 4 };

/// Writes down what it is asked for.
struct Recorder<'a> {
    inner: &'a mut dyn InferenceBackend,
    log: String,
}

impl InferenceBackend for Recorder<'_> {
    fn spec(&self) -> &BackendSpec {
        self.inner.spec()
    }

    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        let result = self.inner.forward(step);
        let chunks: Vec<_> = step.chunks.iter().map(|chunk| AheadChunk::from(*chunk)).collect();
        self.note(&AheadStep { kv_ops: step.kv_ops, chunks: &chunks, adapter: step.adapter }, result.is_err());
        result
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        self.inner.sample(rows, out)
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        out: &mut Vec<Result<TokenLogprobs, SampleError>>,
    ) -> Result<(), StepError> {
        self.inner.score(rows, out)
    }

    fn look_ahead(&mut self) -> Option<&mut dyn LookAhead> {
        if self.inner.look_ahead().is_some() { Some(self) } else { None }
    }
}

impl LookAhead for Recorder<'_> {
    fn forward_ahead(&mut self, step: &AheadStep<'_>) -> Result<(), StepError> {
        let result = self.ahead().forward_ahead(step);
        self.note(step, result.is_err());
        result
    }

    fn choose(&mut self, choices: &[Choice]) -> Result<Chosen, StepError> {
        let chosen = self.ahead().choose(choices)?;
        writeln!(self.log, "tokens {} are chosen on the way", chosen.number()).unwrap();
        Ok(chosen)
    }

    fn collect(&mut self, chosen: Chosen, out: &mut Vec<Result<TokenId, SampleError>>) -> Result<(), StepError> {
        writeln!(self.log, "tokens {} are collected", chosen.number()).unwrap();
        self.ahead().collect(chosen, out)
    }
}

impl Recorder<'_> {
    fn ahead(&mut self) -> &mut dyn LookAhead {
        self.inner.look_ahead().unwrap()
    }

    fn note(&mut self, step: &AheadStep<'_>, is_refused: bool) {
        let refused = if is_refused { ", refused" } else { "" };
        let with = step.adapter.map_or_else(String::new, |adapter| format!(" with adapter {}", adapter.0));
        writeln!(self.log, "step of {} tokens{with}{refused}", step.tokens()).unwrap();
        for op in step.kv_ops {
            match op {
                KvOp::Truncate { slot, from } => writeln!(self.log, "  slot {}: forget from {from}", slot.0),
                KvOp::CopyPrefix { src, dst, len } => {
                    writeln!(self.log, "  slot {}: the first {len} of slot {}", dst.0, src.0)
                }
            }
            .unwrap();
        }
        for chunk in step.chunks {
            let (slot, end) = (chunk.slot.0, chunk.start as usize + chunk.tokens.len());
            let unread = if chunk.tokens == Input::Chosen { ", not read yet" } else { "" };
            let sample = if chunk.sample { ", sample" } else { "" };
            write!(self.log, "  slot {slot}: {}..{end}{unread}{sample}", chunk.start).unwrap();
            if !chunk.block_table.is_empty() {
                let blocks: Vec<_> = chunk.block_table.iter().map(|block| block.0.to_string()).collect();
                write!(self.log, ", blocks {}", blocks.join(" ")).unwrap();
            }
            self.log.push('\n');
        }
    }
}

/// A scheduler that is stepped by hand.
struct Rig<'a> {
    backend: Recorder<'a>,
    scheduler: Scheduler,
    places: Arc<Places>,
    now: Instant,
}

impl Rig<'_> {
    fn run(settings: SimSettings, test: impl Fn(&mut Rig<'_>)) {
        Box::new(SimLoader::new(settings))
            .with_backend(&mut |loaded| {
                let places = Arc::<Places>::default();
                let options = Options {
                    prefix_cache: true,
                    hash_seed: 1,
                    stall_timeout: Duration::from_secs(60),
                    places: Arc::clone(&places),
                };
                let inner = loaded.backend.generator().expect("the model is a generator");
                let scheduler = Scheduler::new(inner.spec().clone(), loaded.vocab, options);
                let backend = Recorder { inner, log: String::new() };
                test(&mut Rig { backend, scheduler, places, now: Instant::now() });
            })
            .unwrap();
    }

    fn submit(&mut self, request: GenerateRequest) -> Generation {
        let (events, generation) = Generation::channel(&self.places, 8);
        let ticket = Ticket::take(&self.places, usize::MAX).unwrap();
        writeln!(self.backend.log, "a prompt of {} tokens arrives ({:?})", request.prompt.len(), request.priority)
            .unwrap();
        self.scheduler.add(Submission { request, grammar: None, events, submitted: self.now, ticket });
        generation
    }

    fn steps(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// Steps whose tokens are all read, so that nobody pauses.
    fn steps_read(&mut self, steps: usize, readers: &mut [Generation]) {
        for _ in 0..steps {
            self.step();
            readers.iter_mut().for_each(|reader| drop(events(reader)));
        }
    }

    fn step(&mut self) -> Outcome {
        let now = self.now;
        self.scheduler.step(&mut self.backend, &|| now).unwrap()
    }

    fn finish(&mut self) {
        let mut steps = 0;
        while self.scheduler.has_work() {
            self.step();
            steps += 1;
            assert!(steps < 500, "no end in sight: {}", self.scheduler);
        }
    }

    fn state(&mut self) {
        write!(self.backend.log, "{}", self.scheduler).unwrap();
    }
}

fn settings(layout: SimLayout) -> SimSettings {
    SimSettings { context: 64, parallel: 4, max_step_tokens: 16, layout, ..SimSettings::default() }
}

fn request(prompt: impl IntoIterator<Item = TokenId>, max_tokens: u32, priority: Priority) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into_iter().collect(),
        sampling: SamplingParams::greedy(),
        stop: StopRules { ignore_eos: true, ..StopRules::max_tokens(max_tokens) },
        seed: 0,
        priority,
        logprobs: None,
        cache_salt: 0,
        grammar: None,
        score_prompt: false,
        special_tokens: false,
        adapter: None,
        rank: 0,
        shown: Default::default(),
    }
}

fn settings_with_adapters(layout: SimLayout) -> SimSettings {
    SimSettings { adapters: vec!["one".to_owned(), "two".to_owned()], ..settings(layout) }
}

fn with(adapter: Option<u32>, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { adapter: adapter.map(AdapterId), ..request }
}

fn events(generation: &mut Generation) -> Vec<Event> {
    std::iter::from_fn(|| generation.try_next()).collect()
}

/// A long prompt arrives while somebody else's tokens are generated.
fn long_beside_short(rig: &mut Rig<'_>) {
    let _short = rig.submit(request(0..3, 6, Priority::Interactive));
    rig.steps(1);
    let _long = rig.submit(request(100..140, 2, Priority::Batch));
    rig.finish();
}

#[test]
fn a_long_prompt_is_computed_beside_the_tokens_of_others() {
    Rig::run(settings(SLOTS), |rig| {
        long_beside_short(rig);
        insta::assert_snapshot!(rig.backend.log);
    });
}

#[test]
fn prompts_and_single_tokens_take_turns_where_they_cannot_share_a_step() {
    Rig::run(SimSettings { mixes_phases: false, ..settings(SLOTS) }, |rig| {
        long_beside_short(rig);
        insta::assert_snapshot!(rig.backend.log);
    });
}

#[test]
fn equal_prompts_wait_for_the_first_to_compute_their_beginning() {
    for (name, layout) in [("equal_prompts_by_slot", SLOTS), ("equal_prompts_by_block", BLOCKS)] {
        Rig::run(SimSettings { max_step_tokens: 64, ..settings(layout) }, |rig| {
            let _all: Vec<_> = (0..3).map(|_| rig.submit(request(0..42, 2, Priority::Batch))).collect();
            rig.steps(1);
            rig.state();
            rig.finish();
            insta::assert_snapshot!(name, rig.backend.log);
            let stats = rig.scheduler.stats();
            // 42 prompt tokens once, what a block's border leaves for the others, and one output token each.
            let again = if name.ends_with("slot") { 1 } else { 2 };
            assert_eq!(stats.computed_tokens, 42 + 2 * again + 3, "{name}");
        });
    }
}

#[test]
fn interactive_work_does_not_wait_for_a_prefix_that_batch_work_computes() {
    Rig::run(settings(SLOTS), |rig| {
        let _batch = rig.submit(request(0..60, 2, Priority::Batch));
        rig.steps(1);
        let _interactive = rig.submit(request(0..60, 2, Priority::Interactive));
        rig.steps(1);
        assert_eq!(rig.scheduler.stats().following, 0);
        assert_eq!(rig.scheduler.stats().running, 2);
        rig.finish();
    });
}

fn step_sizes<'a>(rig: &'a Rig<'_>) -> Vec<&'a str> {
    rig.backend.log.lines().filter(|line| line.starts_with("step")).collect()
}

#[test]
fn a_prompt_that_somebody_waits_for_shares_its_steps_with_no_batch_work() {
    Rig::run(settings(SLOTS), |rig| {
        let _batch = rig.submit(request(0..3, 40, Priority::Batch));
        let _prompt = rig.submit(request(200..260, 2, Priority::Batch));
        rig.steps(2);
        rig.backend.log.clear();
        let _interactive = rig.submit(request(100..140, 2, Priority::Interactive));
        rig.steps(3);
        assert_eq!(step_sizes(rig), ["step of 16 tokens", "step of 16 tokens", "step of 8 tokens"]);
        rig.backend.log.clear();
        rig.steps(1);
        assert_eq!(
            step_sizes(rig),
            ["step of 16 tokens"],
            "the two that have a token and what is left for the long one"
        );
    });
}

#[test]
fn steps_of_batch_work_are_short_while_somebody_may_ask() {
    let settings = SimSettings {
        context: 8192,
        max_step_tokens: 512,
        ..settings(SimLayout::Slots { cells: 8192, partial_reuse: true })
    };
    Rig::run(settings, |rig| {
        let _prompt = rig.submit(request((0..4000).map(|at| at % 250), 2, Priority::Batch));
        rig.steps(1);
        let _interactive = rig.submit(request(100..140, 1, Priority::Interactive));
        rig.steps(2);
        assert_eq!(step_sizes(rig), ["step of 512 tokens", "step of 40 tokens", "step of 64 tokens"]);
        rig.backend.log.clear();
        rig.now += Duration::from_secs(9);
        rig.steps(1);
        rig.now += Duration::from_secs(2);
        rig.steps(1);
        assert_eq!(step_sizes(rig), ["step of 64 tokens", "step of 512 tokens"]);
    });
}

#[test]
fn batch_work_goes_on_however_many_prompts_come() {
    Rig::run(settings(SLOTS), |rig| {
        let mut batch = rig.submit(request(0..3, 40, Priority::Batch));
        rig.steps(1);
        events(&mut batch);
        let _prompts: Vec<_> = (0..40)
            .map(|number| rig.submit(request((0..16).map(|at| number * 5 + at), 1, Priority::Interactive)))
            .collect();
        rig.steps(36);
        assert!(rig.scheduler.stats().waiting > 0, "{}", rig.scheduler);
        assert_eq!(events(&mut batch).len(), 2);
    });
}

#[test]
fn other_salts_share_nothing() {
    for layout in [SLOTS, BLOCKS] {
        Rig::run(settings(layout), |rig| {
            let _first = rig.submit(request(0..42, 2, Priority::Batch));
            rig.finish();
            let _same = rig.submit(GenerateRequest { cache_salt: 7, ..request(0..42, 2, Priority::Batch) });
            let _other = rig.submit(GenerateRequest { cache_salt: 8, ..request(0..42, 2, Priority::Batch) });
            rig.finish();
            assert_eq!(rig.scheduler.stats().cached_tokens, 0, "{layout:?}");
            let _again = rig.submit(GenerateRequest { cache_salt: 7, ..request(0..42, 2, Priority::Batch) });
            rig.finish();
            assert!(rig.scheduler.stats().cached_tokens >= 40, "{layout:?}");
        });
    }
}

#[test]
fn other_adapters_share_nothing() {
    for layout in [SLOTS, BLOCKS] {
        Rig::run(SimSettings { max_step_tokens: 64, ..settings_with_adapters(layout) }, |rig| {
            let ask = |adapter| with(adapter, request(0..40, 2, Priority::Batch));
            // All at once: nobody waits for what another adapter computes.
            let _all = [None, Some(0), Some(1)].map(|adapter| rig.submit(ask(adapter)));
            rig.steps(1);
            assert_eq!((rig.scheduler.stats().running, rig.scheduler.stats().following), (3, 0), "{layout:?}");
            rig.finish();
            assert_eq!(rig.scheduler.stats().cached_tokens, 0, "{layout:?}");
            let _again = rig.submit(ask(Some(1)));
            rig.finish();
            assert!(rig.scheduler.stats().cached_tokens >= 36, "{layout:?}");
        });
    }
}

#[test]
fn adapters_take_turns() {
    Rig::run(settings_with_adapters(SLOTS), |rig| {
        let _all = [None, Some(0), Some(0), Some(1)].map(|adapter| {
            let at = adapter.unwrap_or(9) * 10;
            rig.submit(with(adapter, request(at..at + 3, 5, Priority::Batch)))
        });
        rig.steps(1);
        rig.state();
        rig.finish();
        insta::assert_snapshot!(rig.backend.log);
    });
}

#[test]
fn whoever_comes_to_an_idle_engine_has_the_turn_at_once() {
    Rig::run(settings_with_adapters(SLOTS), |rig| {
        for (adapter, computed) in [(Some(1), 3), (None, 6), (Some(0), 9)] {
            let _one = rig.submit(with(adapter, request(0..3, 1, Priority::Batch)));
            rig.steps(1);
            assert_eq!(rig.scheduler.stats().computed_tokens, computed, "{adapter:?}");
        }
    });
}

#[test]
fn a_turn_of_long_steps_is_short() {
    Rig::run(settings_with_adapters(SLOTS), |rig| {
        let mut readers = vec![rig.submit(request(0..3, 30, Priority::Interactive))];
        rig.steps_read(5, &mut readers);
        readers.push(rig.submit(with(Some(0), request(100..140, 4, Priority::Interactive))));
        rig.backend.log.clear();
        rig.steps_read(18, &mut readers);
        insta::assert_snapshot!(rig.backend.log);
    });
}

#[test]
fn batch_work_leaves_its_turn_to_whoever_is_more_urgent() {
    Rig::run(settings_with_adapters(SLOTS), |rig| {
        let mut readers = vec![rig.submit(request(0..3, 40, Priority::Batch))];
        rig.steps_read(10, &mut readers);
        readers.push(rig.submit(with(Some(0), request(100..103, 10, Priority::Interactive))));
        rig.backend.log.clear();
        rig.steps_read(14, &mut readers);
        insta::assert_snapshot!(rig.backend.log);
    });
}

#[test]
fn each_adapter_has_prompts_and_single_tokens_in_turn_where_they_cannot_share_a_step() {
    let layout = SimLayout::Slots { cells: 1_600, partial_reuse: true };
    Rig::run(SimSettings { mixes_phases: false, context: 400, ..settings_with_adapters(layout) }, |rig| {
        let mut all = vec![rig.submit(request([9], 200, Priority::Batch))];
        rig.steps(2);
        all.push(rig.submit(request(0..250, 2, Priority::Batch)));
        all.push(rig.submit(with(Some(0), request(0..250, 2, Priority::Interactive))));
        rig.steps(1);
        rig.backend.log.clear();
        rig.steps_read(24, &mut all);
        // Turns are of one step here. If the two remembered together which came last, batch work would have only single tokens.
        for (step, what) in [("step of 15 tokens\n", "chunks"), ("step of 1 tokens\n", "single tokens")] {
            assert!(rig.backend.log.matches(step).count() >= 3, "{what} of batch work\n{}", rig.backend.log);
        }
    });
}

#[test]
fn batch_work_gives_way_at_the_next_step() {
    let layout = SimLayout::Blocks { count: 8, block_size: 4 };
    Rig::run(settings(layout), |rig| {
        let _batch: Vec<_> = (0..2).map(|at| rig.submit(request(at * 50..at * 50 + 10, 6, Priority::Batch))).collect();
        rig.steps(2);
        let _interactive = rig.submit(request(200..212, 4, Priority::Interactive));
        rig.steps(1);
        rig.state();
        rig.finish();
        insta::assert_snapshot!(rig.backend.log);
    });
}

#[test]
fn a_refused_step_comes_back_in_halves() {
    let faults = Faults { kv_full_every: 2, kv_full_run: 1, ..Faults::default() };
    Rig::run(SimSettings { faults, ..settings(SLOTS) }, |rig| {
        let _one = rig.submit(request(0..40, 2, Priority::Batch));
        rig.finish();
        insta::assert_snapshot!(rig.backend.log);
        assert_eq!(rig.scheduler.stats().preemptions, 0);
    });
}

#[test]
fn a_sequence_that_gave_way_three_times_has_room_to_its_end() {
    // Five blocks of four: each of the two needs four of them in the end.
    let layout = SimLayout::Blocks { count: 5, block_size: 4 };
    Rig::run(SimSettings { context: 16, ..settings(layout) }, |rig| {
        let mut generations: Vec<_> = (0..6).map(|at| rig.submit(request([at, at, 9], 13, Priority::Batch))).collect();
        let mut counts = vec![0; generations.len()];
        let mut steps = 0;
        while rig.scheduler.has_work() {
            rig.step();
            assert!(rig.scheduler.most_preemptions() <= 3, "{}", rig.scheduler);
            for (count, generation) in counts.iter_mut().zip(&mut generations) {
                *count += events(generation).iter().filter(|event| matches!(event, Event::Token { .. })).count();
            }
            steps += 1;
            assert!(steps < 500, "no end in sight: {}", rig.scheduler);
        }
        assert_eq!(counts, [13; 6]);
        assert!(rig.scheduler.stats().preemptions > 0);
    });
}

#[test]
fn a_prompt_that_keeps_its_slot_is_computed_while_somebody_more_urgent_waits_for_room() {
    Rig::run(SimSettings { parallel: 1, ..settings(SLOTS) }, |rig| {
        let _batch = rig.submit(request(0..40, 2, Priority::Batch));
        rig.steps(1);
        let mut urgent: Vec<_> = (0..3)
            .map(|at| {
                let urgent = rig.submit(request(100 + at..103 + at, 1, Priority::Interactive));
                rig.steps(3);
                urgent
            })
            .collect();
        assert_eq!((rig.scheduler.most_preemptions(), rig.scheduler.stats().finished), (3, 3), "{}", rig.scheduler);
        urgent.push(rig.submit(request(200..203, 1, Priority::Interactive)));
        rig.finish();
        assert_eq!(rig.scheduler.stats().finished, 5);
    });
}

#[test]
fn a_reader_that_is_far_behind_pauses_its_generation_alone() {
    Rig::run(settings(SLOTS), |rig| {
        let mut unread = rig.submit(request(0..3, 40, Priority::Interactive));
        let mut read = rig.submit(request(50..53, 30, Priority::Interactive));
        let mut tokens = 0;
        for _ in 0..30 {
            rig.step();
            tokens += events(&mut read).len();
        }
        assert_eq!(tokens, 31, "thirty tokens and the end");
        assert_eq!(rig.step(), Outcome::Paused);
        assert_eq!(rig.scheduler.stats().stalled, 1);
        rig.state();
        assert!(rig.backend.log.ends_with("paused until its reader catches up\n"), "{}", rig.backend.log);
        let mut events_read = events(&mut unread);
        assert!(events_read.len() <= 8, "no more than the channel holds");
        while rig.scheduler.has_work() {
            assert_eq!(rig.step(), Outcome::Worked);
            events_read.extend(events(&mut unread));
        }
        assert_eq!(events_read.len(), 41);
    });
}

#[test]
fn a_generation_that_nobody_reads_is_given_up() {
    Rig::run(settings(SLOTS), |rig| {
        let mut unread = rig.submit(request(0..3, 40, Priority::Interactive));
        rig.steps(20);
        rig.now += Duration::from_secs(59);
        rig.steps(1);
        assert!(rig.scheduler.has_work());
        rig.now += Duration::from_secs(1);
        rig.steps(1);
        assert!(!rig.scheduler.has_work());
        assert_eq!(events(&mut unread).last(), Some(&Event::Failed(EngineError::Stalled)));
        assert_eq!(rig.scheduler.stats().kv_used, 0);
    });
}

#[test]
fn a_generation_that_pauses_gives_way_to_one_that_is_read() {
    let layout = SimLayout::Slots { cells: 24, partial_reuse: true };
    Rig::run(SimSettings { context: 24, parallel: 1, ..settings(layout) }, |rig| {
        let mut unread = rig.submit(request(0..3, 20, Priority::Interactive));
        rig.steps(20);
        let mut read = rig.submit(request(50..53, 4, Priority::Batch));
        rig.steps(6);
        assert_eq!(events(&mut read).len(), 5, "{}", rig.scheduler);
        let mut all = events(&mut unread);
        while rig.scheduler.has_work() {
            rig.step();
            all.extend(events(&mut unread));
        }
        assert_eq!(all.len(), 21, "it goes on where it paused");
    });
}
