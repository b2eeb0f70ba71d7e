//! The scheduler under random load, against the model run alone.
//!
//! Arrivals, cancels, readers that fall behind, shared prefixes, two priorities, adapters, stop strings, grammars, a cache far too small, passes
//! refused as [`KvFull`](tandem_core::StepError::KvFull), logits that are not numbers: whatever happens, every generation that is not cancelled
//! has exactly the tokens and the text of [`Oracle`], and no adapter waits long for its turn; also where steps are asked for before the tokens
//! of the last one are known. A failing seed is printed by the assertion.

use std::{
    cell::Cell,
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_core::{
    AdapterId, AheadStep, BackendLoader, BackendSpec, Choice, Chosen, InferenceBackend, Input, LookAhead, SampleError,
    SampleRow, Sampled, SamplingParams, ScoreRow, Step, StepError, TokenId, TokenLogprobs, TokenMask, Vocab,
};
use tandem_sim::{Faults, Oracle, SimLayout, SimLoader, SimSettings, vocab};

use crate::{
    EngineError, Event, FinishReason, GenerateRequest, Generation, Grammar, GrammarSpec, Grammars, Priority, Stats,
    StopRules, Usage,
    grammar::GrammarState,
    places::{Places, Ticket},
    scheduler::{Options, Scheduler, TURN_STEPS},
    sequence::{MAX_PREEMPTIONS, Submission},
};

const SEEDS: u64 = 2_000;
const SLOW_SEEDS: u64 = 50_000;
const REQUESTS: usize = 40;
const CELLS: u32 = 160;
/// Of the simulated clock, in steps.
const STALL_TIMEOUT: u64 = 60;

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
    generation: Option<Generation>,
    got: Vec<TokenId>,
    /// The log-probabilities of its prompt.
    scores: Option<Vec<f32>>,
    text: String,
    ended: Option<Result<(FinishReason, Usage), EngineError>>,
    /// Does not read before this step.
    reads_from: u64,
    /// The step in which it read last.
    read_at: u64,
    /// Whether it ever paused for long enough to be given up.
    dawdled: bool,
}

struct World {
    rng: Rng,
    /// For what is asked, so that it does not depend on what goes on.
    requests: Rng,
    scheduler: Scheduler,
    vocab: Arc<Vocab>,
    grammars: Arc<[Grammar]>,
    clients: Vec<Client>,
    places: Arc<Places>,
    seed: u64,
    steps: u64,
    /// What went on at the same time, at most.
    followed: u64,
    stalled: u64,
    turns: Turns,
    /// What was left to the device.
    left: u64,
    unread: u64,
}

/// Which sequence, by its arrival, waits for how many steps while other adapters have theirs.
#[derive(Default)]
struct Turns {
    waits: BTreeMap<u64, u64>,
    longest: u64,
}

impl Turns {
    /// `ready` could take part in the step, and those that `served` names did, if anybody.
    fn count(&mut self, ready: &BTreeMap<u64, Option<AdapterId>>, served: Option<Option<AdapterId>>) {
        self.waits.retain(|arrival, _| ready.contains_key(arrival));
        let Some(served) = served else { return };
        for (arrival, adapter) in ready {
            let wait = self.waits.entry(*arrival).or_default();
            *wait = if *adapter == served { 0 } else { *wait + 1 };
            self.longest = self.longest.max(*wait);
        }
    }
}

/// Notes what was computed.
struct Witness<'a> {
    inner: &'a mut dyn InferenceBackend,
    /// The adapter of the last step, if it had chunks and was carried out.
    served: Option<Option<AdapterId>>,
    /// Steps whose tokens were left to the device, and tokens that were computed before they were known.
    left: u64,
    unread: u64,
}

impl InferenceBackend for Witness<'_> {
    fn spec(&self) -> &BackendSpec {
        self.inner.spec()
    }

    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        let result = self.inner.forward(step);
        self.served = (result.is_ok() && !step.chunks.is_empty()).then_some(step.adapter);
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

