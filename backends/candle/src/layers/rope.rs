use rayon::prelude::*;

use super::ROWS_PER_TASK;
use crate::config::{Rope, RopeScaling};

/// Rotary positions: the two halves of a head are the coordinates of points, and each is turned by an angle in step with its position.
#[derive(Debug)]
pub(crate) struct RotaryEmbedding {
    /// Radians per position, one for each pair of a head.
    frequencies: Vec<f64>,
}

impl RotaryEmbedding {
    pub(crate) fn new(rope: &Rope, head_dim: usize) -> Self {
        let plain = (0..head_dim / 2).map(|pair| rope.theta.powf(-2.0 * pair as f64 / head_dim as f64));
        Self {
            frequencies: plain.enumerate().map(|(pair, frequency)| scaled(&rope.scaling, pair, frequency)).collect(),
        }
    }

    /// The angles of one step's tokens, shared by all layers and heads. In F64: at a far position an F32 angle is off visibly.
    pub(crate) fn rotation(&self, positions: &[u32]) -> Rotation {
        let angles = positions
            .iter()
            .flat_map(|&position| self.frequencies.iter().map(move |frequency| f64::from(position) * frequency));
        let turns = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32));
        let (cos, sin) = turns.unzip();
        Rotation { cos, sin, pairs: self.frequencies.len() }
    }
}

/// Cosines and sines by token and pair.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Rotation {
    /// Turns the heads that fill the first `heads_width` columns of each of the `row_width` wide rows.
    pub(crate) fn apply(&self, rows: &mut [f32], row_width: usize, heads_width: usize) {
        let angles = self.cos.par_chunks_exact(self.pairs).zip(self.sin.par_chunks_exact(self.pairs));
        rows.par_chunks_exact_mut(row_width).zip(angles).with_min_len(ROWS_PER_TASK).for_each(|(row, (cos, sin))| {
            for head in row[..heads_width].chunks_exact_mut(2 * self.pairs) {
                let (x, y) = head.split_at_mut(self.pairs);
                for (((x, y), cos), sin) in x.iter_mut().zip(y).zip(cos).zip(sin) {
                    (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
                }
            }
        });
    }
}

fn scaled(scaling: &RopeScaling, pair: usize, frequency: f64) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // Turns that a pair makes over the original context: many are left alone, few are slowed down, with a ramp between.
            let turns = original_context * frequency / std::f64::consts::TAU;
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
        RopeScaling::Factors(ref factors) => frequency / factors[pair],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_in_step_with_the_position() {
        let rope = RotaryEmbedding::new(&Rope { theta: 100.0, scaling: RopeScaling::None }, 4);
        let mut row = [1.0, 0.0, 0.0, 2.0, /* not a head */ 9.0];
        rope.rotation(&[3]).apply(&mut row, 5, 4);
        let expected = [3.0f32.cos(), -2.0 * 0.3f32.sin(), 3.0f32.sin(), 2.0 * 0.3f32.cos(), 9.0];
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
            assert!((scaled(&scaling, 0, frequency) - frequency / factor).abs() < 1e-12, "{turns} turns");
        }
        // Half way up the ramp: the mean of both.
        let frequency = frequency_of(2.5);
        assert!((scaled(&scaling, 0, frequency) - frequency * (1.0 + 1.0 / 8.0) / 2.0).abs() < 1e-12);
    }
}
