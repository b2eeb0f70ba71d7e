use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::quantized::GgmlDType;
use fs_err::os::unix::fs::FileExt as _;
use safetensors::{Dtype, SafeTensorError, tensor::Metadata};
use serde_json::Value;
use tandem_core::LoadError;

use super::{
    Listed, Source,
    float8::Scales,
    int4::Int4,
    matrix::{Matrix, row_bytes},
    stored::{Group, Packing, Stored},
    tensor::{Rows, Tensor},
};
use crate::directory::{ModelDirectory, NO_PICKLES, invalid, unreadable};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The tensors of a model directory.
///
/// Files are read, not memory-mapped: every weight is packed on its way into memory, so a mapping would save nothing, and a file that is cut
/// short while we read it is an error instead of a `SIGBUS`.
#[derive(Clone, Debug)]
pub(super) struct SafeTensors {
    shards: Vec<Arc<Shard>>,
    /// Where each tensor that was not yet taken lies.
    tensors: BTreeMap<String, usize>,
    /// How the weights of layers are kept.
    stored: Stored,
}

/// A tensor as its file has it.
#[derive(Clone, Debug)]
struct Raw {
    shard: Arc<Shard>,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where it begins and ends in the data of the file.
    place: Range<usize>,
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
    pub(super) fn open(directory: &ModelDirectory, stored: Stored) -> Result<Self, LoadError> {
        let index = directory.path(INDEX);
        if directory.path(SINGLE).exists() {
            let shard = Shard::open(directory.shard(&directory.path(SINGLE), SINGLE)?)?;
            let tensors = shard.metadata.tensors().into_keys().map(|name| (name, 0)).collect();
            return Ok(Self { shards: vec![Arc::new(shard)], tensors, stored });
        }
        match directory.read_json(INDEX, MAX_INDEX_BYTES)? {
            Some(json) => Self::open_sharded(directory, &index, &json, stored),
            None if directory.has_pickles()? => Err(invalid(directory.path(SINGLE), NO_PICKLES)),
            None => Err(unreadable(directory.path(SINGLE), &std::io::ErrorKind::NotFound.into())),
        }
    }

