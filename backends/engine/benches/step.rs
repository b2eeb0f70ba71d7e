//! What a step costs the host: planning, bookkeeping, text and channels, over a backend that costs nothing.
//!
//! `step/N` is one step of N running sequences whose events nobody waits for; `step/ahead/N` the same where the device chooses all tokens and
//! each step is asked for before the tokens of the last one are read. `tokens/N` is the whole engine: a thread, N generations and
//! as many tasks that read them, per token.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should panic")]

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::StreamExt as _;
use tandem_core::{
    AheadStep, Backend, BackendLoader, BackendSpec, Choice, Chosen, GenerationDefaults, InferenceBackend, KvLayout,
    LoadError, Loaded, LookAhead, Matryoshka, SampleError, SampleRow, Sampled, SamplingParams, ScoreRow, SlotId, Step,
    StepError, TokenId, TokenLogprobs, TokenizeError, Tokenizer, Vocab, VocabParts,
};
use tandem_engine::{Engine, EngineLimits, Event, GenerateRequest, Generation, Priority, StopRules, internals::Loop};

const SEQUENCES: [u32; 3] = [8, 64, 256];
const PROMPT: u32 = 64;

/// Says the same word for ever.
struct Parrot {
    spec: BackendSpec,
    looks_ahead: bool,
    /// Tokens of the steps that are on their way.
    open: VecDeque<Vec<TokenId>>,
}

impl Parrot {
    fn new(sequences: u32, kv: KvLayout, looks_ahead: bool) -> Self {
        let spec = BackendSpec {
            name: "parrot",
            vocab_size: 1024,
            max_context: 1 << 20,
            max_sequences: sequences,
            max_step_tokens: 2048,
            kv,
            mixes_phases: true,
            overlaps: looks_ahead,
            adapters: Vec::new(),
        };
        Self { spec, looks_ahead, open: VecDeque::new() }
    }
}

fn word(slot: SlotId) -> TokenId {
    black_box(slot.0 % 1024)
}

impl InferenceBackend for Parrot {
    fn spec(&self) -> &BackendSpec {
        &self.spec
    }

    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        black_box(step);
        Ok(())
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        out.extend(rows.iter().map(|row| Ok(Sampled { token: word(row.slot), logprobs: None })));
        Ok(())
    }

    fn score(&mut self, _: &[ScoreRow<'_>], _: &mut Vec<Result<TokenLogprobs, SampleError>>) -> Result<(), StepError> {
        Ok(())
    }

    fn look_ahead(&mut self) -> Option<&mut dyn LookAhead> {
        if self.looks_ahead { Some(self) } else { None }
    }
}

impl LookAhead for Parrot {
    fn forward_ahead(&mut self, step: &AheadStep<'_>) -> Result<(), StepError> {
        black_box(step);
        Ok(())
    }

    fn choose(&mut self, choices: &[Choice]) -> Result<Chosen, StepError> {
        self.open.push_back(choices.iter().map(|choice| word(choice.slot)).collect());
        Ok(Chosen::new(0))
    }

    fn collect(&mut self, _: Chosen, out: &mut Vec<Result<TokenId, SampleError>>) -> Result<(), StepError> {
        out.extend(self.open.pop_front().into_iter().flatten().map(Ok));
        Ok(())
    }
}

struct ParrotLoader(Parrot);

impl BackendLoader for ParrotLoader {
    fn with_backend(mut self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError> {
        serve(Loaded {
            backend: Backend::Generator(&mut self.0),
            vocab: vocab(),
            tokenizer: Arc::new(NoTokenizer),
            chat_template: None,
            defaults: GenerationDefaults::default(),
            matryoshka: Matryoshka::No,
            pair_template: None,
        });
        Ok(())
    }
}

struct NoTokenizer;

impl Tokenizer for NoTokenizer {
    fn encode(&self, _: &str) -> Result<Vec<TokenId>, TokenizeError> {
        Ok(Vec::new())
    }
}

fn vocab() -> Arc<Vocab> {
    let tokens = (0..1024).map(|id| (format!(" w{id}").into_bytes().into_boxed_slice(), None)).collect();
    Arc::new(Vocab::new(VocabParts { tokens, ..VocabParts::default() }))
}

fn layouts(sequences: u32) -> [(&'static str, KvLayout, bool); 3] {
    // Room for half a million steps' tokens: what is measured is the steady state.
    let cells = sequences * 8192;
    let blocks = KvLayout::Blocks { count: cells / 16, block_size: 16 };
    [
        ("blocks", blocks, false),
        ("ahead", blocks, true),
        ("slots", KvLayout::Slots { cells, partial_reuse: true }, false),
    ]
}

fn request(at: u32, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: (0..PROMPT).map(|position| (at + position) % 1024).collect(),
        sampling: SamplingParams::greedy(),
        stop: StopRules::max_tokens(max_tokens),
        seed: 0,
        priority: Priority::Batch,
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

/// Steps until `steps` have been timed; generations end at 4,096 tokens and are begun again, outside of the time.
fn time_steps(sequences: u32, kv: KvLayout, looks_ahead: bool, steps: u64) -> Duration {
    const TOKENS: u32 = 4096;
    let mut backend = Parrot::new(sequences, kv, looks_ahead);
    let mut elapsed = Duration::ZERO;
    let mut left = steps;
    while left > 0 {
        let mut engine = Loop::new(backend.spec().clone(), vocab());
        let _unread: Vec<Generation> =
            (0..sequences).map(|at| engine.submit(request(at, TOKENS), TOKENS as usize + 8)).collect();
        for _ in 0..32 {
            engine.step(&mut backend);
        }
        let now = left.min(u64::from(TOKENS) - 64);
        let began = Instant::now();
        for _ in 0..now {
            engine.step(&mut backend);
        }
        elapsed += began.elapsed();
        left -= now;
    }
    elapsed
}

fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    for sequences in SEQUENCES {
        group.throughput(Throughput::Elements(sequences.into()));
        for (name, kv, looks_ahead) in layouts(sequences) {
            group.bench_function(BenchmarkId::new(name, sequences), |bencher| {
                bencher.iter_custom(|steps| time_steps(sequences, kv, looks_ahead, steps));
            });
        }
    }
}

fn tokens(c: &mut Criterion) {
    const TOKENS: u32 = 1024;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let mut group = c.benchmark_group("tokens");
    group.sample_size(10);
    for sequences in SEQUENCES {
        let (_, kv, _) = layouts(sequences)[0];
        let loader = Box::new(ParrotLoader(Parrot::new(sequences, kv, false)));
        let engine = runtime.block_on(Engine::load(loader, EngineLimits::default())).unwrap();
        group.throughput(Throughput::Elements(u64::from(sequences * TOKENS)));
        group.bench_function(BenchmarkId::from_parameter(sequences), |bencher| {
            bencher.iter(|| {
                let readers = (0..sequences).map(|at| {
                    let mut generation = engine.submit(request(at, TOKENS)).unwrap();
                    runtime.spawn(async move {
                        let mut bytes = 0;
                        while let Some(event) = generation.next().await {
                            match event {
                                Event::Token { text, .. } => bytes += text.len(),
                                Event::Prompt(_) | Event::Finished { .. } => {}
                                Event::Failed(error) => panic!("{error}"),
                            }
                        }
                        bytes
                    })
                });
                let readers: Vec<_> = readers.collect();
                runtime.block_on(async { futures_util::future::join_all(readers).await }).len()
            });
        });
    }
}

criterion_group!(benches, step, tokens);
criterion_main!(benches);
