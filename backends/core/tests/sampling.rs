//! What sampling promises, whatever the logits are.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::sync::Arc;

use proptest::prelude::*;
use tandem_core::{
    SampleError, SampleRow, Sampled, SamplingParams, SlotId, TokenId, TokenMask,
    sampling::{Sampler, uniform},
};

fn row(params: &SamplingParams, u: f32) -> SampleRow<'_> {
    SampleRow { slot: SlotId(0), params, u, prompt: &[], output: &[], banned: &[], allowed: None, logprobs: None }
}

fn sample(logits: &[f32], row: &SampleRow<'_>) -> Result<Sampled, SampleError> {
    Sampler::default().sample(logits, row)
}

fn token(logits: &[f32], row: &SampleRow<'_>) -> TokenId {
    sample(logits, row).unwrap().token
}

/// How often each token is chosen over an even grid of draws: its probability, as the sampler has it.
fn shares(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    const DRAWS: u32 = 4_000;
    let mut counts = vec![0u32; logits.len()];
    for draw in 0..DRAWS {
        let u = (f64::from(draw) + 0.5) / f64::from(DRAWS);
        counts[token(logits, &row(params, u as f32)) as usize] += 1;
    }
    counts.into_iter().map(|count| f64::from(count) / f64::from(DRAWS)).collect()
}

fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let weights: Vec<_> = logits.iter().map(|&logit| (f64::from(logit) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

fn assert_close(got: &[f64], expected: &[f64]) {
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() < 2e-3, "token {at}: {got} where {expected} is right");
    }
}

#[test]
fn without_truncation_the_distribution_is_the_softmax() {
    let logits = [0.5, -1.0, 2.0, 0.0, 1.5];
    for temperature in [0.5, 1.0, 1.8] {
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        assert_close(&shares(&logits, &params), &softmax(&logits, temperature));
    }
}

#[test]
fn truncations_keep_the_likeliest_and_their_proportions() {
    let logits = [0.5, -1.0, 2.0, 0.0, 1.5];
    let all = softmax(&logits, 1.0);
    let renormalized = |kept: &[usize]| {
        let total: f64 = kept.iter().map(|&at| all[at]).sum();
        (0..logits.len()).map(|at| if kept.contains(&at) { all[at] / total } else { 0.0 }).collect::<Vec<_>>()
    };
    let default = SamplingParams::default;
    assert_close(&shares(&logits, &SamplingParams { top_k: 2, ..default() }), &renormalized(&[2, 4]));
    assert_close(&shares(&logits, &SamplingParams { top_k: 99, ..default() }), &all);
    // 2.0 has 0.49 of the mass, 1.5 has 0.30, 0.5 has 0.11.
    assert_close(&shares(&logits, &SamplingParams { top_p: 0.5, ..default() }), &renormalized(&[2, 4]));
    assert_close(&shares(&logits, &SamplingParams { top_p: 0.85, ..default() }), &renormalized(&[2, 4, 0]));
    // A fifth of the likeliest: a logit of at most ln 5 = 1.61 below it.
    assert_close(&shares(&logits, &SamplingParams { min_p: 0.2, ..default() }), &renormalized(&[2, 4, 0]));
    // After top-k the mass is counted anew: 2.0 alone is then 0.62 of it.
    let both = SamplingParams { top_k: 2, top_p: 0.6, ..default() };
    assert_close(&shares(&logits, &both), &renormalized(&[2]));
}

