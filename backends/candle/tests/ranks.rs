//! Models that are divided among several devices. They are emulated, or cards where `TANDEM_TEST_RANKS=cuda` says so; the families are in
//! `families`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{error::Error, path::Path};

use serde_json::json;
use support::{
    Model,
    device::{on_device, on_ranks, with_ranks},
    greedy, settings,
};
use tandem_candle::{
    CandleLoader, CandleSettings, Dtype, Planner, Quantization,
    synth::{SynthOrder, synthesize},
};
use tandem_core::{
    BackendLoader, BlockId, Chunk, InferenceBackend, LoadError, Loaded, SampleRow, SamplingParams, SlotId, Step,
    StepError, TokenId, conformance,
};
use tandem_cuda::{Fault, Rank};

fn load(loader: CandleLoader, mut serve: impl FnMut(Loaded<'_>)) -> Result<(), LoadError> {
    Box::new(loader).with_backend(&mut serve)
}

/// The likeliest tokens after a prompt with their log-probabilities, and how it goes on.
fn run(loader: CandleLoader) -> (Vec<(TokenId, f32)>, Vec<TokenId>) {
    let prompt: Vec<TokenId> = (0..20).map(|at| (37 + at * at * 11 + at * 5) % 256).collect();
    let mut out = None;
    load(loader, |loaded| out = Some(greedy(loaded.backend.generator().unwrap(), &prompt, 3))).unwrap();
    out.unwrap()
}

/// One device and two come to the same, but for the order in which sums are added up.
fn compare(settings: &CandleSettings, tolerance: f32) {
    let ((one, goes_on), (two, with_two)) = (run(on_device(settings.clone())), run(on_ranks(settings.clone(), 2)));
    for ((token, logprob), (other, with_two)) in one[..10].iter().zip(&two) {
        assert!(token == other && (logprob - with_two).abs() <= tolerance, "{one:?}, {two:?}");
    }
    assert_eq!(goes_on, with_two);
}

fn model(fields: &serde_json::Value) -> Model {
    let mut config = Model::awkward().config;
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Model::random(config)
}

/// Heads and rows that kernels have vectors for, and that are whole blocks when they are divided.
fn wide() -> Model {
    model(&json!({
        "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "vocab_size": 301
    }))
}

#[test]
fn biases_are_added_once_and_tied_vectors_are_a_head() {
    let fields = json!({ "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true });
    compare(&settings(model(&fields).write().path()), 1e-4);
}

#[test]
fn quantized_weights_are_divided_between_blocks() {
    let dir = wide().write();
    let quantized = |quantization| CandleSettings { quantization, ..settings(dir.path()) };
    compare(&quantized(Quantization::Q8_0), 1e-4);
    compare(&CandleSettings { dtype: Dtype::Bf16, ..quantized(Quantization::Q4_0) }, 0.1);
}

/// As a file has them. The shipped model's MLP is 512 wide inside, and its heads together 256.
#[test]
fn a_gguf_file_is_divided_between_blocks() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/tiny-q8_0.gguf");
    compare(&CandleSettings { context: Some(64), ..settings(&tiny) }, 1e-4);
}

/// 256 weights are a block: half of the inner state is one, half of the heads is none.
#[test]
fn blocks_are_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let order = SynthOrder {
        arch: "llama".to_owned(),
        size: "tiny".to_owned(),
        seed: 1,
        directory: dir.path().to_owned(),
        gguf: vec!["Q4_K_M".parse().unwrap()],
        force: false,
    };
    let files = synthesize(&order, &mut |_, _| {}).unwrap();
    let gguf = files.iter().find(|file| file.extension().is_some_and(|extension| extension == "gguf")).unwrap();
    let settings = with_ranks(settings(gguf), 2);
    let expected = "model.layers.0.self_attn.o_proj.weight is quantised in blocks of 256 inputs, which a GPU's share of 128 would cut \
                    (tensor_parallel_size)";
    let loaded = load(CandleLoader::new(settings.clone()).on_ranks(Rank::emulated(2)), |_| panic!("lent out"));
    assert_eq!(loaded.unwrap_err().to_string(), expected);
    assert_eq!(Planner::new(settings).unwrap_err().to_string(), expected);
}

#[test]
fn what_cannot_be_divided_is_refused() {
    let refused = |fields: serde_json::Value, ranks: usize| {
        let dir = model(&fields).write();
        load(on_ranks(settings(dir.path()), ranks), |_| panic!("lent out")).unwrap_err().to_string()
    };
    let because =
        |what: &str, ranks: usize| format!("{what} cannot be divided among {ranks} GPUs (tensor_parallel_size)");
    assert_eq!(refused(json!({}), 4), because("6 attention heads", 4));
    assert_eq!(refused(json!({}), 3), because("2 heads of keys and values", 3));
    assert_eq!(refused(json!({ "intermediate_size": 51 }), 2), because("MLPs that are 51 wide inside", 2));
    let olmo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/olmo2");
    let error = load(on_ranks(settings(&olmo), 2), |_| panic!("lent out")).unwrap_err().to_string();
    assert_eq!(error, because("heads whose queries are normalised all together", 2));
}

/// The next token of one sequence.
fn step(backend: &mut dyn InferenceBackend, at: u32) -> Result<(), StepError> {
    let table = [BlockId(0), BlockId(1)];
    let chunk =
        Chunk { slot: SlotId(0), start: at, tokens: &[at % 7], block_table: &table, sample: true, score: false };
    backend.forward(&Step { kv_ops: &[], chunks: &[chunk], adapter: None })?;
    let params = SamplingParams::greedy();
    let row = SampleRow {
        slot: SlotId(0),
        params: &params,
        u: 0.0,
        prompt: &[],
        output: &[],
        banned: &[],
        allowed: None,
        logprobs: None,
    };
    backend.sample(&[row], &mut Vec::new())
}

/// What an error says, and what those say that it came of.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    causes
}

