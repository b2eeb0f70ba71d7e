//! What a step has to read and to compute at least, whatever computes it: what a measured time is held against.

use crate::config::{DecoderConfig, MlpConfig};

/// A decoder's weights and attention, in bytes and operations. A multiplication and an addition are two operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Bytes of the weights that every step reads: all but a table that is only looked up in. Of a layer with experts all of them, which few
    /// tokens do not need.
    pub weights: u64,
    /// Bytes of K and V of one token in one layer.
    pub kv_layer: u64,
    /// Of the products with the layers' weights, for a token.
    pub layers_flop: u64,
    /// Of the product that makes logits, for a token that has them.
    pub head_flop: u64,
    /// Of attention in one layer, for a token and one that it attends to.
    pub pair_flop: u64,
    /// What a token attends to in each layer, itself among it; `None` is all before it.
    pub windows: Vec<Option<usize>>,
}

/// What is read from memory and computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Least {
    pub bytes: f64,
    pub flop: f64,
}

impl Work {
    pub(crate) fn new(config: &DecoderConfig, weights: u64, kv_layer: u64) -> Self {
        let (hidden, q, kv) = (config.hidden_size, config.q_width(), config.kv_width());
        let layer = |mlp: &MlpConfig| {
            let mlp = match *mlp {
                MlpConfig::Dense { width } => 3 * hidden * width,
                MlpConfig::Experts { width, experts, per_token, .. } => hidden * (3 * width * per_token + experts),
            };
            hidden * (q + 2 * kv) + q * hidden + mlp
        };
        let products: usize = config.layers.iter().map(|one| layer(&one.mlp)).sum();
        Self {
            weights,
            kv_layer,
            layers_flop: 2 * products as u64,
            head_flop: 2 * (config.vocab_size * hidden) as u64,
            pair_flop: 4 * q as u64,
            windows: config.layers.iter().map(|layer| layer.window).collect(),
        }
    }

    /// A step that brings each of some sequences a token; of each is said to how many tokens the new one attends, itself among them, where
    /// there is no window.
    pub fn decode(&self, contexts: impl IntoIterator<Item = usize>) -> Least {
        let mut least = Least { bytes: self.weights as f64, flop: 0.0 };
        for context in contexts {
            let attended: f64 = self.windows.iter().map(|window| context.min(window.unwrap_or(context)) as f64).sum();
            // The new token's own K and V are written, the others are read.
            least.bytes += self.kv_layer as f64 * attended;
            least.flop += (self.layers_flop + self.head_flop) as f64 + self.pair_flop as f64 * attended;
        }
        least
    }

    /// A prompt of so many tokens in one step, with the logits of its last.
    #[must_use]
    pub fn prompt(&self, tokens: usize) -> Least {
        let pairs: f64 = self.windows.iter().map(|window| pairs(tokens, window.unwrap_or(tokens))).sum();
        let flop = self.layers_flop as f64 * tokens as f64 + self.head_flop as f64 + self.pair_flop as f64 * pairs;
        Least { bytes: self.weights as f64 + self.kv_layer as f64 * (tokens * self.windows.len()) as f64, flop }
    }
}

/// Pairs of a token and one that it attends to, among the first `tokens` of a sequence.
fn pairs(tokens: usize, window: usize) -> f64 {
    let (tokens, window) = (tokens as f64, tokens.min(window) as f64);
    window * (window + 1.0) / 2.0 + (tokens - window) * window
}

impl Least {
    /// The time that it takes at these rates at least, reading and computing going on at once.
    #[must_use]
    pub fn seconds(&self, bytes_per_second: f64, flop_per_second: f64) -> f64 {
        (self.bytes / bytes_per_second).max(self.flop / flop_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(windows: Vec<Option<usize>>) -> Work {
        Work { weights: 1000, kv_layer: 10, layers_flop: 100, head_flop: 50, pair_flop: 4, windows }
    }

    #[test]
    fn tokens_attend_to_no_more_than_their_window() {
        let all = work(vec![None, None]).decode([7, 3]);
        assert_eq!(all, Least { bytes: 1000.0 + 20.0 * 10.0, flop: 300.0 + 8.0 * 10.0 });
        let near = work(vec![None, Some(5)]).decode([7, 3]);
        assert_eq!(near.bytes, 1000.0 + 10.0 * (7.0 + 5.0 + 3.0 + 3.0));
    }

    #[test]
    fn a_prompt_computes_what_its_tokens_would_one_by_one() {
        for windows in [vec![None], vec![Some(5), None], vec![Some(1)]] {
            let work = work(windows);
            let one_by_one: f64 = (1..=20).map(|context| work.decode([context]).flop).sum();
            // All but the last have no logits.
            assert_eq!(work.prompt(20).flop, one_by_one - 19.0 * 50.0);
        }
    }

    #[test]
    fn the_slower_of_reading_and_computing_is_the_bound() {
        let least = Least { bytes: 100.0, flop: 30.0 };
        assert_eq!((least.seconds(10.0, 30.0), least.seconds(1000.0, 30.0)), (10.0, 1.0));
    }
}
