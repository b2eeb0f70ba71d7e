//! The logits, against a plain model in F64 that knows neither pages nor chunks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use proptest::prelude::*;
use serde_json::json;
use support::{Model, load, settings};
use tandem_core::{BlockId, Chunk, InferenceBackend, SampleRow, SamplingParams, SlotId, Step, TokenId};

const MAX_ERROR: f64 = 1e-4;

/// A dense Llama: the logits after each token, everything computed anew.
fn reference(model: &Model, tokens: &[TokenId]) -> Vec<Vec<f64>> {
    let size = |name: &str| model.config[name].as_u64().unwrap() as usize;
    let (layers, heads, head_dim) = (size("num_hidden_layers"), size("num_attention_heads"), size("head_dim"));
    let group = heads / size("num_key_value_heads");
    let norm = |x: &[f64], name: &str| {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + model.config["rms_norm_eps"].as_f64().unwrap()).sqrt();
        x.iter().zip(&model.tensors[name].1).map(|(x, w)| x * scale * f64::from(*w)).collect::<Vec<_>>()
    };
    let linear = |x: &[f64], name: &str| {
        let rows = model.tensors[&format!("{name}.weight")].1.chunks(x.len());
        let products = rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>());
        match model.tensors.get(&format!("{name}.bias")) {
            Some((_, bias)) => products.zip(bias).map(|(product, b)| product + f64::from(*b)).collect::<Vec<_>>(),
            None => products.collect(),
        }
    };
    let rotate = |x: &mut [f64], position: usize| {
        for head in x.chunks_mut(head_dim) {
            for pair in 0..head_dim / 2 {
                let (sin, cos) = (position as f64 * frequency(model, pair)).sin_cos();
                let (a, b) = (head[pair], head[pair + head_dim / 2]);
                head[pair] = a * cos - b * sin;
                head[pair + head_dim / 2] = b * cos + a * sin;
            }
        }
    };
    let embedding = &model.tensors["model.embed_tokens.weight"].1;
    let width = size("hidden_size");
    let row = |token: &TokenId| {
        embedding[*token as usize * width..][..width].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
    };
    let mut hidden: Vec<Vec<f64>> = tokens.iter().map(row).collect();
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in hidden.iter_mut().enumerate() {
            let normed = norm(x, &name("input_layernorm.weight"));
            let (mut q, mut k) =
                (linear(&normed, &name("self_attn.q_proj")), linear(&normed, &name("self_attn.k_proj")));
            rotate(&mut q, position);
            rotate(&mut k, position);
            keys.push(k);
            values.push(linear(&normed, &name("self_attn.v_proj")));
            let mut attended = Vec::new();
            for head in 0..heads {
                let kv = head / group * head_dim..(head / group + 1) * head_dim;
                let query = &q[head * head_dim..][..head_dim];
                let score = |key: &Vec<f64>| key[kv.clone()].iter().zip(query).map(|(k, q)| k * q).sum::<f64>();
                let weights: Vec<f64> = keys.iter().map(|key| (score(key) / (head_dim as f64).sqrt()).exp()).collect();
                let total: f64 = weights.iter().sum();
                attended.extend(
                    kv.clone()
                        .map(|at| weights.iter().zip(&values).map(|(w, value)| w * value[at]).sum::<f64>() / total),
                );
            }
            let delta = linear(&attended, &name("self_attn.o_proj"));
            x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
            let normed = norm(x, &name("post_attention_layernorm.weight"));
            let (gate, up) = (linear(&normed, &name("mlp.gate_proj")), linear(&normed, &name("mlp.up_proj")));
            let gated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            x.iter_mut().zip(linear(&gated, &name("mlp.down_proj"))).for_each(|(x, delta)| *x += delta);
        }
    }
    let head = if model.tensors.contains_key("lm_head.weight") { "lm_head" } else { "model.embed_tokens" };
    hidden.iter().map(|x| linear(&norm(x, "model.norm.weight"), head)).collect()
}

/// Radians per position of a pair, with the scaling of the Llama 3 family as its authors describe it, by wavelength.
fn frequency(model: &Model, pair: usize) -> f64 {
    let head_dim = model.config["head_dim"].as_f64().unwrap();
    let plain = 1.0 / model.config["rope_theta"].as_f64().unwrap().powf(2.0 * pair as f64 / head_dim);
    let scaling = &model.config["rope_scaling"];
    if scaling["rope_type"] != "llama3" {
        return plain;
    }
    let number = |name: &str| scaling[name].as_f64().unwrap();
    let (factor, low, high) = (number("factor"), number("low_freq_factor"), number("high_freq_factor"));
    let (original, wavelength) = (number("original_max_position_embeddings"), 2.0 * std::f64::consts::PI / plain);
    if wavelength < original / high {
        plain
    } else if wavelength > original / low {
        plain / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * plain / factor + smooth * plain
    }
}

