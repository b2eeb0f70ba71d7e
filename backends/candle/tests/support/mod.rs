//! A small Llama with random weights, written as a model directory.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

pub(crate) mod device;
pub(crate) mod embedding;

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::{Map, Value, json};
use tandem_candle::{CandleLoader, CandleSettings, Dtype as Compute, Quantization};
use tandem_core::{
    BackendLoader, BlockId, Chunk, InferenceBackend, LoadError, Loaded, SampleRow, SamplingParams, SlotId, Step,
    TokenId, sampling::uniform,
};
use tempfile::TempDir;

/// A tensor: its shape and values.
pub(crate) type Weight = (Vec<usize>, Vec<f32>);

/// A model that is not yet written; tests break it in the way that they are about.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Weight>,
    pub(crate) tokenizer: Value,
    pub(crate) tokenizer_config: Value,
}

impl Model {
    /// Awkward on purpose: three query heads share a K and V head, the heads are wider together than the hidden size and no multiple of
    /// a vector, the layers are odd in number and the vocabulary is padded.
    pub(crate) fn awkward() -> Self {
        Self::random(json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 44, "intermediate_size": 52, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-5, "max_position_embeddings": 160,
            "rope_theta": 500.0, "hidden_act": "silu", "tie_word_embeddings": false, "eos_token_id": 259
        }))
    }

    /// Every tensor that the configuration asks for, with weights that keep activations near one.
    pub(crate) fn random(config: Value) -> Self {
        let size = |name: &str| config[name].as_u64().unwrap() as usize;
        let flag = |name: &str| config[name].as_bool().unwrap_or(false);
        let (vocab, hidden, intermediate) = (size("vocab_size"), size("hidden_size"), size("intermediate_size"));
        let (q, kv) = (size("num_attention_heads") * size("head_dim"), size("num_key_value_heads") * size("head_dim"));
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], center: f32, spread: f32| {
            let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(131) ^ u64::from(byte));
            let values =
                (0..shape.iter().product::<usize>() as u32).map(|at| center + spread * (2.0 * uniform(seed, at) - 1.0));
            tensors.insert(name, (shape.to_vec(), values.collect()));
        };
        add("model.embed_tokens.weight".to_owned(), &[vocab, hidden], 0.0, 1.0);
        if !flag("tie_word_embeddings") {
            add("lm_head.weight".to_owned(), &[vocab, hidden], 0.0, 0.6);
        }
        add("model.norm.weight".to_owned(), &[hidden], 1.0, 0.3);
        for layer in 0..size("num_hidden_layers") {
            let mut norm = |part: &str| add(format!("model.layers.{layer}.{part}.weight"), &[hidden], 1.0, 0.3);
            norm("input_layernorm");
            norm("post_attention_layernorm");
            let mut linear = |part: &str, outputs: usize, inputs: usize, bias: bool| {
                let spread = 2.0 / (inputs as f32).sqrt();
                add(format!("model.layers.{layer}.{part}.weight"), &[outputs, inputs], 0.0, spread);
                if bias {
                    add(format!("model.layers.{layer}.{part}.bias"), &[outputs], 0.0, 0.5);
                }
            };
            let (attention, mlp) = (flag("attention_bias"), flag("mlp_bias"));
            linear("self_attn.q_proj", q, hidden, attention);
            linear("self_attn.k_proj", kv, hidden, attention);
            linear("self_attn.v_proj", kv, hidden, attention);
            linear("self_attn.o_proj", hidden, q, attention);
            linear("mlp.gate_proj", intermediate, hidden, mlp);
            linear("mlp.up_proj", intermediate, hidden, mlp);
            linear("mlp.down_proj", hidden, intermediate, mlp);
        }
        Self { config, tensors, tokenizer: byte_level(), tokenizer_config: json!({ "eos_token": "<|end|>" }) }
    }

    /// Writes the whole directory, weights in F32 and in one file.
    pub(crate) fn write(&self) -> TempDir {
        let dir = self.write_without_weights();
        write_tensors(&dir.path().join("model.safetensors"), &self.tensors);
        dir
    }

    pub(crate) fn write_without_weights(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let json =
            [("config", &self.config), ("tokenizer", &self.tokenizer), ("tokenizer_config", &self.tokenizer_config)];
        for (name, value) in json {
            fs_err::write(dir.path().join(format!("{name}.json")), value.to_string()).unwrap();
        }
        dir
    }
}

