use std::cmp::Ordering;

use super::math;
use crate::TokenId;

/// Elements of a row of which the largest is looked at first.
const RUN: usize = 64;
/// So many are sorted rather than divided into bins again.
const FEW: usize = 512;
/// The upper half of 1.0: no key is larger.
const TOP: usize = 0x3f80;

/// Finds where a truncation cuts, without sorting more than a few elements.
///
/// Rows are ranked by a key of each element between 0 and 1, highest first, of equals the lower id first; 0 is what is gone already. Keys
/// are divided into bins by the upper half of their bits, which costs no arithmetic: positive numbers are ordered as their bits are.
#[derive(Debug, Default)]
pub(super) struct Truncation {
    bins: Vec<f64>,
    /// The bin in which the cut lies.
    border: Vec<Ranked>,
    maxima: Vec<f32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    key: f32,
    token: TokenId,
}

impl Ranked {
    fn order(a: &Self, b: &Self) -> Ordering {
        b.key.total_cmp(&a.key).then(a.token.cmp(&b.token))
    }
}

fn high(key: f32) -> usize {
    key.to_bits() as usize >> 16
}

impl Truncation {
    /// The last element of the smallest set of highest keys whose measures sum to at least `goal`. Those at `floor`, which is more than 0,
    /// and above suffice for it, as the caller knows. `None` when all together do not reach it, but for rounding.
    pub(super) fn cut(
        &mut self,
        keys: &[f32],
        measure: impl Fn(TokenId) -> f64,
        goal: f64,
        floor: f32,
    ) -> Option<Ranked> {
        let Self { bins, border, .. } = self;
        let lowest = floor.to_bits() as usize >> 16;
        bins.clear();
        bins.resize(TOP + 1 - lowest, 0.0);
        if math::count(keys, |key| key >= floor) < keys.len() / 16 {
            math::find(keys, |key| key >= floor, |token, key| bins[TOP - high(key)] += measure(token));
        } else {
            // Where many are above and many below, asking which costs more than counting all. What is below has a bin of its own.
            bins.push(0.0);
            for (token, key) in std::iter::zip(0.., keys) {
                bins[TOP - high(*key).max(lowest - 1)] += measure(token);
            }
            bins.pop();
        }
        let (bin, mut reached) = crossing(bins, 0.0, goal)?;
        border.clear();
        math::find(keys, |key| high(key) == TOP - bin, |token, key| border.push(Ranked { key, token }));
        for shift in [8, 0] {
            if border.len() <= FEW {
                break;
            }
            let low = |one: &Ranked| 0xff - (one.key.to_bits() as usize >> shift & 0xff);
            bins.clear();
            bins.resize(256, 0.0);
            border.iter().for_each(|one| bins[low(one)] += measure(one.token));
            // Summed in another order they may miss the goal by their rounding: then all of them are kept, and nothing behind them.
            let Some((bin, before)) = crossing(bins, reached, goal) else { break };
            reached = before;
            border.retain(|one| low(one) == bin);
        }
        border.sort_unstable_by(Ranked::order);
        let last = border.iter().find(|one| {
            reached += measure(one.token);
            reached >= goal
        });
        // Sums in another order may miss the goal by their rounding.
        last.or(border.last()).copied()
    }

    /// A key that at least `count` elements reach, and not many more; 0 when there are fewer elements.
    pub(super) fn floor_of_likeliest(&mut self, row: &[f32], count: usize) -> f32 {
        math::maxima::<RUN>(row, &mut self.maxima);
        // As many runs as are asked for have a largest element of at least this, so as many elements do.
        match count.checked_sub(1) {
            Some(at) if at < self.maxima.len() => *self.maxima.select_nth_unstable_by(at, |a, b| b.total_cmp(a)).1,
            _ => 0.0,
        }
    }

    /// The `count` largest logits that are finite, best first.
    pub(super) fn likeliest(&mut self, logits: &[f32], count: usize) -> impl Iterator<Item = (TokenId, f32)> {
        let floor = if count <= logits.len().div_ceil(RUN) {
            self.floor_of_likeliest(logits, count)
        } else {
            f32::NEG_INFINITY
        };
        self.border.clear();
        let finite = |key: f32| key >= floor && key > f32::NEG_INFINITY;
        math::find(logits, finite, |token, key| self.border.push(Ranked { key, token }));
        self.border.sort_unstable_by(Ranked::order);
        self.border.iter().take(count).map(|one| (one.token, one.key))
    }
}

/// Makes the weights 0 whose keys rank behind `last`.
pub(super) fn drop_behind(weights: &mut [f32], keys: Option<&[f32]>, last: Ranked) {
    let (before, behind) = weights.split_at_mut(last.token as usize + 1);
    match keys {
        None => {
            before.iter_mut().for_each(|weight| *weight = if *weight >= last.key { *weight } else { 0.0 });
            behind.iter_mut().for_each(|weight| *weight = if *weight > last.key { *weight } else { 0.0 });
        }
        Some(keys) => {
            let (keys_before, keys_behind) = keys.split_at(last.token as usize + 1);
            let keep = |keep: bool, weight: f32| if keep { weight } else { 0.0 };
            before.iter_mut().zip(keys_before).for_each(|(weight, key)| *weight = keep(*key >= last.key, *weight));
            behind.iter_mut().zip(keys_behind).for_each(|(weight, key)| *weight = keep(*key > last.key, *weight));
        }
    }
}

/// The bin in which a sum that begins at `reached` comes to `goal`, and the sum before it.
fn crossing(bins: &[f64], mut reached: f64, goal: f64) -> Option<(usize, f64)> {
    for (at, bin) in bins.iter().enumerate() {
        if *bin > 0.0 && reached + bin >= goal {
            return Some((at, reached));
        }
        reached += bin;
    }
    None
}
