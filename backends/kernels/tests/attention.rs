//! Attention over pages, against a softmax in F64 that knows neither pages nor tiles.

use proptest::prelude::*;
use tandem_kernels::{Attention, KvFormat, KvShape, Pages, Sight, Span};

/// One sequence: its pages, and its K and V by token.
struct Sequence {
    pages: Vec<u32>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// What the query at `position` gets.
fn reference(attention: &Attention, query: &[f32], sequence: &Sequence, head: usize, position: usize) -> Vec<f64> {
    let dim = query.len();
    let seen = match attention.sight {
        Sight::Back { window } => window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1,
        Sight::Whole => 0..sequence.keys.len(),
    };
    let part = |row: &Vec<f32>| row[head * dim..][..dim].iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    let score = |key: usize| {
        let product = part(&sequence.keys[key]).iter().zip(query).map(|(k, &q)| k * f64::from(q)).sum::<f64>();
        let score = product * f64::from(attention.scale);
        attention.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    };
    let weights: Vec<f64> = seen.clone().map(|key| score(key).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sums = vec![0.0; dim];
    for (key, weight) in seen.zip(weights) {
        for (sum, value) in sums.iter_mut().zip(part(&sequence.values[key])) {
            *sum += weight / total * value;
        }
    }
    sums
}

fn sights() -> impl Strategy<Value = Sight> {
    let back = prop::option::of(1usize..200).prop_map(|window| Sight::Back { window });
    prop_oneof![3 => back, 2 => Just(Sight::Whole)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_is_a_softmax_over_what_is_seen(
        lens in prop::collection::vec((0usize..300, 1usize..90), 1..4),
        group in 1usize..8, kv_heads in 1usize..4, head_dim in prop::sample::select(&[8usize, 10, 16, 40, 64, 80][..]),
        page_len in prop::sample::select(&[16usize, 32, 48][..]), soft_cap in prop::option::of(2.0f32..30.0),
        sight in sights(), format in prop::sample::select(&[KvFormat::F32, KvFormat::F16, KvFormat::Bf16][..]),
        threads in 1usize..3, seed in any::<u64>(),
    ) {
        let width = kv_heads * head_dim;
        let pages = lens.iter().map(|(before, len)| (before + len).div_ceil(page_len)).sum::<usize>();
        let mut cache = Pages::new(format, KvShape { pages, page_len, kv_heads, head_dim }).unwrap();
        // Pages are given out from the last to the first, in turns.
        let mut free: Vec<u32> = (0..pages as u32).collect();
        let sequences: Vec<_> = lens.iter().zip(1u64..).map(|(&(before, len), at)| {
            let tokens = before + len;
            let rows = |seed| values(seed, tokens * width).chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>();
            let sequence = Sequence {
                pages: (0..tokens.div_ceil(page_len)).map(|at| free.swap_remove(at * 7 % free.len())).collect(),
                keys: rows(seed ^ at), values: rows(seed ^ (at << 8)),
            };
            for (token, (key, value)) in sequence.keys.iter().zip(&sequence.values).enumerate() {
                cache.store(sequence.pages[token / page_len] as usize * page_len + token % page_len, key, value);
            }
            sequence
        }).collect();
        let attention = Attention { group, scale: 4.0 / (head_dim as f32).sqrt(), soft_cap, sight };
        let spans: Vec<_> = lens.iter().zip(&sequences)
            .map(|(&(start, len), sequence)| Span { start, len, pages: &sequence.pages }).collect();
        let rows = lens.iter().map(|(_, len)| len).sum::<usize>();
        let stride = group * width + 5;
        let queries = values(!seed, rows * stride);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = vec![f32::NAN; 3];
        pool.install(|| attention.forward(&queries, stride, &spans, &cache, &mut y));
        prop_assert_eq!(y.len(), rows * group * width);
        let tolerance = match format {
            KvFormat::F32 => 1e-5,
            KvFormat::F16 => 2e-3,
            KvFormat::Bf16 => 2e-2,
        };
        let mut results = queries.chunks(stride).zip(y.chunks(group * width));
        for (&(start, len), sequence) in lens.iter().zip(&sequences) {
            for (position, (queries, y)) in (start..start + len).zip(results.by_ref().take(len)) {
                for (head, (query, y)) in queries.chunks_exact(head_dim).zip(y.chunks_exact(head_dim)).enumerate() {
                    let expected = reference(&attention, query, sequence, head / group, position);
                    for (got, expected) in y.iter().zip(expected) {
                        prop_assert!((f64::from(*got) - expected).abs() <= tolerance, "position {}, head {}: {} for {}", position, head, got, expected);
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_page_held_before_does_not_matter() {
    let mut cache = Pages::new(KvFormat::F32, KvShape { pages: 2, page_len: 16, kv_heads: 1, head_dim: 16 }).unwrap();
    for slot in 0..32 {
        cache.store(slot, &[f32::NAN; 16], &[f32::INFINITY; 16]);
    }
    for slot in 16..19 {
        cache.store(slot, &[1.0; 16], &[slot as f32; 16]);
    }
    for sight in [Sight::Back { window: None }, Sight::Whole] {
        let attention = Attention { group: 1, scale: 1.0, soft_cap: None, sight };
        let mut y = Vec::new();
        attention.forward(&[0.0; 16], 16, &[Span { start: 2, len: 1, pages: &[1] }], &cache, &mut y);
        assert!(y.iter().all(|value| (value - 17.0).abs() < 1e-5), "{y:?}");
    }
}

#[test]
fn what_else_is_computed_makes_no_difference_to_the_bit() {
    let (len, head_dim, group) = (37, 10, 2);
    let mut cache = Pages::new(KvFormat::F32, KvShape { pages: 8, page_len: 16, kv_heads: 1, head_dim }).unwrap();
    for slot in 0..128 {
        cache.store(slot, &values(slot as u64, head_dim), &values(!slot as u64, head_dim));
    }
    let attention = Attention { group, scale: 0.4, soft_cap: None, sight: Sight::Whole };
    let stride = group * head_dim;
    let (ours, theirs) = (values(1, len * stride), values(2, 55 * stride));
    let (our_span, their_span) =
        (Span { start: 0, len, pages: &[4, 1, 6] }, Span { start: 0, len: 55, pages: &[0, 2, 3, 5] });
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    attention.forward(&ours, stride, &[our_span], &cache, &mut alone);
    attention.forward(&[&*theirs, &*ours].concat(), stride, &[their_span, our_span], &cache, &mut together);
    assert_eq!(together[theirs.len()..], alone);
}
