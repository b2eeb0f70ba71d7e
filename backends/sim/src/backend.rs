use std::{sync::Arc, time::Duration};

use tandem_core::{
    AheadChunk, AheadStep, Backend, BackendLoader, BackendSpec, Choice, Chosen, Chunk, GenerationDefaults,
    InferenceBackend, Input, KvLayout, LoadError, Loaded, LookAhead, Matryoshka, SampleError, SampleRow, Sampled,
    SamplingParams, ScoreRow, SlotId, Step, StepError, TokenId, TokenLogprobs,
    sampling::{Sampler, uniform},
};

use crate::{
    ahead::Ahead,
    memory::Memory,
    model::{self, ByteTokenizer, CHAT_TEMPLATE, VOCAB_SIZE, digest},
};

/// How the simulated backend behaves.
#[derive(Clone, Debug)]
pub struct SimSettings {
    /// Tokens of one sequence.
    pub context: u32,
    /// Sequences at once.
    pub parallel: u32,
    /// Tokens of one step.
    pub max_step_tokens: u32,
    /// How KV memory is divided.
    pub layout: SimLayout,
    /// Whether chunks and single tokens may share a step.
    pub mixes_phases: bool,
    /// Whether the engine is told that the device computes while the engine does something else.
    pub overlaps: bool,
    /// Whether steps can be asked for before the tokens of the last one are known; by block only.
    pub looks_ahead: bool,
    /// Time that each step takes at least.
    pub step_delay: Duration,
    /// Time that a step may take beyond that: a part of it that depends on the seed and on how many steps there were.
    pub step_jitter: Duration,
    /// What the parts of `step_jitter` are drawn from.
    pub jitter_seed: u64,
    /// The names of the adapters, each of which makes another model of it.
    pub adapters: Vec<String>,
    /// The chat template; `ChatML` by default.
    pub chat_template: String,
    /// How the model's makers would have its tokens chosen.
    pub defaults: GenerationDefaults,
    /// Whether the model fills in the middle: the bytes 1, 2 and 3 are its marks for prefix, suffix and middle.
    pub fills_in_the_middle: bool,
    /// What goes wrong.
    pub faults: Faults,
}

/// How KV memory is divided, and how much there is of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimLayout {
    /// By slot.
    Slots {
        /// Tokens over all slots.
        cells: u32,
        /// Whether a slot can be cut in the middle.
        partial_reuse: bool,
    },
    /// By block.
    Blocks {
        /// Blocks in all.
        count: u32,
        /// Tokens in one.
        block_size: u32,
    },
}

/// What goes wrong, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every so many passes some are refused as not fitting; 0 for never.
    pub kv_full_every: u64,
    /// How many passes in a row are refused then; 0 counts as 1.
    pub kv_full_run: u64,
    /// Every so many rows the logits of one are not numbers, or every so many vectors one; 0 for never.
    pub nan_every: u64,
    /// The device fails at this pass; 0 for never.
    pub device_fails_at: u64,
    /// The device is lost to the process at this pass; 0 for never.
    pub device_lost_at: u64,
    /// The backend panics at this pass; 0 for never.
    pub panics_at: u64,
    /// This pass never returns; 0 for never.
    pub hangs_at: u64,
}

impl Faults {
    /// Lets happen what was asked for at this pass and ends all work.
    pub(crate) fn strike(&self, pass: u64) -> Result<(), StepError> {
        assert!(pass != self.panics_at, "a panic was asked for");
        if pass == self.hangs_at {
            loop {
                std::thread::park();
            }
        }
        match pass {
            _ if pass == self.device_fails_at => Err(StepError::Device("a failure was asked for".into())),
            _ if pass == self.device_lost_at => Err(StepError::Lost("a loss was asked for".into())),
            _ => Ok(()),
        }
    }
}

impl Default for SimSettings {
    fn default() -> Self {
        Self {
            context: 4096,
            parallel: 8,
            max_step_tokens: 512,
            layout: SimLayout::Blocks { count: 2048, block_size: 16 },
            mixes_phases: true,
            overlaps: false,
            looks_ahead: false,
            step_delay: Duration::ZERO,
            step_jitter: Duration::ZERO,
            jitter_seed: 0,
            adapters: Vec::new(),
            chat_template: CHAT_TEMPLATE.to_owned(),
            defaults: GenerationDefaults::default(),
            fills_in_the_middle: false,
            faults: Faults::default(),
        }
    }
}

/// "Loads" the simulated model.
#[derive(Debug)]
pub struct SimLoader {
    settings: SimSettings,
}