impl LookAhead for Witness<'_> {
    fn forward_ahead(&mut self, step: &AheadStep<'_>) -> Result<(), StepError> {
        let result = self.inner.look_ahead().unwrap().forward_ahead(step);
        self.served = (result.is_ok() && !step.chunks.is_empty()).then_some(step.adapter);
        self.unread += step.chunks.iter().filter(|chunk| chunk.tokens == Input::Chosen).count() as u64;
        result
    }

    fn choose(&mut self, choices: &[Choice]) -> Result<Chosen, StepError> {
        self.left += 1;
        self.inner.look_ahead().unwrap().choose(choices)
    }

    fn collect(&mut self, chosen: Chosen, out: &mut Vec<Result<TokenId, SampleError>>) -> Result<(), StepError> {
        self.inner.look_ahead().unwrap().collect(chosen, out)
    }
}

impl World {
    fn new(seed: u64, backend: &dyn InferenceBackend, prefix_cache: bool, grammars: Arc<[Grammar]>) -> Self {
        let places = Arc::<Places>::default();
        let stall_timeout = Duration::from_secs(STALL_TIMEOUT);
        let options = Options { prefix_cache, hash_seed: seed, stall_timeout, places: Arc::clone(&places) };
        let vocab = Arc::new(vocab());
        Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9) + 1),
            requests: Rng(seed.wrapping_mul(0x85eb_ca6b) + 7),
            scheduler: Scheduler::new(backend.spec().clone(), Arc::clone(&vocab), options),
            vocab,
            grammars,
            clients: Vec::new(),
            places,
            seed,
            steps: 0,
            followed: 0,
            stalled: 0,
            turns: Turns::default(),
            left: 0,
            unread: 0,
        }
    }

    fn any_adapter(&mut self) -> Option<AdapterId> {
        match adapters(self.seed) {
            0 => None,
            count => self.requests.below(count + 1).checked_sub(1).map(|at| AdapterId(at as u32)),
        }
    }

    /// A prompt that begins like others: half of the time over an alphabet so small that whole prompts repeat.
    fn prompt(&mut self) -> Vec<TokenId> {
        let alphabet = if self.requests.one_in(2) { 2 } else { 256 };
        let family = self.requests.below(3) as TokenId;
        let shared = self.requests.below(44);
        let own = 1 + self.requests.below(22);
        let mut prompt: Vec<_> = (0..shared as TokenId).map(|at| (family * 50 + at) % 256).collect();
        prompt.extend((0..own).map(|_| self.requests.below(alphabet) as TokenId));
        prompt
    }

    /// Stop strings of the letters that the model favours, so that some of them do occur.
    fn stop_strings(&mut self) -> Vec<String> {
        if !self.requests.one_in(3) {
            return Vec::new();
        }
        let letter = |rng: &mut Rng| if rng.one_in(3) { ' ' } else { char::from(b'a' + rng.below(26) as u8) };
        (0..1 + self.requests.below(2))
            .map(|_| (0..1 + self.requests.below(2)).map(|_| letter(&mut self.requests)).collect())
            .collect()
    }

    fn any_grammar(&mut self) -> Grammar {
        self.grammars[self.requests.below(self.grammars.len() as u64) as usize].clone()
    }

    fn arrive(&mut self) {
        // What a device cannot choose by itself.
        let rare = if (self.seed / 4).is_multiple_of(2) { 1 } else { 12 };
        let stop = StopRules { strings: self.stop_strings(), ..StopRules::max_tokens(self.requests.below(25) as u32) };
        let sampling = if self.requests.one_in(2) { SamplingParams::greedy() } else { SamplingParams::default() };
        let request = GenerateRequest {
            prompt: self.prompt(),
            sampling,
            stop,
            seed: self.requests.below(u64::MAX),
            priority: if self.requests.one_in(3) { Priority::Interactive } else { Priority::Batch },
            logprobs: if self.requests.one_in(4 * rare) { Some(1) } else { None },
            cache_salt: self.requests.below(2),
            grammar: if self.requests.one_in(6 * rare) { Some(self.any_grammar()) } else { None },
            score_prompt: self.requests.one_in(4 * rare),
            special_tokens: false,
            adapter: self.any_adapter(),
            rank: self.requests.below(3) as i64 - 1,
            shown: Default::default(),
        };
        let (events, generation) = Generation::channel(&self.places, 3 + self.requests.below(6) as usize);
        let ticket = Ticket::take(&self.places, usize::MAX).unwrap();
        let grammar = request.grammar.as_ref().map(GrammarState::new);
        self.scheduler.add(Submission { request: request.clone(), grammar, events, submitted: Instant::now(), ticket });
        self.clients.push(Client {
            request,
            generation: Some(generation),
            got: Vec::new(),
            scores: None,
            text: String::new(),
            ended: None,
            reads_from: 0,
            read_at: self.steps,
            dawdled: false,
        });
    }

    fn listen(&mut self) {
        for client in &mut self.clients {
            let Some(generation) = &mut client.generation else { continue };
            if self.steps < client.reads_from {
                continue;
            }
            client.read_at = self.steps;
            while let Some(event) = generation.try_next() {
                assert!(client.ended.is_none(), "seed {}: nothing comes after the end", self.seed);
                match event {
                    Event::Prompt(scores) => {
                        assert!(client.got.is_empty(), "seed {}: the prompt comes first", self.seed);
                        let all = scores.iter().map(|score| score.chosen.logprob).collect();
                        assert!(client.scores.replace(all).is_none(), "seed {}: the prompt is told once", self.seed);
                    }
                    Event::Token { id, text, .. } => {
                        client.got.push(id);
                        client.text.push_str(&text);
                    }
                    Event::Finished { reason, text, usage, .. } => {
                        client.text.push_str(&text);
                        assert_eq!(usage.completion_tokens as usize, client.got.len(), "seed {}: usage", self.seed);
                        assert!(usage.cached_tokens < usage.prompt_tokens, "seed {}: something is computed", self.seed);
                        client.ended = Some(Ok((reason, usage)));
                    }
                    Event::Failed(error) => client.ended = Some(Err(error)),
                }
            }
        }
    }

    /// Somebody leaves, and somebody else does not read for a while.
    fn disturb(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let any = self.rng.below(self.clients.len() as u64) as usize;
        if self.rng.one_in(8) && self.clients[any].ended.is_none() {
            self.clients[any].generation = None;
        }
        let any = self.rng.below(self.clients.len() as u64) as usize;
        if self.rng.one_in(6) {
            let longest = if self.rng.one_in(6) { 2 * STALL_TIMEOUT } else { 24 };
            let pause = self.rng.below(longest);
            let client = &mut self.clients[any];
            client.reads_from = self.steps + pause;
            // A pause may follow on another.
            client.dawdled |= client.reads_from.saturating_sub(client.read_at) >= STALL_TIMEOUT / 2;
        }
    }

    fn run(&mut self, backend: &mut dyn InferenceBackend) -> Stats {
        let began = Instant::now();
        let mut backend = Witness { inner: backend, served: None, left: 0, unread: 0 };
        while self.clients.len() < REQUESTS || self.scheduler.has_work() {
            while self.clients.len() < REQUESTS && self.rng.one_in(3) {
                self.arrive();
            }
            self.disturb();
            let now = Cell::new(began + Duration::from_secs(self.steps));
            let ready = self.scheduler.ready();
            backend.served = None;
            self.scheduler.step(&mut backend, &|| now.get()).unwrap();
            self.steps += 1;
            self.turns.count(&ready, backend.served);
            self.listen();
            let stats = self.scheduler.stats();
            self.followed += u64::from(stats.following);
            self.stalled += u64::from(stats.stalled);
            assert!(self.scheduler.most_preemptions() <= MAX_PREEMPTIONS, "seed {}: preempted too often", self.seed);
            assert!(self.steps < 20_000, "seed {}: no end in sight: {}", self.seed, self.scheduler);
        }
        (self.left, self.unread) = (backend.left, backend.unread);
        self.clients.iter_mut().for_each(|client| client.reads_from = 0);
        self.listen();
        self.scheduler.stats()
    }

    fn check(&self, faults: &Faults) {
        for (at, client) in self.clients.iter().enumerate() {
            if client.generation.is_none() {
                continue;
            }
            let (tokens, text, reason) = expected(&client.request, &self.vocab, context(self.seed));
            let who = format!("seed {}, request {at}", self.seed);
            match client.ended {
                Some(Ok((ended, _))) => {
                    assert_eq!((&client.got, &client.text), (&tokens, &text), "{who}");
                    assert_eq!(ended, reason, "{who}");
                    let GenerateRequest { prompt, adapter, score_prompt, .. } = &client.request;
                    let scores = Some(Oracle::scores(prompt, *adapter)).filter(|all| *score_prompt && !all.is_empty());
                    assert_eq!(client.scores, scores, "{who}");
                }
                Some(Err(error)) => {
                    let may = match error {
                        EngineError::NonFinite => faults.nan_every > 0,
                        EngineError::Stalled => client.dawdled,
                        EngineError::NothingLeft
                        | EngineError::GrammarDeadEnd
                        | EngineError::KvExhausted
                        | EngineError::Gone => false,
                    };
                    assert!(may, "{who}: {error}");
                    assert!(tokens.starts_with(&client.got), "{who}: what came before the error");
                    assert!(text.starts_with(&client.text), "{who}: the text before the error");
                }
                None => panic!("{who}: no end was told"),
            }
        }
        // One turn of each of the others, and a step in which it turned out that nobody reads.
        let bound = adapters(self.seed) * u64::from(TURN_STEPS) + 1;
        assert!(self.turns.longest <= bound, "seed {}: {} steps without a turn", self.seed, self.turns.longest);
        let stats = self.scheduler.stats();
        assert_eq!((stats.running, stats.waiting, stats.kv_used), (0, 0, 0), "seed {}: nothing is left", self.seed);
        assert_eq!(self.places.taken(), 0, "seed {}: tickets", self.seed);
    }
}

