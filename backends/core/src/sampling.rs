//! What sampling means, for every backend.
//!
//! The order is: logit bias, bans, penalties, temperature, min-p, top-k, top-p, and then one draw. A backend with its logits in host memory
//! calls [`Sampler::sample`]; one that samples on its device is tested against it. Nothing here draws randomness: the engine passes
//! [`uniform`] of the seed and the position, so that a seeded request gives the same tokens whatever else runs beside it.

use std::sync::Arc;

use crate::{SampleError, SampleRow, Sampled, TokenId, TokenLogprobs, TokenMask};

/// Below this a temperature means greedy decoding: dividing by it would overflow.
pub const GREEDY_BELOW: f32 = 1e-4;

/// How to choose a token from a row of logits. Ranges are checked where requests are parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// At least 0; under [`GREEDY_BELOW`] the likeliest token is taken.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probability is at least `top_p`; 1 keeps all, 0 the likeliest alone.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as probable as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keep the smallest set of tokens, those of the most usual surprise first, whose probability is at least `typical_p`; 1 keeps all
    /// (locally typical sampling, Meister et al. 2022).
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once for each time the token stands in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once if the token stands in the output; 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The only tokens that may be chosen, when there is such a list.
    pub allowed: Option<Arc<TokenMask>>,
    /// Sequences of tokens that the output may not contain: the last of each is banned where the others stand before it.
    pub bad_words: Vec<Vec<TokenId>>,
}

impl Default for SamplingParams {
    /// The model's own distribution, as in OpenAI's API.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed: None,
            bad_words: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether no randomness is involved.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW || self.top_k == 1 || self.top_p <= 0.0
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// A number in `[0, 1)` that depends on nothing but its arguments (the finalizer of `SplitMix64`, Steele et al. 2014).
#[must_use]
pub fn uniform(seed: u64, position: u32) -> f32 {
    let mut z = seed.wrapping_add(u64::from(position).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // 24 bits are what an f32 below 1 can hold exactly.
    (z >> 40) as f32 / (1u32 << 24) as f32
}

/// The reference implementation, with buffers that live from row to row.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
    history: Vec<TokenId>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    token: TokenId,
}

impl Candidate {
    /// Likelier first; of equals the lower id, so that ties do not depend on the sort.
    fn order(a: &Self, b: &Self) -> std::cmp::Ordering {
        b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
    }
}

impl Sampler {
    /// Chooses one token from `logits`, one per token of the vocabulary, which are overwritten.
    ///
    /// # Errors
    /// [`SampleError::NonFinite`] when a logit is NaN or infinite upwards, [`SampleError::NothingLeft`] when bans and biases leave no
    /// token.
    pub fn sample(&mut self, logits: &mut [f32], row: &SampleRow<'_>) -> Result<Sampled, SampleError> {
        let raw_max = finite_max(logits).ok_or(SampleError::NonFinite)?;
        let top = row.logprobs.map(|count| self.top_logprobs(logits, raw_max, count));
        let raw = row.logprobs.map(|_| RawRow::new(logits, raw_max, row));
        self.adjust(logits, row);
        let max = finite_max(logits).ok_or(SampleError::NothingLeft)?;
        let token = if row.params.is_greedy() { argmax(logits, max) } else { self.draw(logits, max, row) };
        let logprobs = top.zip(raw).map(|(top, raw)| TokenLogprobs { logprob: raw.logprob(logits, token), top });
        Ok(Sampled { token, logprobs })
    }

