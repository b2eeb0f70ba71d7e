use std::ops::Range;

use candle_core::quantized::GgmlDType;
use rayon::prelude::*;
use tandem_core::LoadError;
use tandem_cuda::{Device, Number, Weight, WeightFormat};
use tandem_kernels::Format;

use super::{Kept, Slice, VALUES_AT_A_TIME, Weights, layer, matrix::Matrix, purpose, refused, tensor::Tensor};
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
    /// The weights of a product on a device: of `parts`, which have equally many columns, one matrix for each run of them that is kept in one
    /// format. Numbers that are not quantised become `number`.
    pub(crate) fn put_on_device(
        &mut self,
        device: &Device,
        number: Number,
        parts: &[Slice],
    ) -> Result<Vec<Weight>, LoadError> {
        let mut runs: Vec<(WeightFormat, usize, Vec<u8>)> = Vec::new();
        let inputs = parts.first().map_or(0, |part| part.columns.len());
        for part in parts {
            let tensor = self.source.take(&format!("{}.weight", part.name), &part.shape)?;
            let (format, bytes) = device_bytes(self.kept, number, &tensor, part)?;
            let outputs = part.outputs();
            match runs.last_mut() {
                Some((same, rows, before)) if *same == format => {
                    *rows += outputs;
                    before.extend_from_slice(&bytes);
                }
                _ => runs.push((format, outputs, bytes)),
            }
        }
        let weights = runs.iter().map(|(format, outputs, bytes)| {
            let weight = Weight::new(device, *format, *outputs, inputs, bytes).map_err(device::refused)?;
            self.progress.add(bytes.len() as u64);
            Ok(weight)
        });
        weights.collect()
    }

    /// Bytes that all weights will take on a device, with numbers that are not quantised in `number`; `share` says how many outputs and inputs it
    /// has of those of a layer.
    ///
    /// # Errors
    /// When a share of inputs would cut a block.
    pub(crate) fn device_bytes_of_all(
        &self,
        number: Number,
        share: impl Fn(&str, [usize; 2]) -> [usize; 2],
    ) -> Result<u64, LoadError> {
        let bytes = self.source.list().into_iter().map(|listed| match listed.shape[..] {
            [outputs, all] => {
                let layer = layer(&listed.name);
                let [outputs, inputs] = share(layer, [outputs, all]);
                let block = listed.dtype.block_size();
                if inputs != all && !inputs.is_multiple_of(block) {
                    return Err(LoadError::Unsupported(format!(
                        "{} is quantised in blocks of {block} inputs, which a GPU's share of {inputs} would cut (tensor_parallel_size)",
                        listed.name
                    )));
                }
                let format = format_of(self.kept.format(purpose(layer), listed.dtype, inputs), number);
                Ok((outputs * format.row_bytes(inputs)) as u64)
            }
            _ => Ok((listed.shape.iter().product::<usize>() * size_of::<f32>()) as u64),
        });
        bytes.sum()
    }
}

/// The wanted rows of a tensor as a device is to have them.
fn device_bytes(
    kept: Kept,
    number: Number,
    tensor: &Tensor,
    wanted: &Slice,
) -> Result<(WeightFormat, Vec<u8>), LoadError> {
    let purpose = purpose(&wanted.name);
    let at_a_time = (VALUES_AT_A_TIME / tensor.columns.max(1) / tensor.unit).max(1) * tensor.unit;
    let runs = wanted.rows.iter().flat_map(|rows| {
        let firsts = rows.clone().step_by(at_a_time);
        firsts.map(move |first| first..(first + at_a_time).min(rows.end))
    });
    let runs: Vec<_> = runs.collect();
    let read = |rows: &Range<usize>| {
        let matrix = tensor.read(rows.clone())?.into_columns(wanted.columns.clone());
        let matrix = kept.matrix(purpose, matrix).map_err(refused)?;
        as_device_has_it(matrix, number).map_err(refused)
    };
    let pieces = runs.par_iter().map(read).collect::<Result<Vec<_>, LoadError>>()?;
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