/// One that ends by itself, one that may go on for long, and one after which only an end is possible at times.
fn grammars() -> Arc<[Grammar]> {
    let grammars = Grammars::new(Arc::new(vocab()), tandem_sim::VOCAB_SIZE);
    let specs = [
        GrammarSpec::Choice(vec!["yes".to_owned(), "no".to_owned(), "nobody".to_owned()]),
        GrammarSpec::Regex("[a-f ]+[.]?".to_owned()),
        GrammarSpec::JsonSchema(r#"{"type":"array","items":{"type":"integer"},"maxItems":3}"#.to_owned()),
    ];
    specs.iter().map(|spec| grammars.compile(spec).unwrap()).collect()
}

/// Tokens of one sequence: sometimes so few that the context ends some of the outputs.
fn context(seed: u64) -> u32 {
    if seed.is_multiple_of(4) { 72 } else { 96 }
}

/// Half of the seeds do without.
fn adapters(seed: u64) -> u64 {
    [0, 1, 0, 2, 0, 3, 2, 0][(seed % 8) as usize]
}

/// What the model alone has to say: tokens, text, and why it ends.
fn expected(request: &GenerateRequest, vocab: &Vocab, context: u32) -> (Vec<TokenId>, String, FinishReason) {
    let GenerateRequest { prompt, sampling, seed, stop, grammar, adapter, .. } = request;
    let max_tokens = stop.max_tokens.min(context - prompt.len() as u32);
    let mut state = grammar.as_ref().map(GrammarState::new);
    let mut is_whole = false;
    let mut tokens = Oracle::generate_within(prompt, *adapter, sampling, *seed, max_tokens, |output| {
        let Some(state) = &mut state else { return Some(None) };
        if let Some(last) = output.last() {
            state.accept(*last).unwrap();
        }
        is_whole = state.is_complete();
        let mut mask = TokenMask::empty(tandem_sim::VOCAB_SIZE);
        (!is_whole).then(|| {
            state.mask(&mut mask).unwrap();
            Some(mask)
        })
    });
    // The last token that there is room for may be the one that makes it whole.
    if let (Some(state), Some(last)) = (&mut state, tokens.last())
        && tokens.len() == max_tokens as usize
        && !is_whole
    {
        is_whole = state.accept(*last).is_ok() && state.is_complete();
    }
    let mut bytes = Vec::new();
    for at in 0..tokens.len() {
        let token = tokens[at];
        if vocab.is_eog(token) {
            return (tokens, String::from_utf8_lossy(&bytes).into_owned(), FinishReason::Stop);
        }
        if vocab.is_text(token) {
            bytes.extend_from_slice(vocab.bytes(token));
        }
        // Of the stop strings that are complete with this token, which is a byte, the longest: it begins first.
        let complete = stop.strings.iter().filter(|stop| bytes.ends_with(stop.as_bytes())).map(String::len).max();
        if let Some(len) = complete {
            tokens.truncate(at + 1);
            bytes.truncate(bytes.len() - len);
            return (tokens, String::from_utf8_lossy(&bytes).into_owned(), FinishReason::Stop);
        }
    }
    let reason = if is_whole { FinishReason::Stop } else { FinishReason::Length };
    (tokens, String::from_utf8_lossy(&bytes).into_owned(), reason)
}

/// Runs a seed to its end.
fn run(layout: SimLayout, looks_ahead: bool, seed: u64, grammars: &Arc<[Grammar]>) -> (World, Stats) {
    let faults = Faults {
        kv_full_every: if seed.is_multiple_of(3) { 9 } else { 0 },
        kv_full_run: seed % 5,
        nan_every: if seed.is_multiple_of(11) { 97 } else { 0 },
        ..Faults::default()
    };
    let settings = SimSettings {
        context: context(seed),
        parallel: 1 + (seed % 6) as u32,
        max_step_tokens: [8, 24, 64][(seed % 3) as usize],
        layout,
        mixes_phases: !seed.is_multiple_of(5),
        overlaps: !(seed / 2).is_multiple_of(2),
        looks_ahead,
        adapters: (0..adapters(seed)).map(|at| format!("adapter-{at}")).collect(),
        faults,
        ..SimSettings::default()
    };
    let mut ran = None;
    Box::new(SimLoader::new(settings))
        .with_backend(&mut |loaded| {
            let backend = loaded.backend.generator().expect("the model is a generator");
            let mut world = World::new(seed, backend, !seed.is_multiple_of(7), Arc::clone(grammars));
            let stats = world.run(backend);
            world.check(&faults);
            ran = Some((world, stats));
        })
        .unwrap();
    ran.expect("the model was lent")
}

/// Runs the seeds over one layout; over all of them together, everything that can happen has to have happened.
fn simulate(layout: SimLayout, looks_ahead: bool, seeds: Range<u64>) {
    let grammars = grammars();
    let mut total = Stats::default();
    let (mut followed, mut stalled, mut told, mut failed, mut waited) = (0, 0, 0, 0, 0);
    let (mut left, mut unread) = (0, 0);
    for seed in seeds {
        let (world, stats) = run(layout, looks_ahead, seed, &grammars);
        total.steps += stats.steps;
        total.cached_tokens += stats.cached_tokens;
        total.preemptions += stats.preemptions;
        total.refusals += stats.refusals;
        total.cancelled += stats.cancelled;
        total.finished += stats.finished;
        followed += world.followed;
        stalled += world.stalled;
        waited = waited.max(world.turns.longest);
        told += world.clients.iter().filter(|client| !client.text.is_empty()).count();
        failed += world.clients.iter().filter(|client| matches!(client.ended, Some(Err(_)))).count();
        left += world.left;
        unread += world.unread;
    }
    let all = format!(
        "{total:?}, {followed} followed, {stalled} stalled, {told} with text, {failed} failed, {left} steps and {unread} tokens ahead"
    );
    let whole = !matches!(layout, SimLayout::Slots { partial_reuse: false, .. });
    assert!(total.cached_tokens > 0, "prefixes are reused: {all}");
    assert!(total.preemptions > 0 && total.refusals > 0, "sequences are preempted and steps refused: {all}");
    assert!(total.cancelled > 0 && failed > 0, "submitters leave, generations fail: {all}");
    assert!(followed > 0 || !whole, "sequences wait for each other's prefixes: {all}");
    assert!(stalled > 0 && told > 0, "readers fall behind: {all}");
    assert!(waited > u64::from(TURN_STEPS), "adapters take turns: at most {waited} steps apart");
    if looks_ahead {
        assert!(left > total.steps / 4 && unread > 4 * total.finished, "steps are left to the device: {all}");
    } else {
        assert_eq!(left, 0, "nobody looks ahead");
    }
}

/// Runs seeds with and without looking ahead: whoever comes to an end both times has the same tokens, text, reason and counts.
fn compare(seeds: Range<u64>) {
    let grammars = grammars();
    let mut compared = 0;
    for seed in seeds {
        let [(without, _), (with, _)] = [false, true].map(|looks_ahead| run(BLOCKS, looks_ahead, seed, &grammars));
        for (at, (a, b)) in std::iter::zip(&without.clients, &with.clients).enumerate() {
            assert_eq!(a.request.prompt, b.request.prompt, "seed {seed}, request {at}: the same is asked");
            let (Some(Ok((reason_a, usage_a))), Some(Ok((reason_b, usage_b)))) = (a.ended, b.ended) else { continue };
            // What is found in the cache depends on who came before.
            let counts = |usage: Usage| (usage.prompt_tokens, usage.completion_tokens);
            let a = (&a.got, &a.text, &a.scores, reason_a, counts(usage_a));
            let b = (&b.got, &b.text, &b.scores, reason_b, counts(usage_b));
            assert_eq!(a, b, "seed {seed}, request {at}");
            compared += 1;
        }
    }
    assert!(compared > 0, "some come to an end both times");
}

const SLOTS: SimLayout = SimLayout::Slots { cells: CELLS, partial_reuse: true };
const WHOLE_SLOTS: SimLayout = SimLayout::Slots { cells: CELLS, partial_reuse: false };
const BLOCKS: SimLayout = SimLayout::Blocks { count: CELLS / 4, block_size: 4 };

#[test]
fn by_slot_every_output_is_the_models_own() {
    simulate(SLOTS, false, 0..SEEDS);
}

#[test]
fn by_slot_that_cannot_be_cut_every_output_is_the_models_own() {
    simulate(WHOLE_SLOTS, false, 0..SEEDS / 4);
}

#[test]
fn by_block_every_output_is_the_models_own() {
    simulate(BLOCKS, false, 0..SEEDS);
}

#[test]
fn ahead_of_what_is_known_every_output_is_the_models_own() {
    simulate(BLOCKS, true, 0..SEEDS / 2);
}

#[test]
fn looking_ahead_changes_no_output() {
    compare(0..SEEDS / 4);
}

/// The same for many more seeds.
mod slow {
    use super::*;

    #[test]
    fn by_slot() {
        simulate(SLOTS, false, SEEDS..SLOW_SEEDS);
    }

    #[test]
    fn by_slot_that_cannot_be_cut() {
        simulate(WHOLE_SLOTS, false, SEEDS..SEEDS + 4_000);
    }

    #[test]
    fn by_block() {
        simulate(BLOCKS, false, SEEDS..SLOW_SEEDS);
    }

    #[test]
    fn ahead() {
        simulate(BLOCKS, true, SEEDS..SLOW_SEEDS);
    }
}