pub(crate) fn write_tensors(path: &Path, tensors: &BTreeMap<String, Weight>) {
    let bytes: Vec<_> =
        tensors.values().map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).collect();
    write_raw(
        path,
        tensors
            .iter()
            .zip(&bytes)
            .map(|((name, (shape, _)), bytes)| (name.as_str(), Dtype::F32, shape.clone(), bytes.as_slice())),
    );
}

/// Writes tensors of any type.
pub(crate) fn write_raw<'a>(path: &Path, tensors: impl Iterator<Item = (&'a str, Dtype, Vec<usize>, &'a [u8])>) {
    let views = tensors.map(|(name, dtype, shape, bytes)| (name, TensorView::new(dtype, shape, bytes).unwrap()));
    serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

/// A byte-level BPE of 260 tokens: the bytes by their value, one merge that makes `he`, and three control tokens.
pub(crate) fn byte_level() -> Value {
    let mut vocab: Map<String, Value> =
        alphabet().into_iter().zip(0..).map(|(c, id)| (c.to_string(), id.into())).collect();
    vocab.insert("he".to_owned(), 256.into());
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [control(257, "<|begin|>"), control(258, "<|user|>"), control(259, "<|end|>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [["h", "e"]]
        }
    })
}

pub(crate) fn control(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
}

/// The characters that byte-level vocabularies write bytes as, in order of the bytes.
fn alphabet() -> Vec<char> {
    let printable = |byte: &u32| (33..=126).contains(byte) || (161..=172).contains(byte) || (174..=255).contains(byte);
    let mut next = 256..;
    (0..256).map(|byte| char::from_u32(if printable(&byte) { byte } else { next.next().unwrap() }).unwrap()).collect()
}

pub(crate) fn settings(model: &Path) -> CandleSettings {
    CandleSettings {
        model: model.to_owned(),
        sha256: None,
        context: None,
        parallel: 3,
        dtype: Compute::F32,
        quantization: Quantization::None,
        block_size: 16,
        max_step_tokens: 128,
        kv_tokens: None,
        kv_type: tandem_candle::KvType::Auto,
        device: tandem_candle::ComputeDevice::Cpu,
        threads: Some(2),
    }
}

pub(crate) fn load(settings: CandleSettings, mut serve: impl FnMut(Loaded<'_>)) -> Result<(), LoadError> {
    Box::new(CandleLoader::new(settings)).with_backend(&mut serve)
}

/// The likeliest next tokens, best first, and the likeliest continuation of so many tokens.
pub(crate) fn greedy(
    backend: &mut dyn InferenceBackend,
    prompt: &[TokenId],
    tokens: usize,
) -> (Vec<(TokenId, f32)>, Vec<TokenId>) {
    let params = SamplingParams::greedy();
    let table: Vec<_> = (0..(prompt.len() + tokens).div_ceil(16) as u32).map(BlockId).collect();
    let (mut all, mut first) = (prompt.to_vec(), None);
    let mut start = 0;
    for _ in 0..tokens {
        let chunk = Chunk {
            slot: SlotId(0),
            start: start as u32,
            tokens: &all[start..],
            block_table: &table,
            sample: true,
            score: false,
        };
        backend.forward(&Step { kv_ops: &[], chunks: &[chunk], adapter: None }).unwrap();
        let row = SampleRow {
            slot: SlotId(0),
            params: &params,
            u: 0.0,
            prompt: &[],
            output: &[],
            banned: &[],
            allowed: None,
            logprobs: Some(20),
        };
        let mut out = Vec::new();
        backend.sample(&[row], &mut out).unwrap();
        let sampled = out.remove(0).unwrap();
        first.get_or_insert(sampled.logprobs.unwrap().top);
        start = all.len();
        all.push(sampled.token);
    }
    (first.unwrap(), all.split_off(prompt.len()))
}
