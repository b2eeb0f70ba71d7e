//! Every family of models, against what Hugging Face's transformers computes with the same files.
//!
//! `scripts/make_model_fixtures.py` writes the fixtures: small models with random weights, whose windows are shorter than the prompt and
//! whose caps are low, so that nothing that a family does can be left out unnoticed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "how near a fixture is to the limit is worth knowing")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use support::{
    byte_level,
    device::{on_device, on_ranks},
    settings, write_raw,
};
use tandem_candle::{CandleLoader, CandleSettings};
use tandem_core::{
    BackendLoader, BlockId, Chunk, InferenceBackend, SampleRow, SamplingParams, SlotId, Step, TokenId, conformance,
};

const MAX_ERROR: f64 = 1e-4;
const PROMPT: usize = 90;
const CONTEXT: u32 = 160;

/// A model and what its authors' code makes of it.
struct Fixture {
    dir: tempfile::TempDir,
    /// A prompt and its greedy continuation.
    tokens: Vec<TokenId>,
    /// Log-probabilities of the token after each of some positions.
    logprobs: BTreeMap<usize, Vec<f64>>,
}

/// Tokens of the fixture that run in one step.
#[derive(Clone)]
struct Piece<'a> {
    slot: u32,
    range: Range<usize>,
    table: &'a [BlockId],
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

impl Fixture {
    fn open(name: &str) -> Self {
        let source = fixtures().join(name);
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs_err::copy(source.join(file), dir.path().join(file)).unwrap();
        }
        let bytes = fs_err::read(source.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str, dtype: Dtype| {
            let tensor = expected.tensor(name).unwrap();
            assert_eq!(tensor.dtype(), dtype);
            tensor.data().as_chunks::<4>().0.to_vec()
        };
        let integers = |name: &str| words(name, Dtype::I32).into_iter().map(i32::from_le_bytes).collect::<Vec<_>>();
        let logits: Vec<f32> = words("logits", Dtype::F32).into_iter().map(f32::from_le_bytes).collect();
        let positions = integers("positions");
        let rows = logits.chunks_exact(logits.len() / positions.len()).map(log_softmax);
        let logprobs = positions.iter().map(|&position| position as usize).zip(rows).collect::<BTreeMap<_, _>>();
        let tokenizer = tokenizer(logprobs[&0].len() as u64);
        fs_err::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let tokens = integers("tokens").into_iter().map(|token| token as TokenId).collect();
        Self { dir, tokens, logprobs }
    }

    /// One whose heads of keys and values can be shared out.
    fn for_ranks(name: &str, ranks: u64) -> Self {
        let fixture = Self::open(name);
        let heads = fixture.kv_heads();
        let divides = heads.is_multiple_of(ranks) || ranks.is_multiple_of(heads);
        if divides { fixture } else { fixture.with_twice_the_kv_heads() }
    }

    fn kv_heads(&self) -> u64 {
        let config: Value =
            serde_json::from_slice(&fs_err::read(self.dir.path().join("config.json")).unwrap()).unwrap();
        config["num_key_value_heads"].as_u64().unwrap()
    }

