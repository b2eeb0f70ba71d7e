use rayon::prelude::*;
use tandem_core::{
    BackendSpec, InferenceBackend, SampleError, SampleRow, Sampled, SlotId, Step, StepError, sampling::Sampler,
};

use crate::{
    models::Decoder,
    paged::{KvCache, Ragged},
};

/// A model, its KV cache and the threads that compute.
///
/// The pass is computed in `forward`, and its logits are kept for `sample`: on the CPU nothing is gained by returning early.
pub(crate) struct CandleBackend {
    spec: BackendSpec,
    model: Decoder,
    cache: KvCache,
    threads: rayon::ThreadPool,
    /// Of the last step: the slots that a token will be sampled for, and one row of logits for each.
    sampled: Vec<SlotId>,
    logits: Vec<f32>,
    /// One for each row of a step, since rows are sampled side by side.
    samplers: Vec<Sampler>,
}

impl CandleBackend {
    pub(crate) fn new(spec: BackendSpec, model: Decoder, cache: KvCache, threads: rayon::ThreadPool) -> Self {
        Self { spec, model, cache, threads, sampled: Vec::new(), logits: Vec::new(), samplers: Vec::new() }
    }

    /// The logits of the last step, row behind row.
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }
}

impl InferenceBackend for CandleBackend {
    fn spec(&self) -> &BackendSpec {
        &self.spec
    }

    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        debug_assert!(step.kv_ops.is_empty(), "block tables say it all");
        debug_assert!(step.tokens() <= self.spec.max_step_tokens as usize, "a step beyond the limit");
        if let Some(adapter) = step.adapter {
            return Err(StepError::Device(format!("adapter {} of a backend that has none", adapter.0).into()));
        }
        self.sampled.clear();
        self.sampled.extend(step.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.slot));
        self.logits.clear();
        if step.chunks.is_empty() {
            return Ok(());
        }
        let Self { model, cache, threads, logits, .. } = self;
        let ragged = Ragged::new(step, cache.shape().block_size);
        threads.install(|| model.forward(&ragged, cache, logits)).map_err(|error| StepError::Device(error.into()))
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        assert!(rows.iter().map(|row| row.slot).eq(self.sampled.iter().copied()), "rows are those of the last step");
        let Self { spec, threads, logits, samplers, .. } = self;
        samplers.resize_with(samplers.len().max(rows.len()), Sampler::default);
        let work = rows.par_iter().zip(logits.par_chunks_exact(spec.vocab_size as usize)).zip(samplers);
        let results = work.map(|((row, logits), sampler)| sampler.sample(logits, row));
        out.extend(threads.install(|| results.collect::<Vec<_>>()));
        Ok(())
    }
}
