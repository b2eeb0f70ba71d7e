//! Writes `LoRA` adapters in GGUF, good ones and all sorts of broken ones.

use std::path::Path;

const F32: u32 = 0;
const FLOAT: u32 = 6;
const STRING: u32 = 8;

/// An adapter's file that is built up piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct AdapterFile {
    values: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
}

/// Name, dimensions, ggml's number for the type, data.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl AdapterFile {
    /// An adapter for `llama` that changes nothing yet.
    pub(crate) fn empty() -> Self {
        Self { values: Vec::new(), tensors: Vec::new() }
            .with_value("general.type", STRING, string("adapter"))
            .with_value("general.architecture", STRING, string("llama"))
            .with_value("adapter.type", STRING, string("lora"))
            .with_value("adapter.lora.alpha", FLOAT, 4f32.to_le_bytes())
    }

    /// One of rank 4 for the small model, which has it say other things for each `seed`.
    pub(crate) fn for_tiny(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut file = Self::empty();
        for layer in 0..5 {
            for (name, inputs, outputs) in [("attn_q", 256, 256), ("attn_v", 256, 128), ("ffn_down", 512, 256)] {
                let base = format!("blk.{layer}.{name}.weight");
                let mut numbers =
                    |len: u64| -> Vec<u8> { (0..len).flat_map(|_| (0.4 * random.next()).to_le_bytes()).collect() };
                let (a, b) = (numbers(inputs * 4), numbers(4 * outputs));
                file = file.with_tensor(&format!("{base}.lora_a"), &[inputs, 4], F32, a);
                file = file.with_tensor(&format!("{base}.lora_b"), &[4, outputs], F32, b);
            }
        }
        file
    }

    /// Sets a value, in the place of one of the same key.
    pub(crate) fn with_value(self, key: &str, kind: u32, bytes: impl Into<Vec<u8>>) -> Self {
        let mut file = self.without_value(key);
        file.values.push((key.to_owned(), kind, bytes.into()));
        file
    }

    pub(crate) fn with_text(self, key: &str, text: &str) -> Self {
        self.with_value(key, STRING, string(text))
    }

    pub(crate) fn without_value(mut self, key: &str) -> Self {
        self.values.retain(|(known, ..)| known != key);
        self
    }

    pub(crate) fn with_tensor(mut self, name: &str, dims: &[u64], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), kind, data });
        self
    }

    /// Two halves for a tensor, all zeros in F32.
    pub(crate) fn with_pair(self, base: &str, a: &[u64], b: &[u64]) -> Self {
        let zeros = |dims: &[u64]| vec![0; 4 * dims.iter().product::<u64>() as usize];
        self.with_tensor(&format!("{base}.lora_a"), a, F32, zeros(a)).with_tensor(
            &format!("{base}.lora_b"),
            b,
            F32,
            zeros(b),
        )
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.values.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.values {
            out.extend(string(key));
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(bytes);
        }
        let mut offset = 0u64;
        for Tensor { name, dims, kind, data } in &self.tensors {
            out.extend(tensor_entry(name, dims, *kind, offset));
            offset = (offset + data.len() as u64).next_multiple_of(ALIGNMENT as u64);
        }
        for Tensor { data, .. } in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend_from_slice(data);
        }
        out
    }

    pub(crate) fn write(&self, path: &Path) {
        fs_err::write(path, self.bytes()).expect("a file");
    }
}

pub(crate) const ALIGNMENT: usize = 32;

/// A line of the tensor table.
pub(crate) fn tensor_entry(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend_from_slice(&(dims.len() as u32).to_le_bytes());
    out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    out
}

/// A small generator that needs no crate.
struct Random(u64);

impl Random {
    /// Between -1 and 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
