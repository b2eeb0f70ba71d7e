//! One GGUF file of each architecture that candle runs: both backends compute the same.

use tandem_core::{TokenId, sampling::uniform};
use tandem_engine::{Engine, Event, GenerateRequest};

use crate::{
    gguf_writer::{Gguf, VOCABULARY},
    helpers::{engine_of, generate, request},
};

const WIDTH: u64 = 64;
const HIDDEN: u64 = 96;
const LAYERS: u64 = 6;
const HEADS: u64 = 4;
const KV_HEADS: u64 = 2;
const WINDOW: u32 = 24;
/// Longer than the window.
const PROMPT: u32 = 61;

/// A file with heads of some width, and the matrices that nearly all have.
fn file(architecture: &'static str, head: u64) -> Gguf {
    let mut file = Gguf::new(architecture);
    for (key, number) in [
        ("block_count", LAYERS),
        ("context_length", 1024),
        ("embedding_length", WIDTH),
        ("feed_forward_length", HIDDEN),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", head),
        ("attention.value_length", head),
        ("rope.dimension_count", head),
    ] {
        file.number(key, number as u32);
    }
    file.float("attention.layer_norm_rms_epsilon", 1e-5);
    file.float("rope.freq_base", 1000.0);
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    norm(&mut file, "output_norm", WIDTH);
    each(&mut file, |file, name| {
        norm(file, &name("attn_norm"), WIDTH);
        norm(file, &name("ffn_norm"), WIDTH);
        for (part, dims) in [
            ("attn_q", [WIDTH, HEADS * head]),
            ("attn_k", [WIDTH, KV_HEADS * head]),
            ("attn_v", [WIDTH, KV_HEADS * head]),
            ("attn_output", [HEADS * head, WIDTH]),
            ("ffn_gate", [WIDTH, HIDDEN]),
            ("ffn_up", [WIDTH, HIDDEN]),
            ("ffn_down", [HIDDEN, WIDTH]),
        ] {
            file.matrix(&format!("{}.weight", name(part)), &dims);
        }
    });
    file
}

/// What is different in each block.
fn each(file: &mut Gguf, change: impl Fn(&mut Gguf, &dyn Fn(&str) -> String)) {
    for layer in 0..LAYERS {
        change(file, &|part| format!("blk.{layer}.{part}"));
    }
}

fn norm(file: &mut Gguf, name: &str, width: u64) {
    let seed = name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31) ^ u64::from(byte));
    let weights = (0..width as u32).map(|at| 0.7 + 0.6 * uniform(seed, at)).collect();
    file.tensor(&format!("{name}.weight"), &[width], weights);
}

fn remove(file: &mut Gguf, parts: &[&str]) {
    let parts: Vec<_> = parts.iter().map(|part| format!("{part}.weight")).collect();
    each(file, |file, name| parts.iter().for_each(|part| file.remove(&name(part))));
}

fn head_norms(file: &mut Gguf, queries: u64, keys: u64) {
    each(file, |file, name| {
        norm(file, &name("attn_q_norm"), queries);
        norm(file, &name("attn_k_norm"), keys);
    });
}

fn llama_3() -> Gguf {
    let mut file = file("llama", 32);
    file.tensor("rope_freqs.weight", &[16], (0..16u8).map(|pair| 1.0 + f32::from(pair) / 2.0).collect());
    file.matrix("output.weight", &[WIDTH, VOCABULARY]);
    file
}

fn qwen2() -> Gguf {
    let mut file = file("qwen2", WIDTH / HEADS);
    each(&mut file, |file, name| {
        for (part, width) in [("attn_q", WIDTH), ("attn_k", WIDTH / 2), ("attn_v", WIDTH / 2)] {
            file.matrix(&format!("{}.bias", name(part)), &[width]);
        }
    });
    file
}

fn qwen3() -> Gguf {
    let mut file = file("qwen3", 32);
    head_norms(&mut file, 32, 32);
    file
}

fn qwen3moe() -> Gguf {
    const EXPERTS: u64 = 6;
    let mut file = file("qwen3moe", 32);
    head_norms(&mut file, 32, 32);
    remove(&mut file, &["ffn_gate", "ffn_up", "ffn_down"]);
    for (key, number) in
        [("expert_count", EXPERTS as u32), ("expert_used_count", 2), ("expert_feed_forward_length", 48)]
    {
        file.number(key, number);
    }
    each(&mut file, |file, name| {
        let mut matrix = |part: &str, dims: &[u64]| file.matrix(&format!("{}.weight", name(part)), dims);
        matrix("ffn_gate_inp", &[WIDTH, EXPERTS]);
        matrix("ffn_gate_exps", &[WIDTH, 48, EXPERTS]);
        matrix("ffn_up_exps", &[WIDTH, 48, EXPERTS]);
        matrix("ffn_down_exps", &[48, WIDTH, EXPERTS]);
    });
    file
}