/// Wherever it happens: while the model is looked at for the first time, or in any step later on.
#[test]
fn a_rank_that_fails_ends_the_model() {
    let dir = Model::awkward().write();
    for failing in 0..2 {
        let mut lent = 0;
        for kernels in [0, 20, 120, 131] {
            let ranks = Rank::emulated_with_fault(2, failing, kernels, Fault::Error);
            let loader = CandleLoader::new(with_ranks(settings(dir.path()), 2)).on_ranks(ranks);
            let mut ended = None;
            let loaded = load(loader, |loaded| {
                lent += 1;
                let backend = loaded.backend.generator().unwrap();
                ended = (0..32).find_map(|at| step(backend, at).err());
                // It stays so.
                assert!(step(backend, 0).is_err());
            });
            let error: Box<dyn Error> = match (loaded, ended) {
                (Err(error), None) => error.into(),
                (Ok(()), Some(error)) => error.into(),
                other => panic!("rank {failing} after {kernels} kernels: {other:?}"),
            };
            let rank = if failing == 0 { "" } else { " (rank 1)" };
            let expected = format!("cuLaunchKernel: the emulated device was made to fail here{rank}");
            assert_eq!(causes(&*error).last(), Some(&expected));
        }
        assert!((1..4).contains(&lent), "lent out {lent} times of 4");
    }
}

#[test]
fn a_rank_that_panics_ends_the_model() {
    let dir = Model::awkward().write();
    let ranks = Rank::emulated_with_fault(2, 1, 5, Fault::Panic);
    let loader = CandleLoader::new(with_ranks(settings(dir.path()), 2)).on_ranks(ranks);
    let error = load(loader, |_| panic!("lent out")).unwrap_err();
    assert_eq!(causes(&error).last().unwrap(), "a step: rank 1 panicked");
}

mod slow {
    use super::*;

    #[test]
    fn ranks_conform() {
        let dir = Model::awkward().write();
        conformance::check(Box::new(on_ranks(settings(dir.path()), 2)), 1e-4).unwrap();
    }
}
