use super::{
    SamplingParams, math,
    truncation::{Truncation, drop_behind},
};
use crate::{SampleError, SampleRow, Sampled, TokenId, TokenLogprobs, TokenMask};

/// The reference implementation, with buffers that live from row to row.
#[derive(Debug, Default)]
pub struct Sampler {
    truncation: Truncation,
    /// Unnormalized probabilities; that of the likeliest token is 1. What a truncation drops becomes 0.
    weights: Vec<f32>,
    /// What typical-p ranks by.
    keys: Vec<f32>,
    /// Of each block of weights.
    sums: Vec<f64>,
    /// How often each token was seen; all 0 between rows.
    counts: Vec<u32>,
    /// A row with its biases, bans and penalties.
    adjusted: Vec<f32>,
}

impl Sampler {
    /// Chooses one token from `logits`, one per token of the vocabulary. Only rows with biases, bans or penalties are copied.
    ///
    /// # Errors
    /// [`SampleError::NonFinite`] when a logit is NaN or infinite upwards, [`SampleError::NothingLeft`] when bans and biases leave no
    /// token.
    pub fn sample(&mut self, logits: &[f32], row: &SampleRow<'_>) -> Result<Sampled, SampleError> {
        let max = math::finite_max(logits).ok_or(SampleError::NonFinite)?;
        let reported = row.logprobs.map(|count| {
            let log_total = math::log_sum_exp(logits, max);
            (log_total, self.reported(logits, log_total, count, &row.params.reported))
        });
        let token = if row.adjusts_logits() {
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted, row);
            let token = math::finite_max(&adjusted).map(|max| self.choose(&adjusted, max, row));
            self.adjusted = adjusted;
            token.ok_or(SampleError::NothingLeft)?
        } else {
            self.choose(logits, max, row)
        };
        let logprobs =
            reported.map(|(log_total, top)| TokenLogprobs { logprob: logits[token as usize] - log_total, top });
        Ok(Sampled { token, logprobs })
    }

    /// What `logits` say of `target`, and of other tokens as a [`ScoreRow`](crate::ScoreRow) asks.
    ///
    /// # Errors
    /// [`SampleError::NonFinite`] as [`Self::sample`] has it.
    pub fn score(
        &mut self,
        logits: &[f32],
        target: TokenId,
        top: u8,
        reported: &[TokenId],
    ) -> Result<TokenLogprobs, SampleError> {
        let max = math::finite_max(logits).ok_or(SampleError::NonFinite)?;
        let log_total = math::log_sum_exp(logits, max);
        let top = self.reported(logits, log_total, top, reported);
        Ok(TokenLogprobs { logprob: logprob(logits, log_total, target), top })
    }

    fn choose(&mut self, logits: &[f32], max: f32, row: &SampleRow<'_>) -> TokenId {
        if row.params.is_greedy() { math::position(logits, max) as TokenId } else { self.draw(logits, max, row) }
    }

    /// Bias, bans and penalties, in place.
    fn adjust(&mut self, logits: &mut [f32], row: &SampleRow<'_>) {
        let params = row.params;
        for &(token, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if bias <= -100.0 { f32::NEG_INFINITY } else { *logit + bias };
            }
        }
        for &token in row.banned {
            ban(logits, token);
        }
        for word in &params.bad_words {
            if let Some((&last, before)) = word.split_last()
                && row.output.ends_with(before)
            {
                ban(logits, last);
            }
        }
        for allowed in params.allowed.as_deref().into_iter().chain(row.allowed) {
            ban_all_but(logits, allowed);
        }
        if params.has_penalties() {
            self.penalize(logits, row);
        }
    }

    fn penalize(&mut self, logits: &mut [f32], row: &SampleRow<'_>) {
        let &SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, .. } = row.params;
        self.counts.resize(self.counts.len().max(logits.len()), 0);
        let Self { counts, .. } = self;
        for &token in row.output {
            if let Some(count) = counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        // Each token of the output once: its count is taken when it is met first.
        for &token in row.output {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            let count = std::mem::take(&mut counts[token as usize]);
            if count > 0 {
                *logit = repeated(*logit, repetition_penalty);
                *logit -= presence_penalty + frequency_penalty * count as f32;
            }
        }
        if repetition_penalty == 1.0 {
            return;
        }
        // What stands in the prompt alone. Tokens that were met are marked, and unmarked afterwards.
        row.output.iter().for_each(|&token| mark(counts, token, 1));
        for &token in row.prompt {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if std::mem::replace(&mut counts[token as usize], 1) == 0 {
                *logit = repeated(*logit, repetition_penalty);
            }
        }
        row.output.iter().chain(row.prompt).for_each(|&token| mark(counts, token, 0));
    }

    /// One draw from what temperature and the truncations leave.
    fn draw(&mut self, logits: &[f32], max: f32, row: &SampleRow<'_>) -> TokenId {
        let &SamplingParams { temperature, top_k, top_p, min_p, typical_p, .. } = row.params;
        let scale = 1.0 / temperature;
        math::weigh(logits, max, scale, &mut self.weights);
        if min_p > 0.0 {
            self.weights.iter_mut().for_each(|weight| *weight = if *weight >= min_p { *weight } else { 0.0 });
        }
        if top_k > 0 && (top_k as usize) < logits.len() {
            self.keep_likeliest(top_k as usize);
        }
        if typical_p < 1.0 {
            self.keep_typical(logits, max, scale, typical_p.into());
        }
        if top_p < 1.0 {
            self.keep_nucleus(top_p.into());
        }
        let total = math::sum_blocks(&self.weights, &mut self.sums);
        pick(&self.weights, &self.sums, f64::from(row.u) * total)
    }

    fn keep_likeliest(&mut self, count: usize) {
        let Self { truncation, weights, .. } = self;
        let floor = truncation.floor_of_likeliest(weights, count).max(f32::MIN_POSITIVE);
        if let Some(last) = truncation.cut(weights, |_| 1.0, count as f64, floor) {
            drop_behind(weights, None, last);
        }
    }

    /// The smallest set of likeliest tokens that weighs at least `share` of all.
    fn keep_nucleus(&mut self, share: f64) {
        let Self { truncation, weights, sums, .. } = self;
        let total = math::sum_blocks(weights, sums);
        // All tokens below this weigh less, together, than what may be left out, so none of them is kept. A little lower, for the rounding
        // of the sum.
        let floor = (0.999 * (1.0 - share) * total / weights.len() as f64) as f32;
        let measure = |token: TokenId| f64::from(weights[token as usize]);
        if let Some(last) = truncation.cut(weights, measure, share * total, floor.max(f32::MIN_POSITIVE)) {
            drop_behind(weights, None, last);
        }
    }

    /// The smallest set that weighs at least `share` of all, those first whose surprise is nearest to the entropy.
    fn keep_typical(&mut self, logits: &[f32], max: f32, scale: f32, share: f64) {
        let Self { truncation, weights, sums, keys, .. } = self;
        let total = math::sum_blocks(weights, sums);
        let log_total = total.ln() as f32;
        let surprise = |logit: f32| log_total - (logit - max) * scale;
        let kept = || std::iter::zip(&*weights, logits).filter(|(weight, _)| **weight > 0.0);
        let entropy = kept().map(|(&weight, &logit)| f64::from(weight * surprise(logit))).sum::<f64>() / total;
        let key = |weight: f32, logit: f32| match weight {
            0.0 => 0.0,
            // Between 0 and 1, and the higher the nearer.
            _ => (1.0 + (f64::from(surprise(logit)) - entropy).abs()).recip() as f32,
        };
        keys.clear();
        keys.extend(std::iter::zip(&*weights, logits).map(|(&weight, &logit)| key(weight, logit)));
        let measure = |token: TokenId| f64::from(weights[token as usize]);
        if let Some(last) = truncation.cut(keys, measure, share * total, f32::MIN_POSITIVE) {
            drop_behind(weights, Some(keys), last);
        }
    }

    fn reported(&mut self, logits: &[f32], log_total: f32, count: u8, named: &[TokenId]) -> Vec<(TokenId, f32)> {
        if !named.is_empty() {
            return named.iter().map(|&token| (token, logprob(logits, log_total, token))).collect();
        }
        if count == 0 {
            return Vec::new();
        }
        self.truncation.likeliest(logits, count.into()).map(|(token, logit)| (token, logit - log_total)).collect()
    }
}

