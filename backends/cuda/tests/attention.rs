//! Attention of ragged steps over pages, against F64.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use proptest::prelude::*;
use support::{assert_close, device, get, integers, put, random, room, rounded, tolerance};
use tandem_cuda::{Attention, Device, KvPages, Number, PROMPT_ROWS, Scene};

/// Tokens of a sequence that lie in the cache before the step, and those of the step.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    start: usize,
    rows: usize,
}

#[derive(Clone, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page_len: usize,
    window: Option<usize>,
    cap: Option<f32>,
    number: Number,
    kv: Number,
    /// Whether each token's key is larger than those before it, so that scores are larger and larger.
    louder: bool,
    sequences: Vec<Sequence>,
}

impl Case {
    /// Whether on tensor cores or row by row, all rows of the step.
    fn check(&self, device: &Device, prompts: bool) {
        let &Self { heads, kv_heads, head_dim, page_len, window, cap, number, kv, louder, .. } = self;
        let what = format!("{self:?}, prompts: {prompts}");
        let width = (heads + 2 * kv_heads) * head_dim;
        let rows: usize = self.sequences.iter().map(|sequence| sequence.rows).sum();
        let qkv = random(1, rows * width);
        let qkv_there = put(device, Number::F32, &qkv);
        let most =
            self.sequences.iter().map(|sequence| (sequence.start + sequence.rows).div_ceil(page_len)).max().unwrap();
        let count = self.sequences.len();
        let pages = KvPages::new(device, kv, most * count + 1, page_len, kv_heads, head_dim).unwrap();
        // Pages lie in no order; what is not used holds what is no number.
        let table = |sequence: usize| (0..most).map(move |at| 1 + ((most - 1 - at) * count + sequence));
        let none = vec![f32::NAN; kv_heads * head_dim];
        for slot in 0..pages.slots() {
            pages.put_token(slot, &none, &none).unwrap();
        }
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (at, sequence) in self.sequences.iter().enumerate() {
            let seed = 100 + at as u64;
            let tokens = sequence.start + sequence.rows;
            let [mut k, v] = [seed, seed + 50].map(|seed| random(seed, tokens * kv_heads * head_dim));
            if louder {
                let token = |at: usize| at / (kv_heads * head_dim);
                k.iter_mut().enumerate().for_each(|(at, k)| *k *= 30.0 * (token(at) + 1) as f32 / tokens as f32);
            }
            for token in 0..tokens {
                let page = table(at).nth(token / page_len).unwrap();
                let range = token * kv_heads * head_dim..(token + 1) * kv_heads * head_dim;
                pages.put_token(page * page_len + token % page_len, &k[range.clone()], &v[range]).unwrap();
            }
            keys.push(rounded(kv, &k));
            values.push(rounded(kv, &v));
        }
        let tables: Vec<i32> = (0..count).flat_map(table).map(|page| page as i32).collect();
        let tables_there = integers(device, &tables);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = Attention::new(device, heads, kv_heads, head_dim, scale, cap).unwrap();
        let out = room(device, number, rows * heads * head_dim);
        let scene = Scene {
            qkv: qkv_there.all(),
            rows,
            pages: &pages,
            window,
            tables: tables_there.all(),
            table_stride: most,
            sequences: count,
            out: out.all(),
            number,
        };
        let of_rows: Vec<(usize, usize)> = self
            .sequences
            .iter()
            .enumerate()
            .flat_map(|(at, sequence)| (0..sequence.rows).map(move |row| (at, sequence.start + row)))
            .collect();
        if prompts {
            assert!(attention.has_prompts(number, kv), "{what}");
            let flash = attention.flash_keys(number, kv, page_len).is_some();
            let whole_tiles = page_len.is_multiple_of(32) && number == kv;
            assert_eq!(flash, device.has_flash_attention() && whole_tiles, "{what}");
            let mut runs: [Vec<i32>; 4] = Default::default();
            let mut first = 0;
            for (at, sequence) in self.sequences.iter().enumerate() {
                for run in (0..sequence.rows).step_by(PROMPT_ROWS) {
                    let of_run = [first + run, (sequence.rows - run).min(PROMPT_ROWS), at, sequence.start + run];
                    runs.iter_mut().zip(of_run).for_each(|(list, number)| list.push(number as i32));
                }
                first += sequence.rows;
            }
            let count = runs[0].len();
            let runs = integers(device, &runs.concat());
            attention.prompts(device, &scene, runs.all(), count).unwrap();
        } else {
            // The last row first, so that the list says something.
            let list = integers(device, &(0..rows as i32).rev().collect::<Vec<_>>());
            let sequences = integers(device, &of_rows.iter().map(|row| row.0 as i32).collect::<Vec<_>>());
            let positions = integers(device, &of_rows.iter().map(|row| row.1 as i32).collect::<Vec<_>>());
            attention.rows(device, &scene, list.all(), rows, sequences.all(), positions.all()).unwrap();
        }
        let mut expected = Vec::new();
        for (row, &(sequence, position)) in of_rows.iter().enumerate() {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let vector = |of: &[f32], token: usize| {
                    of[(token * kv_heads + kv_head) * head_dim..][..head_dim]
                        .iter()
                        .map(|x| f64::from(*x))
                        .collect::<Vec<_>>()
                };
                let query = &qkv[row * width + head * head_dim..][..head_dim];
                let seen = window.map_or(0, |window| (position + 1).saturating_sub(window))..=position;
                let score = |token: usize| {
                    let key = vector(&keys[sequence], token);
                    let score = key.iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>() * f64::from(scale);
                    cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let weights: Vec<f64> = seen.clone().map(|token| score(token).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sum = vec![0.0; head_dim];
                for (token, weight) in seen.zip(&weights) {
                    let value = vector(&values[sequence], token);
                    sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight / total * value);
                }
                expected.extend(sum);
            }
        }
        // Queries and weights are rounded too where tensor cores multiply.
        assert_close(&get(&out, number), &expected, tolerance(number), &what);
    }
}

