use std::{collections::BTreeMap, ops::Range, sync::Arc};

use candle_core::quantized::GgmlDType;
use tandem_core::LoadError;
use tandem_gguf::{GgufFile, ggml_type};

use super::{
    Listed, Source,
    matrix::{Matrix, row_bytes},
    tensor::{Rows, Tensor},
};
use crate::{
    directory::invalid,
    gguf::{Change, GgufModel, Name, Names},
};

/// The tensor types that are computed with, by ggml's number.
const TYPES: [(u32, GgmlDType); 13] = [
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (30, GgmlDType::BF16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
];
/// Those of them that are numbers one by one, as vectors have to be.
const PLAIN: [GgmlDType; 3] = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];

/// More experts than any model has.
const MAX_EXPERTS: u64 = 1024;

/// The number that ggml has for a type that is computed with.
pub(crate) fn ggml_id(dtype: GgmlDType) -> Option<u32> {
    TYPES.iter().find(|(_, known)| *known == dtype).map(|(id, _)| *id)
}

/// The tensors of a GGUF model, under the names that Hugging Face has for them.
#[derive(Clone, Debug)]
pub(super) struct GgufWeights {
    files: Vec<Arc<GgufFile>>,
    names: Names,
    /// Where each tensor that was not yet taken lies.
    tensors: BTreeMap<String, Place>,
}

/// A tensor of a file, or one expert's part of it.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: usize,
    /// Its number in the file's table.
    tensor: usize,
    dtype: GgmlDType,
    part: Part,
    change: Change,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Whole,
    Expert(u64),
}

impl GgufWeights {
    /// Finds out what each tensor is. One that is unknown, or of a type that nothing here computes with, is refused.
    pub(super) fn open(model: GgufModel) -> Result<Self, LoadError> {
        let names = model.names()?;
        let mut weights =
            Self { files: model.files.into_iter().map(Arc::new).collect(), names, tensors: BTreeMap::new() };
        for file in 0..weights.files.len() {
            for tensor in 0..weights.files[file].header().tensors().len() {
                weights.add(file, tensor).map_err(|reason| invalid(weights.files[file].path(), reason))?;
            }
        }
        Ok(weights)
    }

    fn add(&mut self, file: usize, at: usize) -> Result<(), String> {
        let tensor = &self.files[file].header().tensors()[at];
        let tandem_gguf::Tensor { name, dims, .. } = tensor;
        let dtype = dtype(tensor)?;
        let place = Place { file, tensor: at, dtype, part: Part::Whole, change: Change::Nothing };
        let places = match self.names.hugging_face(name) {
            None => return Err(format!("tensor {name}: a model of this architecture has no place for it")),
            Some(Name::Configuration) => Vec::new(),
            Some(Name::One(full, change)) => vec![(full, Place { change, ..place })],
            Some(Name::Experts(full)) => {
                let &[_, _, experts @ 1..=MAX_EXPERTS] = dims.as_slice() else {
                    let wanted = format!("a matrix for each of up to {MAX_EXPERTS} experts");
                    return Err(format!("tensor {name}: {wanted} expected, got {dims:?}"));
                };
                let of = |expert: u64| {
                    let full = full.replace("{expert}", &expert.to_string());
                    (full, Place { part: Part::Expert(expert), ..place })
                };
                (0..experts).map(of).collect()
            }
        };
        for (full, place) in places {
            if self.tensors.insert(full, place).is_some() {
                return Err(format!("tensor {name}: another file of the model has it too"));
            }
        }
        Ok(())
    }

    /// The name of a tensor as the model code and as the file have it.
    fn both(&self, name: &str) -> String {
        format!("{name} ({} in the file)", self.names.gguf(name))
    }

    fn open_tensor(&self, name: &str, place: Place, shape: &[usize]) -> Result<Tensor, LoadError> {
        let file = &self.files[place.file];
        let tensor = &file.header().tensors()[place.tensor];
        let (dims, first) = match place.part {
            Part::Whole => (tensor.dims.as_slice(), 0),
            Part::Expert(expert) => (&tensor.dims[..2], expert * (tensor.bytes / tensor.dims[2])),
        };
        let refused = |reason: String| invalid(file.path(), format!("tensor {}: {reason}", self.both(name)));
        let got: Vec<usize> = dims.iter().rev().map(|&dim| dim as usize).collect();
        if got != shape {
            return Err(refused(format!("expected {shape:?} got {got:?}")));
        }
        if shape.len() == 1 && !PLAIN.contains(&place.dtype) {
            let kind = ggml_type::name(tensor.kind).unwrap_or("unknown");
            return Err(refused(format!("expected F32, F16 or BF16 got {kind}")));
        }
        let (rows, columns) = (shape[0], shape.get(1).copied().unwrap_or(1));
        let unit = match place.change {
            Change::PairsToHalves { head_dim } => head_dim,
            Change::Nothing | Change::WithoutTheOne => 1,
        };
        if !rows.is_multiple_of(unit) || (unit != 1 && !unit.is_multiple_of(2)) {
            return Err(refused(format!("{rows} rows are no whole heads of {unit}")));
        }
        let dtype = if place.change == Change::WithoutTheOne { GgmlDType::F32 } else { place.dtype };
        let row_bytes = row_bytes(place.dtype, columns);
        let source = GgufRows { file: Arc::clone(file), place, first, columns, row_bytes };
        Ok(Tensor { dtype, rows, columns, unit, source: Box::new(source) })
    }
}

