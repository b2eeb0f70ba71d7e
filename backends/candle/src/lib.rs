//! safetensors and GGUF models on candle, with a paged KV cache and continuous batching.
//!
//! [`CandleLoader`] reads a Hugging Face model directory or a GGUF file and lends the engine a backend that runs ragged steps: the new tokens of all
//! sequences, prompts and single tokens alike, are one matrix, so that each weight is read once per step whatever the number of
//! sequences. K and V lie in pages that the engine hands out through block tables, and attention reads them where they lie.
//!
//! On the CPU activations are F32, and 8-bit integers where they meet quantised weights. In reading order:
//!
//! - `loader`, `settings`, `model_files`, `directory`, `config`, `weights`: from a path to a checked model;
//! - `gguf`: what a GGUF file says, in the words of a model directory;
//! - `sentence`: what a directory says of how vectors of texts are made;
//! - `tokenizer`, `frame`, `vocab`, `spelling`: from text to ids and from ids to bytes;
//! - `backend`, `models/decoder`, `models/trunk`, `layers`: one step; the other `models` say what each family of models asks of the decoder;
//! - `embedder`, `models/encoder`: one pass over whole texts, of an encoder or of the trunk of a decoder;
//! - `paged`: the KV cache;
//! - `device`: the same decoder on a GPU;
//! - `synth`: models with random weights, to test and measure with; `work`: what their steps take at least; `accuracy`: what quantising a
//!   model changes.

pub mod accuracy;
mod backend;
mod config;
mod device;
mod directory;
mod embedder;
mod frame;
mod gguf;
mod layers;
mod loader;
mod model_files;
mod models;
mod paged;
mod plan;
mod sentence;
mod settings;
mod spelling;
pub mod synth;
mod tokenizer;
mod vocab;
mod weights;
mod work;

pub use loader::CandleLoader;
pub use plan::{MemoryPlan, Planner};
pub use settings::{CandleSettings, ComputeDevice, Dtype, KvType, Quantization};
pub use work::{Least, Work};

/// The version of candle that this crate is built on; candle exports none itself.
#[must_use]
pub fn version() -> &'static str {
    "0.11.1"
}
