//! Models that keep a state in some layers, and keys and values in the others.

use tandem_core::{BackendLoader, KvOp, SlotId, StepError};
use tandem_llama_cpp::{Assumptions, LlamaCppLoader, LlamaCppSettings, Planner};

use crate::{
    architectures::{self, check},
    gguf::{Gguf, VOCABULARY, Value},
    helpers::{self, settings},
};

/// Of each layer; those without keep a state.
const KV_HEADS: [i32; 4] = [0, 2, 0, 2];

/// A state in half of the layers, and keys and values in the others.
pub(crate) fn with_states() -> Gguf {
    const WIDTH: u64 = 64;
    let mut file = Gguf::new("jamba");
    for (key, number) in [
        ("block_count", 4),
        ("context_length", 1024),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 128),
        ("ssm.state_size", 16),
        ("ssm.time_step_rank", 4),
    ] {
        file.number(key, number);
    }
    file.value("jamba.attention.head_count_kv", Value::I32s(KV_HEADS.to_vec()));
    file.float("attention.layer_norm_rms_epsilon", 1e-6);
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    file.constant("output_norm.weight", &[WIDTH], 1.0);
    for (layer, kv_heads) in KV_HEADS.iter().enumerate() {
        around_a_mixer(&mut file, layer, WIDTH);
        if *kv_heads > 0 {
            attention(&mut file, layer, WIDTH);
            continue;
        }
        architectures::mamba(&mut file, layer, WIDTH);
        for (part, width) in [("dt", 4), ("b", 16), ("c", 16)] {
            file.constant(&format!("blk.{layer}.ssm_{part}_norm.weight"), &[width], 1.0);
        }
    }
    file
}

/// The last two tokens' convolutions in half of the layers, and keys and values in the others.
pub(crate) fn with_convolutions() -> Gguf {
    const WIDTH: u64 = 64;
    let mut file = Gguf::new("lfm2");
    for (key, number) in [
        ("block_count", 4),
        ("context_length", 1024),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("shortconv.l_cache", 3),
    ] {
        file.number(key, number);
    }
    file.value("lfm2.attention.head_count_kv", Value::I32s(KV_HEADS.to_vec()));
    file.float("attention.layer_norm_rms_epsilon", 1e-5);
    file.float("rope.freq_base", 10_000.0);
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    file.constant("token_embd_norm.weight", &[WIDTH], 1.0);
    for (layer, kv_heads) in KV_HEADS.iter().enumerate() {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        around_a_mixer(&mut file, layer, WIDTH);
        if *kv_heads > 0 {
            attention(&mut file, layer, WIDTH);
            file.constant(&name("attn_q_norm"), &[16], 1.0);
            file.constant(&name("attn_k_norm"), &[16], 1.0);
            continue;
        }
        file.matrix(&name("shortconv.conv"), &[3, WIDTH]);
        file.matrix(&name("shortconv.in_proj"), &[WIDTH, 3 * WIDTH]);
        file.matrix(&name("shortconv.out_proj"), &[WIDTH, WIDTH]);
    }
    file
}

/// Four heads, of which two share keys and values.
fn attention(file: &mut Gguf, layer: usize, width: u64) {
    for (part, rows) in [("attn_q", width), ("attn_k", width / 2), ("attn_v", width / 2), ("attn_output", width)] {
        file.matrix(&format!("blk.{layer}.{part}.weight"), &[width, rows]);
    }
}

/// What every layer has, whatever it mixes tokens with.
fn around_a_mixer(file: &mut Gguf, layer: usize, width: u64) {
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    file.constant(&name("attn_norm"), &[width], 1.0);
    file.constant(&name("ffn_norm"), &[width], 1.0);
    file.matrix(&name("ffn_gate"), &[width, 96]);
    file.matrix(&name("ffn_up"), &[width, 96]);
    file.matrix(&name("ffn_down"), &[96, width]);
}

#[test]
fn a_hybrid_model_keeps_the_contract() {
    for file in [with_states(), with_convolutions()] {
        check(&file, |settings| settings, false);
        check(&file, |settings| LlamaCppSettings { kv_unified: false, ..settings }, false);
        // Steps of several micro-batches, which llama.cpp cuts so that all sequences of one have as many tokens.
        check(&file, |settings| LlamaCppSettings { micro_batch_tokens: Some(8), ..settings }, false);
    }
}

#[test]
fn a_hybrid_models_slot_cannot_be_cut() {
    for file in [with_states(), with_convolutions(), architectures::recurrent()] {
        let path = file.write();
        let settings = LlamaCppSettings { model: path.to_path_buf(), ..settings(2, 64) };
        helpers::with_backend(LlamaCppLoader::new(settings), |loaded| {
            let backend = helpers::generator(loaded);
            let tokens: Vec<_> = (0..20).collect();
            helpers::forward(backend, &[helpers::empty(0)], &[(0, 0, &tokens, false)]).expect("20 tokens");
            let cut = |from| [KvOp::Truncate { slot: SlotId(0), from }];
            helpers::forward(backend, &cut(20), &[]).expect("there is nothing behind the end");
            let error = helpers::forward(backend, &cut(19), &[]).expect_err("a state has no middle");
            assert!(matches!(error, StepError::Device(_)), "{error:?}");
            helpers::forward(backend, &cut(0), &[]).expect("a slot can be emptied");
        });
    }
}

