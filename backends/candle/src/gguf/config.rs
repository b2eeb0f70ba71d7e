use std::fmt::Display;

use serde_json::{Map, Number, Value, json};
use tandem_core::LoadError;
use tandem_gguf::{GgufFile, Header, Tensor};

use super::{
    GgufModel,
    family::Family,
    names::{ROPE_FACTORS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT},
};
use crate::directory::invalid;

/// What llama.cpp takes where a file says nothing.
const ROPE_BASE: f64 = 10_000.0;
/// Every so many layers of Gemma 2 and 3 one sees the whole text, and of `SmolLM` 3 one has no rotary positions.
const GEMMA2_PATTERN: u64 = 2;
const GEMMA3_PATTERN: u64 = 6;
const SMOLLM3_PATTERN: u64 = 4;
/// Layers of the models that scale queries by the width of the hidden state over the heads, and not by the width of a head.
const GEMMA2_27B_LAYERS: u64 = 46;
const GEMMA3_27B_LAYERS: u64 = 62;

/// What `config.json` would say of this model. Ranges are checked by whoever reads it, as those of a file are.
pub(super) fn config(model: &GgufModel) -> Result<Value, LoadError> {
    let metadata = Metadata { model };
    let fields = common(&metadata).and_then(|mut fields| {
        special(&metadata, &mut fields)?;
        Ok(fields)
    });
    let mut fields = fields.map_err(|reason| invalid(model.path(), reason))?;
    fields.insert("rope_scaling".to_owned(), rope_scaling(&metadata)?);
    Ok(Value::Object(fields))
}

/// The width of a head.
pub(super) fn head_dim(header: &Header, family: Family) -> Result<usize, String> {
    let number = |name: &str| header.unsigned(&format!("{}.{name}", family.name()));
    let width = match (number("attention.key_length"), number("embedding_length"), number("attention.head_count")) {
        (Some(width), ..) => Some(width),
        (None, Some(hidden), Some(heads)) => hidden.checked_div(heads),
        (None, ..) => None,
    };
    width.and_then(|width| usize::try_from(width).ok()).filter(|width| *width > 0).ok_or_else(|| {
        let family = family.name();
        format!("`{family}.attention.key_length`: missing, and no width of a head follows from the other sizes")
    })
}

/// The metadata of one architecture.
struct Metadata<'a> {
    model: &'a GgufModel,
}

impl Metadata<'_> {
    fn family(&self) -> Family {
        self.model.family
    }

    fn header(&self) -> &Header {
        self.model.header()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family().name())
    }

    fn refuse<T>(&self, name: &str, reason: impl Display) -> Result<T, String> {
        Err(format!("`{}`: {reason}", self.key(name)))
    }

    /// A count, `None` when there is none.
    fn optional(&self, name: &str) -> Result<Option<u64>, String> {
        let key = self.key(name);
        match (self.header().get(&key), self.header().unsigned(&key)) {
            (None, _) => Ok(None),
            (Some(_), Some(number)) => Ok(Some(number)),
            (Some(_), None) if self.header().array(&key).is_some() => {
                self.refuse(name, "differs from layer to layer, which the candle backend does not support")
            }
            (Some(_), None) => self.refuse(name, "not a count"),
        }
    }

    fn count(&self, name: &str) -> Result<u64, String> {
        self.optional(name)?.map_or_else(|| self.refuse(name, "missing"), Ok)
    }

    /// A number, `None` when there is none.
    fn number(&self, name: &str) -> Result<Option<f64>, String> {
        let key = self.key(name);
        match (self.header().get(&key), self.header().number(&key)) {
            (None, _) => Ok(None),
            (Some(_), Some(number)) if number.is_finite() => Ok(Some(number)),
            (Some(_), _) => self.refuse(name, "not a number"),
        }
    }

    /// A number, as it stands in JSON.
    fn json(&self, name: &str, otherwise: f64) -> Result<Value, String> {
        let number = self.number(name)?.unwrap_or(otherwise);
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.model.tensor(name).is_some()
    }

    fn layers(&self) -> Result<u64, String> {
        let layers = self.count("block_count")?;
        // Lists with an entry for each are made of it.
        if layers > 1 << 12 { self.refuse("block_count", layers) } else { Ok(layers) }
    }
}

