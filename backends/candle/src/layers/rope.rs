use rayon::prelude::*;

use super::ROWS_PER_TASK;
use crate::config::{Rope, RopeScaling};

/// Rotary positions: the two halves of a head are the coordinates of points, and each is turned by an angle in step with its position.
#[derive(Debug)]
pub(crate) struct RotaryEmbedding {
    /// Radians per position, one for each pair of a head.
    frequencies: Vec<f64>,
    /// What turned points are stretched by.
    magnitude: f64,
    head_dim: usize,
}

impl RotaryEmbedding {
    /// For sequences of up to `context` tokens.
    ///
    /// The angles of a position are the same in all of them, whatever their length: keys lie in the cache as they were turned, and
    /// sequences share them.
    pub(crate) fn new(rope: &Rope, head_dim: usize, context: u32) -> Self {
        let pairs = 0..rope.rotary_dim / 2;
        let plain = pairs.map(|pair| rope.theta.powf(-2.0 * pair as f64 / rope.rotary_dim as f64));
        let scaled = |(pair, frequency)| scaled(&rope.scaling, frequency, pair, context);
        Self { frequencies: plain.enumerate().map(scaled).collect(), magnitude: magnitude(&rope.scaling), head_dim }
    }

    /// Radians per position for each pair of a head, and what turned points are stretched by.
    pub(crate) fn angles(&self) -> (&[f64], f64) {
        (&self.frequencies, self.magnitude)
    }

    /// The angles of one step's tokens, shared by layers and heads. In F64: at a far position an F32 angle is off visibly.
    pub(crate) fn rotation(&self, positions: &[u32]) -> Rotation {
        let angles = positions
            .iter()
            .flat_map(|&position| self.frequencies.iter().map(move |frequency| f64::from(position) * frequency));
        let turns = angles.map(|angle| ((self.magnitude * angle.cos()) as f32, (self.magnitude * angle.sin()) as f32));
        let (cos, sin) = turns.unzip();
        Rotation { cos, sin, pairs: self.frequencies.len(), head_dim: self.head_dim }
    }
}

/// Cosines and sines by token and pair.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
    head_dim: usize,
}

impl Rotation {
    /// Turns the heads that fill the first `heads_width` columns of each of the `row_width` wide rows.
    pub(crate) fn apply(&self, rows: &mut [f32], row_width: usize, heads_width: usize) {
        let angles = self.cos.par_chunks_exact(self.pairs).zip(self.sin.par_chunks_exact(self.pairs));
        rows.par_chunks_exact_mut(row_width).zip(angles).with_min_len(ROWS_PER_TASK).for_each(|(row, (cos, sin))| {
            for head in row[..heads_width].chunks_exact_mut(self.head_dim) {
                let (x, y) = head[..2 * self.pairs].split_at_mut(self.pairs);
                for (((x, y), cos), sin) in x.iter_mut().zip(y).zip(cos).zip(sin) {
                    (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
                }
            }
        });
    }
}

/// The frequency of a pair after scaling.
fn scaled(scaling: &RopeScaling, frequency: f64, pair: usize, context: u32) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // Turns that a pair makes over the original context: many are left alone, few are slowed down, with a ramp between.
            let turns = original_context * frequency / std::f64::consts::TAU;
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
        &RopeScaling::Yarn { factor, ramp: (low, high), .. } => {
            // A ramp without a width is a step.
            let slowed = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            (1.0 - slowed) * frequency + slowed * frequency / factor
        }
        RopeScaling::Long { short, long, original_context, .. } => {
            let factors = if f64::from(context) > *original_context { long } else { short };
            frequency / factors[pair]
        }
    }
}

fn magnitude(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
        RopeScaling::Yarn { magnitude, .. } | RopeScaling::Long { magnitude, .. } => *magnitude,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_in_step_with_the_position() {
        // Of each head of six, the last two values are not turned.
        let rope = RotaryEmbedding::new(&Rope { theta: 100.0, rotary_dim: 4, scaling: RopeScaling::None }, 6, 10);
        let mut row = [1.0, 0.0, 0.0, 2.0, 7.0, 8.0, /* not a head */ 9.0];
        rope.rotation(&[3]).apply(&mut row, 7, 6);
        let expected = [3.0f32.cos(), -2.0 * 0.3f32.sin(), 3.0f32.sin(), 2.0 * 0.3f32.cos(), 7.0, 8.0, 9.0];
        for (got, expected) in row.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
    }

    #[test]
    fn llama3_slows_down_the_slow_pairs_alone() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let frequency_of = |turns: f64| turns * std::f64::consts::TAU / 8192.0;
        for (turns, factor) in [(100.0, 1.0), (4.0, 1.0), (1.0, 8.0), (0.01, 8.0)] {
            let frequency = frequency_of(turns);
            assert!((scaled(&scaling, frequency, 0, 1) - frequency / factor).abs() < 1e-12, "{turns} turns");
        }
        // Half way up the ramp: the mean of both.
        let frequency = frequency_of(2.5);
        assert!((scaled(&scaling, frequency, 0, 1) - frequency * (1.0 + 1.0 / 8.0) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn yarn_slows_down_the_pairs_behind_its_ramp() {
        let scaling = RopeScaling::Yarn { factor: 4.0, ramp: (2.0, 4.0), original_context: 64.0, magnitude: 1.5 };
        for (pair, frequency) in [(0, 1.0), (2, 1.0), (3, 0.625), (4, 0.25), (7, 0.25)] {
            assert!((scaled(&scaling, 1.0, pair, 1) - frequency).abs() < 1e-12, "pair {pair}");
        }
        assert_eq!(magnitude(&scaling), 1.5);
    }

    #[test]
    fn the_context_decides_between_short_and_long_factors() {
        let (short, long) = (vec![1.0, 2.0], vec![4.0, 8.0]);
        let scaling = RopeScaling::Long { short, long, original_context: 64.0, magnitude: 1.0 };
        assert_eq!([64, 65].map(|context| scaled(&scaling, 1.0, 1, context)), [0.5, 0.125]);
    }
}