    fn open_sharded(directory: &ModelDirectory, index: &Path, json: &Value, stored: Stored) -> Result<Self, LoadError> {
        let map = json.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| invalid(index, "weight_map is missing or not an object"))?;
        let mut files = BTreeMap::new();
        for (tensor, file) in map {
            let file = file
                .as_str()
                .ok_or_else(|| invalid(index, format!("weight_map: {tensor} is not mapped to a file name")))?;
            files.entry(file).or_insert_with(Vec::new).push(tensor);
        }
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new(), stored };
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
            weights.shards.push(Arc::new(shard));
        }
        Ok(weights)
    }

    /// Takes a tensor whatever it is.
    fn take_raw(&mut self, name: &str) -> Result<Raw, LoadError> {
        let Some(at) = self.tensors.remove(name) else {
            let known: BTreeSet<_> = self.shards.iter().map(|shard| shard.path.display().to_string()).collect();
            let path = known.first().cloned().unwrap_or_default();
            return Err(invalid(path, format!("tensor {name}: missing")));
        };
        Shard::raw(&self.shards[at], name)
    }

    /// The weight of a layer that is kept in four bits.
    fn take_int4(
        &mut self,
        layer: &str,
        shape: &[usize],
        (packing, group): (Packing, Group),
    ) -> Result<Tensor, LoadError> {
        let quants = self.take_raw(&format!("{layer}.qweight"))?;
        let zeros = self.take_raw(&format!("{layer}.qzeros"))?;
        let scales = self.take_raw(&format!("{layer}.scales"))?;
        let groups = format!("{layer}.g_idx");
        let groups = if self.has(&groups) { Some(self.take_raw(&groups)?) } else { None };
        let path = &quants.shard.path;
        let refused = |reason: String| invalid(path, format!("tensor {layer}.qweight: {reason}"));
        let &[outputs, inputs] = shape else { return Err(refused(format!("expected {shape:?}, got a matrix"))) };
        let words = [&quants, &zeros].into_iter().chain(&groups);
        if let Some(other) = words.map(|raw| raw.dtype).find(|dtype| !matches!(dtype, Dtype::I32 | Dtype::U32)) {
            return Err(refused(format!("expected I32 got {other:?}")));
        }
        if scales.dtype != Dtype::F16 {
            return Err(refused(format!("expected scales in F16 got {:?}", scales.dtype)));
        }
        let (groups, zeros, scales) = (groups.as_ref().map(Raw::bytes).transpose()?, zeros.bytes()?, scales.bytes()?);
        let layer = Int4 { packing, group, outputs, inputs, quants: quants.bytes()?, zeros, scales, groups };
        layer.check().map_err(refused)?;
        Ok(Tensor { dtype: GgmlDType::F16, rows: outputs, columns: inputs, unit: 1, source: Box::new(layer) })
    }

    /// Eight-bit floats, to be multiplied with their scales.
    fn scaled(&mut self, name: &str, raw: Raw) -> Result<Tensor, LoadError> {
        let refused = |reason: String| invalid(&raw.shard.path, format!("tensor {name}: {reason}"));
        let names = [format!("{name}_scale_inv"), format!("{name}_scale")];
        let scale = names.iter().find(|name| self.has(name));
        let (&[outputs, inputs], Some(scale), Stored::Fp8(shared)) = (raw.shape.as_slice(), scale, self.stored) else {
            return Err(refused("eight-bit floats without scales".to_owned()));
        };
        let scales = self.take_raw(scale)?;
        let (rows, columns) = match scales.shape[..] {
            [] | [1] => (1, 1),
            [rows] => (rows, 1),
            [rows, columns] => (rows, columns),
            _ => return Err(refused(format!("scales of shape {:?}", scales.shape))),
        };
        let dtype = dtype(scales.dtype).ok_or_else(|| refused(format!("scales in {:?}", scales.dtype)))?;
        let mut values = Vec::new();
        let scales = Matrix { dtype, rows, columns, bytes: scales.bytes()? };
        scales.widen(&mut values).map_err(super::refused)?;
        let scales = Scales::new(values, (rows, columns), (outputs, inputs), shared).map_err(refused)?;
        let source = Box::new(Float8Rows { raw, scales, inputs });
        Ok(Tensor { dtype: GgmlDType::BF16, rows: outputs, columns: inputs, unit: 1, source })
    }

    /// Whether a tensor that nobody took changes nothing: those who quantise to four bits write a bias of zeros to each layer that has none.
    fn is_bias_of_zeros(&self, name: &str, shard: usize) -> Result<bool, LoadError> {
        if !matches!(self.stored, Stored::Int4 { .. }) || !name.ends_with("_proj.bias") {
            return Ok(false);
        }
        let raw = Shard::raw(&self.shards[shard], name)?;
        // The sign of a zero is in its last byte, and does not matter.
        let zeros = |value: &[u8]| {
            value.split_last().is_none_or(|(last, rest)| last & 0x7f == 0 && rest.iter().all(|&b| b == 0))
        };
        let size = dtype(raw.dtype).map_or(1, |dtype| row_bytes(dtype, 1));
        Ok(dtype(raw.dtype).is_some() && raw.bytes()?.chunks(size).all(zeros))
    }
}

/// Rows of a matrix as its file has them.
#[derive(Debug)]
struct PlainRows {
    raw: Raw,
    row_bytes: usize,
}

impl Rows for PlainRows {
    fn read(&self, rows: Range<usize>) -> Result<Vec<u8>, LoadError> {
        self.raw.part(rows.start * self.row_bytes..rows.end * self.row_bytes)
    }
}

/// Rows of eight-bit floats, which become BF16.
#[derive(Debug)]
struct Float8Rows {
    raw: Raw,
    scales: Scales,
    inputs: usize,
}

impl Rows for Float8Rows {
    fn read(&self, rows: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let floats = self.raw.part(rows.start * self.inputs..rows.end * self.inputs)?;
        Ok(self.scales.scale(&floats, rows, self.inputs))
    }
}

