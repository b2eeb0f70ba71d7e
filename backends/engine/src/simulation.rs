//! The scheduler under random load, against the model run alone.
//!
//! Arrivals, cancels, shared prefixes, two priorities, a cache far too small, and passes refused as [`KvFull`](tandem_core::StepError::KvFull):
//! whatever happens, every generation that is not cancelled has exactly the tokens of [`Oracle`]. A failing seed is printed by the assertion.

use std::{
    ops::Range,
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};

use tandem_core::{BackendLoader, InferenceBackend, SamplingParams, TokenId};
use tandem_sim::{Faults, Oracle, SimLayout, SimLoader, SimSettings, vocab};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{
    Event, FinishReason, GenerateRequest, Priority, Stats, StopRules, scheduler::Scheduler, sequence::Submission,
    stats::Ticket,
};

const SEEDS: u64 = 2_000;
const SLOW_SEEDS: u64 = 50_000;
const REQUESTS: usize = 40;
const CELLS: u32 = 160;

/// A small generator that needs no crate: the simulation must be the same everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }
}

struct Client {
    request: GenerateRequest,
    events: Option<UnboundedReceiver<Event>>,
    got: Vec<TokenId>,
    finished: Option<FinishReason>,
}

struct World {
    rng: Rng,
    scheduler: Scheduler,
    clients: Vec<Client>,
    places: Arc<AtomicUsize>,
    seed: u64,
}

impl World {
    fn new(seed: u64, backend: &dyn InferenceBackend, prefix_cache: bool) -> Self {
        Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9) + 1),
            scheduler: Scheduler::new(backend.spec().clone(), Arc::new(vocab()), prefix_cache),
            clients: Vec::new(),
            places: Arc::default(),
            seed,
        }
    }

    /// A prompt that begins like others: half of the time over an alphabet so small that whole prompts repeat.
    fn prompt(&mut self) -> Vec<TokenId> {
        let alphabet = if self.rng.one_in(2) { 2 } else { 256 };
        let family = self.rng.below(3) as TokenId;
        let shared = self.rng.below(24);
        let own = 1 + self.rng.below(22);
        let mut prompt: Vec<_> = (0..shared as TokenId).map(|at| (family * 50 + at) % 256).collect();
        prompt.extend((0..own).map(|_| self.rng.below(alphabet) as TokenId));
        prompt
    }

    fn arrive(&mut self) {
        let stop = StopRules { ignore_eos: false, ..StopRules::max_tokens(1 + self.rng.below(24) as u32) };
        let sampling = if self.rng.one_in(2) { SamplingParams::greedy() } else { SamplingParams::default() };
        let request = GenerateRequest {
            prompt: self.prompt(),
            sampling,
            stop,
            seed: self.rng.below(u64::MAX),
            priority: if self.rng.one_in(3) { Priority::Interactive } else { Priority::Batch },
            logprobs: None,
            grammar: None,
        };
        let (events, received) = unbounded_channel();
        let ticket = Ticket::take(&self.places, usize::MAX).unwrap();
        self.scheduler.add(Submission { request: request.clone(), events, submitted: Instant::now(), ticket });
        self.clients.push(Client { request, events: Some(received), got: Vec::new(), finished: None });
    }

    fn listen(&mut self) {
        for client in &mut self.clients {
            let Some(events) = &mut client.events else { continue };
            while let Ok(event) = events.try_recv() {
                match event {
                    Event::Token { id, .. } => client.got.push(id),
                    Event::Finished { reason, usage, .. } => {
                        assert_eq!(usage.completion_tokens as usize, client.got.len(), "seed {}: usage", self.seed);
                        assert!(usage.cached_tokens < usage.prompt_tokens, "seed {}: something is computed", self.seed);
                        client.finished = Some(reason);
                    }
                    Event::Failed(error) => panic!("seed {}: {error}", self.seed),
                }
            }
        }
    }

    fn run(&mut self, backend: &mut dyn InferenceBackend) -> Stats {
        let mut steps = 0;
        while self.clients.len() < REQUESTS || self.scheduler.has_work() {
            while self.clients.len() < REQUESTS && self.rng.one_in(3) {
                self.arrive();
            }
            if self.rng.one_in(8) && !self.clients.is_empty() {
                let victim = self.rng.below(self.clients.len() as u64) as usize;
                if self.clients[victim].finished.is_none() {
                    self.clients[victim].events = None;
                }
            }
            self.scheduler.step(backend, Instant::now()).unwrap();
            self.listen();
            steps += 1;
            assert!(steps < 20_000, "seed {}: no end in sight: {:?}", self.seed, self.scheduler.stats());
        }
        self.scheduler.stats()
    }

    fn check(&self) {
        let vocab = vocab();
        for (at, client) in self.clients.iter().enumerate() {
            if client.events.is_none() {
                continue;
            }
            let GenerateRequest { prompt, sampling, seed, stop, .. } = &client.request;
            let expected = Oracle::generate(prompt, sampling, *seed, stop.max_tokens);
            assert_eq!(client.got, expected, "seed {}, request {at}", self.seed);
            let ended = expected.last().is_some_and(|&token| vocab.is_eog(token));
            let reason = if ended { FinishReason::Stop } else { FinishReason::Length };
            assert_eq!(client.finished, Some(reason), "seed {}, request {at}", self.seed);
        }
        let stats = self.scheduler.stats();
        assert_eq!((stats.running, stats.waiting, stats.kv_used), (0, 0, 0), "seed {}: nothing is left", self.seed);
        assert_eq!(self.places.load(std::sync::atomic::Ordering::Relaxed), 0, "seed {}: tickets", self.seed);
    }
}

