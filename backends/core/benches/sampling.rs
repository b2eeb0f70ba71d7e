//! One row of logits sampled, for vocabularies of three sizes.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should panic")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tandem_core::{SampleRow, SamplingParams, SlotId, TokenId, TokenMask, sampling::Sampler};

const VOCABULARIES: [u32; 3] = [32_768, 131_072, 262_144];

/// Numbers in `[0, 1)` that look random and are always the same.
fn noise(seed: u64, at: u64) -> f32 {
    tandem_core::sampling::uniform(seed, at as u32)
}

/// As of a model that is fairly sure: a bell of logits, and some far above it.
fn peaked(vocabulary: u32) -> Vec<f32> {
    let bell = |at: u64| (0..6).map(|draw| noise(draw, at)).sum::<f32>() * 3.0 - 9.0;
    (0..u64::from(vocabulary)).map(|at| if noise(9, at) < 2e-4 { 6.0 + 6.0 * noise(8, at) } else { bell(at) }).collect()
}

/// As of a model that has no idea: nearly all tokens are kept by top-p.
fn flat(vocabulary: u32) -> Vec<f32> {
    (0..u64::from(vocabulary)).map(|at| noise(1, at) * 0.2).collect()
}

fn rows(c: &mut Criterion) {
    let default = || SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let penalties = SamplingParams {
        repetition_penalty: 1.1,
        frequency_penalty: 0.2,
        presence_penalty: 0.1,
        ..SamplingParams::greedy()
    };
    for vocabulary in VOCABULARIES {
        let (peaked, flat) = (peaked(vocabulary), flat(vocabulary));
        let history: Vec<TokenId> = (0..4096u64).map(|at| (noise(3, at) * vocabulary as f32) as TokenId).collect();
        let mask = TokenMask::of(vocabulary, (0..vocabulary).filter(|at| noise(4, u64::from(*at)) < 0.1));
        type Case<'a> = (&'a str, &'a [f32], SamplingParams, Option<u8>, bool);
        let cases: [Case<'_>; 10] = [
            ("greedy", &peaked, SamplingParams::greedy(), None, false),
            ("temperature", &peaked, default(), None, false),
            ("top_k_40", &peaked, SamplingParams { top_k: 40, ..default() }, None, false),
            ("top_p_peaked", &peaked, SamplingParams { top_p: 0.9, ..default() }, None, false),
            ("top_p_flat", &flat, SamplingParams { top_p: 0.9, ..default() }, None, false),
            ("min_p", &peaked, SamplingParams { min_p: 0.05, ..default() }, None, false),
            ("typical_p", &peaked, SamplingParams { typical_p: 0.9, top_k: 200, ..default() }, None, false),
            ("penalties_4k", &peaked, penalties.clone(), None, false),
            ("top_logprobs_20", &peaked, SamplingParams::greedy(), Some(20), false),
            ("grammar", &peaked, SamplingParams::greedy(), None, true),
        ];
        let mut group = c.benchmark_group(format!("sampling/{vocabulary}"));
        let mut sampler = Sampler::default();
        for (name, logits, params, logprobs, grammar) in cases {
            let penalized = name.starts_with("penalties");
            let asked = SampleRow {
                slot: SlotId(0),
                params: &params,
                u: 0.37,
                prompt: if penalized { &history } else { &[] },
                output: if penalized { &history[..1024] } else { &[] },
                banned: &[],
                allowed: grammar.then_some(&mask),
                logprobs,
            };
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| sampler.sample(black_box(logits), &asked).unwrap());
            });
        }
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = rows }
criterion_main!(benches);
