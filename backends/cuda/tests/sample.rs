//! Tokens chosen on a device, against the reference sampler.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use proptest::prelude::*;
use support::{device, integers, put, random};
use tandem_core::{
    SampleError, SampleRow, SamplingParams, SlotId,
    sampling::{Sampler, uniform},
};
use tandem_cuda::{Chooser, Device, Number, SampleParams, waiting_for};

fn on_device(device: &Device, logits: &[f32], vocab: usize, rows: &[SampleParams]) -> Vec<Option<u32>> {
    let there = put(device, Number::F32, logits);
    let last = integers(device, &[0]);
    let mut chooser = Chooser::new(device, rows.len()).unwrap();
    let choosing = chooser.choose(device, there.all(), vocab, rows, &last).unwrap();
    chooser.collect(choosing).unwrap()
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
    SampleParams { row, slot: 0, temperature: 0.0, top_p: 1.0, min_p: 0.0, u: 0.0, top_k: 0 }
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

fn read(buffer: &tandem_cuda::Buffer) -> Vec<i32> {
    let mut bytes = vec![0; buffer.len()];
    buffer.read(0, &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|&word| i32::from_le_bytes(word)).collect()
}

#[test]
fn whoever_waits_for_a_token_gets_the_last_of_its_slot() {
    let device = device();
    let vocab = 700;
    let mut logits = vec![0.0; 3 * vocab];
    for (row, token) in [5, 600, 42].into_iter().enumerate() {
        logits[row * vocab + token] = 1.0;
    }
    logits[2 * vocab] = f32::NAN;
    let there = put(&device, Number::F32, &logits);
    let last = integers(&device, &[-7; 6]);
    let mut chooser = Chooser::new(&device, 4).unwrap();
    let rows = [(0, 4), (1, 1), (2, 3)].map(|(row, slot)| SampleParams { slot, ..greedy(row) });
    let choosing = chooser.choose(&device, there.all(), vocab, &rows, &last).unwrap();
    // What is computed next finds them, before anybody has read them; one that is none is followed by any.
    let list = [9, waiting_for(1), waiting_for(4), 0, waiting_for(3), 300];
    let tokens = integers(&device, &list);
    device.follow(tokens.all(), list.len(), &last).unwrap();
    assert_eq!(read(&tokens), [9, 600, 5, 0, 0, 300]);
    assert_eq!(read(&last), [-7, 600, -7, -1, 5, -7]);
    assert_eq!(chooser.collect(choosing).unwrap(), [Some(5), Some(600), None]);
}

#[test]
fn answers_are_those_of_their_own_rows_whenever_they_are_collected() {
    let device = device();
    let vocab = 520;
    let last = integers(&device, &[0; 2]);
    let mut chooser = Chooser::new(&device, 2).unwrap();
    let there = device.allocate(2 * vocab * 4).unwrap();
    let mut open = std::collections::VecDeque::new();
    for round in 0..9_u32 {
        let mut logits = vec![0.0; 2 * vocab];
        logits[round as usize] = 1.0;
        logits[vocab + 500 - round as usize] = 1.0;
        let mut bytes = Vec::new();
        Number::F32.write(&logits, &mut bytes);
        there.write(0, &bytes).unwrap();
        // Both, one, none.
        let rows: Vec<_> = (0..2 - round as i32 % 3).map(|row| SampleParams { slot: row, ..greedy(row) }).collect();
        let expected: Vec<_> = [round, 500 - round].into_iter().map(Some).take(rows.len()).collect();
        open.push_back((chooser.choose(&device, there.all(), vocab, &rows, &last).unwrap(), expected));
        if open.len() > 2 {
            let (choosing, expected) = open.pop_front().unwrap();
            assert_eq!(chooser.collect(choosing).unwrap(), expected);
        }
    }
    for (choosing, expected) in open {
        assert_eq!(chooser.collect(choosing).unwrap(), expected);
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
            .map(|at| SampleParams { row: 0, slot: 0, temperature, top_p, min_p, top_k, u: uniform(seed ^ 1, at) })
            .collect();
        let got = on_device(&device(), &logits, vocab, &rows);
        let expected: Vec<_> = rows.iter().map(|row| reference(&logits, row)).collect();
        let other = got.iter().zip(&expected).filter(|(got, expected)| got != expected).count();
        prop_assert!(got.iter().all(Option::is_some));
        prop_assert!(other <= 1, "{got:?} for {expected:?}");
    }
}