/// Runs the seeds over one layout; over all of them together, everything that can happen has to have happened.
fn simulate(layout: SimLayout, seeds: Range<u64>) {
    let mut total = Stats::default();
    for seed in seeds {
        let settings = SimSettings {
            context: 96,
            parallel: 1 + (seed % 6) as u32,
            max_step_tokens: [8, 24, 64][(seed % 3) as usize],
            layout,
            mixes_phases: !seed.is_multiple_of(5),
            faults: Faults { kv_full_every: if seed.is_multiple_of(3) { 7 } else { 0 }, ..Faults::default() },
            ..SimSettings::default()
        };
        Box::new(SimLoader::new(settings))
            .with_backend(&mut |loaded| {
                let mut world = World::new(seed, loaded.backend, !seed.is_multiple_of(7));
                let stats = world.run(loaded.backend);
                world.check();
                total.steps += stats.steps;
                total.cached_tokens += stats.cached_tokens;
                total.preemptions += stats.preemptions;
                total.cancelled += stats.cancelled;
                total.finished += stats.finished;
            })
            .unwrap();
    }
    assert!(total.cached_tokens > 0, "prefixes are reused: {total:?}");
    assert!(total.preemptions > 0, "sequences are preempted: {total:?}");
    assert!(total.cancelled > 0, "submitters leave: {total:?}");
}

const SLOTS: SimLayout = SimLayout::Slots { cells: CELLS };
const BLOCKS: SimLayout = SimLayout::Blocks { count: CELLS / 4, block_size: 4 };

#[test]
fn by_slot_every_output_is_the_models_own() {
    simulate(SLOTS, 0..SEEDS);
}

#[test]
fn by_block_every_output_is_the_models_own() {
    simulate(BLOCKS, 0..SEEDS);
}

/// The same for many more seeds.
mod slow {
    use super::*;

    #[test]
    fn by_slot() {
        simulate(SLOTS, SEEDS..SLOW_SEEDS);
    }

    #[test]
    fn by_block() {
        simulate(BLOCKS, SEEDS..SLOW_SEEDS);
    }
}
