use rayon::prelude::*;
use tandem_core::{
    BackendSpec, InferenceBackend, LookAhead, SampleError, SampleRow, Sampled, ScoreRow, SlotId, Step, StepError,
    TokenLogprobs, sampling::Sampler,
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
    /// Of the last step: the rows of logits of each chunk that has any.
    sampled: Vec<ChunkRows>,
    logits: Vec<f32>,
    /// One for each row of a step, since rows are sampled side by side.
    samplers: Vec<Sampler>,
}

/// Where the logits of a chunk are.
#[derive(Clone, Copy, Debug)]
struct ChunkRows {
    slot: SlotId,
    /// One behind the last row.
    end: usize,
    /// One, or as many as the chunk has tokens.
    rows: usize,
    sample: bool,
    score: bool,
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
        let with_rows = step.chunks.iter().filter(|chunk| chunk.sample || chunk.score);
        self.sampled.extend(with_rows.scan(0, |end, chunk| {
            let rows = if chunk.score { chunk.tokens.len() } else { 1 };
            *end += rows;
            Some(ChunkRows { slot: chunk.slot, end: *end, rows, sample: chunk.sample, score: chunk.score })
        }));
        self.logits.clear();
        if step.chunks.is_empty() {
            return Ok(());
        }
        let Self { model, cache, threads, logits, .. } = self;
        let ragged = Ragged::new(step, cache.page_len());
        threads.install(|| model.forward(&ragged, cache, logits));
        Ok(())
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        let Self { spec, threads, logits, samplers, sampled, .. } = self;
        let vocab = spec.vocab_size as usize;
        let chunks: Vec<_> = sampled.iter().filter(|chunk| chunk.sample).collect();
        let computed = chunks.iter().map(|chunk| chunk.slot);
        assert!(rows.iter().map(|row| row.slot).eq(computed), "rows are those of the last step");
        samplers.resize_with(samplers.len().max(rows.len()), Sampler::default);
        let work = rows.par_iter().zip(chunks).zip(samplers);
        let results = work
            .map(|((row, chunk), sampler)| sampler.sample(&logits[(chunk.end - 1) * vocab..chunk.end * vocab], row));
        out.extend(threads.install(|| results.collect::<Vec<_>>()));
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        out: &mut Vec<Result<TokenLogprobs, SampleError>>,
    ) -> Result<(), StepError> {
        let Self { spec, threads, logits, samplers, sampled, .. } = self;
        let chunks: Vec<_> = sampled.iter().filter(|chunk| chunk.score).collect();
        let computed = chunks.iter().map(|chunk| chunk.slot);
        assert!(rows.iter().map(|row| row.slot).eq(computed), "rows are those of the last step");
        let vocab = spec.vocab_size as usize;
        let targets: Vec<_> = std::iter::zip(rows, chunks)
            .flat_map(|(row, chunk)| {
                (chunk.end - chunk.rows..).zip(row.targets).map(move |(at, &token)| (row, at, token))
            })
            .collect();
        samplers.resize_with(samplers.len().max(targets.len()), Sampler::default);
        let work = targets.par_iter().zip(samplers);
        let results = work.map(|(&(row, at, target), sampler)| {
            sampler.score(&logits[at * vocab..(at + 1) * vocab], target, row.top, row.reported)
        });
        out.extend(threads.install(|| results.collect::<Vec<_>>()));
        Ok(())
    }

    fn look_ahead(&mut self) -> Option<&mut dyn LookAhead> {
        None
    }
}
