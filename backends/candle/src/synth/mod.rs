//! Models of true shapes with random weights: what stands in for those that cannot be downloaded, in tests and to measure speed with.
//!
//! Such a model computes what a true one of its shape does, and says nothing sensible. Its files follow from the seed alone, to the byte.
//!
//! In reading order: `shapes` and `config` say what the model is, `words` and `tokenizer` make its vocabulary and `weights` its numbers;
//! `safetensors`, and `gguf` with `mix`, write them row by row.

mod config;
mod gguf;
mod metadata;
mod mix;
mod output;
mod rows;
mod safetensors;
mod shapes;
mod tokenizer;
mod weights;
mod words;

use std::{io, path::PathBuf};

use serde_json::json;

use self::{
    output::Output,
    shapes::{ARCHS, Arch, Shape},
    tokenizer::{CHAT_TEMPLATE, Vocabulary},
    weights::Drawn,
};
use crate::{gguf::Names, models};

pub use self::mix::Mix;

/// Which model to write, and where.
#[derive(Clone, Debug)]
pub struct SynthOrder {
    pub arch: String,
    pub size: String,
    pub seed: u64,
    pub directory: PathBuf,
    /// GGUF files to write beside the directory's own.
    pub gguf: Vec<Mix>,
    /// Whether files that are there may be written over.
    pub force: bool,
}

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// Nothing is known of such a model.
    #[error("{0}")]
    Unknown(String),
    /// There is something already.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The system says which file it is about.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Candle says why.
    #[error("cannot quantize a weight: {0}")]
    Quantization(#[from] candle_core::Error),
}

/// Counts what is written, and tells whoever waits for it.
struct Progress<'a> {
    bytes: u64,
    total: u64,
    tell: &'a mut dyn FnMut(u64, u64),
}

impl Progress<'_> {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        (self.tell)(self.bytes, self.total);
    }
}

/// A model before it has weights.
struct Model {
    arch: &'static Arch,
    shape: &'static Shape,
    seed: u64,
    vocabulary: Vocabulary,
    tensors: Vec<Drawn>,
}

/// Writes a model as a Hugging Face directory and as GGUF files, and gives back what it wrote. Tells `progress` how many bytes of weights
/// there are so far, and how many there will be.
///
/// # Errors
/// When no such model is known, or the directory cannot be written.
pub fn synthesize(order: &SynthOrder, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<PathBuf>, SynthError> {
    let (arch, shape) = find(&order.arch, &order.size).map_err(SynthError::Unknown)?;
    let vocabulary = Vocabulary::new(shape.vocab).map_err(SynthError::Unknown)?;
    let (json, config) = config::config(arch, shape, vocabulary.specials()).map_err(SynthError::Unknown)?;
    let names = Names { family: arch.family, head_dim: shape.head_dim };
    let tensors = weights::tensors(names, &config, order.seed);
    let model = Model { arch, shape, seed: order.seed, vocabulary, tensors };
    let tokenizer = model.vocabulary.tokenizer().map_err(SynthError::Unknown)?;

    let packed: Vec<_> = order.gguf.iter().map(|mix| (*mix, gguf::tensors(&model, names, *mix))).collect();
    let total = safetensors::bytes(&model.tensors) + packed.iter().map(|(_, all)| gguf::bytes(all)).sum::<usize>();
    let mut progress = Progress { bytes: 0, total: total as u64, tell: progress };
    let mut output = Output::open(&order.directory, order.force)?;
    output.json("tokenizer.json", &tokenizer)?;
    output.json("tokenizer_config.json", &Vocabulary::tokenizer_config(shape.context))?;
    output.file("chat_template.jinja", |file| Ok(file.write_all(CHAT_TEMPLATE.as_bytes())?))?;
    safetensors::write(&model.tensors, &mut output, &mut progress)?;
    let specials = model.vocabulary.specials();
    output.json("generation_config.json", &json!({ "eos_token_id": [specials.turn_ends, specials.end_of_text] }))?;
    // Last, as without it nobody takes the directory for a model.
    output.json("config.json", &json)?;
    for (mix, tensors) in packed {
        let name = format!("{}-{}-{mix}.gguf", arch.name, shape.size);
        output.file(&name, |file| gguf::write(&model, mix, &tensors, file, &mut progress))?;
    }
    Ok(output.written)
}

/// The architectures that can be asked for, each with its sizes.
pub fn known() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    runnable().map(|arch| (arch.name, arch.shapes.iter().map(|shape| shape.size).collect()))
}

/// Those that this backend runs, and so can check.
fn runnable() -> impl Iterator<Item = &'static Arch> {
    ARCHS.iter().filter(|arch| models::family(arch.class).is_some())
}

fn find(arch: &str, size: &str) -> Result<(&'static Arch, &'static Shape), String> {
    let found = runnable().find(|known| known.name == arch).ok_or_else(|| {
        let known: Vec<_> = known().map(|(name, sizes)| format!("{name} ({})", sizes.join(", "))).collect();
        format!("no shapes of architecture {arch} are known; known: {}", known.join("; "))
    })?;
    let shape = found.shapes.iter().find(|shape| shape.size == size).ok_or_else(|| {
        let known: Vec<_> = found.shapes.iter().map(|shape| shape.size).collect();
        format!("no {arch} of size {size} is known; known: {}", known.join(", "))
    })?;
    Ok((found, shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of parameters that are published of Llama 3.1 8B and Qwen3 (whose heads are counted once), and what Gemma 3 12B's are
    /// without those of its vision.
    #[test]
    fn shapes_are_those_of_true_models() {
        for (arch, size, published) in [
            ("llama", "8b", 8_030_261_248),
            ("qwen3", "0.6b", 596_049_920),
            ("qwen3", "1.7b", 1_720_574_976),
            ("gemma3", "12b", 11_766_034_176),
        ] {
            let (arch, shape) = find(arch, size).expect("a known one");
            let vocabulary = Vocabulary::new(shape.vocab).expect("a vocabulary");
            let (_, config) = config::config(arch, shape, vocabulary.specials()).expect("a model");
            let names = Names { family: arch.family, head_dim: shape.head_dim };
            let parameters: usize = weights::tensors(names, &config, 1).iter().map(Drawn::len).sum();
            assert_eq!(parameters, published, "{} {size}", arch.name);
        }
    }
}
