use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt as _};

use crate::{
    config::{DecoderConfig, Head, LogitMap, MlpConfig, NormPlacement, NormWeight, QkNorm},
    gguf::Names,
};

/// The middle of what trained models have; with it activations neither vanish nor grow.
const DEVIATION: f64 = 0.02;
/// What the root of a narrow layer's width is too small for, so that it gets larger weights.
const LEAST_GAIN: f64 = 0.64;
/// Of the logits: about as sure of itself as a trained model at temperature 1.
const LOGIT_DEVIATION: f64 = 2.0;
/// How much more than attention the MLP of a layer with norms behind both adds, where the vectors of tokens are the head as well.
const MLP_FACTOR: f64 = 32.0;
/// Steps of 1/128 that the weights of norms differ by, which BF16 holds exactly, with and without the one that Gemma adds.
const NORM_STEPS: u64 = 16;

/// A tensor that is not there yet: any of its rows can be had at any time, and always has the same numbers.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    /// As Hugging Face calls it.
    pub(super) name: String,
    /// Rows and columns; a single row for what has one dimension.
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) is_vector: bool,
    law: Law,
    key: u64,
}

/// What numbers are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Law {
    /// Around zero.
    Bell { deviation: f64 },
    /// Around a factor, less what the model adds by itself.
    Norm { factor: f32, less: f32 },
}

/// All tensors of a model.
pub(super) fn tensors(names: Names, config: &DecoderConfig, seed: u64) -> Vec<Drawn> {
    Drawing { names, config, seed, drawn: Vec::new() }.all()
}

struct Drawing<'a> {
    names: Names,
    config: &'a DecoderConfig,
    seed: u64,
    drawn: Vec<Drawn>,
}

impl Drawing<'_> {
    fn all(mut self) -> Vec<Drawn> {
        let DecoderConfig { vocab_size, hidden_size, head, .. } = *self.config;
        let root = (hidden_size as f64).sqrt();
        let logits = match self.config.logits {
            LogitMap::Divided(by) => LOGIT_DEVIATION * f64::from(by),
            LogitMap::Plain | LogitMap::Capped(_) => LOGIT_DEVIATION,
        };
        let (vectors, last) = match head {
            Head::Tied => (LOGIT_DEVIATION / root / self.undone(), self.undone() * logits / LOGIT_DEVIATION),
            // Larger than what the layers add, so that what comes next depends on what came last.
            Head::Own => (1.0 / f64::from(self.config.embedding_scale), 1.0),
        };
        self.matrix("model.embed_tokens", vocab_size, hidden_size, vectors);
        for layer in 0..self.config.layers.len() {
            self.layer(layer);
        }
        self.norm("model.norm", hidden_size, power(last));
        if head == Head::Own {
            self.matrix("lm_head", vocab_size, hidden_size, logits / root);
        }
        self.drawn
    }

    fn layer(&mut self, at: usize) {
        let config = self.config;
        let (hidden, q, kv) = (config.hidden_size, config.q_width(), config.kv_width());
        let qk_norms = config.qk_norm.map(|over| match over {
            QkNorm::PerHead => [config.head_dim; 2],
            QkNorm::AllHeads => [q, kv],
        });
        let MlpConfig::Dense { width } = config.layers[at].mlp else { unreachable!("no shape has experts") };
        for (layer, _) in self.names.family.layers() {
            let name = format!("model.layers.{at}.{layer}");
            let (rows, columns, bias) = match *layer {
                "self_attn.q_proj" => (q, hidden, config.biases.qkv),
                "self_attn.k_proj" | "self_attn.v_proj" => (kv, hidden, config.biases.qkv),
                "self_attn.qkv_proj" => (q + 2 * kv, hidden, config.biases.qkv),
                "self_attn.o_proj" => (hidden, q, config.biases.output),
                "mlp.gate_proj" | "mlp.up_proj" => (width, hidden, config.biases.mlp),
                "mlp.gate_up_proj" => (2 * width, hidden, config.biases.mlp),
                "mlp.down_proj" => (hidden, width, config.biases.mlp),
                "self_attn.q_norm" | "self_attn.k_norm" => {
                    // Gemma 2 shares its names with Gemma 3, and has none of these.
                    if let Some([queries, keys]) = qk_norms {
                        self.norm(&name, if layer.ends_with("q_norm") { queries } else { keys }, 1.0);
                    }
                    continue;
                }
                other => {
                    self.norm(&name, hidden, self.block_norm(other));
                    continue;
                }
            };
            let deviation = DEVIATION.max(LEAST_GAIN / (columns as f64).sqrt());
            let share = match *layer {
                "self_attn.o_proj" => self.attention_share(),
                "mlp.down_proj" => self.share(),
                _ => 1.0,
            };
            self.matrix(&name, rows, columns, deviation * share);
            if bias {
                self.draw(format!("{name}.bias"), [1, rows], true, Law::Bell { deviation: DEVIATION });
            }
        }
    }

    /// How much of its result a block may add, so that all of them together add about as much as the vector of a token is long.
    fn share(&self) -> f64 {
        match self.config.head {
            Head::Own => (2.0 * self.config.layers.len() as f64).sqrt().recip(),
            Head::Tied => 1.0,
        }
    }

    /// The same of attention. Vectors that are the head as well are short, so that layers drown them and the last token is not its own
    /// likeliest successor; then attention, which sees much the same from token to token, must add no more than they are long.
    fn attention_share(&self) -> f64 {
        match self.config.head {
            Head::Own => self.share(),
            Head::Tied => LOGIT_DEVIATION / (self.config.hidden_size as f64).sqrt(),
        }
    }

    /// The part of the model's scaling of vectors that smaller vectors make up for. Not Gemma's: without it they would be too short for
    /// the norms behind its blocks, which hold small factors badly.
    fn undone(&self) -> f64 {
        match self.config.norms {
            NormPlacement::Around => 1.0,
            NormPlacement::Before | NormPlacement::After => f64::from(self.config.embedding_scale),
        }
    }

    /// The factor of a norm before or after a block. That of one after it says how much the block adds, whatever its weights.
    fn block_norm(&self, layer: &str) -> f64 {
        let is_tied = self.config.head == Head::Tied;
        match (self.config.norms, layer) {
            (NormPlacement::After, _) => power(self.share()),
            (NormPlacement::Around, "post_feedforward_layernorm") if is_tied => MLP_FACTOR,
            (NormPlacement::Around | NormPlacement::Before, _) => 1.0,
        }
    }

    fn matrix(&mut self, layer: &str, rows: usize, columns: usize, deviation: f64) {
        self.draw(format!("{layer}.weight"), [rows, columns], false, Law::Bell { deviation });
    }

    fn norm(&mut self, layer: &str, width: usize, factor: f64) {
        let less = match self.config.norm_weight {
            NormWeight::FactorLessOne => 1.0,
            NormWeight::Factor => 0.0,
        };
        self.draw(format!("{layer}.weight"), [1, width], true, Law::Norm { factor: factor as f32, less });
    }

    fn draw(&mut self, name: String, [rows, columns]: [usize; 2], is_vector: bool, law: Law) {
        let key = name.bytes().fold(mixed(self.seed), |key, byte| mixed(key ^ u64::from(byte)));
        self.drawn.push(Drawn { name, rows, columns, is_vector, law, key });
    }
}

