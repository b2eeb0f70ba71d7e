use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, tensor::Metadata};
use serde_json::Value;
use tandem_core::LoadError;
use tandem_kernels::{Format, Matrix, Packed};

use crate::{
    directory::{ModelDirectory, NO_PICKLES, invalid, unreadable},
    layers::{Embedding, Linear},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes read at a time. A whole number of values of every type.
const CHUNK: usize = 1 << 20;

/// The tensors of a model directory, each to be taken once.
///
/// Files are read, not memory-mapped: every weight is widened or fused with its neighbours on its way into memory, so a mapping would
/// save nothing, and a file that is cut short while we read it is an error instead of a `SIGBUS`.
#[derive(Debug)]
pub(crate) struct Weights {
    shards: Vec<Shard>,
    /// Where each tensor that was not yet taken lies.
    tensors: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: fs_err::File,
    metadata: Metadata,
    data_start: u64,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that the index names, and checks their headers.
    pub(crate) fn open(directory: &ModelDirectory) -> Result<Self, LoadError> {
        let index = directory.path(INDEX);
        if directory.path(SINGLE).exists() {
            let shard = Shard::open(directory.shard(&directory.path(SINGLE), SINGLE)?)?;
            let tensors = shard.metadata.tensors().into_keys().map(|name| (name, 0)).collect();
            return Ok(Self { shards: vec![shard], tensors });
        }
        match directory.read_json(INDEX, MAX_INDEX_BYTES)? {
            Some(json) => Self::open_sharded(directory, &index, &json),
            None if directory.has_pickles()? => Err(invalid(directory.path(SINGLE), NO_PICKLES)),
            None => Err(unreadable(directory.path(SINGLE), &std::io::ErrorKind::NotFound.into())),
        }
    }

    fn open_sharded(directory: &ModelDirectory, index: &Path, json: &Value) -> Result<Self, LoadError> {
        let map = json.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| invalid(index, "weight_map is missing or not an object"))?;
        let mut files = BTreeMap::new();
        for (tensor, file) in map {
            let file = file
                .as_str()
                .ok_or_else(|| invalid(index, format!("weight_map: {tensor} is not mapped to a file name")))?;
            files.entry(file).or_insert_with(Vec::new).push(tensor);
        }
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        for (file, tensors) in files {
            let shard = Shard::open(directory.shard(index, file)?)?;
            for tensor in tensors {
                if shard.metadata.info(tensor).is_none() {
                    return Err(invalid(
                        &shard.path,
                        format!("tensor {tensor}: missing, though the index says that it is here"),
                    ));
                }
                weights.tensors.insert(tensor.clone(), weights.shards.len());
            }
            weights.shards.push(shard);
        }
        Ok(weights)
    }

    /// Whether there is a tensor of this name that was not yet taken.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor of one dimension, widened to F32.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let mut values = Vec::new();
        self.append(name, &[len], &mut values)?;
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
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum::<usize>();
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for &(part, outputs) in parts {
            self.append(&format!("{part}.weight"), &[outputs, inputs], &mut weight)?;
            if has_bias {
                self.append(&format!("{part}.bias"), &[outputs], &mut bias)?;
            }
        }
        let packed = packed(&weight, outputs, inputs, has_bias.then_some(&bias))?;
        Ok(Linear::new(Arc::new(packed)))
    }

    /// The vectors of `tokens` tokens, `width` wide.
    pub(crate) fn embedding(&mut self, name: &str, tokens: usize, width: usize) -> Result<Embedding, LoadError> {
        let mut values = Vec::new();
        self.append(name, &[tokens, width], &mut values)?;
        Ok(Embedding::new(packed(&values, tokens, width, None)?))
    }

    /// Appends a tensor's values to `values`: tensors whose products are computed as one are kept as one.
    fn append(&mut self, name: &str, shape: &[usize], values: &mut Vec<f32>) -> Result<(), LoadError> {
        let Some(at) = self.tensors.remove(name) else {
            let known: BTreeSet<_> = self.shards.iter().map(|shard| shard.path.display().to_string()).collect();
            let path = known.first().cloned().unwrap_or_default();
            return Err(invalid(path, format!("tensor {name}: missing")));
        };
        self.shards[at].append(name, shape, values)
    }

    /// Refuses tensors that were not taken: a bias that the configuration does not mention would change every answer.
    pub(crate) fn finish(self, may_remain: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        match self.tensors.iter().find(|(name, _)| !may_remain(name)) {
            Some((name, &shard)) => {
                Err(invalid(&self.shards[shard].path, format!("tensor {name}: config.json has no place for it")))
            }
            None => Ok(()),
        }
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, LoadError> {
        let io = |error| unreadable(&path, &error);
        let mut file = fs_err::File::open(&path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let mut prefix = [0; 8];
        let read = Read::take(&mut file, 8).read(&mut prefix).map_err(io)?;
        let header_len = u64::from_le_bytes(prefix);
        if read < prefix.len() {
            return Err(rejected(&path, &SafeTensorError::HeaderTooSmall));
        }
        if header_len > MAX_HEADER_BYTES || header_len > len - 8 {
            // A pickle starts with its protocol number, a zipped one as any zip file.
            let pickle = prefix[0] == 0x80 || prefix.starts_with(b"PK");
            let reason = if header_len > MAX_HEADER_BYTES {
                SafeTensorError::HeaderTooLarge
            } else {
                SafeTensorError::InvalidHeaderLength
            };
            return Err(if pickle { invalid(&path, NO_PICKLES) } else { rejected(&path, &reason) });
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| rejected(&path, &SafeTensorError::InvalidHeaderDeserialization(error)))?;
        let data_start = 8 + header_len;
        if data_start + metadata.data_len() as u64 != len {
            return Err(rejected(&path, &SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok(Self { path, file, metadata, data_start })
    }

    fn append(&mut self, name: &str, shape: &[usize], values: &mut Vec<f32>) -> Result<(), LoadError> {
        let Self { path, file, metadata, data_start } = self;
        let info = metadata.info(name).ok_or_else(|| invalid(&*path, format!("tensor {name}: missing")))?;
        if info.shape != shape {
            return Err(invalid(&*path, format!("tensor {name}: expected {shape:?} got {:?}", info.shape)));
        }
        let Some(widen) = widener(info.dtype) else {
            return Err(invalid(&*path, format!("tensor {name}: expected F32, BF16 or F16 got {:?}", info.dtype)));
        };
        let io = |error| unreadable(&*path, &error);
        let (start, end) = info.data_offsets;
        file.seek(SeekFrom::Start(*data_start + start as u64)).map_err(io)?;
        values.reserve_exact(shape.iter().product());
        let mut buffer = vec![0; CHUNK.min(end - start)];
        let mut left = end - start;
        while left > 0 {
            let part = &mut buffer[..CHUNK.min(left)];
            file.read_exact(part).map_err(io)?;
            widen(part, values);
            left -= part.len();
        }
        Ok(())
    }
}

fn packed(values: &[f32], outputs: usize, inputs: usize, bias: Option<&Vec<f32>>) -> Result<Packed, LoadError> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let matrix = Matrix { format: Format::F32, outputs, inputs, bytes: &bytes };
    Packed::new(&[matrix], bias.map(Vec::as_slice))
        .map_err(|error| LoadError::Other { context: "cannot pack a weight".to_owned(), source: error.into() })
}

fn rejected(path: &Path, error: &SafeTensorError) -> LoadError {
    invalid(path, format!("invalid safetensors file: {error}"))
}

/// Appends values, given as bytes, in F32.
type Widen = fn(&[u8], &mut Vec<f32>);

/// What widens a type.
fn widener(dtype: Dtype) -> Option<Widen> {
    let known: [(Dtype, Widen); 3] = [(Dtype::F32, widen_f32), (Dtype::BF16, widen_bf16), (Dtype::F16, widen_f16)];
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
