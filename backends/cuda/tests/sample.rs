//! Tokens chosen on a device, against the reference sampler.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use proptest::prelude::*;
use support::{device, integers, put, random};
use tandem_core::{
    SampleError, SampleRow, SamplingParams, SlotId,
    sampling::{Sampler, uniform},
};
use tandem_cuda::{Chooser, Device, MOST_TOKENS, Number, SampleParams, waiting_for};

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

/// As the kernel is to choose: weights are integers of 2^-36, and of equal ones the first are the likelier. Exact where the device's `exp` is
/// that of the host, as the emulator's is.
fn exact(logits: &[f32], row: &SampleParams) -> Option<u32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = logits.iter().map(|logit| ((logit - max) * (1.0 / row.temperature)).exp());
    let weights: Vec<_> = weights.map(|weight| if weight >= row.min_p { weight } else { 0.0 }).collect();
    let mass = |token: usize| (weights[token] * 2f32.powi(36)) as u64;
    let mut kept: Vec<_> = (0..logits.len()).filter(|&token| weights[token] > 0.0).collect();
    kept.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    if row.top_k > 0 {
        kept.truncate(row.top_k as usize);
    }
    if row.top_p < 1.0 {
        let all: u64 = kept.iter().map(|&token| mass(token)).sum();
        let (wanted, mut sum) = (((f64::from(row.top_p) * all as f64) as u64).max(1), 0);
        let before = |&token: &usize| {
            let is_wanted = sum < wanted;
            sum += mass(token);
            is_wanted
        };
        kept = kept.into_iter().take_while(before).collect();
    }
    kept.sort_unstable();
    let total: u64 = kept.iter().map(|&token| mass(token)).sum();
    let (target, mut sum) = ((f64::from(row.u) * total as f64) as u64, 0);
    let chosen = kept.into_iter().find(|&token| {
        sum += mass(token);
        target < sum
    });
    chosen.map(|token| token as u32)
}