impl Rows for Int4 {
    fn read(&self, rows: Range<usize>) -> Result<Vec<u8>, LoadError> {
        Ok(self.dequantize(rows))
    }
}

impl Source for SafeTensors {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn list(&self) -> Vec<Listed> {
        let listed = |(name, &shard): (&String, &usize)| {
            let info = self.shards[shard].metadata.info(name)?;
            let (name, shape, dtype) = match (name.strip_suffix(".qweight"), self.stored, info.shape.as_slice()) {
                (Some(layer), Stored::Int4 { packing: Packing::ByInput { .. }, .. }, &[words, outputs]) => {
                    (format!("{layer}.weight"), vec![outputs, words * 8], GgmlDType::F16)
                }
                (Some(layer), Stored::Int4 { packing: Packing::ByOutput, .. }, &[inputs, words]) => {
                    (format!("{layer}.weight"), vec![words * 8, inputs], GgmlDType::F16)
                }
                _ if info.dtype == Dtype::F8_E4M3 => (name.clone(), info.shape.clone(), GgmlDType::BF16),
                _ => (name.clone(), info.shape.clone(), dtype(info.dtype)?),
            };
            Some(Listed { name, shape, dtype })
        };
        self.tensors.iter().filter_map(listed).collect()
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        if let (Stored::Int4 { packing, group }, Some(layer)) = (self.stored, name.strip_suffix(".weight"))
            && !self.has(name)
            && self.has(&format!("{layer}.qweight"))
        {
            return self.take_int4(layer, shape, (packing, group));
        }
        let raw = self.take_raw(name)?;
        let path = &raw.shard.path;
        if raw.shape != shape {
            return Err(invalid(path, format!("tensor {name}: expected {shape:?} got {:?}", raw.shape)));
        }
        if let (Stored::Fp8(_), Dtype::F8_E4M3) = (self.stored, raw.dtype) {
            return self.scaled(name, raw);
        }
        let Some(dtype) = dtype(raw.dtype) else {
            return Err(invalid(path, format!("tensor {name}: expected F32, BF16 or F16 got {:?}", raw.dtype)));
        };
        let (rows, columns) = (shape[0], shape.get(1).copied().unwrap_or(1));
        let source = Box::new(PlainRows { raw, row_bytes: row_bytes(dtype, columns) });
        Ok(Tensor { dtype, rows, columns, unit: 1, source })
    }

    fn again(&self) -> Box<dyn Source> {
        Box::new(self.clone())
    }

    fn finish(&self, may_remain: &dyn Fn(&str) -> bool) -> Result<(), LoadError> {
        // What quantising activations would need is of no use here.
        let of_activations = |name: &str| self.stored != Stored::Plain && name.ends_with(".input_scale");
        for (name, &shard) in self.tensors.iter().filter(|(name, _)| !may_remain(name) && !of_activations(name)) {
            if !self.is_bias_of_zeros(name, shard)? {
                return Err(invalid(
                    &self.shards[shard].path,
                    format!("tensor {name}: config.json has no place for it"),
                ));
            }
        }
        Ok(())
    }
}

impl Raw {
    fn bytes(&self) -> Result<Vec<u8>, LoadError> {
        self.part(0..self.place.len())
    }

    /// Some of its bytes, counted from its beginning.
    fn part(&self, part: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let Shard { path, file, data_start, .. } = &*self.shard;
        let mut bytes = vec![0; part.len()];
        let place = data_start + (self.place.start + part.start) as u64;
        file.read_exact_at(&mut bytes, place).map_err(|error| unreadable(path, &error))?;
        Ok(bytes)
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

    fn raw(shard: &Arc<Self>, name: &str) -> Result<Raw, LoadError> {
        let info = shard.metadata.info(name).ok_or_else(|| invalid(&shard.path, format!("tensor {name}: missing")))?;
        let (start, end) = info.data_offsets;
        Ok(Raw { shard: Arc::clone(shard), dtype: info.dtype, shape: info.shape.clone(), place: start..end })
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
