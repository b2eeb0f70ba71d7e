use half::{bf16, f16};

/// What a number is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    F32,
    Bf16,
    F16,
}

impl Number {
    /// Bytes of one.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Its name in the names of kernels.
    pub(crate) fn kernel(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Appends numbers as a device has them.
    pub fn write(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Bf16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
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
        }
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