    /// The same model with each head of keys and values twice, so that they can be shared out; those who look at it find the same.
    fn with_twice_the_kv_heads(self) -> Self {
        let (config_file, weights_file) =
            (self.dir.path().join("config.json"), self.dir.path().join("model.safetensors"));
        let mut config: Value = serde_json::from_slice(&fs_err::read(&config_file).unwrap()).unwrap();
        let heads = config["num_key_value_heads"].as_u64().unwrap();
        config["num_key_value_heads"] = (2 * heads).into();
        fs_err::write(config_file, config.to_string()).unwrap();
        let bytes = fs_err::read(&weights_file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let all = tensors.tensors().into_iter().map(|(name, tensor)| {
            let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
            if name.contains(".k_proj.") || name.contains(".v_proj.") {
                shape[0] *= 2;
                data = data
                    .chunks_exact(data.len() / heads as usize)
                    .flat_map(|head| [head, head])
                    .flatten()
                    .copied()
                    .collect();
            }
            (name, tensor.dtype(), shape, data)
        });
        let all: Vec<_> = all.collect();
        write_raw(
            &weights_file,
            all.iter().map(|(name, dtype, shape, data)| (name.as_str(), *dtype, shape.clone(), &data[..])),
        );
        self
    }

    /// Runs one step, and compares what each piece ends with. Returns the largest relative error.
    fn step(&self, backend: &mut dyn InferenceBackend, pieces: &[Piece<'_>]) -> f64 {
        let chunks = pieces.iter().map(|piece| Chunk {
            slot: SlotId(piece.slot),
            start: piece.range.start as u32,
            tokens: &self.tokens[piece.range.clone()],
            block_table: piece.table,
            sample: true,
            score: false,
        });
        let chunks: Vec<_> = chunks.collect();
        backend.forward(&Step { kv_ops: &[], chunks: &chunks, adapter: None }).unwrap();
        let params = SamplingParams::greedy();
        let row = |chunk: &Chunk<'_>| SampleRow {
            slot: chunk.slot,
            params: &params,
            u: 0.0,
            prompt: &[],
            output: &[],
            banned: &[],
            allowed: None,
            logprobs: Some(255),
        };
        let rows: Vec<_> = chunks.iter().map(row).collect();
        let mut out = Vec::new();
        backend.sample(&rows, &mut out).unwrap();
        let errors = pieces.iter().zip(out).map(|(piece, sampled)| {
            let (sampled, end) = (sampled.unwrap(), piece.range.end);
            let expected = &self.logprobs[&(end - 1)];
            let top = sampled.logprobs.unwrap().top;
            assert_eq!(top.len(), expected.len(), "not all log-probabilities are seen");
            let square = |of: &dyn Fn(f64, f64) -> f64| {
                let squares = top.iter().map(|&(token, got)| of(f64::from(got), expected[token as usize]).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let error = square(&|got, expected| got - expected) / square(&|_, expected| expected);
            assert!(error <= MAX_ERROR, "slot {} after {end} tokens: relative error {error:e}", piece.slot);
            if end >= PROMPT {
                assert_eq!(sampled.token, self.tokens[end], "slot {} after {end} tokens", piece.slot);
            }
            error
        });
        errors.fold(0.0, f64::max)
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    logits.iter().map(|&logit| f64::from(logit) - total).collect()
}

/// The byte-level tokenizer of the other tests, cut to a smaller vocabulary.
fn tokenizer(vocab: u64) -> Value {
    let mut tokenizer = byte_level();
    let ids: Map<String, Value> = tokenizer["model"]["vocab"].as_object().unwrap().clone();
    let kept = ids.into_iter().filter(|(_, id)| id.as_u64().unwrap() < vocab);
    tokenizer["model"]["vocab"] = kept.collect::<Map<_, _>>().into();
    tokenizer["model"]["merges"] = Value::Array(Vec::new());
    tokenizer["added_tokens"] = Value::Array(Vec::new());
    tokenizer
}

/// What computes.
#[derive(Clone, Copy)]
struct Computer {
    loader: fn(CandleSettings) -> CandleLoader,
    /// Whether what is computed beside a sequence changes none of its bits.
    conforms_exactly: bool,
    ranks: u64,
}

const CPU: Computer = Computer { loader: CandleLoader::new, conforms_exactly: true, ranks: 1 };
/// Whose parts of an attention are put together in an order that the number of rows decides. That it conforms is seen with one model.
const DEVICE: Computer = Computer { loader: on_device, conforms_exactly: false, ranks: 1 };
/// A model divided between two.
const TWO_RANKS: Computer = Computer { loader: |settings| on_ranks(settings, 2), conforms_exactly: false, ranks: 2 };
/// Among more than many models have heads of keys and values.
const FOUR_RANKS: Computer = Computer { loader: |settings| on_ranks(settings, 4), conforms_exactly: false, ranks: 4 };

/// A prompt in two chunks, and what comes after it.
fn check_briefly(name: &str, computer: Computer) {
    let fixture = Fixture::for_ranks(name, computer.ranks);
    let table: Vec<_> = (0..CONTEXT.div_ceil(16)).rev().map(BlockId).collect();
    let settings = CandleSettings { context: Some(CONTEXT), ..settings(fixture.dir.path()) };
    let mut serve = |loaded: tandem_core::Loaded<'_>| {
        let backend = loaded.backend.generator().unwrap();
        let cut = fixture.logprobs.keys().map(|position| position + 1).filter(|&end| end < PROMPT).max().unwrap();
        for range in [0..cut, cut..PROMPT, PROMPT..PROMPT + 1, PROMPT + 1..PROMPT + 2] {
            fixture.step(backend, &[Piece { slot: 0, range, table: &table }]);
        }
    };
    Box::new((computer.loader)(settings)).with_backend(&mut serve).unwrap();
}

/// Everything that serving does with a sequence, in pages that lie in no order.
fn check(name: &str, block_size: u32, computer: Computer) {
    let fixture = Fixture::for_ranks(name, computer.ranks);
    let end = fixture.tokens.len() - 1;
    let pages = CONTEXT.div_ceil(block_size);
    let table = |of: u32| (0..pages).map(|at| BlockId((at * 7 % pages) * 3 + of)).collect::<Vec<_>>();
    assert!(!pages.is_multiple_of(7), "the pages of a table would not be distinct");
    let (whole, chunked, mut hit) = (table(0), table(1), table(2));
    let shared = PROMPT / 2 / block_size as usize;
    hit[..shared].copy_from_slice(&whole[..shared]);
    let settings = CandleSettings {
        context: Some(CONTEXT),
        block_size,
        kv_tokens: Some(pages * block_size * 3),
        ..settings(fixture.dir.path())
    };
    let mut error = 0.0f64;
    if computer.conforms_exactly {
        conformance::check(Box::new((computer.loader)(settings.clone())), 0.0).unwrap();
    }
    let mut serve = |loaded: tandem_core::Loaded<'_>| {
        let backend = loaded.backend.generator().unwrap();
        let mut run = |pieces: &[Piece<'_>]| error = error.max(fixture.step(backend, pieces));
        let first = |range| Piece { slot: 0, range, table: &whole };
        let second = |range| Piece { slot: 1, range, table: &chunked };
        let third = |range| Piece { slot: 2, range, table: &hit };
        run(&[first(0..PROMPT)]);
        // The same prompt again, in chunks beside the first one's next tokens.
        let ends: Vec<usize> =
            fixture.logprobs.keys().map(|position| position + 1).take_while(|&end| end <= PROMPT).collect();
        let starts = [0].into_iter().chain(ends.iter().copied());
        for (at, (start, end)) in starts.zip(ends.iter().copied()).enumerate() {
            run(&[first(PROMPT + at..PROMPT + at + 1), second(start..end)]);
        }
        // A third time, behind pages that it shares with the first.
        run(&[third(shared * block_size as usize..PROMPT)]);
        for at in PROMPT..end {
            let mut pieces = vec![second(at..at + 1), third(at..at + 1)];
            if at >= PROMPT + ends.len() {
                pieces.insert(0, first(at..at + 1));
            }
            run(&pieces);
        }
    };
    Box::new((computer.loader)(settings)).with_backend(&mut serve).unwrap();
    println!("{name}: pages of {block_size}, relative error {error:.1e}");
}

/// The families that have the most of their own, on a GPU with the kernels that run there.
#[test]
fn gemma2_on_a_device() {
    check("gemma2", 32, DEVICE);
}

#[test]
fn experts_on_a_device() {
    check("qwen3_moe", 32, DEVICE);
}

#[test]
fn gemma2_on_two_ranks() {
    check_briefly("gemma2", TWO_RANKS);
}

#[test]
fn experts_on_two_ranks() {
    check_briefly("qwen3_moe", TWO_RANKS);
}

/// Norms of queries and keys, biases, and twice as many ranks as heads of keys and values.
#[test]
fn qwen3_on_four_ranks() {
    check_briefly("qwen3", FOUR_RANKS);
}

mod slow {
    use super::*;

    /// All that have an even number of heads, each normalised by itself.
    #[test]
    fn families_on_two_ranks() {
        for name in [
            "llama",
            "llama_linear",
            "llama_yarn",
            "mistral",
            "qwen3",
            "qwen3_moe",
            "qwen3_moe_window",
            "gemma2",
            "gemma3",
            "gemma3_classic",
            "phi3",
            "smollm3",
        ] {
            check(name, 16, TWO_RANKS);
        }
    }

    /// All of them.
    #[test]
    fn families_on_a_device() {
        let names =
            fs_err::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.for_each(|name| check(&name, 16, DEVICE));
    }
}

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), 32, CPU);
            check(stringify!($name), 16, CPU);
        })*

        #[test]
        fn every_fixture_has_its_test() {
            let tested = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            let entries = fs_err::read_dir(fixtures()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            assert_eq!(names.collect::<BTreeSet<_>>(), tested);
        }
    };
}

families!(
    llama,
    llama_linear,
    llama_yarn,
    mistral,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_moe_window,
    gemma2,
    gemma3,
    gemma3_classic,
    phi3,
    phi3_short,
    smollm3,
    granite,
    olmo2,
);