/// On the emulator the same; on a card but for a few draws that fall, within rounding, on the border between two tokens.
#[track_caller]
fn assert_chosen(logits: &[f32], vocab: usize, rows: &[SampleParams]) -> Vec<Option<u32>> {
    let got = on_device(&device(), logits, vocab, rows);
    let row_of = |row: &SampleParams| &logits[row.row as usize * vocab..][..vocab];
    let expected: Vec<_> = rows.iter().map(|row| exact(row_of(row), row)).collect();
    let few = if std::env::var_os("TANDEM_TEST_DEVICE").is_some() { 1 + rows.len() / 8 } else { 0 };
    let other = got.iter().zip(&expected).filter(|(got, expected)| got != expected).count();
    assert!(other <= few, "{got:?} for {expected:?} of {rows:?}");
    got
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
    // Rows of which none but the first begins at 16 bytes.
    let vocab = 601;
    for (bad, is_bad) in [(f32::NAN, true), (f32::INFINITY, true), (f32::NEG_INFINITY, false)] {
        for (at, temperature) in [(0, 0.0), (13, 0.0), (13, 1.0), (vocab - 1, 0.0), (vocab - 1, 1.0)] {
            let mut logits = random(1, 3 * vocab);
            logits[vocab + at] = bad;
            let rows = [0, 1, 2].map(|row| SampleParams { temperature, u: 0.3, ..greedy(row) });
            let got = on_device(&device, &logits, vocab, &rows);
            assert_eq!(got.iter().map(Option::is_none).collect::<Vec<_>>(), [false, is_bad, false], "{bad} at {at}");
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

#[test]
fn the_likeliest_is_found_wherever_it_is() {
    let device = device();
    for vocab in [1, 2, 3, 5, 127, 4099, 9001] {
        let rows = [0, 1, 2, 3].map(greedy);
        for at in [0, vocab / 2, vocab - 1] {
            let mut logits = random(at as u64, 4 * vocab);
            (0..4).for_each(|row| logits[row * vocab + at] = 3.0);
            // Another as likely, behind it and in another thread's part.
            (0..4).for_each(|row| logits[row * vocab + (at + vocab / 3).min(vocab - 1)] = 3.0);
            assert_eq!(on_device(&device, &logits, vocab, &rows), [Some(at as u32); 4], "{at} of {vocab}");
        }
    }
}

/// Draws by different numbers from each of `count` rows.
fn draws(count: i32, from: &SampleParams) -> Vec<SampleParams> {
    let at = |draw: u32| SampleParams { row: draw as i32 % count, u: uniform(3, draw), ..*from };
    let ends = [0.0, 1.0 - f32::EPSILON / 2.0].map(|u| SampleParams { u, ..*from });
    (0..12).map(at).chain(ends).collect()
}

#[test]
fn few_tokens_are_drawn_as_well() {
    for vocab in [1, 2, 3, 4, 5, 9] {
        let logits = random(7, 3 * vocab);
        for (top_k, top_p) in [(0, 1.0), (1, 1.0), (2, 0.7), (0, 0.3)] {
            let params = SampleParams { temperature: 0.7, top_k, top_p, ..greedy(0) };
            assert_chosen(&logits, vocab, &draws(3, &params));
        }
    }
}

#[test]
fn all_tokens_may_be_as_likely() {
    for vocab in [64, 1037, 40_003] {
        let logits = vec![-3.5; vocab];
        for (top_k, top_p) in [(0, 1.0), (33, 1.0), (0, 0.6), (50, 0.5), (0, 0.001)] {
            let params = SampleParams { temperature: 1.3, top_k, top_p, ..greedy(0) };
            assert_chosen(&logits, vocab, &draws(1, &params));
        }
    }
}

/// With the largest vocabulary that there may be, nothing that is summed up overflows.
#[test]
fn the_largest_vocabulary_is_as_any() {
    let logits = vec![0.0; MOST_TOKENS];
    let params = SampleParams { temperature: 1.0, top_p: 0.9, ..greedy(0) };
    let rows = [0.0, 0.5, 0.999].map(|u| SampleParams { u, ..params });
    assert_chosen(&logits, MOST_TOKENS, &rows);
    assert_chosen(&logits, MOST_TOKENS, &[SampleParams { top_k: 400_000, top_p: 1.0, u: 0.7, ..params }]);
}

/// As wide as those of models are, in rows that begin anywhere; flat and with few likely tokens.
#[test]
fn large_vocabularies_are_drawn_from() {
    let vocab = 151_937;
    for spread in [0.01, 12.0, 60.0] {
        let logits: Vec<_> = random(5, 2 * vocab).iter().map(|x| x * spread).collect();
        let truncations = [
            (0, 1.0, 0.0),
            (20, 0.95, 0.0),
            (40, 0.95, 0.0),
            (0, 0.9, 0.0),
            (32, 1.0, 0.0),
            (100_000, 1.0, 0.0),
            (0, 1.0, 0.1),
        ];
        for (top_k, top_p, min_p) in truncations {
            let params = SampleParams { temperature: 0.8, top_k, top_p, min_p, ..greedy(0) };
            let rows = [0, 1, 0].map(|row| SampleParams { row, u: uniform(9, top_k as u32 + row as u32), ..params });
            assert_chosen(&logits, vocab, &rows);
        }
    }
}

#[test]
fn temperatures_may_be_extreme() {
    let vocab = 1203;
    let mut logits: Vec<_> = random(2, 3 * vocab).iter().map(|x| 30.0 * x).collect();
    logits[77] = f32::NEG_INFINITY;
    for temperature in [1e-30, 1e-3, 1e3, 1e30] {
        for (top_k, top_p) in [(0, 1.0), (7, 1.0), (0, 0.5)] {
            let params = SampleParams { temperature, top_k, top_p, ..greedy(0) };
            assert_chosen(&logits, vocab, &draws(3, &params));
        }
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
        vocab in 1usize..9000,
        spread in 0.1f32..20.0,
        // So many different logits, or any.
        different in prop::sample::select(vec![0, 0, 3, 20]),
        temperature in 0.1f32..2.0,
        top_p in prop::sample::select(vec![1.0f32, 0.99, 0.9, 0.5, 0.01]),
        min_p in prop::sample::select(vec![0.0f32, 0.0, 0.05, 0.9]),
        top_k in prop::sample::select(vec![0i32, 0, 1, 5, 40, 700, 5000]),
    ) {
        let round = |x: f32| if different > 0 { (x * different as f32 / 2.0).round() * 2.0 / different as f32 } else { x };
        let logits: Vec<f32> = random(seed, 3 * vocab).iter().map(|&x| round(x) * spread).collect();
        let rows: Vec<_> = (0..16)
            .map(|at| SampleParams { row: at % 3, slot: 0, temperature, top_p, min_p, top_k, u: uniform(seed ^ 1, at as u32) })
            .collect();
        let got = assert_chosen(&logits, vocab, &rows);
        let expected: Vec<_> = rows.iter().map(|row| reference(&logits[row.row as usize * vocab..][..vocab], row)).collect();
        let other = got.iter().zip(&expected).filter(|(got, expected)| got != expected).count();
        prop_assert!(got.iter().all(Option::is_some));
        prop_assert!(other <= 1, "{got:?} for {expected:?}");
    }
}