#[test]
fn penalties_and_bias_move_logits_as_documented() {
    let logits = [2.0, -1.0, 1.9, 0.0];
    let greedy = |params: SamplingParams, prompt: &[TokenId], output: &[TokenId]| {
        let params = SamplingParams { temperature: 0.0, ..params };
        token(&logits, &SampleRow { prompt, output, ..row(&params, 0.0) })
    };
    let default = SamplingParams::default;
    assert_eq!(greedy(default(), &[0], &[0]), 0);
    assert_eq!(greedy(SamplingParams { repetition_penalty: 1.1, ..default() }, &[0], &[]), 2, "prompt tokens count");
    assert_eq!(
        greedy(SamplingParams { presence_penalty: 0.2, ..default() }, &[0], &[]),
        0,
        "prompt tokens do not count"
    );
    assert_eq!(greedy(SamplingParams { presence_penalty: 0.2, ..default() }, &[], &[0]), 2);
    assert_eq!(greedy(SamplingParams { frequency_penalty: 0.06, ..default() }, &[], &[0]), 0, "once is not enough");
    assert_eq!(greedy(SamplingParams { frequency_penalty: 0.06, ..default() }, &[], &[0, 0]), 2, "twice is");
    assert_eq!(greedy(SamplingParams { logit_bias: vec![(1, 4.0)], ..default() }, &[], &[]), 1);
    assert_eq!(greedy(SamplingParams { logit_bias: vec![(0, -100.0), (9, 5.0)], ..default() }, &[], &[]), 2);
}

#[test]
fn rows_that_cannot_be_sampled_are_errors() {
    let params = SamplingParams::default();
    for broken in [f32::NAN, f32::INFINITY] {
        assert_eq!(sample(&[0.0, broken, 1.0], &row(&params, 0.5)), Err(SampleError::NonFinite));
    }
    assert_eq!(sample(&[f32::NEG_INFINITY; 3], &row(&params, 0.5)), Err(SampleError::NonFinite));
    let banned = SampleRow { banned: &[0, 1], ..row(&params, 0.5) };
    assert_eq!(sample(&[0.0, 1.0], &banned), Err(SampleError::NothingLeft));
}

#[test]
fn reported_logprobs_are_the_models_own() {
    let logits = [2.0, -1.0, 1.9, 0.0];
    let expected = softmax(&logits, 1.0);
    let params = SamplingParams {
        temperature: 0.3,
        top_k: 1,
        repetition_penalty: 1.5,
        logit_bias: vec![(3, 7.0)],
        ..SamplingParams::default()
    };
    let asked = SampleRow { output: &[0], logprobs: Some(3), ..row(&params, 0.0) };
    let sampled = sample(&logits, &asked).unwrap();
    assert_eq!(sampled.token, 3, "the bias decides");
    let logprobs = sampled.logprobs.unwrap();
    assert!((f64::from(logprobs.logprob) - expected[3].ln()).abs() < 1e-5, "and is not reported");
    let top: Vec<_> = logprobs.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(top, [0, 2, 3]);
    assert!((f64::from(logprobs.top[1].1) - expected[2].ln()).abs() < 1e-5);
}

#[test]
fn draws_are_uniform_and_depend_on_seed_and_position_alone() {
    let mut buckets = [0u32; 16];
    for seed in 0..64 {
        for position in 0..1024 {
            let u = uniform(seed, position);
            assert!((0.0..1.0).contains(&u));
            assert_eq!(u.to_bits(), uniform(seed, position).to_bits());
            buckets[(u * 16.0) as usize] += 1;
        }
    }
    // 4,096 expected in each, with a standard deviation of 62.
    assert!(buckets.iter().all(|count| (3_850..4_350).contains(count)), "{buckets:?}");
}

#[test]
fn typical_sampling_keeps_what_is_neither_too_likely_nor_too_rare() {
    // Probabilities 0.4, 0.3, 0.2 and 0.1 have an entropy of 1.28; their surprises are 0.92, 1.20, 1.61 and 2.30.
    let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln).to_vec();
    let typical = |typical_p| shares(&logits, &SamplingParams { typical_p, ..SamplingParams::default() });
    assert_close(&typical(0.25), &[0.0, 1.0, 0.0, 0.0]);
    // Then comes 0.2, whose surprise is 0.33 off, before 0.4 with 0.36.
    assert_close(&typical(0.45), &[0.0, 0.6, 0.4, 0.0]);
    assert_close(&typical(0.6), &[4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0, 0.0]);
    assert_close(&typical(1.0), &[0.4, 0.3, 0.2, 0.1]);
}

