use std::{fmt, num::NonZero, thread};

use llama_cpp_2::{
    DecodeError, LlamaLoraAdapterRemoveError, LlamaLoraAdapterSetError, context::LlamaContext, llama_batch::LlamaBatch,
    model::LlamaLoraAdapter, token::LlamaToken,
};
use rayon::{
    ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder,
    iter::{IndexedParallelIterator, IntoParallelRefIterator, IntoParallelRefMutIterator, ParallelIterator},
};
use tandem_core::{
    AdapterId, BackendSpec, Chunk, InferenceBackend, KvOp, LookAhead, SampleError, SampleRow, Sampled, SamplingParams,
    ScoreRow, SlotId, Step, StepError, TokenId, TokenLogprobs, sampling::Sampler,
};
use thiserror::Error;

/// One llama.cpp context, whose sequences are the engine's slots: all of them are decoded together.
pub(crate) struct LlamaCpp<'model> {
    context: LlamaContext<'model>,
    spec: BackendSpec,
    batch: LlamaBatch<'static>,
    /// With how strongly each is applied. They are the model's, which frees them, and must not outlive it.
    adapters: Vec<(LlamaLoraAdapter, f32)>,
    /// The adapter that the context has now. llama.cpp forgets its graphs when it is told another.
    adapter: Option<AdapterId>,
    /// The rows of the last pass: whose they are, and at which place in the batch.
    rows: Vec<(SlotId, i32)>,
    /// Chunks whose tokens all have logits: whose they are, the place of their first token, and how many tokens.
    scored: Vec<(SlotId, i32, usize)>,
    kv_pools: KvPools,
    /// One for each row of a pass.
    samplers: Vec<Sampler>,
    /// Sample rows beside each other.
    threads: ThreadPool,
}

/// How KV cells are divided among slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvPools {
    /// One pool, in which slots may share cells.
    One,
    /// A pool for each slot.
    PerSlot,
}

