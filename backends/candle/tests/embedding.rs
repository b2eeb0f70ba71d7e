//! Embedding models, against what Hugging Face's transformers computes with the same files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use safetensors::{SafeTensors, tensor::TensorView};
use support::embedding::{EmbeddingModel, embed, fixture};
use tandem_candle::{CandleLoader, CandleSettings};
use tandem_core::{EmbeddingBackend, Pooling, TokenId, conformance};

const FIXTURES: [&str; 8] =
    ["bert", "bert_cls", "roberta", "distilbert", "llama_embedding", "qwen3_embedding", "bert_ranks", "roberta_ranks"];
/// Of the largest number of a vector.
const MAX_ERROR: f64 = 1e-4;
const MIN_COSINE: f64 = 0.999_999;

/// Inputs, and the vector of each.
struct Expected {
    inputs: Vec<Vec<TokenId>>,
    vectors: Vec<Vec<f32>>,
}

impl Expected {
    fn read(name: &str) -> Self {
        let bytes = fs_err::read(fixture(name).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |view: &TensorView<'_>| {
            view.data().as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<_>>()
        };
        let vectors = file.tensor("vectors").unwrap();
        let (tokens, lengths) = (words(&file.tensor("tokens").unwrap()), words(&file.tensor("lengths").unwrap()));
        let mut tokens = tokens.into_iter();
        let inputs = lengths.iter().map(|&len| tokens.by_ref().take(len as usize).collect()).collect();
        let numbers: Vec<f32> = words(&vectors).into_iter().map(f32::from_bits).collect();
        Self { inputs, vectors: numbers.chunks_exact(vectors.shape()[1]).map(<[f32]>::to_vec).collect() }
    }
}

/// How far a vector is off: its largest error, and its cosine.
fn compare(expected: &[f32], got: &[f32]) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let largest = |numbers: &mut dyn Iterator<Item = f64>| numbers.fold(0.0, |max: f64, x| max.max(x.abs()));
    let error = largest(&mut expected.iter().zip(got).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let scale = largest(&mut expected.iter().map(|x| f64::from(*x)));
    (error / scale, dot(expected, got) / (dot(expected, expected) * dot(got, got)).sqrt())
}

/// Inputs packed as they come into passes that the spec allows.
fn embed_packed(backend: &mut dyn EmbeddingBackend, inputs: &[&[TokenId]]) -> Vec<Vec<f32>> {
    let mut vectors = Vec::new();
    let mut pass: Vec<&[TokenId]> = Vec::new();
    for input in inputs {
        let tokens = pass.iter().chain([input]).map(|input| input.len()).sum::<usize>();
        if tokens > backend.spec().max_pass_tokens as usize {
            vectors.extend(embed(backend, &pass));
            pass.clear();
        }
        pass.push(input);
    }
    vectors.extend(embed(backend, &pass));
    vectors
}

#[test]
fn vectors_are_those_of_transformers() {
    for name in FIXTURES {
        let Expected { inputs, vectors } = Expected::read(name);
        assert_eq!(inputs.len(), 60);
        EmbeddingModel::fixture(name).run(|backend| {
            let mut worst = (0.0f64, 1.0f64);
            let mut alone = Vec::new();
            for (input, expected) in inputs.iter().zip(&vectors) {
                let got = embed(backend, &[input]).remove(0);
                let (error, cosine) = compare(expected, &got);
                worst = (worst.0.max(error), worst.1.min(cosine));
                assert!(
                    error <= MAX_ERROR && cosine >= MIN_COSINE,
                    "{name}: {} tokens: error {error:e}, cosine {cosine}",
                    input.len()
                );
                alone.push(got);
            }
            let inputs: Vec<&[TokenId]> = inputs.iter().map(Vec::as_slice).collect();
            let backwards: Vec<&[TokenId]> = inputs.iter().rev().copied().collect();
            assert!(embed_packed(backend, &inputs) == alone, "{name}: in passes, a vector changes");
            assert!(
                embed_packed(backend, &backwards).iter().rev().eq(&alone),
                "{name}: in other passes, a vector changes"
            );
            println!("{name}: error {:e}, cosine 1 - {:e}", worst.0, 1.0 - worst.1);
        });
    }
}

#[test]
fn embedders_conform() {
    for name in FIXTURES {
        let dir = EmbeddingModel::fixture(name).write();
        for (block_size, threads) in [(16, 1), (32, 2)] {
            let settings = CandleSettings { block_size, threads: Some(threads), ..support::settings(dir.path()) };
            conformance::check_embedder(Box::new(CandleLoader::new(settings)), 0.0).unwrap();
        }
    }
}

#[test]
fn the_files_say_how_vectors_are_made() {
    for (name, pooling, longest) in [
        ("bert", Pooling::Mean, 64),
        ("bert_cls", Pooling::Cls, 64),
        // Two of its positions are in front of those of tokens.
        ("roberta", Pooling::Mean, 64),
        ("llama_embedding", Pooling::Last, 64),
        ("bert_ranks", Pooling::Rank, 64),
        ("roberta_ranks", Pooling::Rank, 64),
    ] {
        EmbeddingModel::fixture(name).run(|backend| {
            assert_eq!((backend.spec().pooling, backend.spec().max_input_tokens), (pooling, longest), "{name}");
        });
    }
    // Saved under the name of what it is without a head.
    let mut headless = EmbeddingModel::fixture("qwen3_embedding");
    headless.config["architectures"] = serde_json::json!(["Qwen3Model"]);
    headless.run(|backend| assert_eq!(backend.spec().pooling, Pooling::Last));
    // A shorter context is kept to, a longer one ends with the model's positions.
    let dir = EmbeddingModel::fixture("bert").write();
    for (context, longest) in [(20, 20), (4096, 64)] {
        let settings = CandleSettings { context: Some(context), ..support::settings(dir.path()) };
        support::load(settings, |loaded| {
            assert_eq!(loaded.backend.embedder().unwrap().spec().max_input_tokens, longest);
        })
        .unwrap();
    }
}