#[test]
fn only_allowed_tokens_are_chosen_and_masks_meet() {
    let logits: Vec<f32> = (0..70).map(|at| at as f32 / 10.0).collect();
    let all = SamplingParams::greedy();
    let listed = SamplingParams { allowed: Some(Arc::new(TokenMask::of(70, [3, 40, 64]))), ..all.clone() };
    assert_eq!(token(&logits, &row(&listed, 0.0)), 64);
    let grammar = TokenMask::of(70, [2, 3, 40]);
    assert_eq!(token(&logits, &SampleRow { allowed: Some(&grammar), ..row(&all, 0.0) }), 40);
    let both = SampleRow { allowed: Some(&grammar), ..row(&listed, 0.0) };
    assert_eq!(token(&logits, &SampleRow { banned: &[40], ..both }), 3);
    // Tokens beyond a mask are not in it.
    let short = TokenMask::of(33, [1, 32, 50]);
    assert_eq!(token(&logits, &SampleRow { allowed: Some(&short), ..row(&all, 0.0) }), 50);
    let none = TokenMask::empty(70);
    let nothing = SampleRow { allowed: Some(&none), ..row(&all, 0.0) };
    assert_eq!(sample(&logits, &nothing), Err(SampleError::NothingLeft));
}

#[test]
fn a_bad_word_is_never_finished() {
    let logits = [0.0, 3.0, 2.0, 1.0];
    let params = SamplingParams { bad_words: vec![vec![1, 2], vec![3]], ..SamplingParams::greedy() };
    let next = |output: &[TokenId]| token(&logits, &SampleRow { output, ..row(&params, 0.0) });
    assert_eq!(next(&[]), 1, "the beginning of a bad word is no bad word");
    let after = SamplingParams { logit_bias: vec![(1, -100.0)], ..params.clone() };
    assert_eq!(token(&logits, &SampleRow { output: &[0], ..row(&after, 0.0) }), 2);
    assert_eq!(token(&logits, &SampleRow { output: &[1], ..row(&after, 0.0) }), 0, "neither 2 after 1, nor 3 ever");
    assert_eq!(token(&logits, &SampleRow { prompt: &[1], output: &[], ..row(&after, 0.0) }), 2, "prompts do not count");
}