fn ragged() -> Vec<Sequence> {
    [(0, 1), (37, 1), (0, 70), (15, 3), (100, 33)].map(|(start, rows)| Sequence { start, rows }).to_vec()
}

fn case(heads: usize, kv_heads: usize, head_dim: usize) -> Case {
    let number = Number::Bf16;
    Case {
        heads,
        kv_heads,
        head_dim,
        page_len: 16,
        window: None,
        cap: None,
        number,
        kv: number,
        louder: false,
        sequences: ragged(),
    }
}

/// Activations and caches that there are kernels on tensor cores for.
const PAIRS: [(Number, Number); 5] = [
    (Number::Bf16, Number::Bf16),
    (Number::Bf16, Number::F16),
    (Number::F16, Number::F16),
    (Number::Bf16, Number::F8),
    (Number::F16, Number::F8),
];

#[test]
fn rows_of_heads_of_all_sizes() {
    let device = device();
    for (heads, kv_heads, head_dim) in
        [(4, 4, 64), (4, 2, 64), (7, 1, 96), (8, 2, 128), (3, 1, 256), (6, 2, 10), (2, 1, 80)]
    {
        for number in [Number::F32, Number::Bf16, Number::F16] {
            Case { number, kv: number, ..case(heads, kv_heads, head_dim) }.check(&device, false);
        }
        Case { kv: Number::F8, ..case(heads, kv_heads, head_dim) }.check(&device, false);
    }
}

#[test]
fn prompts_of_heads_of_all_sizes() {
    let device = device();
    // Groups of one head, of two, and of an odd number.
    for (heads, kv_heads, head_dim) in
        [(3, 1, 64), (1, 1, 64), (4, 2, 96), (2, 2, 96), (3, 1, 128), (2, 2, 128), (2, 1, 256)]
    {
        for (number, kv) in PAIRS {
            Case { number, kv, ..case(heads, kv_heads, head_dim) }.check(&device, true);
        }
    }
}

