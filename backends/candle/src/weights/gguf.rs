use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use tandem_core::LoadError;
use tandem_gguf::{GgufFile, Tensor, ggml_type};

use super::{Listed, Source, matrix::Matrix};
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
#[derive(Debug)]
pub(super) struct GgufWeights {
    files: Vec<GgufFile>,
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
        let mut weights = Self { files: model.files, names, tensors: BTreeMap::new() };
        for file in 0..weights.files.len() {
            for tensor in 0..weights.files[file].header().tensors().len() {
                weights.add(file, tensor).map_err(|reason| invalid(weights.files[file].path(), reason))?;
            }
        }
        Ok(weights)
    }

    fn add(&mut self, file: usize, at: usize) -> Result<(), String> {
        let tensor = &self.files[file].header().tensors()[at];
        let Tensor { name, dims, .. } = tensor;
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

    fn read(&self, name: &str, place: Place, shape: &[usize]) -> Result<Matrix, LoadError> {
        let file = &self.files[place.file];
        let tensor = &file.header().tensors()[place.tensor];
        let (dims, first, bytes) = match place.part {
            Part::Whole => (tensor.dims.as_slice(), 0, tensor.bytes),
            Part::Expert(expert) => {
                let bytes = tensor.bytes / tensor.dims[2];
                (&tensor.dims[..2], expert * bytes, bytes)
            }
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
        let mut data = vec![0; bytes as usize];
        file.read(tensor, first, &mut data)?;
        let columns = shape.get(1).copied().unwrap_or(1);
        let matrix = Matrix { dtype: place.dtype, rows: shape[0], columns, bytes: data };
        match place.change {
            Change::Nothing => Ok(matrix),
            Change::PairsToHalves { head_dim } => pairs_to_halves(&matrix, head_dim)
                .ok_or_else(|| refused(format!("{} rows are no whole heads of {head_dim}", matrix.rows))),
            Change::WithoutTheOne => without_the_one(&matrix).map_err(super::refused),
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

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Matrix, LoadError> {
        match self.tensors.remove(name) {
            Some(place) => self.read(name, place, shape),
            None => Err(invalid(self.files[0].path(), format!("tensor {}: missing", self.both(name)))),
        }
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

fn dtype(tensor: &Tensor) -> Result<GgmlDType, String> {
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
fn pairs_to_halves(matrix: &Matrix, head_dim: usize) -> Option<Matrix> {
    if !matrix.rows.is_multiple_of(head_dim) || !head_dim.is_multiple_of(2) {
        return None;
    }
    let row = matrix.row_bytes();
    let mut bytes = Vec::with_capacity(matrix.bytes.len());
    for head in matrix.bytes.chunks_exact(head_dim * row) {
        for side in 0..2 {
            head.chunks_exact(row).skip(side).step_by(2).for_each(|row| bytes.extend_from_slice(row));
        }
    }
    Some(Matrix { bytes, ..*matrix })
}

fn without_the_one(matrix: &Matrix) -> candle_core::Result<Matrix> {
    let mut values = Vec::new();
    matrix.widen(&mut values)?;
    let bytes = values.iter().flat_map(|value| (value - 1.0).to_le_bytes()).collect();
    Ok(Matrix { dtype: GgmlDType::F32, bytes, ..*matrix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves() {
        let of = |order: [u8; 8]| {
            // Rows of two bytes each.
            let bytes = order.iter().flat_map(|&row| [row, row + 100]).collect();
            Matrix { dtype: GgmlDType::F16, rows: 8, columns: 1, bytes }
        };
        let turned = pairs_to_halves(&of([0, 2, 1, 3, 4, 6, 5, 7]), 4);
        assert_eq!(turned, Some(of([0, 1, 2, 3, 4, 5, 6, 7])));
        assert_eq!(pairs_to_halves(&of([0; 8]), 6), None);
        assert_eq!(pairs_to_halves(&of([0; 8]), 1), None);
    }

    #[test]
    fn gemmas_one_is_taken_away() {
        let bytes = [1.5f32, -0.25].into_iter().flat_map(f32::to_le_bytes).collect();
        let matrix = Matrix { dtype: GgmlDType::F32, rows: 2, columns: 1, bytes };
        let mut values = Vec::new();
        without_the_one(&matrix).unwrap().widen(&mut values).unwrap();
        assert_eq!(values, [0.5, -1.25]);
    }
}
