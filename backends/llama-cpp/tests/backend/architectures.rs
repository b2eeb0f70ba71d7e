//! Models whose memory is no plain KV cache.

use tandem_core::{KvLayout, conformance};
use tandem_llama_cpp::{LlamaCppLoader, LlamaCppSettings};

use crate::{
    TOLERANCE,
    gguf::{Gguf, VOCABULARY},
    helpers::{self, settings},
    hybrids,
};

/// One of each kind of those that generate.
pub(crate) fn all() -> [Gguf; 5] {
    [plain(), sliding_window(), recurrent(), hybrids::with_states(), hybrids::with_convolutions()]
}

/// Keys and values alone.
pub(crate) fn plain() -> Gguf {
    const WIDTH: u64 = 64;
    let mut file = Gguf::new("llama");
    for (key, number) in [
        ("block_count", 2),
        ("context_length", 1024),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 16),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_rms_epsilon", 1e-5);
    file.float("rope.freq_base", 10_000.0);
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    file.constant("output_norm.weight", &[WIDTH], 1.0);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        file.constant(&name("attn_norm"), &[WIDTH], 1.0);
        file.constant(&name("ffn_norm"), &[WIDTH], 1.0);
        for (part, dims) in [
            ("attn_q", [WIDTH, WIDTH]),
            ("attn_k", [WIDTH, 32]),
            ("attn_v", [WIDTH, 32]),
            ("attn_output", [WIDTH, WIDTH]),
            ("ffn_gate", [WIDTH, 96]),
            ("ffn_up", [WIDTH, 96]),
            ("ffn_down", [96, WIDTH]),
        ] {
            file.matrix(&name(part), &dims);
        }
    }
    file
}

/// Every other layer attends to the last 24 tokens alone.
fn sliding_window() -> Gguf {
    const WIDTH: u64 = 64;
    let mut file = Gguf::new("gemma2");
    for (key, number) in [
        ("block_count", 4),
        ("context_length", 1024),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 32),
        ("attention.value_length", 32),
        ("attention.sliding_window", 24),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_rms_epsilon", 1e-6);
    file.float("attn_logit_softcapping", 50.0);
    file.float("final_logit_softcapping", 30.0);
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    file.constant("output_norm.weight", &[WIDTH], 1.0);
    for layer in 0..4 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        for norm in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
            file.constant(&name(norm), &[WIDTH], 1.0);
        }
        file.matrix(&name("attn_q"), &[WIDTH, 128]);
        file.matrix(&name("attn_k"), &[WIDTH, 64]);
        file.matrix(&name("attn_v"), &[WIDTH, 64]);
        file.matrix(&name("attn_output"), &[128, WIDTH]);
        file.matrix(&name("ffn_gate"), &[WIDTH, 96]);
        file.matrix(&name("ffn_up"), &[WIDTH, 96]);
        file.matrix(&name("ffn_down"), &[96, WIDTH]);
    }
    file
}

/// A state in place of KV.
pub(crate) fn recurrent() -> Gguf {
    const WIDTH: u64 = 64;
    let mut file = Gguf::new("mamba");
    for (key, number) in [
        ("block_count", 3),
        ("context_length", 1024),
        ("embedding_length", 64),
        ("feed_forward_length", 0),
        ("attention.head_count", 0),
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 128),
        ("ssm.state_size", 16),
        ("ssm.time_step_rank", 4),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_rms_epsilon", 1e-5);
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    file.constant("output_norm.weight", &[WIDTH], 1.0);
    for layer in 0..3 {
        file.constant(&format!("blk.{layer}.attn_norm.weight"), &[WIDTH], 1.0);
        mamba(&mut file, layer, WIDTH);
    }
    file
}

/// What Mamba mixes tokens with in one layer: twice as wide inside, a state of 16 numbers for each channel, steps of rank 4.
pub(crate) fn mamba(file: &mut Gguf, layer: usize, width: u64) {
    const STATE: u64 = 16;
    const RANK: u64 = 4;
    let inner = 2 * width;
    let name = |part: &str| format!("blk.{layer}.{part}");
    file.matrix(&name("ssm_in.weight"), &[width, 2 * inner]);
    file.matrix(&name("ssm_conv1d.weight"), &[4, inner]);
    file.matrix(&name("ssm_conv1d.bias"), &[inner]);
    file.matrix(&name("ssm_x.weight"), &[inner, RANK + 2 * STATE]);
    file.matrix(&name("ssm_dt.weight"), &[RANK, inner]);
    file.matrix(&name("ssm_dt.bias"), &[inner]);
    file.constant(&name("ssm_a"), &[STATE, inner], -1.0);
    file.constant(&name("ssm_d"), &[inner], 1.0);
    file.matrix(&name("ssm_out.weight"), &[inner, width]);
}

pub(crate) fn check(file: &Gguf, change: impl Fn(LlamaCppSettings) -> LlamaCppSettings, partial_reuse: bool) {
    let path = file.write();
    let settings = change(LlamaCppSettings { model: path.to_path_buf(), ..settings(4, 256) });
    helpers::with_backend(LlamaCppLoader::new(settings.clone()), |loaded| {
        let KvLayout::Slots { partial_reuse: found, .. } = helpers::generator(loaded).spec().kv else {
            panic!("slots")
        };
        assert_eq!(found, partial_reuse);
    });
    conformance::check(Box::new(LlamaCppLoader::new(settings)), TOLERANCE).expect("the model loads");
}

#[test]
fn windows_with_all_their_cells_can_be_cut() {
    check(&sliding_window(), |settings| settings, true);
}

#[test]
fn windows_with_only_their_own_cells_cannot() {
    check(&sliding_window(), |settings| LlamaCppSettings { swa_full: false, ..settings }, false);
    check(&sliding_window(), |settings| LlamaCppSettings { swa_full: false, kv_unified: false, ..settings }, false);
}

#[test]
fn a_recurrent_model_keeps_the_contract() {
    check(&recurrent(), |settings| settings, false);
}