/// Runs one step and compares the log-probabilities that each sampled chunk ends with, to the 255 likeliest tokens.
fn step(backend: &mut dyn InferenceBackend, expected: &[&[Vec<f64>]], chunks: &[Chunk<'_>]) {
    backend.forward(&Step { kv_ops: &[], chunks, adapter: None }).unwrap();
    let params = SamplingParams::greedy();
    let sampled: Vec<_> = chunks.iter().filter(|chunk| chunk.sample).collect();
    let row = |slot| SampleRow {
        slot,
        params: &params,
        u: 0.0,
        prompt: &[],
        output: &[],
        banned: &[],
        allowed: None,
        logprobs: Some(255),
    };
    let rows: Vec<_> = sampled.iter().map(|chunk| row(chunk.slot)).collect();
    let mut out = Vec::new();
    backend.sample(&rows, &mut out).unwrap();
    assert_eq!(out.len(), sampled.len());
    for (chunk, result) in sampled.iter().zip(out) {
        let logits = &expected[chunk.slot.index()][chunk.start as usize + chunk.tokens.len() - 1];
        let total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let top = result.unwrap().logprobs.unwrap().top;
        assert_eq!(top.len(), 255);
        let error =
            top.iter().map(|&(token, got)| (f64::from(got) - (logits[token as usize] - total)).powi(2)).sum::<f64>();
        let scale = top.iter().map(|&(token, _)| (logits[token as usize] - total).powi(2)).sum::<f64>();
        let relative = (error / scale).sqrt();
        assert!(relative <= MAX_ERROR, "slot {:?} at {}: relative error {relative:e}", chunk.slot, chunk.start);
    }
}

fn tokens(seed: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|at| (seed * 37 + at * at * 11 + at * 5) % 300).collect()
}

/// Two sequences whose pages are interleaved and out of order.
fn tables() -> [Vec<BlockId>; 2] {
    [0, 1].map(|slot| (0..7).map(|at| BlockId((at * 3 % 7) * 2 + slot)).collect())
}

fn check(model: &Model) {
    let dir = model.write();
    let (a, b) = (tokens(1, 100), tokens(2, 30));
    let expected = [reference(model, &a), reference(model, &b)];
    let expected: Vec<_> = expected.iter().map(Vec::as_slice).collect();
    let [table_a, table_b] = tables();
    load(settings(dir.path()), |loaded| {
        let backend = loaded.backend.generator().unwrap();
        let mut run = |pieces: &[(u32, std::ops::Range<usize>, bool)]| {
            let chunk = |(slot, range, sample): &(u32, std::ops::Range<usize>, bool)| Chunk {
                slot: SlotId(*slot),
                start: range.start as u32,
                tokens: if *slot == 0 { &a[range.clone()] } else { &b[range.clone()] },
                block_table: if *slot == 0 { &table_a } else { &table_b },
                sample: *sample,
                score: false,
            };
            step(backend, &expected, &pieces.iter().map(chunk).collect::<Vec<_>>());
        };
        // A whole prompt of many rows, then of few; then in chunks beside another sequence; then decoding both.
        run(&[(0, 0..97, true)]);
        run(&[(1, 0..13, true)]);
        run(&[(0, 0..7, false), (1, 0..1, true)]);
        run(&[(1, 1..20, true), (0, 7..8, true)]);
        run(&[(0, 8..96, true)]);
        for at in 0..4 {
            run(&[(0, 96 + at..97 + at, true), (1, 20 + at..21 + at, true)]);
        }
    })
    .unwrap();
}

#[test]
fn logits_are_those_of_the_plain_model() {
    check(&Model::awkward());
}

#[test]
fn logits_with_biases_tied_embeddings_and_scaled_positions() {
    let mut config = Model::awkward().config;
    config["tie_word_embeddings"] = true.into();
    config["attention_bias"] = true.into();
    config["mlp_bias"] = true.into();
    let scaling = json!({
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64
    });
    config["rope_scaling"] = scaling;
    check(&Model::random(config));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_chunking_gives_the_same_logits(cuts in prop::collection::btree_set(1usize..60, 0..6), pages in 1u32..4) {
        let model = Model::awkward();
        let dir = model.write();
        let prompt = tokens(3, 60);
        let expected = reference(&model, &prompt);
        let block_size = 16 * pages;
        let table: Vec<_> = (0..60u32.div_ceil(block_size)).rev().map(BlockId).collect();
        let settings = tandem_candle::CandleSettings { block_size, ..settings(dir.path()) };
        load(settings, |loaded| {
            let backend = loaded.backend.generator().unwrap();
            let ends = cuts.iter().copied().chain([60]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            for (start, end) in starts.zip(ends) {
                let tokens = &prompt[start..end];
                let chunk = Chunk { slot: SlotId(0), start: start as u32, tokens, block_table: &table, sample: true, score: false };
                step(backend, &[&expected], &[chunk]);
            }
        })
        .unwrap();
    }
}
