//! The tensors of a model, whatever file they lie in.

mod device;
mod float8;
mod gguf;
mod int4;
mod kept;
mod matrix;
mod safetensors;
mod slice;
mod stored;
mod tensor;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use candle_core::quantized::GgmlDType;
use tandem_core::{LoadError, LoadProgress};
use tandem_kernels::{Format, PANEL, PackError, Packed, Unread};

pub(crate) use self::{gguf::ggml_id, kept::Kept, slice::Slice, stored::Stored};

use crate::{
    directory::ModelDirectory,
    gguf::GgufModel,
    layers::{Embedding, Linear},
    weights::{gguf::GgufWeights, kept::Use, safetensors::SafeTensors, tensor::Tensor},
};

/// Values of a weight that are read and packed together: few, since each thread has them in memory in up to three forms at a time, and
/// enough that neither reading nor handing out work is felt.
const VALUES_AT_A_TIME: usize = 1 << 16;

/// The tensors of a model by their Hugging Face names, each to be taken once.
#[derive(Debug)]
pub(crate) struct Weights {
    source: Box<dyn Source>,
    kept: Kept,
    progress: LoadProgress,
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
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError>;

    /// Refuses what was not taken.
    fn finish(&self, may_remain: &dyn Fn(&str) -> bool) -> Result<(), LoadError>;

    /// The same tensors, to be taken by another.
    fn again(&self) -> Box<dyn Source>;
}

impl Weights {
    /// Those of a model directory.
    pub(crate) fn open(directory: &ModelDirectory, stored: Stored, kept: Kept) -> Result<Self, LoadError> {
        Ok(Self { source: Box::new(SafeTensors::open(directory, stored)?), kept, progress: LoadProgress::default() })
    }

    /// Those of a GGUF model.
    pub(crate) fn open_gguf(model: GgufModel, kept: Kept) -> Result<Self, LoadError> {
        Ok(Self { source: Box::new(GgufWeights::open(model)?), kept, progress: LoadProgress::default() })
    }

    /// Tells `progress` how many bytes there are, and from now on how many of them are in memory.
    pub(crate) fn tell(&mut self, progress: &LoadProgress) {
        self.tell_of(progress, self.bytes());
    }

    /// The same where they are so many bytes.
    pub(crate) fn tell_of(&mut self, progress: &LoadProgress, bytes: u64) {
        progress.begin(bytes);
        self.progress = progress.clone();
    }

    /// The same for another who takes them. What they take is not told again.
    pub(crate) fn again(&self) -> Self {
        Self { source: self.source.again(), kept: self.kept, progress: LoadProgress::default() }
    }

    /// Whether there is a tensor of this name that was not yet taken.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    /// Bytes that those of each format will take in memory.
    pub(crate) fn formats(&self) -> BTreeMap<Format, u64> {
        let mut formats = BTreeMap::new();
        for listed in self.source.list() {
            let (format, bytes) = self.in_memory(&listed);
            *formats.entry(format).or_default() += bytes;
        }
        formats
    }

    /// Bytes that the table of the embeddings of tokens will take in memory.
    pub(crate) fn table_bytes(&self) -> u64 {
        let tables = self.source.list().into_iter().filter(|listed| {
            let layer = layer(&listed.name);
            purpose(layer) == Use::Vocabulary && !is_head(layer)
        });
        tables.map(|listed| self.in_memory(&listed).1).sum()
    }

    /// How one will be kept, and in how many bytes.
    fn in_memory(&self, Listed { name, shape, dtype }: &Listed) -> (Format, u64) {
        let (format, bytes) = match shape[..] {
            [outputs, inputs] => {
                let format = self.kept.format(purpose(layer(name)), *dtype, inputs);
                (format, Packed::size(format, outputs, inputs))
            }
            _ => (Format::F32, shape.iter().product::<usize>() * size_of::<f32>()),
        };
        (format, bytes as u64)
    }

