use rayon::prelude::*;
use tandem_core::{
    BackendSpec, InferenceBackend, SampleError, SampleRow, Sampled, ScoreRow, SlotId, Step, StepError, TokenLogprobs,
    sampling::Sampler,
};
use tandem_cuda::{Buffer, SampleParams};

use super::{ParallelDecoder, decoder::DeviceStepError};

/// A model on a device.
///
/// `forward` returns while the device computes. Rows that nothing but temperature and truncations stands before get their tokens there, and
/// only these come back; for all others a row of logits does.
#[derive(Debug)]
pub(crate) struct DeviceBackend {
    spec: BackendSpec,
    model: ParallelDecoder,
    threads: rayon::ThreadPool,
    /// Of the last step: the chunks that are sampled after, and those that are scored with their tokens.
    sampled: Vec<SlotId>,
    scored: Vec<(SlotId, usize)>,
    /// For what is asked of the sampling kernel, and its answers.
    room: Buffer,
    /// Rows of logits that came to the host.
    rows: Vec<Vec<f32>>,
    samplers: Vec<Sampler>,
}

impl DeviceBackend {
    /// `room` has [`SampleParams::BYTES`] for each sequence.
    pub(crate) fn new(spec: BackendSpec, model: ParallelDecoder, threads: rayon::ThreadPool, room: Buffer) -> Self {
        Self {
            spec,
            model,
            threads,
            sampled: Vec::new(),
            scored: Vec::new(),
            room,
            rows: Vec::new(),
            samplers: Vec::new(),
        }
    }
}

impl InferenceBackend for DeviceBackend {
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
        self.scored.clear();
        let scored = step.chunks.iter().filter(|chunk| chunk.score);
        self.scored.extend(scored.map(|chunk| (chunk.slot, chunk.tokens.len())));
        if step.chunks.is_empty() {
            return Ok(());
        }
        self.model.forward(step).map_err(failed)
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        let Self { spec, model, threads, sampled, room, rows: on_host, samplers, .. } = self;
        assert!(rows.iter().map(|row| row.slot).eq(sampled.iter().copied()), "rows are those of the last step");
        let asked: Vec<_> = rows.iter().enumerate().filter_map(|(at, row)| on_device(at, row)).collect();
        let (device, logits) = model.sampled_logits();
        let vocab = spec.vocab_size as usize;
        let tokens = device.sample(logits.all(), vocab, &asked, room).map_err(|error| failed(error.into()))?;
        let mut chosen: Vec<Option<Result<Sampled, SampleError>>> = vec![None; rows.len()];
        for (params, token) in asked.iter().zip(tokens) {
            let token = token.map(|token| Sampled { token, logprobs: None }).ok_or(SampleError::NonFinite);
            chosen[params.row.unsigned_abs() as usize] = Some(token);
        }
        let left: Vec<usize> = (0..rows.len()).filter(|&at| chosen[at].is_none()).collect();
        on_host.resize_with(on_host.len().max(left.len()), Vec::new);
        samplers.resize_with(samplers.len().max(left.len()), Sampler::default);
        for (&at, logits) in left.iter().zip(on_host.iter_mut()) {
            model.row(at, logits).map_err(|error| failed(error.into()))?;
        }
        // What came from a device after another has failed is nothing.
        model.check().map_err(|error| failed(error.into()))?;
        let work = left.par_iter().zip(on_host).zip(samplers);
        let results = work.map(|((&at, logits), sampler)| (at, sampler.sample(logits, &rows[at])));
        for (at, result) in threads.install(|| results.collect::<Vec<_>>()) {
            chosen[at] = Some(result);
        }
        out.extend(chosen.into_iter().map(|one| one.expect("each row is sampled here or there")));
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        out: &mut Vec<Result<TokenLogprobs, SampleError>>,
    ) -> Result<(), StepError> {
        let Self { model, scored, samplers, .. } = self;
        assert!(
            rows.iter().map(|row| row.slot).eq(scored.iter().map(|(slot, _)| *slot)),
            "rows are those of the last step"
        );
        samplers.resize_with(samplers.len().max(1), Sampler::default);
        let sampler = &mut samplers[0];
        // The row and its target of each token of the scored chunks; the last tokens of a chunk may have none.
        let targets = std::iter::zip(rows, &*scored).flat_map(|(row, (_, tokens))| {
            (0..*tokens).map(move |at| row.targets.get(at).map(|&target| (row, target)))
        });
        let targets: Vec<_> = targets.collect();
        let result = model.scored(|at, logits| {
            if let Some((row, target)) = targets[at] {
                out.push(sampler.score(logits, target, row.top, row.reported));
            }
        });
        result.map_err(|error| failed(error.into()))
    }
}

/// What the device is asked for where it can choose the token of a row by itself.
fn on_device(at: usize, row: &SampleRow<'_>) -> Option<SampleParams> {
    let params = row.params;
    if row.logprobs.is_some() || row.adjusts_logits() || params.typical_p < 1.0 {
        return None;
    }
    Some(SampleParams {
        row: i32::try_from(at).ok()?,
        temperature: if params.is_greedy() { 0.0 } else { params.temperature },
        top_p: params.top_p,
        min_p: params.min_p,
        u: row.u,
        // More than any vocabulary has is no bound.
        top_k: i32::try_from(params.top_k).unwrap_or(0),
    })
}

fn failed(error: DeviceStepError) -> StepError {
    StepError::Device(error.into())
}
