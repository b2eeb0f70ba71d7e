use std::{fmt, str::FromStr};

use candle_core::quantized::GgmlDType;

/// What a GGUF file's matrices are packed in, by the names that llama.cpp has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    F16,
    Q8_0,
    Q4_0,
    /// Four bits, and six where it matters most.
    Q4KM,
    Q5KM,
    Q6K,
}

/// Names, the numbers that stand for them in `general.file_type`, and what most matrices are.
const MIXES: [(Mix, &str, u32, GgmlDType); 6] = [
    (Mix::F16, "F16", 1, GgmlDType::F16),
    (Mix::Q8_0, "Q8_0", 7, GgmlDType::Q8_0),
    (Mix::Q4_0, "Q4_0", 2, GgmlDType::Q4_0),
    (Mix::Q4KM, "Q4_K_M", 15, GgmlDType::Q4K),
    (Mix::Q5KM, "Q5_K_M", 17, GgmlDType::Q5K),
    (Mix::Q6K, "Q6_K", 18, GgmlDType::Q6K),
];

/// Where a matrix stands in the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// As GGUF calls it, without the block and without `.weight`.
    pub(super) layer: &'a str,
    pub(super) block: usize,
    pub(super) blocks: usize,
    /// Whether logits are made with it.
    pub(super) is_head: bool,
    pub(super) columns: usize,
}

impl Mix {
    pub(super) fn file_type(self) -> u32 {
        self.entry().1
    }

    /// What llama.cpp's own tool makes of a matrix.
    pub(super) fn dtype(self, place: &Place<'_>) -> GgmlDType {
        let most = self.entry().2;
        let mixed = matches!(self, Self::Q4KM | Self::Q5KM);
        let chosen = match place.layer {
            _ if place.is_head && matches!(self, Self::Q4_0 | Self::Q4KM | Self::Q5KM) => GgmlDType::Q6K,
            "attn_v" | "ffn_down" if mixed && place.wants_more() => GgmlDType::Q6K,
            "attn_qkv" if self == Self::Q4KM => GgmlDType::Q5K,
            "attn_qkv" if self == Self::Q5KM => GgmlDType::Q6K,
            _ => most,
        };
        if place.columns.is_multiple_of(chosen.block_size()) { chosen } else { narrower(chosen) }
    }

    fn entry(self) -> (&'static str, u32, GgmlDType) {
        let found = MIXES.iter().find(|(mix, ..)| *mix == self);
        found.map(|&(_, name, number, most)| (name, number, most)).expect("every mix stands in the table")
    }
}

impl Place<'_> {
    /// The first and the last eighth of the blocks, and every third between.
    fn wants_more(&self) -> bool {
        let eighth = self.blocks / 8;
        self.block < eighth || self.block >= 7 * self.blocks / 8 || (self.block - eighth) % 3 == 2
    }
}

/// What stands in for a type whose blocks do not divide the rows.
fn narrower(dtype: GgmlDType) -> GgmlDType {
    if dtype == GgmlDType::Q4K {
        GgmlDType::Q5_0
    } else if dtype == GgmlDType::Q5K {
        GgmlDType::Q5_1
    } else if dtype == GgmlDType::Q6K {
        GgmlDType::Q8_0
    } else {
        GgmlDType::F16
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.entry().0)
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = MIXES.iter().find(|(_, known, ..)| known.eq_ignore_ascii_case(name));
        found.map(|(mix, ..)| *mix).ok_or_else(|| {
            let known: Vec<_> = MIXES.iter().map(|(_, name, ..)| *name).collect();
            format!("{name} is no known quantization; known: {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(layer: &str, block: usize) -> Place<'_> {
        Place { layer, block, blocks: 16, is_head: layer == "output", columns: 2048 }
    }

    #[test]
    fn the_mixes_spend_six_bits_where_llama_cpp_does() {
        let more: Vec<_> =
            (0..16).filter(|block| Mix::Q4KM.dtype(&place("ffn_down", *block)) == GgmlDType::Q6K).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        for (mix, head, other) in [
            (Mix::F16, GgmlDType::F16, GgmlDType::F16),
            (Mix::Q8_0, GgmlDType::Q8_0, GgmlDType::Q8_0),
            (Mix::Q4_0, GgmlDType::Q6K, GgmlDType::Q4_0),
            (Mix::Q4KM, GgmlDType::Q6K, GgmlDType::Q4K),
            (Mix::Q5KM, GgmlDType::Q6K, GgmlDType::Q5K),
            (Mix::Q6K, GgmlDType::Q6K, GgmlDType::Q6K),
        ] {
            assert_eq!(mix.dtype(&place("output", 0)), head, "{mix}");
            assert_eq!(mix.dtype(&place("attn_q", 0)), other, "{mix}");
            assert_eq!(mix.to_string().parse(), Ok(mix));
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_smaller_ones() {
        let odd = |layer| Place { columns: 896, ..place(layer, 2) };
        assert_eq!(Mix::Q4KM.dtype(&odd("attn_q")), GgmlDType::Q5_0);
        assert_eq!(Mix::Q5KM.dtype(&odd("attn_q")), GgmlDType::Q5_1);
        assert_eq!(Mix::Q4KM.dtype(&odd("output")), GgmlDType::Q8_0);
    }

    #[test]
    fn an_unknown_one_is_refused_with_those_that_are_known() {
        let error = "Q3_K_S".parse::<Mix>().unwrap_err();
        assert_eq!(error, "Q3_K_S is no known quantization; known: F16, Q8_0, Q4_0, Q4_K_M, Q5_K_M, Q6_K");
    }
}
