//! Writes GGUF files of small models with random weights: what no model that ships with the project is, tests make themselves.

use std::io::Write as _;

/// Bytes, each a token of its own, and the end of a text.
pub(crate) const VOCABULARY: u64 = 257;
const EOS: u32 = 256;
const ALIGNMENT: usize = 32;

/// A file to be written.
#[derive(Clone)]
pub(crate) struct Gguf {
    architecture: &'static str,
    values: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
    noise: Noise,
}

#[derive(Clone)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    data: Vec<f32>,
}

impl Gguf {
    /// A model of some architecture without a vocabulary.
    pub(crate) fn bare(architecture: &'static str) -> Self {
        let mut file = Self { architecture, values: Vec::new(), tensors: Vec::new(), noise: Noise(1) };
        file.value("general.architecture", Value::Text(architecture.to_owned()));
        file
    }

    /// A model of some architecture with a vocabulary of bytes, and nothing else yet.
    pub(crate) fn new(architecture: &'static str) -> Self {
        let mut file = Self::bare(architecture);
        let tokens = (0..=255).map(|byte| spelled(byte).to_string()).chain(["<end>".to_owned()]);
        file.value("tokenizer.ggml.model", Value::Text("gpt2".to_owned()));
        file.value("tokenizer.ggml.pre", Value::Text("default".to_owned()));
        file.value("tokenizer.ggml.tokens", Value::Texts(tokens.collect()));
        // 1 is normal, 3 is control.
        file.value("tokenizer.ggml.token_type", Value::I32s([vec![1; 256], vec![3]].concat()));
        file.value("tokenizer.ggml.merges", Value::Texts(Vec::new()));
        file.value("tokenizer.ggml.eos_token_id", Value::U32(EOS));
        file.value("tokenizer.ggml.add_bos_token", Value::Bool(false));
        file
    }

    pub(crate) fn value(&mut self, key: &str, value: Value) {
        self.values.push((key.to_owned(), value));
    }

    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        self.values.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    }

    /// Another value for a key, in place of the one that may be there.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.unset(key);
        self.value(key, value);
    }

    pub(crate) fn unset(&mut self, key: &str) {
        self.values.retain(|(known, _)| known != key);
    }

    /// Has keys that begin with `from` begin with `to`.
    pub(crate) fn rename_keys(&mut self, from: &str, to: &str) {
        for (key, _) in &mut self.values {
            if let Some(rest) = key.strip_prefix(from) {
                *key = format!("{to}{rest}");
            }
        }
    }

    /// A number of the architecture.
    pub(crate) fn number(&mut self, key: &str, number: u32) {
        self.value(&format!("{}.{key}", self.architecture), Value::U32(number));
    }

    pub(crate) fn float(&mut self, key: &str, number: f32) {
        self.value(&format!("{}.{key}", self.architecture), Value::F32(number));
    }

    /// Random weights; `dims` as GGUF has them, the row first.
    pub(crate) fn matrix(&mut self, name: &str, dims: &[u64]) {
        let noise = &mut self.noise;
        let data = (0..dims.iter().product()).map(|_| 0.3 * noise.next()).collect();
        self.tensor(name, dims, data);
    }

    /// The same number everywhere.
    pub(crate) fn constant(&mut self, name: &str, dims: &[u64], value: f32) {
        self.tensor(name, dims, vec![value; dims.iter().product::<u64>() as usize]);
    }

    /// These numbers, in place of what may be there of that name.
    pub(crate) fn tensor(&mut self, name: &str, dims: &[u64], data: Vec<f32>) {
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), data });
    }

    /// The numbers of a tensor.
    pub(crate) fn numbers(&self, name: &str) -> &[f32] {
        &self.tensors.iter().find(|tensor| tensor.name == name).expect("the tensor is in the file").data
    }

    /// Takes a tensor out.
    pub(crate) fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// How much of the file is no weights.
    pub(crate) fn header_len(&self) -> usize {
        let data: usize = self.tensors.iter().map(|tensor| (4 * tensor.data.len()).next_multiple_of(ALIGNMENT)).sum();
        (self.bytes().len().next_multiple_of(ALIGNMENT) - data).min(self.bytes().len())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        // Type 0 is F32.
        let tensors =
            self.tensors.iter().map(|Tensor { name, dims, data }| (name.as_str(), &dims[..], 0, 4 * data.len() as u64));
        let (mut out, _) = self.header(tensors);
        for Tensor { data, .. } in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            data.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        out
    }

    /// Everything before the weights, and how many bytes they are. Tensors have a name, their dimensions, ggml's number for their type, and a
    /// size.
    fn header<'a>(&self, tensors: impl ExactSizeIterator<Item = (&'a str, &'a [u64], u32, u64)>) -> (Vec<u8>, u64) {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            text(&mut out, key);
            value.write(&mut out);
        }
        let mut offset = 0u64;
        for (name, dims, kind, bytes) in tensors {
            text(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + bytes).next_multiple_of(ALIGNMENT as u64);
        }
        (out, offset)
    }

    /// A file of a model that is larger than anyone would write: its weights are a hole, which takes no room on a disk.
    pub(crate) fn write_hollow(&self, tensors: &[(String, Vec<u64>, u32, u64)]) -> tempfile::TempPath {
        let listed = tensors.iter().map(|(name, dims, kind, bytes)| (name.as_str(), &dims[..], *kind, *bytes));
        let (header, weights) = self.header(listed);
        let path = write(self.architecture, &header);
        let file = fs_err::OpenOptions::new().write(true).open(&path).expect("the file");
        file.set_len(header.len().next_multiple_of(ALIGNMENT) as u64 + weights).expect("a file with a hole");
        path
    }

    /// The file, gone when what is returned is dropped.
    pub(crate) fn write(&self) -> tempfile::TempPath {
        write(self.architecture, &self.bytes())
    }
}

/// A file, gone when what is returned is dropped.
pub(crate) fn write(prefix: &str, bytes: &[u8]) -> tempfile::TempPath {
    let mut file = tempfile::Builder::new().prefix(prefix).suffix(".gguf").tempfile().expect("a file");
    file.write_all(bytes).expect("room for it");
    file.into_temp_path()
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
        match self {
            Self::U32(number) => {
                kind(out, 4);
                out.extend(number.to_le_bytes());
            }
            Self::F32(number) => {
                kind(out, 6);
                out.extend(number.to_le_bytes());
            }
            Self::Bool(yes) => {
                kind(out, 7);
                out.push(u8::from(*yes));
            }
            Self::Text(string) => {
                kind(out, 8);
                text(out, string);
            }
            Self::Texts(strings) => {
                kind(out, 9);
                kind(out, 8);
                out.extend((strings.len() as u64).to_le_bytes());
                strings.iter().for_each(|string| text(out, string));
            }
            Self::I32s(numbers) => {
                kind(out, 9);
                kind(out, 5);
                out.extend((numbers.len() as u64).to_le_bytes());
                numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
            Self::F32s(numbers) => {
                kind(out, 9);
                kind(out, 6);
                out.extend((numbers.len() as u64).to_le_bytes());
                numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// How byte-level vocabularies write a byte: as itself where it can be seen, and otherwise as a character above all bytes.
fn spelled(byte: u8) -> char {
    let is_seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_seen(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !is_seen(byte)).count() as u32;
    char::from_u32(256 + before).expect("a character")
}

/// Numbers between -1 and 1, always the same.
#[derive(Clone)]
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }
}
