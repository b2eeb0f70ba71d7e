//! What files of each architecture say, in the words of Hugging Face.

#[path = "../../../llama-cpp/tests/backend/gguf.rs"]
#[expect(dead_code, reason = "a part of it is for files that are broken")]
mod writer;

use std::path::Path;

use serde_json::json;
use writer::{Gguf, Value as Written};

use super::*;
use crate::{
    settings::{Dtype, Quantization},
    weights::{Kept, Weights},
};

const AS_THEY_ARE: Kept = Kept { dtype: Dtype::Auto, quantization: Quantization::None };

const LAYERS: u32 = 4;

/// A file with the keys that all have.
fn file(architecture: &'static str) -> Gguf {
    let mut file = Gguf::new(architecture);
    for (key, number) in [
        ("block_count", LAYERS),
        ("context_length", 4096),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_rms_epsilon", 0.5);
    file.float("rope.freq_base", 1e6);
    file.matrix("token_embd.weight", &[32, writer::VOCABULARY]);
    file
}

fn opened(file: &Gguf) -> Result<GgufModel, LoadError> {
    GgufModel::open(&file.write(), None)
}

/// The fields of the configuration that `expected` has.
#[track_caller]
fn assert_says(file: &Gguf, expected: &Value) {
    let config = opened(file).unwrap().config().unwrap();
    for (field, expected) in expected.as_object().unwrap() {
        assert_eq!(&config[field], expected, "{field}");
    }
}

#[track_caller]
fn assert_refused(file: &Gguf, reason: &str) {
    let error = opened(file).unwrap().config().unwrap_err().to_string();
    assert!(error.ends_with(reason), "{error}");
}

#[test]
fn what_all_have() {
    let mut file = file("qwen3");
    assert_says(
        &file,
        &json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 0.5,
            "max_position_embeddings": 4096, "rope_theta": 1e6, "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "eos_token_id": 256, "bos_token_id": null, "partial_rotary_factor": 1.0
        }),
    );
    file.matrix("output.weight", &[32, writer::VOCABULARY]);
    file.number("rope.dimension_count", 8);
    file.unset("qwen3.attention.key_length");
    file.unset("qwen3.attention.value_length");
    file.unset("qwen3.attention.head_count_kv");
    file.unset("qwen3.rope.freq_base");
    assert_says(
        &file,
        &json!({
            "tie_word_embeddings": false, "head_dim": 8, "num_key_value_heads": 4, "rope_theta": 10_000.0, "partial_rotary_factor": 1.0
        }),
    );
}