/// What every architecture has.
fn common(metadata: &Metadata<'_>) -> Result<Map<String, Value>, String> {
    let family = metadata.family();
    let (class, model_type) = family.hugging_face();
    let heads = metadata.count("attention.head_count")?;
    let head_dim = head_dim(metadata.header(), family)?;
    if let Some(width) = metadata.optional("attention.value_length")?.filter(|width| *width != head_dim as u64) {
        return metadata.refuse("attention.value_length", format!("{width}, though keys are {head_dim} wide"));
    }
    if let Some(experts) = metadata.optional("expert_count")?.filter(|count| *count > 0 && family != Family::Qwen3Moe) {
        return metadata.refuse("expert_count", format!("{experts} experts are not supported in this architecture"));
    }
    if metadata.optional("pooling_type")?.is_some_and(|pooling| pooling > 0)
        || metadata.header().flag(&metadata.key("attention.causal")) == Some(false)
    {
        return Err("a model that turns texts into vectors, which the candle backend does not run".to_owned());
    }
    if let Some(scale) = metadata.number("expert_weights_scale")?.filter(|scale| ![0.0, 1.0].contains(scale)) {
        return metadata.refuse("expert_weights_scale", format!("{scale} is not supported"));
    }
    let turned = metadata.optional("rope.dimension_count")?.unwrap_or(head_dim as u64);
    let token = |name: &str| metadata.header().unsigned(&format!("tokenizer.ggml.{name}_token_id"));
    let Value::Object(fields) = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": metadata.header().array_len("tokenizer.ggml.tokens"),
        "hidden_size": metadata.count("embedding_length")?,
        "intermediate_size": metadata.count("feed_forward_length")?,
        "num_hidden_layers": metadata.layers()?,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.optional("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon")?,
        "max_position_embeddings": metadata.count("context_length")?,
        "rope_theta": metadata.json("rope.freq_base", ROPE_BASE)?,
        "partial_rotary_factor": turned as f64 / head_dim as f64,
        "hidden_act": "silu",
        "tie_word_embeddings": !metadata.has_tensor("output.weight"),
        "attention_bias": metadata.has_tensor("blk.0.attn_output.bias"),
        "mlp_bias": metadata.has_tensor("blk.0.ffn_down.bias"),
        "bos_token_id": token("bos"),
        "eos_token_id": token("eos"),
    }) else {
        unreachable!("it is written as an object")
    };
    if fields["rms_norm_eps"].is_null() {
        return metadata.refuse("attention.layer_norm_rms_epsilon", "missing");
    }
    Ok(fields)
}

/// What one architecture alone has.
fn special(metadata: &Metadata<'_>, fields: &mut Map<String, Value>) -> Result<(), String> {
    let special = match metadata.family() {
        Family::Llama | Family::Qwen3 => json!({}),
        // Q, K and V have biases, always; there is no field that says so.
        Family::Qwen2 => json!({ "use_sliding_window": false }),
        Family::Qwen3Moe => json!({
            "num_experts": metadata.count("expert_count")?,
            "num_experts_per_tok": metadata.count("expert_used_count")?,
            "moe_intermediate_size": metadata.count("expert_feed_forward_length")?,
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }),
        Family::Gemma2 => gemma2(metadata)?,
        Family::Gemma3 => gemma3(metadata)?,
        Family::Phi3 => phi3(metadata, fields)?,
        Family::SmolLm3 => {
            let with_rope = |layer: u64| u64::from(!(layer + 1).is_multiple_of(SMOLLM3_PATTERN));
            json!({
                "no_rope_layers": (0..metadata.layers()?).map(with_rope).collect::<Vec<_>>(),
                "no_rope_layer_interval": SMOLLM3_PATTERN,
                "use_sliding_window": false,
            })
        }
        Family::Granite => {
            // Granite takes this for a switch: it has rotary positions or none.
            if metadata.header().flag(&metadata.key("rope.scaling.finetuned")) == Some(false) {
                return metadata.refuse("rope.scaling.finetuned", "false: a model without positions is not supported");
            }
            let head_dim = head_dim(metadata.header(), Family::Granite)? as f64;
            json!({
                "embedding_multiplier": metadata.json("embedding_scale", 1.0)?,
                "residual_multiplier": metadata.json("residual_scale", 1.0)?,
                "attention_multiplier": metadata.json("attention.scale", head_dim.sqrt().recip())?,
                "logits_scaling": metadata.json("logit_scale", 1.0)?,
            })
        }
        Family::Olmo2 => {
            if let Some(window) = metadata.optional("attention.sliding_window")?.filter(|window| *window > 0) {
                return metadata.refuse("attention.sliding_window", format!("{window}: OLMo 3 is not supported"));
            }
            json!({})
        }
    };
    if let Value::Object(special) = special {
        fields.extend(special);
    }
    Ok(())
}

fn gemma2(metadata: &Metadata<'_>) -> Result<Value, String> {
    Ok(json!({
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": query_scale(metadata, GEMMA2_27B_LAYERS)?,
        "attn_logit_softcapping": metadata.json("attn_logit_softcapping", 50.0)?,
        "final_logit_softcapping": metadata.json("final_logit_softcapping", 30.0)?,
        "sliding_window": metadata.optional("attention.sliding_window")?.unwrap_or(4096),
        "layer_types": layer_types(metadata, GEMMA2_PATTERN)?,
        "tie_word_embeddings": true,
    }))
}

fn gemma3(metadata: &Metadata<'_>) -> Result<Value, String> {
    let window = metadata.optional("attention.sliding_window")?.filter(|window| *window > 0);
    let cap = metadata.number("final_logit_softcapping")?.filter(|cap| *cap != 0.0);
    Ok(json!({
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": query_scale(metadata, GEMMA3_27B_LAYERS)?,
        "attn_logit_softcapping": null,
        "final_logit_softcapping": cap,
        "rope_local_base_freq": metadata.json("rope.freq_base_swa", ROPE_BASE)?,
        "sliding_window": window,
        "sliding_window_pattern": GEMMA3_PATTERN,
        "layer_types": layer_types(metadata, if window.is_some() { GEMMA3_PATTERN } else { 1 })?,
    }))
}

