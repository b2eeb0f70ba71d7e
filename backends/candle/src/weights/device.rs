use candle_core::quantized::GgmlDType;
use rayon::prelude::*;
use tandem_core::LoadError;
use tandem_cuda::{Device, Number, Weight, WeightFormat};
use tandem_kernels::Format;

use super::{Kept, Use, VALUES_AT_A_TIME, Weights, matrix::Matrix, purpose, refused, tensor::Tensor};
use crate::device;

/// The types that a device multiplies with as they are.
const BLOCKS: [(GgmlDType, WeightFormat); 6] = [
    (GgmlDType::Q4_0, WeightFormat::Q4_0),
    (GgmlDType::Q5_0, WeightFormat::Q5_0),
    (GgmlDType::Q8_0, WeightFormat::Q8_0),
    (GgmlDType::Q4K, WeightFormat::Q4K),
    (GgmlDType::Q5K, WeightFormat::Q5K),
    (GgmlDType::Q6K, WeightFormat::Q6K),
];

impl Weights {
    /// The weights of a product on a device: of `parts`, names without `.weight` and their outputs, one matrix for each run of them that is kept
    /// in one format. Numbers that are not quantised become `number`.
    pub(crate) fn put_on_device(
        &mut self,
        device: &Device,
        number: Number,
        parts: &[(String, usize)],
        inputs: usize,
    ) -> Result<Vec<Weight>, LoadError> {
        let mut runs: Vec<(WeightFormat, usize, Vec<u8>)> = Vec::new();
        for (part, outputs) in parts {
            let tensor = self.source.take(&format!("{part}.weight"), &[*outputs, inputs])?;
            let (format, bytes) = device_bytes(self.kept, number, purpose(part), &tensor)?;
            match runs.last_mut() {
                Some((same, rows, before)) if *same == format => {
                    *rows += outputs;
                    before.extend_from_slice(&bytes);
                }
                _ => runs.push((format, *outputs, bytes)),
            }
        }
        let weights = runs.iter().map(|(format, outputs, bytes)| {
            let weight = Weight::new(device, *format, *outputs, inputs, bytes).map_err(device::refused)?;
            self.progress.add(bytes.len() as u64);
            Ok(weight)
        });
        weights.collect()
    }

    /// Bytes that all weights will take on a device, with numbers that are not quantised in `number`.
    pub(crate) fn device_bytes_of_all(&self, number: Number) -> u64 {
        let bytes = self.source.list().into_iter().map(|listed| match listed.shape[..] {
            [outputs, inputs] => {
                let layer = listed.name.strip_suffix(".weight").unwrap_or(&listed.name);
                let format = format_of(self.kept.format(purpose(layer), listed.dtype, inputs), number);
                outputs * format.row_bytes(inputs)
            }
            _ => listed.shape.iter().product::<usize>() * size_of::<f32>(),
        });
        bytes.sum::<usize>() as u64
    }
}

/// The rows of a tensor as a device is to have them.
fn device_bytes(
    kept: Kept,
    number: Number,
    purpose: Use,
    tensor: &Tensor,
) -> Result<(WeightFormat, Vec<u8>), LoadError> {
    let at_a_time = (VALUES_AT_A_TIME / tensor.columns.max(1) / tensor.unit).max(1) * tensor.unit;
    let firsts: Vec<_> = (0..tensor.rows).step_by(at_a_time).collect();
    let read = |first: &usize| {
        let rows = tensor.read(*first..(first + at_a_time).min(tensor.rows))?;
        let matrix = kept.matrix(purpose, rows).map_err(refused)?;
        as_device_has_it(matrix, number).map_err(refused)
    };
    let pieces = firsts.par_iter().map(read).collect::<Result<Vec<_>, LoadError>>()?;
    let format = pieces.first().map_or(WeightFormat::Plain(number), |(format, _)| *format);
    Ok((format, pieces.into_iter().flat_map(|(_, bytes)| bytes).collect()))
}

fn as_device_has_it(matrix: Matrix, number: Number) -> candle_core::Result<(WeightFormat, Vec<u8>)> {
    if let Some((_, format)) = BLOCKS.iter().find(|(dtype, _)| *dtype == matrix.dtype) {
        return Ok((*format, matrix.bytes));
    }
    let same = match number {
        Number::F32 => GgmlDType::F32,
        Number::Bf16 => GgmlDType::BF16,
        Number::F16 => GgmlDType::F16,
        Number::F8 => unreachable!("weights are never of eight bits, but in blocks"),
    };
    let bytes = if matrix.dtype == same {
        matrix.bytes
    } else {
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        matrix.widen(&mut values)?;
        number.write(&values, &mut bytes);
        bytes
    };
    Ok((WeightFormat::Plain(number), bytes))
}

/// What a device has of what the CPU would keep in a format.
fn format_of(format: Format, number: Number) -> WeightFormat {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => WeightFormat::Plain(number),
        Format::Q4_0 => WeightFormat::Q4_0,
        Format::Q5_0 => WeightFormat::Q5_0,
        Format::Q8_0 => WeightFormat::Q8_0,
        Format::Q4K => WeightFormat::Q4K,
        Format::Q5K => WeightFormat::Q5K,
        Format::Q6K => WeightFormat::Q6K,
    }
}
