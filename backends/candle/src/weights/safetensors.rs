use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::quantized::GgmlDType;
use safetensors::{Dtype, SafeTensorError, tensor::Metadata};
use serde_json::Value;
use tandem_core::LoadError;

use super::{Listed, Source, matrix::Matrix};
use crate::directory::{ModelDirectory, NO_PICKLES, invalid, unreadable};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The tensors of a model directory.
///
/// Files are read, not memory-mapped: every weight is widened or fused with its neighbours on its way into memory, so a mapping would
/// save nothing, and a file that is cut short while we read it is an error instead of a `SIGBUS`.
#[derive(Debug)]
pub(super) struct SafeTensors {
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

impl SafeTensors {
    /// Opens `model.safetensors`, or the shards that the index names, and checks their headers.
    pub(super) fn open(directory: &ModelDirectory) -> Result<Self, LoadError> {
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
}

impl Source for SafeTensors {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn list(&self) -> Vec<Listed> {
        let listed = |(name, &shard): (&String, &usize)| {
            let info = self.shards[shard].metadata.info(name)?;
            Some(Listed { name: name.clone(), shape: info.shape.clone(), dtype: dtype(info.dtype)? })
        };
        self.tensors.iter().filter_map(listed).collect()
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Matrix, LoadError> {
        let Some(at) = self.tensors.remove(name) else {
            let known: BTreeSet<_> = self.shards.iter().map(|shard| shard.path.display().to_string()).collect();
            let path = known.first().cloned().unwrap_or_default();
            return Err(invalid(path, format!("tensor {name}: missing")));
        };
        self.shards[at].read(name, shape)
    }

    fn finish(&self, may_remain: &dyn Fn(&str) -> bool) -> Result<(), LoadError> {
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

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Matrix, LoadError> {
        let Self { path, file, metadata, data_start } = self;
        let info = metadata.info(name).ok_or_else(|| invalid(&*path, format!("tensor {name}: missing")))?;
        if info.shape != shape {
            return Err(invalid(&*path, format!("tensor {name}: expected {shape:?} got {:?}", info.shape)));
        }
        let Some(dtype) = dtype(info.dtype) else {
            return Err(invalid(&*path, format!("tensor {name}: expected F32, BF16 or F16 got {:?}", info.dtype)));
        };
        let io = |error| unreadable(&*path, &error);
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        file.seek(SeekFrom::Start(*data_start + start as u64)).map_err(io)?;
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(Matrix { dtype, rows: shape[0], columns: shape.get(1).copied().unwrap_or(1), bytes })
    }
}

/// The types that are known, by the name that GGUF has for them.
fn dtype(stored: Dtype) -> Option<GgmlDType> {
    let known = [(Dtype::F32, GgmlDType::F32), (Dtype::BF16, GgmlDType::BF16), (Dtype::F16, GgmlDType::F16)];
    known.into_iter().find(|(known, _)| *known == stored).map(|(_, dtype)| dtype)
}

fn rejected(path: &Path, error: &SafeTensorError) -> LoadError {
    invalid(path, format!("invalid safetensors file: {error}"))
}
