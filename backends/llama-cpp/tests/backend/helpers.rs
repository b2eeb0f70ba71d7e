use std::path::{Path, PathBuf};

use tandem_core::{
    AdapterId, BackendLoader, Chunk, InferenceBackend, KvOp, Loaded, SampleRow, Sampled, SamplingParams, SlotId, Step,
    StepError, TokenId,
};
use tandem_llama_cpp::{LlamaCppLoader, LlamaCppSettings};

/// The model that the repository carries. Its absence is an error and no reason to skip.
pub(crate) fn model() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/tiny-f16.gguf");
    assert!(
        path.is_file(),
        "these tests need {}, which the repository carries: is the checkout complete?",
        path.display()
    );
    path
}

pub(crate) fn settings(parallel: u32, context: u32) -> LlamaCppSettings {
    LlamaCppSettings {
        context: Some(context),
        parallel,
        // More of them would spin against the other tests.
        threads: Some(1),
        max_step_tokens: 512,
        // Room that sequences compete for: what is hard is tried.
        kv_unified: true,
        ..LlamaCppSettings::new(model())
    }
}

pub(crate) fn loader(parallel: u32, context: u32) -> LlamaCppLoader {
    LlamaCppLoader::new(settings(parallel, context))
}

pub(crate) fn with_backend(loader: LlamaCppLoader, mut test: impl FnMut(Loaded<'_>)) {
    let mut served = false;
    Box::new(loader)
        .with_backend(&mut |loaded| {
            served = true;
            test(loaded);
        })
        .expect("the model loads");
    assert!(served, "a good load serves");
}

pub(crate) fn generator(loaded: Loaded<'_>) -> &mut dyn InferenceBackend {
    loaded.backend.generator().expect("the model generates")
}

/// One chunk: slot, position, tokens, whether to sample.
pub(crate) type Piece<'a> = (u32, u32, &'a [TokenId], bool);

pub(crate) fn forward(
    backend: &mut dyn InferenceBackend,
    kv_ops: &[KvOp],
    pieces: &[Piece<'_>],
) -> Result<(), StepError> {
    forward_with(backend, None, kv_ops, pieces)
}

pub(crate) fn forward_with(
    backend: &mut dyn InferenceBackend,
    adapter: Option<AdapterId>,
    kv_ops: &[KvOp],
    pieces: &[Piece<'_>],
) -> Result<(), StepError> {
    let chunks: Vec<_> = pieces
        .iter()
        .map(|&(slot, start, tokens, sample)| Chunk {
            slot: SlotId(slot),
            start,
            tokens,
            block_table: &[],
            sample,
            score: false,
        })
        .collect();
    backend.forward(&Step { kv_ops, chunks: &chunks, adapter })
}

/// The likeliest token of each slot.
pub(crate) fn sample(backend: &mut dyn InferenceBackend, slots: &[u32]) -> Result<Vec<TokenId>, StepError> {
    Ok(sampled(backend, slots, None)?.into_iter().map(|sampled| sampled.token).collect())
}

/// The five likeliest tokens of each slot, with their log-probabilities.
pub(crate) fn likeliest(backend: &mut dyn InferenceBackend, slots: &[u32]) -> Vec<Vec<(TokenId, f32)>> {
    let all = sampled(backend, slots, Some(5)).expect("rows that were computed");
    all.into_iter().map(|sampled| sampled.logprobs.expect("they were asked for").top).collect()
}

fn sampled(backend: &mut dyn InferenceBackend, slots: &[u32], logprobs: Option<u8>) -> Result<Vec<Sampled>, StepError> {
    let params = SamplingParams::greedy();
    let row = |&slot: &u32| SampleRow {
        slot: SlotId(slot),
        params: &params,
        u: 0.0,
        prompt: &[],
        output: &[],
        banned: &[],
        allowed: None,
        logprobs,
    };
    let rows: Vec<_> = slots.iter().map(row).collect();
    let mut out = Vec::new();
    backend.sample(&rows, &mut out)?;
    Ok(out.into_iter().map(|row| row.expect("finite logits")).collect())
}

pub(crate) fn empty(slot: u32) -> KvOp {
    KvOp::Truncate { slot: SlotId(slot), from: 0 }
}

/// Empties the slot, computes the prompt in it and then `count` tokens, alone.
pub(crate) fn greedy(backend: &mut dyn InferenceBackend, slot: u32, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    forward(backend, &[empty(slot)], &[(slot, 0, prompt, true)]).expect("a prompt that fits");
    let mut tokens = sample(backend, &[slot]).expect("a computed row");
    while tokens.len() < count {
        let start = (prompt.len() + tokens.len() - 1) as u32;
        let last = tokens[tokens.len() - 1];
        forward(backend, &[], &[(slot, start, &[last], true)]).expect("a token that fits");
        tokens.extend(sample(backend, &[slot]).expect("a computed row"));
    }
    tokens
}

/// Some tokens of text; other ones for another `salt`.
pub(crate) fn prompt(salt: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|at| 300 + (salt * 131 + at * 17 + at * at) % 2000).collect()
}