    /// Bias, bans and penalties, in place.
    fn adjust(&mut self, logits: &mut [f32], row: &SampleRow<'_>) {
        for &(token, bias) in &row.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if bias <= -100.0 { f32::NEG_INFINITY } else { *logit + bias };
            }
        }
        for &token in row.banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if row.params.has_penalties() {
            self.penalize(logits, row);
        }
    }

    fn penalize(&mut self, logits: &mut [f32], row: &SampleRow<'_>) {
        let params = row.params;
        if params.repetition_penalty != 1.0 {
            self.history.clear();
            self.history.extend_from_slice(row.prompt);
            self.history.extend_from_slice(row.output);
            self.history.sort_unstable();
            self.history.dedup();
            for &token in &self.history {
                let Some(logit) = logits.get_mut(token as usize) else { continue };
                let penalty = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
            self.history.clear();
            self.history.extend_from_slice(row.output);
            self.history.sort_unstable();
            for run in self.history.chunk_by(|a, b| a == b) {
                let Some(logit) = logits.get_mut(run[0] as usize) else { continue };
                *logit -= params.presence_penalty + params.frequency_penalty * run.len() as f32;
            }
        }
    }

    /// One draw from what temperature and the truncations leave.
    fn draw(&mut self, logits: &[f32], max: f32, row: &SampleRow<'_>) -> TokenId {
        let params = row.params;
        let weight = |logit: f32| ((logit - max) / params.temperature).exp();
        let floor = if params.min_p > 0.0 { max + params.temperature * params.min_p.ln() } else { f32::NEG_INFINITY };
        let keeps_all = params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0;
        if keeps_all {
            let total: f64 = logits.iter().map(|&logit| f64::from(weight(logit))).sum();
            let all = std::iter::zip(0.., logits).map(|(token, &logit)| (token, weight(logit)));
            return pick(all, f64::from(row.u) * total);
        }
        self.candidates.clear();
        self.candidates.extend(
            std::iter::zip(0.., logits)
                .filter(|&(_, &logit)| logit >= floor && logit > f32::NEG_INFINITY)
                .map(|(token, &logit)| Candidate { logit, token }),
        );
        let kept = match params.top_k as usize {
            0 => self.candidates.len(),
            k => k.min(self.candidates.len()),
        };
        keep_likeliest(&mut self.candidates, kept);
        if params.top_p < 1.0 {
            let total: f64 = self.candidates.iter().map(|c| f64::from(weight(c.logit))).sum();
            keep_nucleus(&mut self.candidates, total * f64::from(params.top_p), weight);
        }
        self.candidates.sort_unstable_by(Candidate::order);
        let total: f64 = self.candidates.iter().map(|c| f64::from(weight(c.logit))).sum();
        pick(self.candidates.iter().map(|c| (c.token, weight(c.logit))), f64::from(row.u) * total)
    }

    fn top_logprobs(&mut self, logits: &[f32], max: f32, count: u8) -> Vec<(TokenId, f32)> {
        if count == 0 {
            return Vec::new();
        }
        let log_total = log_sum_exp(logits, max);
        self.candidates.clear();
        self.candidates.extend(std::iter::zip(0.., logits).map(|(token, &logit)| Candidate { logit, token }));
        let kept = usize::from(count).min(self.candidates.len());
        keep_likeliest(&mut self.candidates, kept);
        self.candidates.sort_unstable_by(Candidate::order);
        self.candidates.iter().map(|c| (c.token, c.logit - log_total)).collect()
    }
}

/// What is needed of the unadjusted row to tell the chosen token's own log-probability afterwards.
struct RawRow {
    log_total: f32,
    /// Logits that adjusting may overwrite, sorted by token.
    saved: Vec<(TokenId, f32)>,
}

impl RawRow {
    fn new(logits: &[f32], max: f32, row: &SampleRow<'_>) -> Self {
        let penalized = if row.params.has_penalties() { [row.prompt, row.output] } else { [&[][..], &[][..]] };
        let biased = row.params.logit_bias.iter().map(|(token, _)| token);
        let mut saved: Vec<_> = penalized
            .into_iter()
            .flatten()
            .chain(biased)
            .filter_map(|&token| Some((token, *logits.get(token as usize)?)))
            .collect();
        saved.sort_unstable_by_key(|&(token, _)| token);
        saved.dedup_by_key(|&mut (token, _)| token);
        Self { log_total: log_sum_exp(logits, max), saved }
    }

    fn logprob(&self, adjusted: &[f32], token: TokenId) -> f32 {
        let raw = match self.saved.binary_search_by_key(&token, |&(token, _)| token) {
            Ok(at) => self.saved[at].1,
            Err(_) => adjusted[token as usize],
        };
        raw - self.log_total
    }
}

/// The largest logit; `None` when one is NaN or positively infinite, or none is finite.
fn finite_max(logits: &[f32]) -> Option<f32> {
    let mut max = f32::NEG_INFINITY;
    let mut nan = false;
    for &logit in logits {
        nan |= logit.is_nan();
        max = max.max(logit);
    }
    (!nan && max.is_finite()).then_some(max)
}

fn argmax(logits: &[f32], max: f32) -> TokenId {
    logits.iter().position(|&logit| logit == max).map_or(0, |at| at as TokenId)
}

fn log_sum_exp(logits: &[f32], max: f32) -> f32 {
    let total: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    max + total.ln() as f32
}

/// Cuts the list down to its `kept` likeliest, in no order.
fn keep_likeliest(candidates: &mut Vec<Candidate>, kept: usize) {
    if kept < candidates.len() {
        candidates.select_nth_unstable_by(kept, Candidate::order);
        candidates.truncate(kept);
    }
}

/// Cuts the list down to the smallest set of likeliest candidates that weighs at least `enough`, sorting no more of it than that takes.
fn keep_nucleus(candidates: &mut Vec<Candidate>, enough: f64, weight: impl Fn(f32) -> f32) {
    let mut sorted = 0;
    let mut mass = 0.0;
    let mut batch = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let next = batch.min(rest.len());
        if next < rest.len() {
            rest.select_nth_unstable_by(next, Candidate::order);
        }
        rest[..next].sort_unstable_by(Candidate::order);
        for (at, candidate) in rest[..next].iter().enumerate() {
            mass += f64::from(weight(candidate.logit));
            if mass >= enough {
                candidates.truncate(sorted + at + 1);
                return;
            }
        }
        sorted += next;
        batch *= 8;
    }
}

/// The first token whose cumulated weight exceeds `target`; the last with any weight when rounding lets none do so.
fn pick(weighted: impl Iterator<Item = (TokenId, f32)>, target: f64) -> TokenId {
    let mut mass = 0.0;
    let mut last = 0;
    for (token, weight) in weighted {
        if weight > 0.0 {
            mass += f64::from(weight);
            last = token;
            if mass > target {
                break;
            }
        }
    }
    last
}