fn outer_norms(file: &mut Gguf) {
    each(file, |file, name| {
        norm(file, &name("post_attention_norm"), WIDTH);
        norm(file, &name("post_ffw_norm"), WIDTH);
    });
}

fn gemma2() -> Gguf {
    let mut file = file("gemma2", 32);
    outer_norms(&mut file);
    file.number("attention.sliding_window", WINDOW);
    file.float("attn_logit_softcapping", 50.0);
    file.float("final_logit_softcapping", 30.0);
    file
}

fn gemma3() -> Gguf {
    let mut file = file("gemma3", 32);
    outer_norms(&mut file);
    head_norms(&mut file, 32, 32);
    file.number("attention.sliding_window", WINDOW);
    file.float("rope.scaling.factor", 4.0);
    file
}

fn phi3() -> Gguf {
    let head = WIDTH / HEADS;
    let mut file = file("phi3", head);
    remove(&mut file, &["attn_q", "attn_k", "attn_v", "ffn_gate"]);
    each(&mut file, |file, name| {
        file.remove(&format!("{}.weight", name("ffn_up")));
        file.matrix(&format!("{}.weight", name("attn_qkv")), &[WIDTH, WIDTH + 2 * KV_HEADS * head]);
        file.matrix(&format!("{}.weight", name("ffn_up")), &[WIDTH, 2 * HIDDEN]);
    });
    // Shorter than the context, so that both take the factors for long texts.
    file.number("rope.scaling.original_context_length", 64);
    file.float("rope.scaling.attn_factor", (1.0 + 16f32.ln() / 64f32.ln()).sqrt());
    for (name, step) in [("short", 0.1), ("long", 0.7)] {
        let factors = (0..head / 2).map(|pair| 1.0 + step * pair as f32).collect();
        file.tensor(&format!("rope_factors_{name}.weight"), &[head / 2], factors);
    }
    file.matrix("output.weight", &[WIDTH, VOCABULARY]);
    file
}

fn granite() -> Gguf {
    let mut file = file("granite", WIDTH / HEADS);
    for (key, number) in
        [("embedding_scale", 2.0), ("residual_scale", 0.5), ("attention.scale", 0.1), ("logit_scale", 0.5)]
    {
        file.float(key, number);
    }
    file
}

fn olmo2() -> Gguf {
    let mut file = file("olmo2", WIDTH / HEADS);
    remove(&mut file, &["attn_norm", "ffn_norm"]);
    outer_norms(&mut file);
    head_norms(&mut file, WIDTH, WIDTH / 2);
    file.matrix("output.weight", &[WIDTH, VOCABULARY]);
    file
}

/// The likeliest tokens and their log-probabilities, after a prompt and after each token that is then generated.
async fn answer(engine: &Engine, what: &str) -> Vec<Vec<(TokenId, f32)>> {
    let prompt: Vec<TokenId> = (0..PROMPT).map(|at| (uniform(5, at) * 256.0) as TokenId).collect();
    let ask = GenerateRequest { logprobs: Some(20), ..request(prompt, 12) };
    let events = generate(engine, vec![ask]).await.remove(0);
    let tops = events.into_iter().filter_map(|event| match event {
        Event::Token { logprobs, .. } => Some(logprobs.unwrap().top.iter().map(|one| (one.id, one.logprob)).collect()),
        Event::Prompt(_) | Event::Finished { .. } => None,
        Event::Failed(error) => panic!("{what}: {error}"),
    });
    tops.collect()
}

#[tokio::test]
async fn both_backends_compute_the_same_of_each_architecture() {
    let files = [
        ("llama", llama_3()),
        ("qwen2", qwen2()),
        ("qwen3", qwen3()),
        ("qwen3moe", qwen3moe()),
        ("gemma2", gemma2()),
        ("gemma3", gemma3()),
        ("phi3", phi3()),
        ("smollm3", file("smollm3", 32)),
        ("granite", granite()),
        ("olmo2", olmo2()),
    ];
    for (what, file) in files {
        let path = file.write();
        let path = path.to_str().unwrap();
        let llama_cpp = answer(&*engine_of("llama-cpp", path).await, what).await;
        let candle = answer(&*engine_of("candle", path).await, what).await;
        assert!(llama_cpp.len().min(candle.len()) >= 4, "{what}: too short an answer: {llama_cpp:?}");
        for (at, (expected, got)) in llama_cpp.iter().zip(&candle).enumerate() {
            for (token, expected) in expected.iter().take(10) {
                let got = got.iter().find(|(id, _)| id == token).map(|(_, logprob)| *logprob);
                // The cache of llama.cpp is F16.
                let close = got.is_some_and(|got| (got - expected).abs() < 0.1);
                assert!(close, "{what}, token {at}: {token} has {got:?} for {expected}");
            }
            // Where two are nearly as likely, either may win, and what comes after it is another story.
            if expected[0].0 != got[0].0 {
                assert!(at > 0 || expected[0].1 - expected[1].1 < 0.1, "{what}");
                break;
            }
        }
    }
}