impl SimLoader {
    /// A loader with these settings.
    #[must_use]
    pub fn new(settings: SimSettings) -> Self {
        Self { settings }
    }
}

impl BackendLoader for SimLoader {
    fn with_backend(self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError> {
        let mut backend = SimBackend::new(&self.settings);
        serve(Loaded {
            backend: Backend::Generator(&mut backend),
            vocab: Arc::new(model::vocab_with(self.settings.fills_in_the_middle)),
            tokenizer: Arc::new(ByteTokenizer),
            chat_template: Some(self.settings.chat_template.clone()),
            defaults: self.settings.defaults.clone(),
            matryoshka: Matryoshka::No,
            pair_template: None,
        });
        Ok(())
    }
}

struct SimBackend {
    spec: BackendSpec,
    memory: Memory,
    settings: SimSettings,
    passes: u64,
    sampled_rows: u64,
    sampler: Sampler,
    /// Logits of the rows of the last pass, one after the other.
    rows: Vec<f32>,
    /// Its chunks that have any: whose they are, how many rows, and whether a token is sampled or tokens are scored.
    chunks: Vec<(SlotId, usize, bool, bool)>,
    ahead: Ahead,
}

impl SimBackend {
    fn new(settings: &SimSettings) -> Self {
        let &SimSettings { context, parallel, max_step_tokens, layout, mixes_phases, overlaps, .. } = settings;
        let (kv, memory) = match layout {
            SimLayout::Slots { cells, partial_reuse } => (
                KvLayout::Slots { cells, partial_reuse },
                Memory::Slots { slots: vec![Vec::new(); parallel as usize], cells: cells as usize, partial_reuse },
            ),
            SimLayout::Blocks { count, block_size } => (
                KvLayout::Blocks { count, block_size },
                Memory::Blocks { blocks: vec![vec![None; block_size as usize]; count as usize] },
            ),
        };
        let spec = BackendSpec {
            name: "sim",
            vocab_size: VOCAB_SIZE,
            max_context: context,
            max_sequences: parallel,
            max_step_tokens,
            kv,
            mixes_phases,
            overlaps,
            adapters: settings.adapters.clone(),
        };
        Self {
            spec,
            memory,
            settings: settings.clone(),
            passes: 0,
            sampled_rows: 0,
            sampler: Sampler::default(),
            rows: Vec::new(),
            chunks: Vec::new(),
            ahead: Ahead::default(),
        }
    }

    /// One pass, of chunks whose tokens are known here.
    fn pass(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        self.passes += 1;
        self.memory.prepare(step.kv_ops);
        self.fail()?;
        self.memory.fits(step.chunks)?;
        assert!(step.tokens() <= self.spec.max_step_tokens as usize, "a step keeps to its budget");
        let chunks = step.chunks.iter().filter(|chunk| chunk.tokens.len() > 1).count();
        let apart = chunks == 0 || chunks == step.chunks.len();
        assert!(apart || self.spec.mixes_phases, "chunks and single tokens share a step");
        let known = step.adapter.is_none_or(|adapter| adapter.index() < self.spec.adapters.len());
        assert!(known, "a step names only adapters that there are");
        self.rows.clear();
        for chunk in step.chunks {
            self.memory.write(chunk, step.adapter);
        }
        self.chunks.clear();
        for chunk in step.chunks.iter().filter(|chunk| chunk.sample || chunk.score) {
            let first = if chunk.score { 1 } else { chunk.tokens.len() };
            self.chunks.push((chunk.slot, chunk.tokens.len() + 1 - first, chunk.sample, chunk.score));
            for seen in first..=chunk.tokens.len() {
                let chunk = Chunk { tokens: &chunk.tokens[..seen], ..*chunk };
                let start = self.rows.len();
                self.rows.resize(start + VOCAB_SIZE as usize, 0.0);
                model::logits(digest(self.memory.visible(&chunk)), &mut self.rows[start..]);
                self.sampled_rows += 1;
                if self.sampled_rows.checked_rem(self.settings.faults.nan_every) == Some(0) {
                    self.rows[start] = f32::NAN;
                }
            }
        }
        self.delay();
        Ok(())
    }

    /// Lets happen what was asked for, at its time.
    fn fail(&self) -> Result<(), StepError> {
        let faults = &self.settings.faults;
        faults.strike(self.passes)?;
        let since = self.passes.checked_rem(faults.kv_full_every);
        if since.is_some_and(|since| self.passes > since && since < faults.kv_full_run.max(1)) {
            return Err(StepError::KvFull);
        }
        Ok(())
    }

