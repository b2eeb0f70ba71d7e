use serde_json::{Map, Value, json};

use super::shapes::{Arch, Shape};
use crate::{config::DecoderConfig, gguf::Family};

/// Where Llama 3's stretching of positions begins and ends, in turns over the context that it was first trained with.
pub(super) const LLAMA_3_TURNS: (f64, f64) = (1.0, 4.0);
pub(super) const LLAMA_3_CONTEXT: f64 = 8192.0;
/// Of the layers with a window in Gemma 3.
pub(super) const LOCAL_THETA: f64 = 10_000.0;
/// Between which Gemma 2 keeps scores and logits.
pub(super) const SCORE_CAP: f64 = 50.0;
pub(super) const LOGIT_CAP: f64 = 30.0;
/// Every so many layers of Gemma 3 one sees the whole text.
const GEMMA_3_PATTERN: usize = 6;

/// Ids of the special tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Specials {
    pub(super) end_of_text: u32,
    pub(super) turn_ends: u32,
}

/// `config.json` of a model, and what it comes to.
pub(super) fn config(arch: &Arch, shape: &Shape, specials: Specials) -> Result<(Value, DecoderConfig), String> {
    let mut fields = common(arch, shape, specials);
    fields.extend(special(arch, shape));
    let json = Value::Object(fields);
    let parsed = DecoderConfig::parse(&json)?;
    Ok((json, parsed))
}

fn common(arch: &Arch, shape: &Shape, specials: Specials) -> Map<String, Value> {
    object(json!({
        "architectures": [arch.class],
        "model_type": arch.model_type,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": arch.norm_eps,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "attention_bias": false,
        "torch_dtype": "bfloat16",
        "bos_token_id": specials.end_of_text,
        "eos_token_id": specials.turn_ends,
    }))
}

/// What one family alone has.
fn special(arch: &Arch, shape: &Shape) -> Map<String, Value> {
    let stretched = shape.stretch > 1.0;
    object(match arch.family {
        Family::Llama if arch.model_type == "mistral" => json!({ "sliding_window": null }),
        Family::Llama if stretched => json!({
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": shape.stretch,
                "low_freq_factor": LLAMA_3_TURNS.0,
                "high_freq_factor": LLAMA_3_TURNS.1,
                "original_max_position_embeddings": LLAMA_3_CONTEXT as u64,
            },
        }),
        Family::Qwen2 | Family::Qwen3 => json!({ "use_sliding_window": false }),
        Family::Gemma2 => json!({
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": shape.head_dim,
            "attn_logit_softcapping": SCORE_CAP,
            "final_logit_softcapping": LOGIT_CAP,
            "sliding_window": shape.window,
        }),
        Family::Gemma3 => json!({
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": shape.head_dim,
            "rope_local_base_freq": LOCAL_THETA,
            "rope_scaling": stretched.then(|| json!({ "rope_type": "linear", "factor": shape.stretch })),
            "sliding_window": shape.window,
            "sliding_window_pattern": GEMMA_3_PATTERN,
        }),
        Family::Phi3 => json!({
            "sliding_window": shape.window,
            "original_max_position_embeddings": shape.context,
        }),
        Family::Granite => shape.granite.map_or_else(Value::default, |multipliers| {
            json!({
                "embedding_multiplier": multipliers.embedding,
                "attention_multiplier": multipliers.attention,
                "residual_multiplier": multipliers.residual,
                "logits_scaling": multipliers.logits,
            })
        }),
        Family::Llama | Family::Olmo2 | Family::Qwen3Moe | Family::SmolLm3 => Value::Null,
    })
}

/// The fields of an object; none of anything else.
fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value { fields } else { Map::new() }
}