    /// Bytes that all of them will take in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.formats().values().sum()
    }

    /// A tensor of one dimension, widened to F32.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.widened(name, &[len])
    }

    /// Rows of `width` values that are looked up and not multiplied with, widened to F32.
    pub(crate) fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<Vec<f32>, LoadError> {
        self.widened(name, &[rows, width])
    }

    fn widened(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let mut values = Vec::new();
        self.source.take(name, shape)?.whole()?.widen(&mut values).map_err(refused)?;
        self.progress.add(size_of_val(&*values) as u64);
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
            weights.push((purpose(part), self.source.take(&format!("{part}.weight"), &[outputs, inputs])?));
            if has_bias {
                bias.extend(self.vector(&format!("{part}.bias"), outputs)?);
            }
        }
        let packed = self.pack(&weights, has_bias.then_some(&bias))?;
        Ok(Linear::new(Arc::new(packed)))
    }

    /// The vectors of `tokens` tokens, `width` wide.
    pub(crate) fn embedding(&mut self, name: &str, tokens: usize, width: usize) -> Result<Embedding, LoadError> {
        let weight = self.source.take(name, &[tokens, width])?;
        Ok(Embedding::new(self.pack(&[(Use::Vocabulary, weight)], None)?))
    }

    /// Refuses tensors that were not taken: a bias that the configuration does not mention would change every answer.
    pub(crate) fn finish(self, may_remain: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        self.source.finish(&may_remain)
    }

    /// What is computed with: tensors of equal width, whose outputs lie behind each other. Rows are read, made what they are to be kept as and
    /// packed a few at a time, by all threads of the current pool, so that the weight is in memory once.
    fn pack(&self, tensors: &[(Use, Tensor)], bias: Option<&Vec<f32>>) -> Result<Packed, LoadError> {
        let inputs = tensors[0].1.columns;
        let Self { kept, progress, .. } = self;
        let format = |(purpose, tensor): &(Use, Tensor)| kept.format(*purpose, tensor.dtype, inputs);
        let unread = tensors.iter().map(|weight| {
            let step = common_multiple(PANEL, weight.1.unit);
            let at_a_time = (VALUES_AT_A_TIME / inputs.max(1) / step).max(1) * step;
            Unread { format: format(weight), outputs: weight.1.rows, at_a_time }
        });
        let unread: Vec<_> = unread.collect();
        let packed = Packed::from_rows(inputs, &unread, bias.map(Vec::as_slice), |part, rows| {
            let (purpose, tensor) = &tensors[part];
            let bytes = Packed::size(unread[part].format, rows.len(), inputs);
            let matrix = kept.matrix(*purpose, tensor.read(rows)?).map_err(refused)?;
            let matrix = matrix.into_packable().map_err(refused)?;
            progress.add(bytes as u64);
            Ok::<_, Unpackable>(matrix.bytes)
        });
        packed.map_err(|Unpackable(error)| error)
    }
}

/// Why a weight is not packed.
struct Unpackable(LoadError);

impl From<LoadError> for Unpackable {
    fn from(error: LoadError) -> Self {
        Self(error)
    }
}

impl From<PackError> for Unpackable {
    fn from(error: PackError) -> Self {
        Self(LoadError::Other { context: "cannot pack a weight".to_owned(), source: error.into() })
    }
}

/// The layer that a tensor is the weight of.
fn layer(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn is_head(layer: &str) -> bool {
    layer.rsplit('.').next() == Some("lm_head")
}

/// What a layer is for, by its name.
fn purpose(layer: &str) -> Use {
    match layer.rsplit('.').next() {
        Some("lm_head" | "embed_tokens" | "word_embeddings") => Use::Vocabulary,
        Some("position_embeddings" | "token_type_embeddings") => Use::Table,
        Some("gate") => Use::Router,
        _ => Use::Layer,
    }
}

/// The smallest multiple that two numbers have in common.
fn common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}

fn refused(error: candle_core::Error) -> LoadError {
    LoadError::Other { context: "candle refused a weight".to_owned(), source: error.into() }
}
