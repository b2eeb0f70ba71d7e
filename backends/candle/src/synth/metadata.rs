use super::{
    Model,
    config::{LOCAL_THETA, LOGIT_CAP, SCORE_CAP},
    mix::Mix,
    tokenizer::{CHAT_TEMPLATE, PRE_TOKENIZER},
};
use crate::gguf::Family;

/// The version of the quantizations' formats.
const QUANTIZATION_VERSION: u32 = 2;
/// What tokens are for.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Keys and values, already in the bytes of the file.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

/// Types of values, by their numbers in the file.
#[derive(Clone, Copy, Debug)]
enum Kind {
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Flag = 7,
    Text = 8,
    Array = 9,
}

/// What the file says of the model: the keys that llama.cpp's converter writes.
pub(super) fn of(model: &Model, mix: Mix) -> Metadata {
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", model.arch.family.name());
    metadata.text("general.type", "model");
    metadata.text("general.name", &format!("{} {} seed {}", model.arch.name, model.shape.size, model.seed));
    metadata.number("general.file_type", mix.file_type());
    metadata.number("general.quantization_version", QUANTIZATION_VERSION);
    sizes(model, &mut metadata);
    special(model, &mut metadata);
    tokenizer(model, &mut metadata);
    metadata
}

/// What every architecture has.
fn sizes(model: &Model, metadata: &mut Metadata) {
    let shape = model.shape;
    for (name, number) in [
        ("block_count", shape.layers),
        ("context_length", shape.context),
        ("embedding_length", shape.hidden),
        ("feed_forward_length", shape.mlp),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("attention.key_length", shape.head_dim),
        ("attention.value_length", shape.head_dim),
        ("rope.dimension_count", shape.head_dim),
        ("vocab_size", shape.vocab),
    ] {
        metadata.number(&key(model, name), number as u32);
    }
    metadata.fraction(&key(model, "attention.layer_norm_rms_epsilon"), model.arch.norm_eps);
    metadata.fraction(&key(model, "rope.freq_base"), shape.theta);
}

/// What one architecture alone has.
fn special(model: &Model, metadata: &mut Metadata) {
    let shape = model.shape;
    if let Some(window) = shape.window {
        metadata.number(&key(model, "attention.sliding_window"), window as u32);
    }
    match model.arch.family {
        Family::Gemma2 => {
            metadata.fraction(&key(model, "attn_logit_softcapping"), SCORE_CAP);
            metadata.fraction(&key(model, "final_logit_softcapping"), LOGIT_CAP);
        }
        Family::Gemma3 => {
            metadata.fraction(&key(model, "rope.freq_base_swa"), LOCAL_THETA);
            if shape.stretch > 1.0 {
                metadata.text(&key(model, "rope.scaling.type"), "linear");
                metadata.fraction(&key(model, "rope.scaling.factor"), shape.stretch);
            }
        }
        Family::Phi3 => {
            metadata.number(&key(model, "rope.scaling.original_context_length"), shape.context as u32);
        }
        Family::Granite => {
            if let Some(multipliers) = shape.granite {
                metadata.fraction(&key(model, "embedding_scale"), multipliers.embedding);
                metadata.fraction(&key(model, "attention.scale"), multipliers.attention);
                metadata.fraction(&key(model, "residual_scale"), multipliers.residual);
                metadata.fraction(&key(model, "logit_scale"), multipliers.logits);
            }
        }
        Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::SmolLm3 | Family::Olmo2 => {}
    }
}

fn tokenizer(model: &Model, metadata: &mut Metadata) {
    let vocabulary = &model.vocabulary;
    let specials = vocabulary.specials();
    let normal = vocabulary.tokens.len();
    let kinds: Vec<i32> = (0..model.shape.vocab).map(|id| if id < normal { NORMAL } else { CONTROL }).collect();
    let merges: Vec<String> = vocabulary.merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    metadata.text("tokenizer.ggml.model", "gpt2");
    metadata.text("tokenizer.ggml.pre", PRE_TOKENIZER);
    metadata.texts("tokenizer.ggml.tokens", vocabulary.all());
    metadata.array("tokenizer.ggml.token_type", Kind::I32, kinds.len());
    kinds.iter().for_each(|kind| metadata.bytes.extend(kind.to_le_bytes()));
    metadata.texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    metadata.number("tokenizer.ggml.bos_token_id", specials.end_of_text);
    metadata.number("tokenizer.ggml.eos_token_id", specials.turn_ends);
    metadata.number("tokenizer.ggml.padding_token_id", specials.end_of_text);
    metadata.flag("tokenizer.ggml.add_bos_token", false);
    metadata.flag("tokenizer.ggml.add_eos_token", false);
    metadata.text("tokenizer.chat_template", CHAT_TEMPLATE);
}

fn key(model: &Model, name: &str) -> String {
    format!("{}.{name}", model.arch.family.name())
}

impl Metadata {
    /// How many there are, and all of them.
    pub(super) fn write(&self, header: &mut Vec<u8>) {
        header.extend(self.count.to_le_bytes());
        header.extend(&self.bytes);
    }

    fn key(&mut self, key: &str, kind: Kind) {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend((kind as u32).to_le_bytes());
    }

    fn number(&mut self, key: &str, number: u32) {
        self.key(key, Kind::U32);
        self.bytes.extend(number.to_le_bytes());
    }

    fn fraction(&mut self, key: &str, number: f64) {
        self.key(key, Kind::F32);
        self.bytes.extend((number as f32).to_le_bytes());
    }

    fn flag(&mut self, key: &str, flag: bool) {
        self.key(key, Kind::Flag);
        self.bytes.push(flag.into());
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key, Kind::Text);
        put_text(&mut self.bytes, text);
    }

    fn texts<'a>(&mut self, key: &str, texts: impl Iterator<Item = &'a str>) {
        let texts: Vec<_> = texts.collect();
        self.array(key, Kind::Text, texts.len());
        texts.iter().for_each(|text| put_text(&mut self.bytes, text));
    }

    /// The beginning of an array.
    fn array(&mut self, key: &str, kind: Kind, len: usize) {
        self.key(key, Kind::Array);
        self.bytes.extend((kind as u32).to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }
}

/// A text as the file has it: its length, then its bytes.
pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