/// A step that breaks the contract, or that llama.cpp cannot carry out.
#[derive(Debug, Error)]
enum Fault {
    #[error("slot {} of {slots}", .slot.0)]
    NoSuchSlot { slot: SlotId, slots: u32 },
    #[error("a chunk without tokens for slot {}", .0.0)]
    EmptyChunk(SlotId),
    #[error("position {0} is beyond what llama.cpp can count")]
    Position(u64),
    #[error("token {0} is beyond the vocabulary")]
    NoSuchToken(TokenId),
    #[error("a step of more than {0} tokens")]
    TooManyTokens(u32),
    #[error("{asked} rows to sample, the last pass computed {computed}")]
    Rows { asked: usize, computed: usize },
    #[error("a row for slot {}, where the last pass has slot {}", .asked.0, .computed.0)]
    RowOrder { asked: SlotId, computed: SlotId },
    #[error("adapter {} of {adapters}", .adapter.0)]
    NoSuchAdapter { adapter: AdapterId, adapters: usize },
    #[error("setting an adapter: {0}")]
    SetAdapter(#[from] LlamaLoraAdapterSetError),
    #[error("removing an adapter: {0}")]
    RemoveAdapter(#[from] LlamaLoraAdapterRemoveError),
    #[error("changing the KV cache: {0}")]
    Kv(#[from] llama_cpp_2::context::kv_cache::KvCacheConversionError),
    #[error("llama_decode: {0}")]
    Decode(#[source] DecodeError),
}

impl From<Fault> for StepError {
    fn from(fault: Fault) -> Self {
        Self::Device(Box::new(fault))
    }
}

impl<'model> LlamaCpp<'model> {
    /// `adapters` are those of the context's model, in the order of `spec.adapters`.
    pub(crate) fn new(
        context: LlamaContext<'model>,
        spec: BackendSpec,
        kv_pools: KvPools,
        adapters: Vec<(LlamaLoraAdapter, f32)>,
    ) -> Result<Self, ThreadPoolBuildError> {
        let batch = LlamaBatch::new(spec.max_step_tokens as usize, 1);
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = ThreadPoolBuilder::new()
            .num_threads(cores.min(spec.max_sequences as usize))
            .thread_name(|at| format!("sample-{at}"))
            .build()?;
        let (rows, scored, samplers) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { context, spec, batch, adapters, adapter: None, rows, scored, kv_pools, samplers, threads })
    }

    /// Runs one token and forgets it: weights are touched for the first time here rather than under the first request, and a model or an
    /// adapter that computes nonsense is found out.
    ///
    /// # Errors
    /// With what is wrong about it.
    pub(crate) fn warm_up(&mut self, token: TokenId, adapter: Option<AdapterId>) -> Result<(), String> {
        let slot = SlotId(0);
        let chunk = Chunk { slot, start: 0, tokens: &[token], block_table: &[], sample: true, score: false };
        let row = SampleRow {
            slot,
            params: &SamplingParams::greedy(),
            u: 0.0,
            prompt: &[],
            output: &[],
            banned: &[],
            allowed: None,
            logprobs: None,
        };
        let mut out = Vec::new();
        self.forward(&Step { kv_ops: &[], chunks: &[chunk], adapter })
            .and_then(|()| self.sample(&[row], &mut out))
            .and_then(|()| self.forward(&Step { kv_ops: &[KvOp::Truncate { slot, from: 0 }], chunks: &[], adapter }))
            .map_err(|error| format!("a first token cannot be computed: {error:?}"))?;
        match out.pop() {
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// The slot as llama.cpp's sequence id. Checked, because llama.cpp aborts the process on one that it does not have.
    fn sequence(&self, slot: SlotId) -> Result<i32, Fault> {
        let slots = self.spec.max_sequences;
        i32::try_from(slot.0).ok().filter(|_| slot.0 < slots).ok_or(Fault::NoSuchSlot { slot, slots })
    }

    fn token(&self, token: TokenId) -> Result<LlamaToken, Fault> {
        match i32::try_from(token) {
            Ok(id) if token < self.spec.vocab_size => Ok(LlamaToken(id)),
            Ok(_) | Err(_) => Err(Fault::NoSuchToken(token)),
        }
    }

    fn set_adapter(&mut self, adapter: Option<AdapterId>) -> Result<(), Fault> {
        if adapter == self.adapter {
            return Ok(());
        }
        let adapters = self.adapters.len();
        match adapter {
            Some(adapter) => {
                let of_model = self.adapters.get_mut(adapter.index());
                let (of_model, scale) = of_model.ok_or(Fault::NoSuchAdapter { adapter, adapters })?;
                self.context.lora_adapter_set(of_model, *scale)?;
            }
            None => {
                // Whichever is named, all are removed.
                if let Some((any, _)) = self.adapters.first_mut() {
                    self.context.lora_adapter_remove(any)?;
                }
            }
        }
        self.adapter = adapter;
        Ok(())
    }

    fn run(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        for &op in step.kv_ops {
            self.change_kv(op)?;
        }
        if step.chunks.is_empty() {
            return Ok(());
        }
        self.fill_batch(step.chunks)?;
        self.set_adapter(step.adapter)?;
        self.context.decode(&mut self.batch).map_err(|error| match error {
            // llama.cpp looks for room for the whole batch before it computes, and puts its cells back as they were when there is none.
            DecodeError::NoKvCacheSlot => StepError::KvFull,
            DecodeError::NTokensZero | DecodeError::Unknown(_) => Fault::Decode(error).into(),
        })
    }

    fn change_kv(&mut self, op: KvOp) -> Result<(), Fault> {
        match op {
            KvOp::Truncate { slot, from } => {
                let sequence = self.sequence(slot)?;
                self.context.kv_cache_seq_rm(sequence, Some(from), None)?;
            }
            KvOp::CopyPrefix { src, dst, len } => {
                let (src, dst) = (self.sequence(src)?, self.sequence(dst)?);
                match self.kv_pools {
                    KvPools::One => self.context.kv_cache_seq_cp(src, dst, Some(0), Some(len))?,
                    KvPools::PerSlot => {
                        // llama.cpp copies pools whole or not at all, and aborts on a range.
                        self.context.kv_cache_seq_cp(src, dst, None, None)?;
                        self.context.kv_cache_seq_rm(dst, Some(len), None)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn fill_batch(&mut self, chunks: &[Chunk<'_>]) -> Result<(), Fault> {
        self.batch.clear();
        for chunk in chunks {
            let sequence = self.sequence(chunk.slot)?;
            let last = chunk.tokens.len().checked_sub(1).ok_or(Fault::EmptyChunk(chunk.slot))?;
            for (at, &token) in chunk.tokens.iter().enumerate() {
                let position = u64::from(chunk.start) + at as u64;
                let wants_logits = chunk.score || chunk.sample && at == last;
                let token = self.token(token)?;
                let position = i32::try_from(position).map_err(|_| Fault::Position(position))?;
                let added = self.batch.add(token, position, &[sequence], wants_logits);
                added.map_err(|_| Fault::TooManyTokens(self.spec.max_step_tokens))?;
            }
            let place = self.batch.n_tokens() - 1;
            if chunk.sample {
                self.rows.push((chunk.slot, place));
            }
            if chunk.score {
                self.scored.push((chunk.slot, place - last as i32, chunk.tokens.len()));
            }
        }
        Ok(())
    }

    /// Rows are asked for as they were computed; anything else would read logits that are not there, on which the wrapper panics.
    fn check_rows(&self, rows: &[SampleRow<'_>]) -> Result<(), Fault> {
        if rows.len() != self.rows.len() {
            return Err(Fault::Rows { asked: rows.len(), computed: self.rows.len() });
        }
        match rows.iter().zip(&self.rows).find(|(row, (slot, _))| row.slot != *slot) {
            Some((row, (computed, _))) => Err(Fault::RowOrder { asked: row.slot, computed: *computed }),
            None => Ok(()),
        }
    }

    /// The same for rows to score.
    fn check_scored(&self, rows: &[ScoreRow<'_>]) -> Result<(), Fault> {
        if rows.len() != self.scored.len() {
            return Err(Fault::Rows { asked: rows.len(), computed: self.scored.len() });
        }
        for (row, &(computed, _, tokens)) in rows.iter().zip(&self.scored) {
            if row.slot != computed {
                return Err(Fault::RowOrder { asked: row.slot, computed });
            }
            if row.targets.len() > tokens {
                return Err(Fault::Rows { asked: row.targets.len(), computed: tokens });
            }
        }
        Ok(())
    }
}

impl InferenceBackend for LlamaCpp<'_> {
    fn spec(&self) -> &BackendSpec {
        &self.spec
    }

    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        self.rows.clear();
        self.scored.clear();
        // Without a good pass there are no rows, whatever went wrong.
        self.run(step).inspect_err(|_| {
            self.rows.clear();
            self.scored.clear();
        })
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        self.check_rows(rows)?;
        let Self { context, samplers, threads, .. } = self;
        samplers.resize_with(samplers.len().max(rows.len()), Sampler::default);
        // Waits for the device, the first time.
        let logits: Vec<_> = self.rows.iter().map(|&(_, place)| context.get_logits_ith(place)).collect();
        // Waking threads takes longer than finding the largest of some logits.
        if rows.iter().filter(|row| is_work(row)).count() <= 1 {
            let work = rows.iter().zip(logits).zip(samplers);
            out.extend(work.map(|((row, logits), sampler)| sampler.sample(logits, row)));
        } else {
            let work = rows.par_iter().zip(&logits).zip(samplers.par_iter_mut());
            let results = work.map(|((row, logits), sampler)| sampler.sample(logits, row));
            out.extend(threads.install(|| results.collect::<Vec<_>>()));
        }
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        out: &mut Vec<Result<TokenLogprobs, SampleError>>,
    ) -> Result<(), StepError> {
        self.check_scored(rows)?;
        let Self { context, samplers, threads, scored, .. } = self;
        let targets: Vec<_> = std::iter::zip(rows, scored)
            .flat_map(|(row, &mut (_, first, _))| {
                (first..).zip(row.targets).map(move |(place, &token)| (row, place, token))
            })
            .collect();
        samplers.resize_with(samplers.len().max(targets.len()), Sampler::default);
        let logits: Vec<_> = targets.iter().map(|&(_, place, _)| context.get_logits_ith(place)).collect();
        let work = targets.par_iter().zip(&logits).zip(samplers.par_iter_mut());
        let results =
            work.map(|((&(row, _, target), logits), sampler)| sampler.score(logits, target, row.top, row.reported));
        out.extend(threads.install(|| results.collect::<Vec<_>>()));
        Ok(())
    }

    fn look_ahead(&mut self) -> Option<&mut dyn LookAhead> {
        None
    }
}

/// Whether sampling a row is more than finding the largest logit.
fn is_work(row: &SampleRow<'_>) -> bool {
    !row.params.is_greedy() || row.logprobs.is_some() || row.adjusts_logits()
}

impl fmt::Debug for LlamaCpp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LlamaCpp").field("spec", &self.spec).field("rows", &self.rows).finish_non_exhaustive()
    }
}
