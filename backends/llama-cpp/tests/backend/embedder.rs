//! Models that turn texts into vectors.

use std::path::Path;

use tandem_core::{BackendLoader, EmbeddingBackend, LoadError, Loaded, Pooling, TokenId, conformance};
use tandem_llama_cpp::{Assumptions, LlamaCppLoader, LlamaCppSettings, Planner};

use crate::{
    architectures,
    gguf::{self, Gguf, VOCABULARY, Value},
    helpers::{settings, with_backend},
};

/// Kernels round differently for other shapes.
const TOLERANCE: f32 = 1e-3;

const CONTEXT: u64 = 48;
/// Of its hidden states.
pub(crate) const WIDTH: u64 = 32;
pub(crate) const MEAN: u32 = 1;
pub(crate) const CLS: u32 = 2;
pub(crate) const LAST: u32 = 3;
pub(crate) const RANK: u32 = 4;

/// A small BERT with random weights and a vocabulary of word pieces.
pub(crate) fn bert(pooling: Option<u32>) -> Gguf {
    const INNER: u64 = 64;
    let mut file = Gguf::bare("bert");
    for (key, number) in [
        ("block_count", 2),
        ("context_length", CONTEXT as u32),
        ("embedding_length", WIDTH as u32),
        ("feed_forward_length", INNER as u32),
        ("attention.head_count", 4),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_epsilon", 1e-12);
    file.value("bert.attention.causal", Value::Bool(false));
    if let Some(pooling) = pooling {
        file.number("pooling_type", pooling);
    }
    let tokens = word_pieces(&mut file);
    file.matrix("token_embd.weight", &[WIDTH, tokens]);
    file.matrix("token_types.weight", &[WIDTH, 2]);
    file.matrix("position_embd.weight", &[WIDTH, CONTEXT]);
    let layers = (0..2).map(|layer| format!("blk.{layer}."));
    file.constant("token_embd_norm.weight", &[WIDTH], 1.0);
    file.matrix("token_embd_norm.bias", &[WIDTH]);
    for layer in layers {
        for (name, dims) in [
            ("attn_q", [WIDTH, WIDTH]),
            ("attn_k", [WIDTH, WIDTH]),
            ("attn_v", [WIDTH, WIDTH]),
            ("attn_output", [WIDTH, WIDTH]),
            ("ffn_up", [WIDTH, INNER]),
            ("ffn_down", [INNER, WIDTH]),
        ] {
            file.matrix(&format!("{layer}{name}.weight"), &dims);
            file.matrix(&format!("{layer}{name}.bias"), &dims[1..]);
        }
        for norm in ["attn_output_norm", "layer_output_norm"] {
            file.constant(&format!("{layer}{norm}.weight"), &[WIDTH], 1.0);
            file.matrix(&format!("{layer}{norm}.bias"), &[WIDTH]);
        }
    }
    file
}

/// A vocabulary as converters write it, where a mark stands for the beginning of a word; the number of its tokens.
fn word_pieces(file: &mut Gguf) -> u64 {
    let controls = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = ["hello", "world", "un", "embed", "the", "cat"].map(|word| format!("\u{2581}{word}"));
    let pieces = ["ding", "able"].map(str::to_owned);
    let marked = ('a'..='z').map(|letter| format!("\u{2581}{letter}"));
    let bare = ('a'..='z').map(String::from);
    let tokens: Vec<String> =
        controls.into_iter().map(str::to_owned).chain(words).chain(pieces).chain(marked).chain(bare).collect();
    // 1 is normal, 2 unknown, 3 control.
    let kinds = (0..tokens.len()).map(|at| [3, 2, 3, 3, 3].get(at).copied().unwrap_or(1));
    file.value("tokenizer.ggml.model", Value::Text("bert".to_owned()));
    file.value("tokenizer.ggml.token_type", Value::I32s(kinds.collect()));
    for (name, id) in [("padding", 0), ("unknown", 1), ("bos", 2), ("cls", 2), ("seperator", 3), ("mask", 4)] {
        file.value(&format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
    }
    file.value("tokenizer.ggml.token_type_count", Value::U32(2));
    let count = tokens.len() as u64;
    file.value("tokenizer.ggml.tokens", Value::Texts(tokens));
    count
}

/// A model that looks back only, and a file that says how to pool.
fn causal(pooling: u32) -> Gguf {
    let mut file = architectures::plain();
    file.number("pooling_type", pooling);
    file.value("tokenizer.ggml.add_eos_token", Value::Bool(true));
    file
}

/// One of each kind.
pub(crate) fn all() -> [Gguf; 2] {
    [bert(Some(MEAN)), causal(LAST)]
}

pub(crate) fn embedder(path: &Path, context: u32, max_step_tokens: u32) -> LlamaCppLoader {
    LlamaCppLoader::new(LlamaCppSettings { model: path.to_owned(), max_step_tokens, ..settings(2, context) })
}

pub(crate) fn backend(loaded: Loaded<'_>) -> &mut dyn EmbeddingBackend {
    loaded.backend.embedder().expect("the model is an embedder")
}

pub(crate) fn embed(backend: &mut dyn EmbeddingBackend, inputs: &[&[TokenId]]) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    backend.embed(inputs, &mut out).expect("inputs that fit");
    out.chunks_exact(backend.spec().dimensions as usize).map(<[f32]>::to_vec).collect()
}

/// The vectors of `inputs` by a BERT that pools in some way.
fn by_bert(pooling: u32, inputs: &[&[TokenId]]) -> Vec<Vec<f32>> {
    let path = bert(Some(pooling)).write();
    let mut vectors = Vec::new();
    with_backend(embedder(&path, 48, 64), |loaded| vectors = embed(backend(loaded), inputs));
    vectors
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| std::iter::zip(a, b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The reason, of a file that is there and wrong.
pub(crate) fn invalid(file: &Gguf) -> String {
    let path = file.write();
    let result = Box::new(embedder(&path, 48, 64)).with_backend(&mut |_| panic!("a failed load serves nothing"));
    match result.expect_err("the load fails") {
        LoadError::Invalid { reason, .. } => reason,
        error @ (LoadError::Unreadable { .. }
        | LoadError::Unsupported(_)
        | LoadError::DeviceLost(_)
        | LoadError::Other { .. }) => {
            panic!("another error: {error}")
        }
    }
}

#[test]
fn models_that_look_ahead_keep_the_contract() {
    for pooling in [MEAN, CLS, LAST] {
        let path = bert(Some(pooling)).write();
        for (context, max_step_tokens) in [(48, 100), (48, 32), (20, 500)] {
            conformance::check_embedder(Box::new(embedder(&path, context, max_step_tokens)), TOLERANCE)
                .expect("the model loads");
        }
    }
}

#[test]
fn models_that_look_back_only_keep_the_contract() {
    for pooling in [LAST, MEAN] {
        let path = causal(pooling).write();
        for (context, max_step_tokens) in [(128, 300), (128, 40)] {
            conformance::check_embedder(Box::new(embedder(&path, context, max_step_tokens)), TOLERANCE)
                .expect("the model loads");
        }
    }
}

#[test]
fn what_is_known_of_a_model() {
    let path = bert(Some(CLS)).write();
    with_backend(embedder(&path, 4096, 512), |loaded| {
        let spec = backend(loaded).spec();
        assert_eq!((spec.name, spec.dimensions, spec.pooling), ("llama-cpp", 32, Pooling::Cls));
        assert_eq!((spec.max_input_tokens, spec.max_pass_tokens, spec.max_inputs), (48, 512, 256));
    });
    let path = causal(LAST).write();
    with_backend(embedder(&path, 256, 512), |loaded| {
        let spec = backend(loaded).spec();
        assert_eq!((spec.pooling, spec.max_input_tokens), (Pooling::Last, 256));
    });
}

#[test]
fn memory_is_planned_for_a_pass() {
    let plan = |file: &Gguf, max_step_tokens| {
        let path = file.write();
        let settings = LlamaCppSettings { model: path.to_path_buf(), max_step_tokens, ..settings(8, 40) };
        let plan = Planner::new(&settings, Assumptions::default()).and_then(|planner| planner.plan());
        let plan = plan.expect("the model is there");
        assert_eq!((plan.context, plan.parallel), (40, 1));
        let room = Assumptions { memory: Some(plan.needs().total()), absent_gpu: None };
        let planner = Planner::new(&settings, room).expect("the model is there");
        assert_eq!(planner.most_sequences().expect("sequences"), Some(1));
        // An input may be as long as a pass without taking more.
        assert_eq!(planner.longest_context().expect("contexts"), Some(plan.trained.min(max_step_tokens)));
        plan.needs()
    };
    let (small, large) = (plan(&bert(Some(MEAN)), 256), plan(&bert(Some(MEAN)), 1024));
    assert_eq!((small.kv, large.kv), (0, 0), "a model that looks ahead has no KV");
    // 65 tokens of vocabulary.
    assert!(large.compute - small.compute >= 768 * 65 * 4, "{small:?} {large:?}");
    // Two layers of two heads of 16 numbers, a key and a value of 2 bytes for each token of a pass.
    assert_eq!(plan(&causal(LAST), 1024).kv, 1024 * 2 * 2 * 16 * 2 * 2);
}

#[test]
fn pooling_is_that_of_the_file() {
    let inputs: [&[TokenId]; 2] = [&[2, 5, 6, 3], &[2, 9, 10, 11, 3]];
    let (mean, cls, last) = (by_bert(MEAN, &inputs), by_bert(CLS, &inputs), by_bert(LAST, &inputs));
    for at in 0..2 {
        assert!(cosine(&mean[at], &cls[at]) < 0.99 && cosine(&cls[at], &last[at]) < 0.99);
    }
    // Of one token all are the same.
    let one: [&[TokenId]; 1] = [&[7]];
    let (mean, cls) = (by_bert(MEAN, &one), by_bert(CLS, &one));
    assert!(cosine(&mean[0], &cls[0]) > 0.9999);
}

#[test]
fn a_text_stands_between_cls_and_sep() {
    let path = bert(Some(MEAN)).write();
    with_backend(embedder(&path, 48, 64), |loaded| {
        let (vocab, tokenizer) = (loaded.vocab, loaded.tokenizer);
        assert_eq!((vocab.opening(), vocab.closing()), (Some(2), Some(3)));
        let words = |text: &str| {
            let tokens = tokenizer.encode(text).expect("text");
            tokens.into_iter().map(|token| String::from_utf8_lossy(vocab.bytes(token)).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words("Hello  WORLD"), [" hello", " world"]);
        assert_eq!(words("unembedable dogs"), [" un", "e", "m", "b", "e", "d", "able", " d", "o", "g", "s"]);
        // What is spelled out is text, and words without pieces are unknown.
        assert_eq!(words("[SEP] 7"), ["[UNK]", " s", "e", "p", "[UNK]", "[UNK]"]);
    });
}

#[test]
fn an_embedder_that_looks_back_only_has_the_tokens_of_its_file() {
    let path = causal(LAST).write();
    with_backend(embedder(&path, 128, 300), |loaded| {
        let end = VOCABULARY as TokenId - 1;
        assert_eq!((loaded.vocab.opening(), loaded.vocab.closing()), (None, Some(end)));
        assert!(loaded.chat_template.is_none(), "nobody can chat with it");
    });
}

#[test]
fn files_that_say_no_pooling_or_another() {
    assert_eq!(
        invalid(&bert(None)),
        "a model of architecture `bert` that embeds tokens and no texts: `bert.pooling_type` names no pooling"
    );
    assert_eq!(invalid(&bert(Some(0))), invalid(&bert(None)));
    assert_eq!(invalid(&bert(Some(9))), "unknown pooling: `bert.pooling_type` is 9");
}

#[test]
fn a_bias_of_another_type_is_refused() {
    let mut bytes = bert(Some(MEAN)).bytes();
    // The last tensor, so that all stay where they are: its type stands behind its name and one dimension.
    let name = b"blk.1.layer_output_norm.bias";
    let at = bytes.windows(name.len()).position(|window| window == name).expect("the tensor is in the file");
    bytes[at + name.len() + 12] = 1;
    let path = gguf::write("bias", &bytes);
    let result = Box::new(embedder(&path, 48, 64)).with_backend(&mut |_| panic!("a failed load serves nothing"));
    let error = result.expect_err("the load fails").to_string();
    assert!(error.ends_with("tensor `blk.1.layer_output_norm.bias`: type 1, F32 expected"), "{error}");
}

#[test]
fn weights_that_are_no_numbers() {
    let mut file = bert(Some(MEAN));
    file.constant("blk.1.layer_output_norm.weight", &[32], f32::NAN);
    assert_eq!(invalid(&file), "the model produced a vector that is not finite");
}

#[test]
fn passes_that_break_the_contract_are_errors() {
    let path = bert(Some(MEAN)).write();
    with_backend(embedder(&path, 48, 64), |loaded| {
        let backend = backend(loaded);
        let long = [5; 49];
        let none: &[TokenId] = &[];
        let many = vec![&long[..1]; 65];
        for inputs in
            [vec![], vec![none], vec![&long[..1], none], vec![&long], vec![&[1_000_000]], vec![&[u32::MAX]], many]
        {
            let mut out = Vec::new();
            assert!(backend.embed(&inputs, &mut out).is_err(), "{inputs:?}");
        }
        embed(backend, &[&[2, 5, 3]]);
    });
}

#[test]
fn many_short_inputs_go_together() {
    let inputs: Vec<Vec<TokenId>> = (0..200).map(|at| vec![2, 5 + at % 60, 3]).collect();
    let path = bert(Some(MEAN)).write();
    with_backend(embedder(&path, 48, 1024), |loaded| {
        let backend = backend(loaded);
        let borrowed: Vec<&[TokenId]> = inputs.iter().map(Vec::as_slice).collect();
        let together = embed(backend, &borrowed);
        for at in [0, 63, 199] {
            let alone = embed(backend, &[&inputs[at]]).remove(0);
            assert!(cosine(&alone, &together[at]) > 0.9999, "input {at}");
        }
    });
}

#[test]
fn word_pieces_have_no_bytes() {
    let mut file = bert(Some(MEAN));
    let kinds = (0..65).map(|at| if at == 35 { 6 } else { 1 });
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds.collect()));
    let expected = "token 35 is a byte by `tokenizer.ggml.token_type`, which word pieces do not have";
    assert_eq!(invalid(&file), expected);
}