/// GGUF does not say by what queries are scaled; it follows from which model it is.
fn query_scale(metadata: &Metadata<'_>, layers_of_27b: u64) -> Result<u64, String> {
    if metadata.layers()? == layers_of_27b {
        let heads = metadata.count("attention.head_count")?;
        let width = metadata.count("embedding_length")?.checked_div(heads);
        return width.map_or_else(|| metadata.refuse("attention.head_count", heads), Ok);
    }
    Ok(head_dim(metadata.header(), metadata.family())? as u64)
}

/// The last of every `pattern` layers sees the whole text.
fn layer_types(metadata: &Metadata<'_>, pattern: u64) -> Result<Vec<&'static str>, String> {
    let key = "attention.sliding_window_pattern";
    let pattern = match metadata.optional(key)? {
        Some(0) => return metadata.refuse(key, 0),
        Some(other) => other,
        None => pattern,
    };
    let is_full = |layer: u64| (layer + 1).is_multiple_of(pattern);
    let kind = |layer| if is_full(layer) { "full_attention" } else { "sliding_attention" };
    Ok((0..metadata.layers()?).map(kind).collect())
}

fn phi3(metadata: &Metadata<'_>, fields: &Map<String, Value>) -> Result<Value, String> {
    Ok(json!({
        "sliding_window": metadata.optional("attention.sliding_window")?.filter(|window| *window > 0),
        "original_max_position_embeddings": metadata
            .optional("rope.scaling.original_context_length")?
            .map_or_else(|| fields["max_position_embeddings"].clone(), Value::from),
    }))
}

/// How rotary positions are stretched. Llama 3 comes with a factor for each pair, which its converter worked out.
fn rope_scaling(metadata: &Metadata<'_>) -> Result<Value, LoadError> {
    let refused = |reason: String| invalid(metadata.model.path(), reason);
    let factors = |name: &str| {
        let found = metadata.model.tensor(name);
        found.map(|(file, tensor)| factors(file, tensor)).transpose()
    };
    let stretched = stretched(metadata).map_err(refused)?;
    match (factors(ROPE_FACTORS)?, factors(ROPE_FACTORS_SHORT)?, factors(ROPE_FACTORS_LONG)?) {
        (None, None, None) => Ok(stretched),
        _ if !stretched.is_null() => {
            Err(refused(format!("rope factors beside `{}` are not supported", metadata.key("rope.scaling.factor"))))
        }
        // The same, however long the text.
        (Some(factors), None, None) => Ok(json!({
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": metadata.count("context_length").map_err(refused)?,
        })),
        (None, Some(short), Some(long)) => {
            Ok(json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long }))
        }
        _ => {
            Err(refused(format!("{ROPE_FACTORS}, {ROPE_FACTORS_SHORT}, {ROPE_FACTORS_LONG}: the first or both others")))
        }
    }
}

/// Scaling by one factor for all pairs.
fn stretched(metadata: &Metadata<'_>) -> Result<Value, String> {
    let key = metadata.key("rope.scaling.type");
    let kind = match (metadata.header().get(&key), metadata.header().text(&key)) {
        // What old files mean that give a factor alone.
        (None, _) => "linear",
        (Some(_), Some(kind)) => kind,
        (Some(_), None) => return metadata.refuse("rope.scaling.type", "no text"),
    };
    let factor = match metadata.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => metadata.number("rope.scale_linear")?,
    };
    let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0);
    match (kind, factor) {
        // The factors of longrope are tensors.
        ("none" | "longrope", _) | ("linear", None) => Ok(Value::Null),
        ("linear", Some(factor)) => Ok(json!({ "rope_type": "linear", "factor": factor })),
        ("yarn", factor) => Ok(json!({
            "rope_type": "yarn",
            "factor": factor.unwrap_or(1.0),
            "original_max_position_embeddings": metadata.count("rope.scaling.original_context_length")?,
        })),
        (other, _) => metadata.refuse("rope.scaling.type", format!("{other} is not known")),
    }
}

fn factors(file: &GgufFile, tensor: &Tensor) -> Result<Vec<f32>, LoadError> {
    let refused = |reason: &str| Err(invalid(file.path(), format!("tensor {}: {reason}", tensor.name)));
    // Half as many as a head is wide; more than a kibibyte of numbers are none.
    if tensor.kind != tandem_gguf::ggml_type::F32 || tensor.dims.len() != 1 || tensor.bytes > 4 << 10 {
        return refused("one factor of type F32 for each pair of a head expected");
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.read(tensor, 0, &mut bytes)?;
    let factors: Vec<f32> = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    match factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        true => Ok(factors),
        false => refused("a factor is not positive"),
    }
}