#[test]
fn positions_are_stretched() {
    let mut file = file("qwen2");
    assert_says(&file, &json!({ "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false }));
    file.float("rope.scaling.factor", 4.0);
    assert_says(&file, &json!({ "rope_scaling": { "rope_type": "linear", "factor": 4.0 } }));
    file.value("qwen2.rope.scaling.type", Written::Text("yarn".to_owned()));
    assert_refused(&file, "`qwen2.rope.scaling.original_context_length`: missing");
    file.number("rope.scaling.original_context_length", 1024);
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024 });
    assert_says(&file, &json!({ "rope_scaling": yarn }));
    file.set("qwen2.rope.scaling.type", Written::Text("none".to_owned()));
    assert_says(&file, &json!({ "rope_scaling": null }));
}

#[test]
fn gemma() {
    let mut two = file("gemma2");
    let kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
    let says = json!({
        "architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096, "layer_types": kinds
    });
    assert_says(&two, &says);
    two.number("attention.sliding_window", 100);
    two.float("final_logit_softcapping", 15.0);
    assert_says(&two, &json!({ "sliding_window": 100, "final_logit_softcapping": 15.0 }));
    two.set("gemma2.block_count", Written::U32(46));
    assert_says(&two, &json!({ "query_pre_attn_scalar": 8 }));

    let mut three = file("gemma3");
    let says = json!({
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attn_logit_softcapping": null,
        "final_logit_softcapping": null, "sliding_window": null, "layer_types": vec!["full_attention"; 4]
    });
    assert_says(&three, &says);
    three.set("gemma3.block_count", Written::U32(7));
    three.number("attention.sliding_window", 512);
    three.float("rope.scaling.factor", 8.0);
    let mut kinds = vec!["sliding_attention"; 7];
    kinds[5] = "full_attention";
    let says = json!({
        "sliding_window": 512, "layer_types": kinds, "rope_local_base_freq": 10_000.0, "rope_theta": 1e6,
        "rope_scaling": { "rope_type": "linear", "factor": 8.0 }
    });
    assert_says(&three, &says);
}

#[test]
fn experts_multipliers_and_layers_without_positions() {
    let mut moe = file("qwen3moe");
    assert_refused(&moe, "`qwen3moe.expert_count`: missing");
    moe.number("expert_count", 8);
    moe.number("expert_used_count", 2);
    moe.number("expert_feed_forward_length", 24);
    let says = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "norm_topk_prob": true, "intermediate_size": 48
    });
    assert_says(&moe, &says);

    let mut granite = file("granite");
    for (key, number) in
        [("embedding_scale", 12.0), ("residual_scale", 0.25), ("attention.scale", 0.5), ("logit_scale", 8.0)]
    {
        granite.float(key, number);
    }
    let says = json!({
        "embedding_multiplier": 12.0, "residual_multiplier": 0.25, "attention_multiplier": 0.5, "logits_scaling": 8.0
    });
    assert_says(&granite, &says);
    granite.value("granite.rope.scaling.finetuned", Written::Bool(false));
    assert_refused(&granite, "`granite.rope.scaling.finetuned`: false: a model without positions is not supported");

    assert_says(&file("smollm3"), &json!({ "architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 1, 1, 0] }));
    let mut olmo = file("olmo2");
    assert_says(&olmo, &json!({ "architectures": ["Olmo2ForCausalLM"] }));
    olmo.number("attention.sliding_window", 4096);
    assert_refused(&olmo, "`olmo2.attention.sliding_window`: 4096: OLMo 3 is not supported");
}

#[test]
fn phi_has_factors_for_short_and_for_long_texts() {
    let mut phi = file("phi3");
    phi.number("rope.scaling.original_context_length", 2048);
    phi.number("rope.dimension_count", 12);
    phi.number("attention.sliding_window", 0);
    let says = json!({
        "architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.75, "sliding_window": null,
        "original_max_position_embeddings": 2048, "rope_scaling": null
    });
    assert_says(&phi, &says);
    phi.tensor("rope_factors_short.weight", &[2], vec![1.0, 1.5]);
    let one = "rope_freqs.weight, rope_factors_short.weight, rope_factors_long.weight: the first or both others";
    assert_refused(&phi, one);
    phi.tensor("rope_factors_long.weight", &[2], vec![2.0, 32.5]);
    let factors = json!({ "rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 32.5] });
    assert_says(&phi, &json!({ "rope_scaling": factors }));
    phi.tensor("rope_factors_long.weight", &[1, 2], vec![2.0, 32.5]);
    assert_refused(&phi, "tensor rope_factors_long.weight: one factor of type F32 for each pair of a head expected");
}

#[test]
fn experts_are_parts_of_a_tensor() {
    let mut moe = file("qwen3moe");
    moe.tensor("blk.0.ffn_up_exps.weight", &[2, 3, 4], (0..24).map(|at| at as f32).collect());
    moe.tensor("blk.0.ffn_gate_inp.weight", &[32, 4], vec![0.5; 128]);
    let mut weights = Weights::open_gguf(opened(&moe).unwrap(), AS_THEY_ARE).unwrap();
    assert!(weights.has("model.layers.0.mlp.experts.3.up_proj.weight"));
    assert!(!weights.has("model.layers.0.mlp.experts.4.up_proj.weight"));
    let layer = weights.linear(&[("model.layers.0.mlp.experts.2.up_proj", 3)], 2, false).unwrap();
    let mut y = Vec::new();
    layer.forward(&[1.0, 10.0], &mut y);
    assert_eq!(y, [12.0 + 130.0, 14.0 + 150.0, 16.0 + 170.0]);
    assert!(!weights.has("model.layers.0.mlp.experts.2.up_proj.weight"), "it was taken");
    let error = weights.linear(&[("model.layers.0.mlp.experts.1.up_proj", 4)], 2, false).unwrap_err().to_string();
    let expected = "tensor model.layers.0.mlp.experts.1.up_proj.weight (blk.0.ffn_up_exps.weight in the file): expected [4, 2] got [3, 2]";
    assert!(error.ends_with(expected), "{error}");
    weights.linear(&[("model.layers.0.mlp.gate", 4)], 32, false).unwrap();
    let error = weights.finish(|name| name == "model.embed_tokens.weight").unwrap_err().to_string();
    let expected = "tensor model.layers.0.mlp.experts.0.up_proj.weight (blk.0.ffn_up_exps.weight in the file): the configuration has no place for it";
    assert!(error.ends_with(expected), "{error}");

    moe.tensor("blk.0.ffn_up_exps.weight", &[2, 3], vec![0.0; 6]);
    let error = Weights::open_gguf(opened(&moe).unwrap(), AS_THEY_ARE).unwrap_err().to_string();
    let expected = "tensor blk.0.ffn_up_exps.weight: a matrix for each of up to 1024 experts expected, got [2, 3]";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn norms_of_gemma_are_without_the_one_and_those_of_others_as_they_are() {
    for (architecture, expected) in [("gemma3", [0.5, -0.75]), ("qwen3", [1.5, 0.25])] {
        let mut file = file(architecture);
        file.tensor("blk.1.attn_q_norm.weight", &[2], vec![1.5, 0.25]);
        let mut weights = Weights::open_gguf(opened(&file).unwrap(), AS_THEY_ARE).unwrap();
        assert_eq!(weights.vector("model.layers.1.self_attn.q_norm.weight", 2).unwrap(), expected);
    }
}

#[test]
fn a_file_is_known_by_its_name_or_by_what_it_begins_with() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in [
        ("a.GGUF", &b"anything"[..], true),
        ("blob", b"GGUF and more", true),
        ("blob.bin", b"GGU", false),
        ("text", b"text", false),
    ] {
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        assert_eq!(GgufModel::is_at(&path), expected, "{name}");
    }
    assert!(!GgufModel::is_at(folder.path()) && !GgufModel::is_at(Path::new("no/such/file")));
}
