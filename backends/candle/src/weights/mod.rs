//! The tensors of a model, whatever file they lie in.

mod gguf;
mod kept;
mod matrix;
mod safetensors;
mod stored;

use std::{fmt::Debug, sync::Arc};

use candle_core::quantized::GgmlDType;
use tandem_core::LoadError;
use tandem_kernels::Packed;

pub(crate) use self::{gguf::ggml_id, kept::Kept, stored::Stored};

use crate::{
    directory::ModelDirectory,
    gguf::GgufModel,
    layers::{Embedding, Linear},
    weights::{gguf::GgufWeights, kept::Use, matrix::Matrix, safetensors::SafeTensors},
};

/// The tensors of a model by their Hugging Face names, each to be taken once.
#[derive(Debug)]
pub(crate) struct Weights {
    source: Box<dyn Source>,
    kept: Kept,
}

/// What is known of a tensor before it is read.
#[derive(Debug)]
struct Listed {
    name: String,
    shape: Vec<usize>,
    dtype: GgmlDType,
}

/// Where tensors lie.
trait Source: Debug + Send {
    /// Whether there is a tensor of this name that was not yet taken.
    fn has(&self, name: &str) -> bool;

    /// What was not yet taken.
    fn list(&self) -> Vec<Listed>;

    /// Takes a tensor of one dimension, as a matrix of one column, or of two.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Matrix, LoadError>;

    /// Refuses what was not taken.
    fn finish(&self, may_remain: &dyn Fn(&str) -> bool) -> Result<(), LoadError>;
}

impl Weights {
    /// Those of a model directory.
    pub(crate) fn open(directory: &ModelDirectory, stored: Stored, kept: Kept) -> Result<Self, LoadError> {
        Ok(Self { source: Box::new(SafeTensors::open(directory, stored)?), kept })
    }

    /// Those of a GGUF model.
    pub(crate) fn open_gguf(model: GgufModel, kept: Kept) -> Result<Self, LoadError> {
        Ok(Self { source: Box::new(GgufWeights::open(model)?), kept })
    }

    /// Whether there is a tensor of this name that was not yet taken.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    /// Bytes that all of them will take in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let size = |Listed { name, shape, dtype }: &Listed| match shape[..] {
            [outputs, inputs] => {
                let layer = name.strip_suffix(".weight").unwrap_or(name);
                Packed::size(self.kept.format(purpose(layer), *dtype, inputs), outputs, inputs) as u64
            }
            _ => shape.iter().product::<usize>() as u64 * size_of::<f32>() as u64,
        };
        self.source.list().iter().map(size).sum()
    }

    /// A tensor of one dimension, widened to F32.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let mut values = Vec::new();
        self.source.take(name, &[len])?.widen(&mut values).map_err(refused)?;
        Ok(values)
    }

    /// Rows of `width` values that are looked up and not multiplied with, widened to F32.
    pub(crate) fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<Vec<f32>, LoadError> {
        let mut values = Vec::new();
        self.source.take(name, &[rows, width])?.widen(&mut values).map_err(refused)?;
        Ok(values)
    }

    /// The layer whose outputs are those of `parts`, one after the other: each is the name of a layer in the file, without `.weight` or
    /// `.bias`, and the number of its outputs. Products of the same input are computed as one.
    pub(crate) fn linear(
        &mut self,
        parts: &[(&str, usize)],
        inputs: usize,
        has_bias: bool,
    ) -> Result<Linear, LoadError> {
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for &(part, outputs) in parts {
            let weight = self.source.take(&format!("{part}.weight"), &[outputs, inputs])?;
            weights.push(self.kept.matrix(purpose(part), weight).map_err(refused)?);
            if has_bias {
                bias.extend(self.vector(&format!("{part}.bias"), outputs)?);
            }
        }
        let packed = pack(weights, has_bias.then_some(&bias))?;
        Ok(Linear::new(Arc::new(packed)))
    }

    /// The vectors of `tokens` tokens, `width` wide.
    pub(crate) fn embedding(&mut self, name: &str, tokens: usize, width: usize) -> Result<Embedding, LoadError> {
        let weight = self.source.take(name, &[tokens, width])?;
        let weight = self.kept.matrix(Use::Vocabulary, weight).map_err(refused)?;
        Ok(Embedding::new(pack(vec![weight], None)?))
    }

    /// Refuses tensors that were not taken: a bias that the configuration does not mention would change every answer.
    pub(crate) fn finish(self, may_remain: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        self.source.finish(&may_remain)
    }
}

/// What a layer is for, by its name.
fn purpose(layer: &str) -> Use {
    match layer.rsplit('.').next() {
        Some("lm_head" | "embed_tokens") => Use::Vocabulary,
        Some("gate") => Use::Router,
        _ => Use::Layer,
    }
}

/// What is computed with: matrices of equal width, whose outputs lie behind each other.
fn pack(matrices: Vec<Matrix>, bias: Option<&Vec<f32>>) -> Result<Packed, LoadError> {
    let matrices = matrices.into_iter().map(Matrix::into_packable).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let matrices: Vec<_> = matrices.iter().map(|(format, matrix)| matrix.as_packable(*format)).collect();
    Packed::new(&matrices, bias.map(Vec::as_slice))
        .map_err(|error| LoadError::Other { context: "cannot pack a weight".to_owned(), source: error.into() })
}

fn refused(error: candle_core::Error) -> LoadError {
    LoadError::Other { context: "candle refused a weight".to_owned(), source: error.into() }
}
