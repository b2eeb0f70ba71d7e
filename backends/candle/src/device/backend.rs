use std::collections::VecDeque;

use rayon::prelude::*;
use tandem_core::{
    AheadChunk, AheadStep, BackendSpec, Choice, Chosen, InferenceBackend, LookAhead, SampleError, SampleRow, Sampled,
    ScoreRow, SlotId, Step, StepError, TokenId, TokenLogprobs, sampling::Sampler,
};
use tandem_cuda::{Chooser, Choosing, CudaError, Pinned, SampleParams};

use super::{ParallelDecoder, decoder::DeviceStepError};

/// A model on a device.
///
/// `forward` returns while the device computes. Rows that nothing but temperature and truncations stands before get their tokens there, and
/// only these come back; for all others a row of logits does. Where it is so for all rows of a step, the next one can be asked for at once: it
/// goes on from the tokens as they lie on the device.
#[derive(Debug)]
pub(crate) struct DeviceBackend {
    spec: BackendSpec,
    model: ParallelDecoder,
    threads: rayon::ThreadPool,
    /// Of the last step: the chunks that are sampled after, and those that are scored with their tokens.
    sampled: Vec<SlotId>,
    scored: Vec<(SlotId, usize)>,
    chooser: Chooser,
    /// Tokens that were asked for and not collected, the oldest first.
    open: VecDeque<(u64, Choosing)>,
    /// How many times tokens were asked for.
    choices: u64,
    samplers: Vec<Sampler>,
}

impl DeviceBackend {
    /// `chooser` is for as many rows as there may be sequences.
    pub(crate) fn new(spec: BackendSpec, model: ParallelDecoder, threads: rayon::ThreadPool, chooser: Chooser) -> Self {
        Self {
            spec,
            model,
            threads,
            sampled: Vec::new(),
            scored: Vec::new(),
            chooser,
            open: VecDeque::new(),
            choices: 0,
            samplers: Vec::new(),
        }
    }

    /// Asks the device for tokens of the last step.
    fn ask(&mut self, asked: &[SampleParams]) -> Result<Choosing, StepError> {
        let Self { spec, model, chooser, .. } = self;
        let (device, logits, last) = model.sampled_logits();
        let choosing = chooser.choose(device, logits.all(), spec.vocab_size as usize, asked, last);
        choosing.map_err(|error| failed(error.into()))
    }

    /// Waits for them.
    fn answers(&mut self, choosing: Choosing) -> Result<impl Iterator<Item = Result<TokenId, SampleError>>, StepError> {
        let tokens = self.chooser.collect(choosing).map_err(|error| failed(error.into()))?;
        // What came from a device after another has failed is nothing.
        self.model.check().map_err(|error| failed(error.into()))?;
        Ok(tokens.into_iter().map(|token| token.ok_or(SampleError::NonFinite)))
    }
}

impl InferenceBackend for DeviceBackend {
    fn spec(&self) -> &BackendSpec {
        &self.spec
    }

    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        let chunks: Vec<_> = step.chunks.iter().map(|chunk| AheadChunk::from(*chunk)).collect();
        self.forward_ahead(&AheadStep { kv_ops: step.kv_ops, chunks: &chunks, adapter: step.adapter })
    }

    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError> {
        assert!(rows.iter().map(|row| row.slot).eq(self.sampled.iter().copied()), "rows are those of the last step");
        let choices = rows.iter().enumerate().filter_map(|(at, row)| Some(params(at, &row.choice()?)));
        let asked: Vec<_> = choices.collect();
        let mut chosen: Vec<Option<Result<Sampled, SampleError>>> = vec![None; rows.len()];
        if !asked.is_empty() {
            let choosing = self.ask(&asked)?;
            for (params, token) in asked.iter().zip(self.answers(choosing)?) {
                let token = token.map(|token| Sampled { token, logprobs: None });
                chosen[params.row.unsigned_abs() as usize] = Some(token);
            }
        }
        let Self { model, threads, samplers, .. } = self;
        let left: Vec<usize> = (0..rows.len()).filter(|&at| chosen[at].is_none()).collect();
        samplers.resize_with(samplers.len().max(left.len()), Sampler::default);
        let on_host = model.rows(&left).map_err(|error| failed(error.into()))?;
        // What came from a device after another has failed is nothing.
        model.check().map_err(|error| failed(error.into()))?;
        let logits: Vec<&[f32]> = on_host.iter().map(Pinned::numbers).collect();
        let work = left.par_iter().zip(logits).zip(samplers);
        let results = work.map(|((&at, logits), sampler)| (at, sampler.sample(logits, &rows[at])));
        for (at, result) in threads.install(|| results.collect::<Vec<_>>()) {
            chosen[at] = Some(result);
        }
        model.give_back(on_host);
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

    fn look_ahead(&mut self) -> Option<&mut dyn LookAhead> {
        Some(self)
    }
}

impl LookAhead for DeviceBackend {
    fn forward_ahead(&mut self, step: &AheadStep<'_>) -> Result<(), StepError> {
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

    fn choose(&mut self, choices: &[Choice]) -> Result<Chosen, StepError> {
        let slots = choices.iter().map(|choice| choice.slot);
        assert!(slots.eq(self.sampled.iter().copied()), "choices are those of the last step");
        let asked: Vec<_> = choices.iter().enumerate().map(|(at, choice)| params(at, choice)).collect();
        let choosing = self.ask(&asked)?;
        self.choices += 1;
        self.open.push_back((self.choices, choosing));
        Ok(Chosen::new(self.choices))
    }

    fn collect(&mut self, chosen: Chosen, out: &mut Vec<Result<TokenId, SampleError>>) -> Result<(), StepError> {
        let (number, choosing) = self.open.pop_front().expect("what is collected was chosen");
        assert_eq!(number, chosen.number(), "tokens are collected in the order in which they were asked for");
        out.extend(self.answers(choosing)?);
        Ok(())
    }
}

/// What the device is asked for after row `at`.
fn params(at: usize, choice: &Choice) -> SampleParams {
    let &Choice { slot, temperature, top_k, top_p, min_p, u, .. } = choice;
    SampleParams {
        row: i32::try_from(at).expect("a row for each of some sequences"),
        slot: slot.0.cast_signed(),
        temperature,
        top_p,
        min_p,
        u,
        // More than any vocabulary has is no bound.
        top_k: i32::try_from(top_k).unwrap_or(0),
    }
}

fn failed(error: DeviceStepError) -> StepError {
    match error {
        DeviceStepError::Device(CudaError::Failed { .. }) => StepError::Lost(error.into()),
        DeviceStepError::Step(_)
        | DeviceStepError::Device(CudaError::Unavailable(_) | CudaError::OutOfMemory { .. }) => {
            StepError::Device(error.into())
        }
    }
}
