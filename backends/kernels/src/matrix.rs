use std::fmt;

use thiserror::Error;

/// How the values of a [`Matrix`] are written. The quantised ones are GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// 32 values of 4 bits, less 8, times a scale.
    Q4_0,
    /// 32 values of 5 bits, less 16, times a scale.
    Q5_0,
    /// 32 values of 8 bits, times a scale.
    Q8_0,
    /// 256 values of 4 bits; each 32 have a scale and a minimum of 6 bits.
    Q4K,
    /// 256 values of 5 bits; each 32 have a scale and a minimum of 6 bits.
    Q5K,
    /// 256 values of 6 bits, less 32; each 16 have a scale of 8 bits.
    Q6K,
}

impl Format {
    /// Values in one block, and bytes that it takes.
    #[must_use]
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q5_0 => (32, 22),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}

/// By the name that GGUF has for it.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q5_0 => "Q5_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// A weight as it lies in a file: `outputs` rows of `inputs` values, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub format: Format,
    pub outputs: usize,
    pub inputs: usize,
    pub bytes: &'a [u8],
}

/// A weight that is yet to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    pub format: Format,
    pub outputs: usize,
    /// Rows that are best read together, rounded up to whole panels. Each thread has as many in memory.
    pub at_a_time: usize,
}

/// Why a weight cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PackError {
    #[error("rows of {inputs} values are no whole blocks of {block}")]
    Row { inputs: usize, block: usize },
    #[error("{got} bytes instead of {expected}")]
    Bytes { expected: usize, got: usize },
    #[error("no memory for {bytes} bytes of weights")]
    Memory { bytes: usize },
    #[error("{got} inputs beside {expected}")]
    Inputs { expected: usize, got: usize },
}

impl Format {
    /// Bytes of a row of so many values.
    pub(crate) fn row_bytes(self, inputs: usize) -> Result<usize, PackError> {
        let (values, bytes) = self.block();
        if inputs == 0 || !inputs.is_multiple_of(values) {
            return Err(PackError::Row { inputs, block: values });
        }
        Ok(inputs / values * bytes)
    }
}

impl Matrix<'_> {
    /// Bytes of one row, once all sizes are known to fit.
    pub(crate) fn row_bytes(&self) -> Result<usize, PackError> {
        let row = self.format.row_bytes(self.inputs)?;
        match row * self.outputs {
            expected if expected == self.bytes.len() => Ok(row),
            expected => Err(PackError::Bytes { expected, got: self.bytes.len() }),
        }
    }
}
