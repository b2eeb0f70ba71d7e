use std::borrow::Cow;

use candle_core::{
    Device, Result,
    quantized::{GgmlDType, QStorage, QTensor},
};
use half::{bf16, f16};
use tandem_kernels::Format;

/// Bytes widened at a time.
const CHUNK: usize = 1 << 20;

/// Numbers as a file holds them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) dtype: GgmlDType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Row after row; a row is whole blocks of the type.
    pub(crate) bytes: Vec<u8>,
}

impl Matrix {
    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        row_bytes(self.dtype, self.columns)
    }

    /// Whether its values are numbers one by one.
    pub(crate) fn is_plain(&self) -> bool {
        is_plain(self.dtype)
    }

    /// Appends all values in F32.
    pub(crate) fn widen(&self, values: &mut Vec<f32>) -> Result<()> {
        values.reserve_exact(self.rows * self.columns);
        let bytes = &self.bytes;
        match plain(self.dtype) {
            Some(widen) => {
                widen(bytes, values);
                Ok(())
            }
            None => self.widen_blocks(values),
        }
    }

    /// Some rows at a time, for candle copies them and gives the values back in a copy.
    fn widen_blocks(&self, values: &mut Vec<f32>) -> Result<()> {
        let row = self.row_bytes().max(1);
        for rows in self.bytes.chunks((CHUNK / row).max(1) * row) {
            let storage = QStorage::from_data(Cow::Borrowed(rows), &Device::Cpu, self.dtype)?;
            let blocks = QTensor::new(storage, (rows.len() / row, self.columns))?;
            values.extend(blocks.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }

    /// The matrix in a format that products are computed with: its own where that is one, F16 for the rare others.
    pub(crate) fn into_packable(self) -> Result<Self> {
        if packable(self.dtype) != Format::F16 || self.dtype == GgmlDType::F16 {
            return Ok(self);
        }
        let mut values = Vec::new();
        self.widen(&mut values)?;
        let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        Ok(Self { dtype: GgmlDType::F16, bytes, ..self })
    }
}

/// Bytes of a row of so many values of a type.
pub(super) fn row_bytes(dtype: GgmlDType, columns: usize) -> usize {
    columns / dtype.block_size() * dtype.type_size()
}

/// Whether values of a type are numbers one by one.
pub(super) fn is_plain(dtype: GgmlDType) -> bool {
    plain(dtype).is_some()
}

/// The format that products with a type are computed in.
pub(super) fn packable(dtype: GgmlDType) -> Format {
    FORMATS.iter().find(|(known, _)| *known == dtype).map_or(Format::F16, |(_, format)| *format)
}

/// The types that products are computed with as they are.
const FORMATS: [(GgmlDType, Format); 9] = [
    (GgmlDType::F32, Format::F32),
    (GgmlDType::F16, Format::F16),
    (GgmlDType::BF16, Format::Bf16),
    (GgmlDType::Q4_0, Format::Q4_0),
    (GgmlDType::Q5_0, Format::Q5_0),
    (GgmlDType::Q8_0, Format::Q8_0),
    (GgmlDType::Q4K, Format::Q4K),
    (GgmlDType::Q5K, Format::Q5K),
    (GgmlDType::Q6K, Format::Q6K),
];

/// Appends values, given as bytes, in F32.
type Widen = fn(&[u8], &mut Vec<f32>);

/// What widens a type that is no blocks.
fn plain(dtype: GgmlDType) -> Option<Widen> {
    let known: [(GgmlDType, Widen); 3] =
        [(GgmlDType::F32, widen_f32), (GgmlDType::BF16, widen_bf16), (GgmlDType::F16, widen_f16)];
    known.into_iter().find(|(known, _)| *known == dtype).map(|(_, widen)| widen)
}

fn widen_f32(bytes: &[u8], values: &mut Vec<f32>) {
    values.extend(bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)));
}

fn widen_bf16(bytes: &[u8], values: &mut Vec<f32>) {
    values.extend(bytes.as_chunks().0.iter().map(|&value| bf16::from_le_bytes(value).to_f32()));
}

fn widen_f16(bytes: &[u8], values: &mut Vec<f32>) {
    values.extend(bytes.as_chunks().0.iter().map(|&value| f16::from_le_bytes(value).to_f32()));
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;

    /// Every type in blocks gives back what was put into it, as nearly as it can, whatever the number of rows.
    #[test]
    fn blocks_are_widened() {
        let (rows, columns) = (700, 512);
        let values: Vec<f32> =
            (0..rows as u32 * columns as u32).map(|at| tandem_core::sampling::uniform(3, at) - 0.5).collect();
        let tensor = Tensor::from_slice(&values, (rows, columns), &Device::Cpu).unwrap();
        for (dtype, error) in [
            (GgmlDType::Q4_0, 0.07),
            (GgmlDType::Q4_1, 0.04),
            (GgmlDType::Q5_0, 0.035),
            (GgmlDType::Q5_1, 0.02),
            (GgmlDType::Q8_0, 0.003),
            (GgmlDType::Q2K, 0.26),
            (GgmlDType::Q3K, 0.13),
            (GgmlDType::Q4K, 0.05),
            (GgmlDType::Q5K, 0.03),
            (GgmlDType::Q6K, 0.02),
        ] {
            let blocks = QTensor::quantize(&tensor, dtype).unwrap();
            let matrix = Matrix { dtype, rows, columns, bytes: blocks.data().unwrap().into_owned() };
            assert_eq!(matrix.bytes.len(), rows * matrix.row_bytes(), "{dtype:?}");
            let mut widened = vec![9.0];
            matrix.widen(&mut widened).unwrap();
            assert_eq!(widened.len(), 1 + values.len(), "{dtype:?}");
            let worst = values.iter().zip(&widened[1..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < error, "{dtype:?}: {worst}");
        }
    }
}
