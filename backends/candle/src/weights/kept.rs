use candle_core::{
    Device, Result, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::{bf16, f16};
use tandem_kernels::Format;

use super::matrix::{Matrix, is_plain, packable};
use crate::settings::{Dtype, Quantization};

/// What weights are turned into on their way into memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) dtype: Dtype,
    pub(crate) quantization: Quantization,
}

/// What a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Layer,
    /// Picks experts: small, and a wrong pick costs more than a wrong digit.
    Router,
    /// Turns tokens into vectors, or vectors into logits, which suffer most from few bits.
    Vocabulary,
    /// Is looked up and added, and so in F32.
    Table,
}

impl Kept {
    /// The matrix as it is to be kept. One that its file has quantised stays as it is.
    pub(super) fn matrix(&self, purpose: Use, matrix: Matrix) -> Result<Matrix> {
        if !matrix.is_plain() {
            return Ok(matrix);
        }
        match self.quantized(purpose, matrix.columns) {
            Some(dtype) => quantize(&matrix, dtype),
            None => convert(matrix, self.dtype),
        }
    }

    /// The format that [`matrix`](Self::matrix) and packing make of a type.
    pub(super) fn format(&self, purpose: Use, dtype: GgmlDType, columns: usize) -> Format {
        let dtype = match (is_plain(dtype), self.dtype) {
            _ if purpose == Use::Table => GgmlDType::F32,
            (false, _) => dtype,
            (true, kept) => self.quantized(purpose, columns).unwrap_or(match kept {
                Dtype::Auto => dtype,
                Dtype::F32 => GgmlDType::F32,
                Dtype::Bf16 => GgmlDType::BF16,
                Dtype::F16 => GgmlDType::F16,
            }),
        };
        packable(dtype)
    }

    /// The type to quantise to, if any: rows must be whole blocks.
    fn quantized(&self, purpose: Use, columns: usize) -> Option<GgmlDType> {
        let wanted = match (purpose, self.quantization) {
            (_, Quantization::None) | (Use::Router | Use::Table, _) => return None,
            (_, Quantization::Q8_0) => GgmlDType::Q8_0,
            (_, Quantization::Q6K) | (Use::Vocabulary, Quantization::Q4_0 | Quantization::Q4K | Quantization::Q5K) => {
                GgmlDType::Q6K
            }
            (Use::Layer, Quantization::Q4_0) => GgmlDType::Q4_0,
            (Use::Layer, Quantization::Q4K) => GgmlDType::Q4K,
            (Use::Layer, Quantization::Q5K) => GgmlDType::Q5K,
        };
        [wanted, GgmlDType::Q8_0].into_iter().find(|dtype| columns.is_multiple_of(dtype.block_size()))
    }
}

fn quantize(matrix: &Matrix, dtype: GgmlDType) -> Result<Matrix> {
    let mut values = Vec::new();
    matrix.widen(&mut values)?;
    let values = Tensor::from_vec(values, (matrix.rows, matrix.columns), &Device::Cpu)?;
    Ok(Matrix { dtype, bytes: QTensor::quantize(&values, dtype)?.data()?.into_owned(), ..*matrix })
}

fn convert(matrix: Matrix, dtype: Dtype) -> Result<Matrix> {
    let to = match dtype {
        Dtype::Auto => return Ok(matrix),
        Dtype::F32 => GgmlDType::F32,
        Dtype::Bf16 => GgmlDType::BF16,
        Dtype::F16 => GgmlDType::F16,
    };
    if matrix.dtype == to {
        return Ok(matrix);
    }
    let mut values = Vec::new();
    matrix.widen(&mut values)?;
    let mut bytes = Vec::with_capacity(values.len() * to.type_size());
    for value in values {
        match dtype {
            Dtype::Auto | Dtype::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
            Dtype::Bf16 => bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
            Dtype::F16 => bytes.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        }
    }
    Ok(Matrix { dtype: to, bytes, ..matrix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(quantization: Quantization, purpose: Use, columns: usize) -> Matrix {
        let values = (0..3 * columns as u32).map(|at| tandem_core::sampling::uniform(5, at) - 0.5);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        let matrix = Matrix { dtype: GgmlDType::F32, rows: 3, columns, bytes };
        Kept { dtype: Dtype::Bf16, quantization }.matrix(purpose, matrix).unwrap()
    }

    #[test]
    fn weights_are_quantised_as_far_as_their_use_and_their_width_allow() {
        for (quantization, purpose, columns, dtype) in [
            (Quantization::Q4K, Use::Layer, 512, GgmlDType::Q4K),
            (Quantization::Q4K, Use::Vocabulary, 512, GgmlDType::Q6K),
            (Quantization::Q4K, Use::Layer, 96, GgmlDType::Q8_0),
            (Quantization::Q4K, Use::Layer, 40, GgmlDType::BF16),
            (Quantization::Q4K, Use::Router, 512, GgmlDType::BF16),
            (Quantization::Q4_0, Use::Layer, 96, GgmlDType::Q4_0),
            (Quantization::Q8_0, Use::Vocabulary, 512, GgmlDType::Q8_0),
            (Quantization::None, Use::Layer, 512, GgmlDType::BF16),
        ] {
            let matrix = kept(quantization, purpose, columns);
            assert_eq!(matrix.dtype, dtype, "{quantization:?} of {columns} columns for {purpose:?}");
            assert_eq!(matrix.bytes.len(), 3 * matrix.row_bytes());
        }
    }

    #[test]
    fn what_a_file_has_quantised_stays_so() {
        let matrix = Matrix { dtype: GgmlDType::Q4_0, rows: 1, columns: 32, bytes: vec![7; 18] };
        let kept = Kept { dtype: Dtype::F32, quantization: Quantization::Q8_0 };
        assert_eq!(kept.matrix(Use::Layer, matrix.clone()).unwrap(), matrix);
    }
}
