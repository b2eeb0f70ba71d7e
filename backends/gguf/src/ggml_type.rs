//! How ggml packs numbers, as far as sizes and names go.

/// A type whose feed-forward layers llama.cpp scales in a way that leaves no place for an adapter.
pub const NVFP4: u32 = 40;
/// What adapters are stored in: F32, F16, `Q8_0`, BF16. Others exist that nothing can be multiplied with.
pub const ADAPTER_TYPES: [u32; 4] = [0, 1, 8, 30];

/// The unit in which a type is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Numbers in one block; a row holds whole blocks.
    pub values: u64,
    /// Bytes of one block.
    pub bytes: u64,
}

/// The id of single-precision numbers.
pub const F32: u32 = 0;

/// The block of a tensor type by its id in GGUF; `None` for ids that are unknown or were withdrawn.
#[must_use]
pub fn block(id: u32) -> Option<Block> {
    let (values, bytes) = match id {
        24 => (1, 1),          // I8
        1 | 25 | 30 => (1, 2), // F16, I16, BF16
        F32 | 26 => (1, 4),    // F32, I32
        27 | 28 => (1, 8),     // I64, F64
        2 | 20 => (32, 18),    // Q4_0, IQ4_NL
        3 => (32, 20),         // Q4_1
        6 => (32, 22),         // Q5_0
        7 => (32, 24),         // Q5_1
        8 => (32, 34),         // Q8_0
        9 => (32, 36),         // Q8_1
        39 => (32, 17),        // MXFP4
        40 => (64, 36),        // NVFP4
        42 => (64, 18),        // Q2_0
        41 => (128, 18),       // Q1_0
        10 => (256, 84),       // Q2_K
        11 | 21 => (256, 110), // Q3_K, IQ3_S
        12 => (256, 144),      // Q4_K
        13 => (256, 176),      // Q5_K
        14 => (256, 210),      // Q6_K
        15 => (256, 292),      // Q8_K
        16 | 35 => (256, 66),  // IQ2_XXS, TQ2_0
        17 => (256, 74),       // IQ2_XS
        18 => (256, 98),       // IQ3_XXS
        19 => (256, 50),       // IQ1_S
        22 => (256, 82),       // IQ2_S
        23 => (256, 136),      // IQ4_XS
        29 => (256, 56),       // IQ1_M
        34 => (256, 54),       // TQ1_0
        _ => return None,
    };
    Some(Block { values, bytes })
}

/// What a tensor type is called; `None` for ids that are unknown or were withdrawn.
#[must_use]
pub fn name(id: u32) -> Option<&'static str> {
    Some(match id {
        F32 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        NVFP4 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_size_has_a_name() {
        for id in 0..100 {
            assert_eq!(name(id).is_some(), block(id).is_some(), "{id}");
        }
    }
}