/// The nearest power of two, which leaves BF16 all of its digits for the steps of a norm.
fn power(factor: f64) -> f64 {
    factor.log2().round().exp2()
}

impl Drawn {
    /// The size of the whole.
    pub(super) fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Appends some of the rows. All numbers are such as BF16 and F16 both hold exactly, so that all files tell of one model.
    pub(super) fn rows(&self, rows: Range<usize>, into: &mut Vec<f32>) {
        let start = into.len();
        let places = (rows.start * self.columns) as u64..(rows.end * self.columns) as u64;
        match self.law {
            Law::Bell { deviation } => {
                into.extend(places.map(|at| bell(self.key, at)));
                round(&mut into[start..], deviation as f32);
            }
            Law::Norm { factor, less } => into.extend(places.map(|at| {
                let step = (word(self.key, at) % (2 * NORM_STEPS + 1)) as f32 - NORM_STEPS as f32;
                factor * (1.0 + step / 128.0) - less
            })),
        }
    }
}

/// Scales numbers and rounds them: to F16 first, whose small numbers are the sparser ones, then to BF16.
fn round(numbers: &mut [f32], scale: f32) {
    numbers.iter_mut().for_each(|number| *number *= scale);
    let mut narrow = vec![f16::ZERO; numbers.len()];
    narrow.convert_from_f32_slice(numbers);
    narrow.convert_to_f32_slice(numbers);
    numbers.iter_mut().for_each(|number| *number = bf16::from_f32(*number).to_f32());
}

/// A number of a deviation of one. It is the sum of four even ones, which is near enough to a normal one, takes one draw, and is the same on
/// every machine, as a logarithm or a sine need not be.
fn bell(key: u64, at: u64) -> f32 {
    const MIDDLE: f32 = 2.0 * 65_535.0;
    // 65536 times the root of a third.
    const SPREAD: f32 = 37_837.227;
    let word = word(key, at);
    let sum = (word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48);
    (sum as f32 - MIDDLE) / SPREAD
}

/// The draw for a place: generators that go from one to the next could not begin in the middle.
fn word(key: u64, at: u64) -> u64 {
    mixed(key.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The finalizer of `SplitMix64`.
fn mixed(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(law: Law) -> Drawn {
        Drawn { name: "a".to_owned(), rows: 256, columns: 256, is_vector: false, law, key: 7 }
    }

    #[test]
    fn numbers_have_the_deviation_that_is_asked_for_and_fit_both_halves() {
        let mut numbers = Vec::new();
        drawn(Law::Bell { deviation: 0.02 }).rows(0..256, &mut numbers);
        let count = numbers.len() as f64;
        let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let deviation = (numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count).sqrt();
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((deviation - 0.02).abs() < 2e-4, "{deviation}");
        for number in numbers {
            assert_eq!(bf16::from_f32(number).to_f32(), number);
            assert_eq!(f16::from_f32(number).to_f32(), number);
        }
    }

    #[test]
    fn norms_are_exact_with_and_without_the_one() {
        for factor in [0.125, 1.0, 8.0, 64.0] {
            for less in [0.0, 1.0] {
                if factor < 1.0 && less > 0.0 {
                    continue;
                }
                let mut numbers = Vec::new();
                drawn(Law::Norm { factor, less }).rows(0..2, &mut numbers);
                for number in numbers {
                    assert_eq!(bf16::from_f32(number).to_f32(), number);
                    assert!(((number + less) / factor - 1.0).abs() <= 0.125);
                }
            }
        }
    }

    #[test]
    fn rows_are_the_same_in_whatever_order_they_are_drawn() {
        let law = Law::Bell { deviation: 1.0 };
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        drawn(law).rows(0..256, &mut whole);
        drawn(law).rows(100..256, &mut parts);
        assert_eq!(whole[100 * 256..], parts);
    }
}