#[test]
fn a_hybrid_model_with_a_full_cache_loses_nothing() {
    for file in [with_states(), with_convolutions()] {
        let path = file.write();
        let settings = LlamaCppSettings { model: path.to_path_buf(), ..settings(2, 128) };
        helpers::with_backend(LlamaCppLoader::new(settings), |loaded| {
            let backend = helpers::generator(loaded);
            let prompt = |salt: u32, len: u32| (0..len).map(|at| (salt + 7 * at + at * at) % 256).collect::<Vec<_>>();
            let (ours, theirs) = (prompt(1, 100), prompt(2, 128));
            let expected = helpers::greedy(backend, 0, &ours, 4);
            helpers::forward(backend, &[helpers::empty(0)], &[(0, 0, &ours, true)]).expect("100 of 256 cells");
            let mut tokens = helpers::sample(backend, &[0]).expect("a row");
            helpers::forward(backend, &[], &[(1, 0, &theirs, false)]).expect("228 of 256 cells");
            let both = [(0, 100, &tokens[..], true), (1, 128, &prompt(3, 40)[..], true)];
            assert!(matches!(helpers::forward(backend, &[], &both), Err(StepError::KvFull)));
            // Neither the cells nor the states are of the step that was refused.
            for at in 0..3 {
                helpers::forward(backend, &[], &[(0, 100 + at, &[tokens[at as usize]], true)]).expect("a token fits");
                tokens.extend(helpers::sample(backend, &[0]).expect("a row"));
            }
            assert_eq!(tokens, expected);
        });
    }
}

#[test]
fn the_memory_of_a_hybrid_model_is_of_both_kinds() {
    let path = with_states().write();
    let settings = LlamaCppSettings { model: path.to_path_buf(), ..settings(4, 256) };
    let plan = Planner::new(&settings, Assumptions::default()).and_then(|planner| planner.plan());
    let kv = plan.expect("the model is there").needs().kv;
    // Two layers each: 2 heads of 16 numbers, a key and a value of 2 bytes for each token; a state of 128 times 16 numbers and the last 3 of
    // 128 before the convolution, of 4 bytes, for each sequence.
    let (cells, states) = (2 * 4 * 256 * 2 * 16 * 2 * 2, 2 * 4 * (128 * 16 + 128 * 3) * 4);
    // The log rounds either to a hundredth of a mebibyte.
    assert!(kv.abs_diff(cells + states) < 2 * (1 << 20) / 100, "{kv} of {cells} and {states}");
}

#[test]
fn numbers_that_llama_cpp_would_abort_over_are_refused() {
    let heads = |list: [i32; 4]| Value::I32s(list.to_vec());
    let cases: [(Gguf, &str, Value, &str); 9] = [
        (
            with_states(),
            "jamba.ssm.inner_size",
            Value::U32(126),
            "jamba.ssm.inner_size: 126, twice embedding_length (64) expected",
        ),
        (with_states(), "jamba.ssm.conv_kernel", Value::U32(0), "jamba.ssm.conv_kernel: 0"),
        (with_states(), "jamba.ssm.group_count", Value::U32(3), "jamba.ssm.inner_size: 128, in 3 groups and 4 heads"),
        (with_convolutions(), "lfm2.shortconv.l_cache", Value::U32(1), "lfm2.shortconv.l_cache: 1"),
        (
            with_convolutions(),
            "lfm2.attention.key_length",
            Value::U32(32),
            "lfm2.attention.key_length: 32, with the default for values",
        ),
        // In 32 bits this times 16 is what 2 times 16 is.
        (
            with_states(),
            "jamba.attention.head_count_kv",
            heads([0, 2, 0, i32::MIN + 2]),
            "jamba.attention.head_count_kv: -2147483646 in layer 3",
        ),
        (
            with_states(),
            "jamba.attention.head_count_kv",
            heads([0, 3, 0, 2]),
            "jamba.attention.head_count: 4, with 3 for keys and values, in layer 1",
        ),
        (
            with_states(),
            "jamba.attention.head_count",
            heads([4, 4, 4, 1 << 20]),
            "jamba.attention.head_count: 1048576 in layer 3",
        ),
        (with_states(), "jamba.feed_forward_length", Value::U32(1 << 30), "jamba.feed_forward_length: 1073741824"),
    ];
    for (mut file, key, value, expected) in cases {
        file.set(key, value);
        let path = file.write();
        let settings = LlamaCppSettings { model: path.to_path_buf(), ..settings(2, 64) };
        let error = Box::new(LlamaCppLoader::new(settings)).with_backend(&mut |_| ()).expect_err("the load fails");
        let expected = format!("{}: invalid hyper-parameter {expected}", path.display());
        assert_eq!(error.to_string(), expected);
    }
}
