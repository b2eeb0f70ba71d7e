//! What sampling means, for every backend.
//!
//! The order is: logit bias, bans (of the row, of bad words, and of everything that is not allowed), penalties, temperature, min-p, top-k,
//! typical-p, top-p, and then one draw. Each truncation counts anew what the ones before it have left.
//!
//! The draw inverts the cumulated distribution *in order of token id*. Any order would do for one row; this one gives the same token where
//! rounding lets two nearly equal logits change places, as it does when the same row is computed in another batch, and it needs no sort,
//! here or on a device.
//!
//! A backend with its logits in host memory calls [`Sampler::sample`]; one that samples on its device is tested against it. Nothing here
//! draws randomness: the engine passes [`uniform`] of the seed and the position, so that a seeded request gives the same tokens whatever
//! else runs beside it.

mod math;
mod sampler;
mod truncation;

use std::sync::Arc;

use crate::{TokenId, TokenMask};

pub use sampler::Sampler;

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
    /// Whose log-probabilities are reported in the place of the likeliest tokens', where any are; empty for the likeliest.
    pub reported: Vec<TokenId>,
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
            reported: Vec::new(),
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

    pub(crate) fn has_penalties(&self) -> bool {
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
