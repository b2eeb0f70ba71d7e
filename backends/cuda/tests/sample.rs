//! Tokens chosen on a device, against the reference sampler.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use proptest::prelude::*;
use support::{device, put, random};
use tandem_core::{
    SampleError, SampleRow, SamplingParams, SlotId,
    sampling::{Sampler, uniform},
};
use tandem_cuda::{Device, Number, SampleParams};

fn on_device(device: &Device, logits: &[f32], vocab: usize, rows: &[SampleParams]) -> Vec<Option<u32>> {
    let there = put(device, Number::F32, logits);
    let room = device.allocate(rows.len() * SampleParams::BYTES).unwrap();
    device.sample(there.all(), vocab, rows, &room).unwrap()
}

fn reference(logits: &[f32], row: &SampleParams) -> Option<u32> {
    let params = SamplingParams {
        temperature: row.temperature,
        top_p: row.top_p,
        min_p: row.min_p,
        top_k: row.top_k as u32,
        ..SamplingParams::greedy()
    };
    let row = SampleRow {
        slot: SlotId(0),
        params: &params,
        u: row.u,
        prompt: &[],
        output: &[],
        banned: &[],
        allowed: None,
        logprobs: None,
    };
    match Sampler::default().sample(logits, &row) {
        Ok(sampled) => Some(sampled.token),
        Err(SampleError::NonFinite | SampleError::NothingLeft) => None,
    }
}

fn greedy(row: i32) -> SampleParams {
    SampleParams { row, temperature: 0.0, top_p: 1.0, min_p: 0.0, u: 0.0, top_k: 0 }
}

#[test]
fn the_likeliest_is_the_first_of_them() {
    let device = device();
    let vocab = 1500;
    let mut logits = random(1, 3 * vocab);
    logits[vocab + 700] = 2.0;
    logits[vocab + 701] = 2.0;
    logits[2 * vocab..].fill(-5.0);
    let expected: Vec<_> = (0..3).map(|row| reference(&logits[row * vocab..][..vocab], &greedy(row as i32))).collect();
    assert_eq!(on_device(&device, &logits, vocab, &[greedy(0), greedy(1), greedy(2)]), expected);
    assert_eq!(expected[1..], [Some(700), Some(0)]);
}

#[test]
fn what_is_not_finite_gives_no_token() {
    let device = device();
    let vocab = 600;
    for (bad, is_bad) in [(f32::NAN, true), (f32::INFINITY, true), (f32::NEG_INFINITY, false)] {
        let mut logits = random(1, 2 * vocab);
        logits[13] = bad;
        for temperature in [0.0, 1.0] {
            let rows = [0, 1].map(|row| SampleParams { temperature, u: 0.3, ..greedy(row) });
            let got = on_device(&device, &logits, vocab, &rows);
            assert_eq!(got.iter().map(Option::is_none).collect::<Vec<_>>(), [is_bad, false], "{bad}");
        }
    }
    let none = vec![f32::NEG_INFINITY; vocab];
    assert_eq!(on_device(&device, &none, vocab, &[greedy(0)]), [None]);
}

#[test]
fn equals_are_kept_by_their_number() {
    let device = device();
    // Ten of one weight: the likeliest four of them are the first four.
    let mut logits = vec![-20.0; 700];
    (0..10).for_each(|at| logits[100 + 60 * at] = 1.0);
    for u in [0.0, 0.3, 0.6, 0.99] {
        let row = SampleParams { temperature: 1.0, top_k: 4, u, ..greedy(0) };
        let expected = reference(&logits, &row);
        assert_eq!(on_device(&device, &logits, 700, &[row]), [expected], "{u}");
        assert_eq!(expected, Some(100 + 60 * (u * 4.0) as u32));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The draws of both are the same but for those that fall, within rounding, on the border between two tokens.
    #[test]
    fn any_parameters(
        seed in any::<u64>(),
        vocab in 1usize..3000,
        spread in 0.1f32..20.0,
        temperature in 0.1f32..2.0,
        top_p in prop::sample::select(vec![1.0f32, 0.99, 0.9, 0.5, 0.01]),
        min_p in prop::sample::select(vec![0.0f32, 0.0, 0.05, 0.9]),
        top_k in prop::sample::select(vec![0i32, 0, 1, 5, 40, 5000]),
    ) {
        let logits: Vec<f32> = random(seed, vocab).iter().map(|x| x * spread).collect();
        let rows: Vec<_> = (0..16)
            .map(|at| SampleParams { row: 0, temperature, top_p, min_p, top_k, u: uniform(seed ^ 1, at) })
            .collect();
        let got = on_device(&device(), &logits, vocab, &rows);
        let expected: Vec<_> = rows.iter().map(|row| reference(&logits, row)).collect();
        let other = got.iter().zip(&expected).filter(|(got, expected)| got != expected).count();
        prop_assert!(got.iter().all(Option::is_some));
        prop_assert!(other <= 1, "{got:?} for {expected:?}");
    }
}