/// Sampling as the documentation has it, in double precision and sorting everything; the token, and how near the draw or one of the
/// truncations came to another decision.
fn naive(logits: &[f32], row: &SampleRow<'_>) -> (TokenId, f64) {
    let params = row.params;
    let adjusted = std::iter::zip(0.., logits).map(|(id, &logit)| {
        let count = row.output.iter().filter(|&&one| one == id).count();
        let mut logit = f64::from(logit);
        if count > 0 || row.prompt.contains(&id) {
            let penalty = f64::from(params.repetition_penalty);
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        if count > 0 {
            logit -= f64::from(params.presence_penalty) + f64::from(params.frequency_penalty) * count as f64;
        }
        let out = row.banned.contains(&id) || row.allowed.is_some_and(|mask| !mask.contains(id));
        if out { f64::NEG_INFINITY } else { logit }
    });
    let logits: Vec<f64> = adjusted.collect();
    let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut kept: Vec<usize> = (0..logits.len()).filter(|&at| logits[at].is_finite()).collect();
    kept.sort_by(by_logit);
    if params.is_greedy() {
        let gap = kept.get(1).map_or(1.0, |second| logits[kept[0]] - logits[*second]);
        return (kept[0] as TokenId, if gap == 0.0 { 1.0 } else { gap });
    }
    let max = logits[kept[0]];
    let weight = |at: usize| ((logits[at] - max) / f64::from(params.temperature)).exp();
    let mut margin = f64::INFINITY;
    kept.retain(|&at| {
        margin = margin.min(if params.min_p > 0.0 { (weight(at) - f64::from(params.min_p)).abs() } else { 1.0 });
        weight(at) >= f64::from(params.min_p)
    });
    if params.top_k > 0 && (params.top_k as usize) < kept.len() {
        let border = params.top_k as usize;
        let gap = logits[kept[border - 1]] - logits[kept[border]];
        // Equal logits as given stay equal; penalties may round.
        margin = margin.min(if gap == 0.0 { 1.0 } else { gap });
        kept.truncate(border);
    }
    if params.typical_p < 1.0 {
        let mass: f64 = kept.iter().map(|&at| weight(at)).sum();
        // Not from the probability, which may be too small for a number: what is that rare adds nothing, rather than zero times infinity.
        let surprise = |at: usize| mass.ln() - (logits[at] - max) / f64::from(params.temperature);
        let entropy: f64 = kept.iter().map(|&at| weight(at) / mass * surprise(at)).sum();
        let off = |at: usize| (surprise(at) - entropy).abs();
        kept.sort_by(|a, b| off(*a).total_cmp(&off(*b)).then(a.cmp(b)));
        let nearest =
            kept.windows(2).filter(|pair| logits[pair[0]] != logits[pair[1]]).map(|pair| off(pair[1]) - off(pair[0]));
        let nearest = nearest.fold(f64::INFINITY, f64::min);
        margin = margin.min(nearest).min(cut(&mut kept, f64::from(params.typical_p), weight));
        kept.sort_by(by_logit);
    }
    if params.top_p < 1.0 {
        let gaps = kept.windows(2).map(|pair| logits[pair[0]] - logits[pair[1]]).filter(|gap| *gap != 0.0);
        let nearest = gaps.fold(f64::INFINITY, f64::min);
        margin = margin.min(nearest).min(cut(&mut kept, f64::from(params.top_p), weight));
    }
    kept.sort_unstable();
    let mass: f64 = kept.iter().map(|&at| weight(at)).sum();
    let mut reached = 0.0;
    let mut chosen = None;
    for &at in &kept {
        reached += weight(at) / mass;
        margin = margin.min((reached - f64::from(row.u)).abs());
        if chosen.is_none() && reached > f64::from(row.u) {
            chosen = Some(at);
        }
    }
    (chosen.unwrap_or(kept[kept.len() - 1]) as TokenId, margin)
}

/// Cuts the list where its weights reach `share` of all; how near to that they came elsewhere.
fn cut(kept: &mut Vec<usize>, share: f64, weight: impl Fn(usize) -> f64) -> f64 {
    let mass: f64 = kept.iter().map(|&at| weight(at)).sum();
    let mut margin = f64::INFINITY;
    let mut reached = 0.0;
    for place in 0..kept.len() {
        reached += weight(kept[place]) / mass;
        margin = margin.min((reached - share).abs());
        if reached >= share {
            kept.truncate(place + 1);
            break;
        }
    }
    margin
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let off = |on: std::ops::Range<f32>, off: f32| prop_oneof![Just(off), on];
    let shape =
        (0.0f32..2.0, prop_oneof![Just(0u32), 1u32..40], off(0.0..1.0, 1.0), off(0.0..1.0, 0.0), off(0.05..1.0, 1.0));
    let penalties = (0.5f32..2.0, -2.0f32..2.0, -2.0f32..2.0);
    (shape, penalties).prop_map(|((temperature, top_k, top_p, min_p, typical_p), (repetition, frequency, presence))| {
        SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            ..SamplingParams::default()
        }
    })
}

