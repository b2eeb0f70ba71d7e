use half::{bf16, f16};

/// What a number is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    F32,
    Bf16,
    F16,
    /// Eight bits, 4 of them of exponent (E4M3): for KV caches, and nothing else.
    F8,
}

impl Number {
    /// Bytes of one.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::F8 => 1,
        }
    }

    /// Its name in the names of kernels.
    pub(crate) fn kernel(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F8 => "fp8",
        }
    }

    /// Appends numbers as a device has them.
    pub fn write(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Bf16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
            Self::F8 => bytes.extend(values.iter().map(|&value| to_f8(value))),
        }
    }

    /// The numbers that a device has.
    #[must_use]
    pub fn read(self, bytes: &[u8]) -> Vec<f32> {
        let pairs = || bytes.as_chunks::<2>().0.iter().copied();
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Self::Bf16 => pairs().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            Self::F16 => pairs().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Self::F8 => bytes.iter().map(|&byte| from_f8(byte)).collect(),
        }
    }
}

/// The number that eight bits stand for: an F16 has one more bit of exponent, whose bias is 8 more.
fn from_f8(bits: u8) -> f32 {
    let (sign, size) = (u16::from(bits & 0x80), u16::from(bits & 0x7f));
    if size == 0x7f { f32::NAN } else { f16::from_bits(sign << 8 | size << 7).to_f32() * 256.0 }
}

/// The nearest of these numbers, the even one of two; the largest for what is beyond it.
fn to_f8(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let size = value.abs();
    let places = if size.is_nan() {
        0x7f
    } else if size >= 464.0 {
        0x7e
    } else if size < 0.015_625 {
        // 2^-9 apart.
        (size * 512.0).round_ties_even() as u8
    } else {
        let bits = size.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded - (120 << 23)) >> 20) as u8
    };
    sign | places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 256, and what lies between two of them.
    #[test]
    fn eight_bits_are_the_nearest_number() {
        let all: Vec<f32> = (0..0x7f).map(from_f8).collect();
        assert_eq!((all[1], all[8], all[0x38], all[0x7e]), (0.001_953_125, 0.015_625, 1.0, 448.0));
        assert!(all.is_sorted());
        for (bits, pair) in (0u8..).zip(all.windows(2)) {
            assert_eq!((to_f8(pair[0]), to_f8(-pair[0])), (bits, bits | 0x80));
            let middle = f32::midpoint(pair[0], pair[1]);
            assert_eq!(to_f8(middle), if bits % 2 == 0 { bits } else { bits + 1 }, "{middle}");
            assert_eq!((to_f8(middle * 0.999), to_f8(middle * 1.001)), (bits, bits + 1), "{middle}");
        }
        assert_eq!([1e9, f32::INFINITY, -500.0].map(to_f8), [0x7e, 0x7e, 0xfe]);
        assert!(from_f8(to_f8(f32::NAN)).is_nan());
    }
}

/// What a weight is kept in: plain numbers, or GGUF's blocks as its files have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    Plain(Number),
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl WeightFormat {
    /// Bytes of a row of so many values, which are whole blocks.
    #[must_use]
    pub fn row_bytes(self, values: usize) -> usize {
        let (of_block, bytes) = self.block();
        values / of_block * bytes
    }

    /// Values of a block, and its bytes.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(number) => (1, number.bytes()),
            Self::Q4_0 => (32, 18),
            Self::Q5_0 => (32, 22),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    pub(crate) fn kernel(self) -> &'static str {
        match self {
            Self::Plain(number) => number.kernel(),
            Self::Q4_0 => "q4_0",
            Self::Q5_0 => "q5_0",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }
}