/// Where a device has FlashAttention-2's kernels, these are what is computed with.
#[test]
fn prompts_over_pages_of_whole_tiles() {
    let device = device();
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (2, 1, 96), (4, 1, 128), (2, 1, 256)] {
        for (number, page_len, window, cap) in [
            (Number::Bf16, 32, None, None),
            (Number::F16, 64, Some(40), None),
            (Number::F16, 96, None, Some(3.0)),
            (Number::Bf16, 64, Some(100), Some(3.0)),
        ] {
            Case { number, kv: number, page_len, window, cap, ..case(heads, kv_heads, head_dim) }.check(&device, true);
        }
    }
}

#[test]
fn prompts_on_pages_of_all_lengths() {
    let device = device();
    for page_len in [1, 7, 16, 32, 33, 200] {
        for (at, head_dim) in [64, 96, 128, 256].into_iter().enumerate() {
            let (number, kv) = PAIRS[(page_len + at) % PAIRS.len()];
            let sequences = [(3, 61), (page_len, 20), (130, 17)].map(|(start, rows)| Sequence { start, rows }).to_vec();
            Case { page_len, number, kv, sequences, ..case(2, 1, head_dim) }.check(&device, true);
        }
    }
}

/// The tokens of a sequence end around where tiles of keys do.
#[test]
fn prompts_that_end_anywhere() {
    let device = device();
    for (number, kv) in [PAIRS[0], PAIRS[4]] {
        for end in [31, 32, 33, 63, 64, 65, 95, 96, 97] {
            let sequences =
                [(0, end), (end - 16, 16), (end - 17, 17)].map(|(start, rows)| Sequence { start, rows }).to_vec();
            let case = Case { number, kv, sequences, ..case(2, 1, 64) };
            Case { head_dim: 128, ..case.clone() }.check(&device, true);
            case.check(&device, true);
        }
    }
}

/// What sums are relative to has to follow the scores.
#[test]
fn scores_that_grow() {
    let device = device();
    for head_dim in [64, 96, 128, 256] {
        let number = Number::F16;
        let case = Case { number, kv: number, louder: true, ..case(2, 1, head_dim) };
        case.check(&device, true);
        Case { window: Some(50), cap: Some(20.0), ..case }.check(&device, true);
    }
}

#[test]
fn windows_and_caps() {
    let device = device();
    // Among them those at which a warp's first row sees one token of a tile of 32, and its last row all but one.
    for (window, cap) in [
        (Some(1), None),
        (Some(18), None),
        (Some(20), Some(5.0)),
        (Some(63), None),
        (Some(64), None),
        (Some(33), Some(0.3)),
        (Some(1000), None),
        (None, Some(2.0)),
    ] {
        let case = Case { window, cap, page_len: 32, ..case(2, 1, 64) };
        case.check(&device, false);
        case.check(&device, true);
        Case { heads: 3, head_dim: 128, ..case.clone() }.check(&device, true);
        Case { number: Number::F32, kv: Number::F32, head_dim: 12, ..case }.check(&device, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_step(
        starts in prop::collection::vec((0usize..200, 1usize..90), 1..4),
        group in prop::sample::select(vec![1usize, 2, 4, 7]),
        kv_heads in 1usize..3,
        head_dim in prop::sample::select(vec![64usize, 96, 128]),
        window in prop::option::of(1usize..150),
        cap in prop::option::of(0.5f32..30.0),
        page_len in 1usize..70,
        (number, kv) in prop::sample::select(PAIRS.to_vec()),
        f32_too in any::<bool>(),
    ) {
        let sequences = starts.into_iter().map(|(start, rows)| Sequence { start, rows }).collect();
        let case = Case {
            heads: group * kv_heads, kv_heads, head_dim, page_len, window, cap, number, kv, louder: false, sequences,
        };
        let device = device();
        case.check(&device, true);
        if f32_too {
            Case { number: Number::F32, kv: Number::F32, ..case }.check(&device, false);
        }
    }
}
