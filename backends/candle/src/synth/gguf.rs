//! The same weights as llama.cpp's converter writes them.

use std::io::Write;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::f16;

use super::{
    Model, Progress, SynthError,
    config::{LLAMA_3_CONTEXT, LLAMA_3_TURNS},
    metadata::{self, put_text},
    mix::{Mix, Place},
    rows,
    weights::Drawn,
};
use crate::{
    gguf::{Change, Family, Name, Names, ROPE_FACTORS},
    weights::ggml_id,
};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Where tensors begin.
const ALIGN: usize = 32;

/// A tensor of a file.
pub(super) struct Packed<'a> {
    name: String,
    dtype: GgmlDType,
    numbers: Numbers<'a>,
}

enum Numbers<'a> {
    Drawn {
        tensor: &'a Drawn,
        change: Change,
    },
    /// Factors of rotary positions, one for each pair of a head.
    Factors(Vec<f32>),
}

/// All tensors of a file. Those of one dimension stay as they are.
pub(super) fn tensors(model: &Model, names: Names, mix: Mix) -> Vec<Packed<'_>> {
    let is_tied = model.shape.tied;
    let factors = (model.arch.family == Family::Llama && model.shape.stretch > 1.0).then(|| Packed {
        name: ROPE_FACTORS.to_owned(),
        dtype: GgmlDType::F32,
        numbers: Numbers::Factors(factors(model)),
    });
    let drawn = model.tensors.iter().map(|tensor| {
        let name = names.gguf(&tensor.name);
        let change = match names.hugging_face(&name) {
            Some(Name::One(_, change)) => change,
            Some(Name::Experts(_) | Name::Configuration) | None => Change::Nothing,
        };
        let layer = name.trim_end_matches(".weight");
        let (block, layer) = layer
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(block, layer)| Some((block.parse().ok()?, layer)))
            .unwrap_or((0, layer));
        let place = Place {
            layer,
            block,
            blocks: model.shape.layers,
            is_head: layer == if is_tied { "token_embd" } else { "output" },
            columns: tensor.columns,
        };
        let dtype = if tensor.is_vector { GgmlDType::F32 } else { mix.dtype(&place) };
        Packed { name, dtype, numbers: Numbers::Drawn { tensor, change } }
    });
    factors.into_iter().chain(drawn).collect()
}

/// Bytes of all tensors.
pub(super) fn bytes(tensors: &[Packed<'_>]) -> usize {
    tensors.iter().map(Packed::bytes).sum()
}

pub(super) fn write(
    model: &Model,
    mix: Mix,
    tensors: &[Packed<'_>],
    file: &mut dyn Write,
    progress: &mut Progress<'_>,
) -> Result<(), SynthError> {
    let header = header(model, mix, tensors);
    file.write_all(&header)?;
    for tensor in tensors {
        tensor.write(file, progress)?;
        file.write_all(&vec![0; tensor.bytes().next_multiple_of(ALIGN) - tensor.bytes()])?;
    }
    Ok(())
}

/// Everything in front of the tensors' numbers.
fn header(model: &Model, mix: Mix, tensors: &[Packed<'_>]) -> Vec<u8> {
    let metadata = metadata::of(model, mix);
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    metadata.write(&mut header);
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut header, &tensor.name);
        let dims = tensor.dims();
        header.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| header.extend((*dim as u64).to_le_bytes()));
        header.extend(ggml_id(tensor.dtype).expect("all that is written can be read").to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGN);
    }
    header.resize(header.len().next_multiple_of(ALIGN), 0);
    header
}

/// What llama.cpp divides the frequency of each pair of a head by, as Llama 3 has it: nothing for fast ones, all of the factor for slow
/// ones, and something between for those between.
fn factors(model: &Model) -> Vec<f32> {
    let shape = model.shape;
    let (slow, fast) = LLAMA_3_TURNS;
    let pairs = shape.head_dim / 2;
    let factor = |pair: usize| {
        let frequency = shape.theta.powf(-(pair as f64) / pairs as f64);
        let turns = LLAMA_3_CONTEXT * frequency / std::f64::consts::TAU;
        let kept = ((turns - slow) / (fast - slow)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / shape.stretch + kept)) as f32
    };
    (0..pairs).map(factor).collect()
}

impl Packed<'_> {
    /// Sizes, the width of a row first.
    fn dims(&self) -> Vec<usize> {
        match &self.numbers {
            Numbers::Drawn { tensor, .. } if tensor.is_vector => vec![tensor.columns],
            Numbers::Drawn { tensor, .. } => vec![tensor.columns, tensor.rows],
            Numbers::Factors(factors) => vec![factors.len()],
        }
    }

    fn bytes(&self) -> usize {
        self.dims().iter().product::<usize>() / self.dtype.block_size() * self.dtype.type_size()
    }

    fn write(&self, file: &mut dyn Write, progress: &mut Progress<'_>) -> Result<(), SynthError> {
        let (tensor, change) = match &self.numbers {
            Numbers::Drawn { tensor, change } => (tensor, *change),
            Numbers::Factors(factors) => {
                factors.iter().try_for_each(|factor| file.write_all(&factor.to_le_bytes()))?;
                progress.add(self.bytes() as u64);
                return Ok(());
            }
        };
        rows::write(tensor.rows, tensor.columns, file, progress, |rows| {
            let mut numbers = Vec::with_capacity(rows.len() * tensor.columns);
            match change {
                // The other way round than a reader has it.
                Change::PairsToHalves { head_dim } if tensor.is_vector => {
                    let mut plain = Vec::new();
                    tensor.rows(rows, &mut plain);
                    numbers.extend((0..plain.len()).map(|at| plain[half_of(at, head_dim)]));
                }
                Change::PairsToHalves { head_dim } => rows.map(|row| half_of(row, head_dim)).for_each(|row| {
                    tensor.rows(row..row + 1, &mut numbers);
                }),
                Change::WithoutTheOne => {
                    tensor.rows(rows, &mut numbers);
                    numbers.iter_mut().for_each(|number| *number += 1.0);
                }
                Change::Nothing => tensor.rows(rows, &mut numbers),
            }
            pack(&numbers, tensor.columns, self.dtype)
        })
    }
}

/// Where in halves of heads lies what in pairs lies here.
fn half_of(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

fn pack(numbers: &[f32], columns: usize, dtype: GgmlDType) -> Result<Vec<u8>, SynthError> {
    if dtype == GgmlDType::F32 {
        return Ok(numbers.iter().flat_map(|number| number.to_le_bytes()).collect());
    }
    if dtype == GgmlDType::F16 {
        return Ok(numbers.iter().flat_map(|number| f16::from_f32(*number).to_le_bytes()).collect());
    }
    let tensor = Tensor::from_slice(numbers, (numbers.len() / columns, columns), &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, dtype)?.data()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_go_from_halves_to_pairs() {
        let order: Vec<_> = (0..16).map(|row| half_of(row, 8)).collect();
        assert_eq!(order, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
    }
}