/// The rows of a tensor, or of one expert's part of it.
#[derive(Debug)]
struct GgufRows {
    file: Arc<GgufFile>,
    place: Place,
    /// Where in the tensor they begin, in bytes.
    first: u64,
    columns: usize,
    row_bytes: usize,
}

impl Rows for GgufRows {
    fn read(&self, rows: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let &Self { ref file, place, first, columns, row_bytes } = self;
        let mut bytes = vec![0; rows.len() * row_bytes];
        let tensor = &file.header().tensors()[place.tensor];
        file.read(tensor, first + (rows.start * row_bytes) as u64, &mut bytes)?;
        match place.change {
            Change::Nothing => Ok(bytes),
            Change::PairsToHalves { head_dim } => Ok(pairs_to_halves(&bytes, row_bytes, head_dim)),
            Change::WithoutTheOne => {
                let matrix = Matrix { dtype: place.dtype, rows: rows.len(), columns, bytes };
                without_the_one(&matrix).map_err(super::refused)
            }
        }
    }
}

impl Source for GgufWeights {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn list(&self) -> Vec<Listed> {
        let listed = |(name, place): (&String, &Place)| {
            let dims = &self.files[place.file].header().tensors()[place.tensor].dims;
            let dims = match place.part {
                Part::Whole => &dims[..],
                Part::Expert(_) => &dims[..2],
            };
            Listed {
                name: name.clone(),
                shape: dims.iter().rev().map(|&dim| dim as usize).collect(),
                dtype: place.dtype,
            }
        };
        self.tensors.iter().map(listed).collect()
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        match self.tensors.remove(name) {
            Some(place) => self.open_tensor(name, place, shape),
            None => Err(invalid(self.files[0].path(), format!("tensor {}: missing", self.both(name)))),
        }
    }

    fn again(&self) -> Box<dyn Source> {
        Box::new(self.clone())
    }

    fn finish(&self, may_remain: &dyn Fn(&str) -> bool) -> Result<(), LoadError> {
        match self.tensors.iter().find(|(name, _)| !may_remain(name)) {
            Some((name, place)) => {
                let reason = format!("tensor {}: the configuration has no place for it", self.both(name));
                Err(invalid(self.files[place.file].path(), reason))
            }
            None => Ok(()),
        }
    }
}

fn dtype(tensor: &tandem_gguf::Tensor) -> Result<GgmlDType, String> {
    let known = TYPES.iter().find(|(kind, _)| *kind == tensor.kind);
    known.map(|(_, dtype)| *dtype).ok_or_else(|| {
        let name = |kind| ggml_type::name(kind).unwrap_or("unknown");
        let known: Vec<_> = TYPES.iter().map(|(kind, _)| name(*kind)).collect();
        format!(
            "tensor {}: type {} is not supported by the candle backend; known: {}",
            tensor.name,
            name(tensor.kind),
            known.join(", ")
        )
    })
}

/// Within each head, the first of all pairs and then the second of all pairs. A row moves as a whole, so it may be packed in blocks.
fn pairs_to_halves(rows: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * row_bytes) {
        for side in 0..2 {
            head.chunks_exact(row_bytes).skip(side).step_by(2).for_each(|row| bytes.extend_from_slice(row));
        }
    }
    bytes
}

/// In F32.
fn without_the_one(matrix: &Matrix) -> candle_core::Result<Vec<u8>> {
    let mut values = Vec::new();
    matrix.widen(&mut values)?;
    Ok(values.iter().flat_map(|value| (value - 1.0).to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves() {
        // Rows of two bytes each.
        let of = |order: [u8; 8]| order.iter().flat_map(|&row| [row, row + 100]).collect::<Vec<_>>();
        assert_eq!(pairs_to_halves(&of([0, 2, 1, 3, 4, 6, 5, 7]), 2, 4), of([0, 1, 2, 3, 4, 5, 6, 7]));
    }

    #[test]
    fn gemmas_one_is_taken_away() {
        let bytes = [1.5f32, -0.25].into_iter().flat_map(f32::to_le_bytes).collect();
        let matrix = Matrix { dtype: GgmlDType::F32, rows: 2, columns: 1, bytes };
        let values = without_the_one(&matrix).unwrap();
        assert_eq!(
            values.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect::<Vec<_>>(),
            [0.5, -1.25]
        );
    }
}