/// A weight that is no number above zero any more has no surprise to count.
#[test]
fn typical_sampling_bears_tokens_that_are_too_rare_for_a_number() {
    let logits = [-30.0, -20.0, 2.9, 3.0, -20.0];
    let params =
        SamplingParams { temperature: 0.056, typical_p: 0.05, repetition_penalty: 1.9, ..SamplingParams::default() };
    for u in [0.0, 0.3, 0.88] {
        let asked = SampleRow { output: &[0], ..row(&params, u) };
        assert_eq!(token(&logits, &asked), naive(&logits, &asked).0, "u = {u}");
        assert_eq!(token(&logits, &asked), 3);
    }
    // A weight that is a number, where the probability is none.
    let logits = [-27.633303, 2.8916984, 2.9871333, 2.986795];
    let params = SamplingParams { temperature: 0.041096438, typical_p: 0.05, ..SamplingParams::default() };
    assert_eq!(naive(&logits, &row(&params, 0.306)).0, 3);
    assert_eq!(token(&logits, &row(&params, 0.306)), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_fast_sampler_does_what_a_naive_one_does(
        logits in prop_oneof![
            proptest::collection::vec(-8.0f32..8.0, 2..2_000),
            proptest::collection::vec(-0.01f32..0.01, 2..2_000),
            proptest::collection::vec((-6i8..6).prop_map(f32::from), 2..600),
            proptest::collection::vec(prop_oneof![9 => -30.0f32..-20.0, 1 => 0.0f32..3.0], 2..2_000),
        ],
        params in params(),
        u in 0.0f32..1.0,
        output in proptest::collection::vec(0u32..300, 0..20),
        prompt in proptest::collection::vec(0u32..300, 0..20),
        masked in proptest::option::of(proptest::collection::vec(0u32..64, 1..40)),
    ) {
        let mask = masked.map(|tokens| TokenMask::of(64, tokens.into_iter().chain([0])));
        let asked = SampleRow { prompt: &prompt, output: &output, allowed: mask.as_ref(), ..row(&params, u) };
        let (expected, margin) = naive(&logits, &asked);
        let chosen = token(&logits, &asked);
        if let Some(mask) = &mask {
            prop_assert!(mask.contains(chosen));
        }
        // Where the decision hung by a hair, single precision may decide otherwise; a low temperature makes more of its rounding.
        let hair = 2e-5 * (1.0 + 1.0 / f64::from(asked.params.temperature.max(1e-4)));
        prop_assert!(chosen == expected || margin < hair, "{chosen} where {expected} is right, by {margin}");
    }

    #[test]
    fn a_banned_token_is_never_chosen(
        logits in proptest::collection::vec(-8.0f32..8.0, 2..300),
        params in params(),
        u in 0.0f32..1.0,
        output in proptest::collection::vec(0u32..300, 0..20),
    ) {
        let best = token(&logits, &row(&SamplingParams::greedy(), 0.0));
        let chosen = token(&logits, &SampleRow { banned: &[best], output: &output, ..row(&params, u) });
        prop_assert!(chosen != best && (chosen as usize) < logits.len());
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest(logits in proptest::collection::vec((-4i8..4).prop_map(f32::from), 1..300), u in 0.0f32..1.0) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = logits.iter().position(|&logit| logit == max).unwrap();
        for params in [SamplingParams::greedy(), SamplingParams { top_k: 1, ..SamplingParams::default() }, SamplingParams { top_p: 0.0, ..SamplingParams::default() }] {
            prop_assert_eq!(token(&logits, &row(&params, u)) as usize, first);
        }
    }

    #[test]
    fn the_nucleus_is_as_small_as_it_can_be(logits in proptest::collection::vec(-6.0f32..6.0, 1..2_000), top_p in 0.01f32..0.999, u in 0.0f32..1.0) {
        let probabilities = softmax(&logits, 1.0);
        let params = SamplingParams { top_p, ..SamplingParams::default() };
        let chosen = token(&logits, &row(&params, u)) as usize;
        // What is likelier than the chosen token does not reach top_p by itself, or the chosen one would have been cut off.
        let above: f64 = probabilities.iter().filter(|&&other| other > probabilities[chosen]).sum();
        prop_assert!(above < f64::from(top_p) + 1e-4, "{above} above the chosen token, top_p {top_p}");
    }

    #[test]
    fn one_sampler_for_many_rows_is_like_many_samplers(
        rows in proptest::collection::vec(proptest::collection::vec(-8.0f32..8.0, 40), 1..6),
        params in params(),
        u in 0.0f32..1.0,
    ) {
        let mut shared = Sampler::default();
        for logits in rows {
            let asked = SampleRow { output: &[1, 2, 2], logprobs: Some(4), ..row(&params, u) };
            prop_assert_eq!(shared.sample(&logits, &asked), sample(&logits, &asked));
        }
    }
}