    fn delay(&self) {
        let SimSettings { step_delay, step_jitter, jitter_seed, .. } = self.settings;
        let delay = step_delay + step_jitter.mul_f32(uniform(jitter_seed, self.passes as u32));
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
    }
}

impl InferenceBackend for SimBackend {
    fn spec(&self) -> &BackendSpec {
        &self.spec
    }

    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        if !self.settings.looks_ahead {
            return self.pass(step);
        }
        let chunks: Vec<_> = step.chunks.iter().map(|chunk| AheadChunk::from(*chunk)).collect();
        self.forward_ahead(&AheadStep { kv_ops: step.kv_ops, chunks: &chunks, adapter: step.adapter })
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        let Self { sampler, rows: logits, chunks, .. } = self;
        let mut asked = rows.iter();
        let mut logits = logits.chunks_exact(VOCAB_SIZE as usize);
        for &(slot, count, sample, _) in &*chunks {
            let last = logits.by_ref().take(count).last().expect("a chunk has rows");
            if sample {
                let row = asked.next().expect("each sampled chunk is asked for");
                assert_eq!(row.slot, slot, "in order");
                out.push(sampler.sample(last, row));
            }
        }
        assert!(asked.next().is_none(), "each sampled chunk is asked for once");
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        out: &mut Vec<Result<TokenLogprobs, SampleError>>,
    ) -> Result<(), StepError> {
        let Self { sampler, rows: logits, chunks, .. } = self;
        let mut asked = rows.iter();
        let mut logits = logits.chunks_exact(VOCAB_SIZE as usize);
        for &(slot, count, _, score) in &*chunks {
            let of_chunk = logits.by_ref().take(count);
            if score {
                let row = asked.next().expect("each scored chunk is asked for");
                assert!(row.slot == slot && row.targets.len() <= count, "in order, and not for more than there is");
                let scored = std::iter::zip(of_chunk.collect::<Vec<_>>(), row.targets);
                out.extend(scored.map(|(logits, &target)| sampler.score(logits, target, row.top, row.reported)));
            } else {
                of_chunk.for_each(drop);
            }
        }
        assert!(asked.next().is_none(), "each scored chunk is asked for once");
        Ok(())
    }

    fn look_ahead(&mut self) -> Option<&mut dyn LookAhead> {
        if self.settings.looks_ahead { Some(self) } else { None }
    }
}

impl LookAhead for SimBackend {
    fn forward_ahead(&mut self, step: &AheadStep<'_>) -> Result<(), StepError> {
        self.ahead.check_blocks(step.chunks, &self.spec.kv);
        // Read without being taken: a pass that is refused is asked for again.
        let chosen: Vec<_> = step.chunks.iter().map(|chunk| [self.ahead.last(chunk)]).collect();
        let chunks = std::iter::zip(step.chunks, &chosen).map(|(chunk, chosen)| {
            let &AheadChunk { slot, start, tokens, block_table, sample, score } = chunk;
            let tokens = match tokens {
                Input::Known(tokens) => tokens,
                Input::Chosen => chosen.as_slice(),
            };
            Chunk { slot, start, tokens, block_table, sample, score }
        });
        let chunks: Vec<_> = chunks.collect();
        self.pass(&Step { kv_ops: step.kv_ops, chunks: &chunks, adapter: step.adapter })?;
        self.ahead.begin(step.chunks, &self.spec.kv);
        Ok(())
    }

    fn choose(&mut self, choices: &[Choice]) -> Result<Chosen, StepError> {
        let rows = choices.iter().map(|choice| {
            let &Choice { slot, temperature, top_k, top_p, min_p, u, .. } = choice;
            (slot, u, SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() })
        });
        let rows: Vec<_> = rows.collect();
        let rows = rows.iter().map(|(slot, u, params)| SampleRow {
            slot: *slot,
            params,
            u: *u,
            prompt: &[],
            output: &[],
            banned: &[],
            allowed: None,
            logprobs: None,
        });
        let mut tokens = Vec::new();
        self.sample(&rows.collect::<Vec<_>>(), &mut tokens)?;
        let tokens = tokens.into_iter().map(|sampled| sampled.map(|sampled| sampled.token));
        Ok(self.ahead.choose(choices.iter().map(|choice| choice.slot).zip(tokens).collect()))
    }

    fn collect(&mut self, chosen: Chosen, out: &mut Vec<Result<TokenId, SampleError>>) -> Result<(), StepError> {
        out.extend(self.ahead.collect(&chosen));
        Ok(())
    }
}