fn logprob(logits: &[f32], log_total: f32, token: TokenId) -> f32 {
    logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logit - log_total)
}

fn ban(logits: &mut [f32], token: TokenId) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

fn ban_all_but(logits: &mut [f32], allowed: &TokenMask) {
    let mut words = allowed.words().iter();
    for run in logits.chunks_mut(32) {
        match words.next().copied().unwrap_or(0) {
            u32::MAX => {}
            0 => run.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in run.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

fn repeated(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 { logit / penalty } else { logit * penalty }
}

fn mark(counts: &mut [u32], token: TokenId, as_seen: u32) {
    if let Some(count) = counts.get_mut(token as usize) {
        *count = as_seen;
    }
}

/// The first token, in order of id, at which the cumulated weight exceeds `target`; the last with any weight when rounding lets none do
/// so. `sums` are those of the blocks of `weights`: first the block is found, then the place in it.
fn pick(weights: &[f32], sums: &[f64], target: f64) -> TokenId {
    let mut mass = 0.0;
    let mut place = (0, 0.0);
    for (block, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        place = (block * math::BLOCK, mass);
        mass += sum;
        if mass > target {
            break;
        }
    }
    let (start, mut mass) = place;
    let mut last = start;
    for (at, &weight) in weights.iter().enumerate().skip(start).take(math::BLOCK).filter(|(_, weight)| **weight > 0.0) {
        mass += f64::from(weight);
        last = at;
        if mass > target {
            break;
        }
    }
    last as TokenId
}
