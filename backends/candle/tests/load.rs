//! Models and settings that are refused, and what is said.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use safetensors::Dtype as Stored;
use serde_json::{Value, json};
use support::{Model, Weight, control, greedy, load, settings, write_raw, write_tensors};
use tandem_candle::{CandleSettings, Dtype};
use tandem_core::{GenerationDefaults, KvLayout, LoadError};

fn refusal(settings: CandleSettings) -> LoadError {
    load(settings, |_| panic!("the model was served")).expect_err("the model is refused")
}

/// Asserts that the directory is refused as [`LoadError::Invalid`], for a file of this name and a reason that contains `reason`.
#[track_caller]
fn assert_invalid(dir: &Path, file: &str, reason: &str) {
    match refusal(settings(dir)) {
        LoadError::Invalid { path, reason: got } => {
            assert!(path.ends_with(file), "{path} is not {file}: {got}");
            assert!(got.contains(reason), "{got:?} does not say {reason:?}");
        }
        other => panic!("not invalid: {other:?}"),
    }
}

#[track_caller]
fn assert_unreadable(settings: CandleSettings, file: &str) {
    match refusal(settings) {
        LoadError::Unreadable { path, .. } => assert!(path.ends_with(file), "{path} is not {file}"),
        other => panic!("not unreadable: {other:?}"),
    }
}

#[test]
fn what_is_missing_cannot_be_read() {
    assert_unreadable(settings(Path::new("no/such/model")), "no/such/model");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = Model::awkward().write();
        fs_err::remove_file(dir.path().join(file)).unwrap();
        assert_unreadable(settings(dir.path()), file);
    }
}

#[test]
fn configurations_are_checked_field_by_field() {
    let cases = [
        (
            "architectures",
            json!(["GptForCausalLM"]),
            "architecture GptForCausalLM is not supported; known: LlamaForCausalLM",
        ),
        ("architectures", Value::Null, "architecture none is not supported"),
        ("num_hidden_layers", json!(-1), "invalid config: num_hidden_layers"),
        ("num_hidden_layers", json!(1_000_000_000), "invalid config: num_hidden_layers"),
        ("num_hidden_layers", json!("32"), "invalid config: num_hidden_layers"),
        ("num_hidden_layers", json!(0), "invalid config: num_hidden_layers"),
        ("hidden_size", Value::Null, "invalid config: hidden_size: missing"),
        ("num_key_value_heads", json!(4), "invalid config: num_key_value_heads"),
        ("head_dim", json!(9), "invalid config: head_dim"),
        ("head_dim", Value::Null, "invalid config: hidden_size"),
        ("rms_norm_eps", json!(0.0), "invalid config: rms_norm_eps"),
        ("rope_theta", json!(-1.0), "invalid config: rope_theta"),
        ("rope_scaling", json!({ "rope_type": "ntk", "factor": 2.0 }), "invalid config: rope_type: ntk"),
        ("rope_scaling", json!({ "rope_type": "linear" }), "invalid config: factor: missing"),
        ("hidden_act", json!("gelu"), "invalid config: hidden_act"),
        ("partial_rotary_factor", json!(0.5), "invalid config: partial_rotary_factor"),
        ("quantization_config", json!({ "quant_method": "bitsandbytes" }), "quantization_config"),
    ];
    for (field, value, reason) in cases {
        let mut model = Model::awkward();
        model.config[field] = value;
        assert_invalid(model.write().path(), "config.json", reason);
    }
}

#[test]
fn fields_of_one_family_are_checked_too() {
    let long =
        |pairs: usize| json!({ "rope_type": "longrope", "short_factor": vec![1.0; pairs], "long_factor": [2.0] });
    let cases = [
        ("Mistral", "sliding_window", json!(0), "sliding_window: 0 is not in 1..="),
        ("Mistral", "layer_types", json!(["sliding_attention"]), "layer_types: the layers of Mistral are of one kind"),
        ("Qwen2", "layer_types", json!(["full_attention"]), "layer_types: 1 for 3 layers"),
        ("Qwen2", "layer_types", json!(["full_attention", "linear_attention", "x"]), "layer_types: linear_attention"),
        ("Qwen2", "layer_types", json!(vec!["sliding_attention"; 3]), "sliding_window: none, but layers that want one"),
        ("Qwen3", "hidden_act", json!("relu"), "hidden_act: relu is not supported; known: silu, gelu_pytorch_tanh"),
        ("Qwen3Moe", "num_experts", Value::Null, "num_experts: missing"),
        ("Qwen3Moe", "num_experts_per_tok", json!(5), "num_experts_per_tok: 5 is not in 1..=4"),
        ("Gemma2", "attn_logit_softcapping", json!(-1.0), "attn_logit_softcapping: -1 is not positive"),
        ("Gemma2", "use_bidirectional_attention", json!(true), "use_bidirectional_attention: only false is supported"),
        ("Gemma2", "query_pre_attn_scalar", json!(0), "query_pre_attn_scalar: 0 is not positive"),
        ("Gemma3", "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping: Gemma 3 has none"),
        ("Gemma3", "partial_rotary_factor", json!(0.4), "partial_rotary_factor: only 1 is supported"),
        ("Gemma3", "rope_parameters", json!({ "rope_theta": 9.0 }), "rope_parameters: neither full_attention nor"),
        ("Gemma3", "rope_parameters", json!({ "full_attention": 1 }), "full_attention: 1 is not an object"),
        (
            "Llama",
            "rope_parameters",
            json!({ "full_attention": {} }),
            "rope_parameters: full_attention: this architecture",
        ),
        ("Llama", "rope_scaling", json!({ "type": "yarn" }), "factor: missing"),
        (
            "Llama",
            "rope_scaling",
            json!({ "type": "yarn", "factor": 4.0, "beta_slow": 99 }),
            "beta_fast: 32 to 99 turns",
        ),
        ("Llama", "rope_scaling", long(5), "original_max_position_embeddings: missing"),
        (
            "Phi3",
            "rope_scaling",
            json!({ "type": "linear", "factor": 2.0 }),
            "rope_type: Phi 3 has default and longrope",
        ),
        ("Phi3", "partial_rotary_factor", json!(0.5), "partial_rotary_factor: 0.5 of 10 values are no pairs"),
        ("SmolLM3", "no_rope_layers", json!([1, 0]), "no_rope_layers: 2 for 3 layers"),
        ("Granite", "logits_scaling", json!(0.0), "logits_scaling: 0 is not positive"),
        ("Olmo2", "num_key_value_heads", json!(4), "num_key_value_heads: 6 heads cannot be shared by 4"),
    ];
    for (family, field, value, reason) in cases {
        let mut model = Model::awkward();
        model.config["architectures"] = json!([format!("{family}ForCausalLM")]);
        for (field, value) in [("num_experts", 4), ("num_experts_per_tok", 2), ("moe_intermediate_size", 8)] {
            model.config[field] = value.into();
        }
        model.config[field] = value;
        assert_invalid(model.write().path(), "config.json", &format!("invalid config: {reason}"));
    }
    let mut model = Model::awkward();
    model.config["original_max_position_embeddings"] = 64.into();
    model.config["rope_scaling"] = long(4);
    assert_invalid(model.write().path(), "config.json", "invalid config: short_factor: 4 numbers for 5 pairs");
}

#[test]
fn configurations_that_are_no_objects() {
    for (content, reason) in [
        (String::new(), "invalid JSON"),
        ("[]".to_owned(), "not an object"),
        ("[".repeat(200), "invalid JSON"),
        (" ".repeat(10 << 20), "bytes, more than"),
    ] {
        let dir = Model::awkward().write();
        fs_err::write(dir.path().join("config.json"), content).unwrap();
        assert_invalid(dir.path(), "config.json", reason);
    }
}

#[test]
fn tensors_must_be_those_of_the_configuration() {
    let norm = "model.layers.1.input_layernorm.weight";
    let mut missing = Model::awkward();
    missing.tensors.remove(norm);
    assert_invalid(missing.write().path(), "model.safetensors", &format!("tensor {norm}: missing"));

    let mut misshapen = Model::awkward();
    misshapen.tensors.insert(norm.to_owned(), (vec![4, 11], vec![1.0; 44]));
    assert_invalid(misshapen.write().path(), "model.safetensors", &format!("tensor {norm}: expected [44] got [4, 11]"));

    let mut extra = Model::awkward();
    extra.tensors.insert("model.layers.0.self_attn.q_proj.bias".to_owned(), (vec![60], vec![1.0; 60]));
    assert_invalid(
        extra.write().path(),
        "model.safetensors",
        "tensor model.layers.0.self_attn.q_proj.bias: config.json has no place for it",
    );

    let mut harmless = Model::awkward();
    harmless.tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), (vec![5], vec![1.0; 5]));
    load(settings(harmless.write().path()), |_| {}).unwrap();

    let mut broken = Model::awkward();
    broken.tensors.get_mut("model.layers.2.mlp.down_proj.weight").unwrap().1[17] = f32::NAN;
    let dir = broken.write();
    assert_invalid(dir.path(), dir.path().file_name().unwrap().to_str().unwrap(), "model produces non-finite logits");
}

/// The model's weights in another type; `widen` is what a value becomes.
fn stored_as(model: &Model, dtype: Stored, bytes: impl Fn(f32) -> Vec<u8>) -> tempfile::TempDir {
    let dir = model.write_without_weights();
    let data: Vec<(&String, &Weight, Vec<u8>)> = model
        .tensors
        .iter()
        .map(|(name, weight)| (name, weight, weight.1.iter().flat_map(|&value| bytes(value)).collect()))
        .collect();
    let views = data.iter().map(|(name, (shape, _), bytes)| (name.as_str(), dtype, shape.clone(), bytes.as_slice()));
    write_raw(&dir.path().join("model.safetensors"), views);
    dir
}

#[test]
fn weights_are_widened_exactly_or_refused() {
    // Values that all types hold exactly give the same model in each of them.
    let mut model = Model::awkward();
    model.tensors.values_mut().flat_map(|(_, values)| values).for_each(|value| *value = (*value * 64.0).round() / 64.0);
    let bf16 = stored_as(&model, Stored::BF16, |value| half::bf16::from_f32(value).to_le_bytes().into());
    let f16 = stored_as(&model, Stored::F16, |value| half::f16::from_f32(value).to_le_bytes().into());
    let f32 = model.write();
    // Widened when they are loaded, or kept.
    for dtype in [Dtype::F32, Dtype::Auto] {
        let likeliest = |dir: &Path| {
            let mut top = Vec::new();
            let settings = CandleSettings { dtype, ..settings(dir) };
            load(settings, |loaded| top = greedy(loaded.backend.generator().unwrap(), &[5, 6, 7], 1).0).unwrap();
            top
        };
        let expected = likeliest(f32.path());
        assert_eq!(likeliest(f16.path()), expected);
        let got = likeliest(bf16.path());
        if dtype == Dtype::F32 {
            assert_eq!(got, expected);
            continue;
        }
        // Activations are rounded where they meet BF16.
        assert_ne!(got, expected);
        for ((token, logprob), (expected_token, expected)) in got.iter().zip(&expected).take(5) {
            assert!(token == expected_token && (logprob - expected).abs() < 0.03, "{token}: {logprob} and {expected}");
        }
    }
    let f64s = stored_as(&model, Stored::F64, |value| f64::from(value).to_le_bytes().into());
    assert_invalid(f64s.path(), "model.safetensors", "expected F32, BF16 or F16 got F64");
}

/// Writes the model in two shards, with an index that `edit` may break.
fn sharded(edit: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let model = Model::awkward();
    let dir = model.write_without_weights();
    let half = model.tensors.keys().nth(model.tensors.len() / 2).unwrap().clone();
    let mut shards = [BTreeMap::new(), model.tensors];
    while shards[1].first_key_value().is_some_and(|(name, _)| *name < half) {
        let (name, weight) = shards[1].pop_first().unwrap();
        shards[0].insert(name, weight);
    }
    let mut index = json!({ "weight_map": {} });
    for (shard, file) in shards.iter().zip(["a.safetensors", "b.safetensors"]) {
        write_tensors(&dir.path().join(file), shard);
        shard.keys().for_each(|name| index["weight_map"][name] = file.into());
    }
    edit(&mut index);
    fs_err::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    dir
}

#[test]
fn shards_make_the_same_model() {
    let logprobs = |dir: &Path| {
        let mut out = Vec::new();
        load(settings(dir), |loaded| out = greedy(loaded.backend.generator().unwrap(), &[5, 6, 7], 1).0).unwrap();
        out
    };
    assert_eq!(logprobs(sharded(|_| {}).path()), logprobs(Model::awkward().write().path()));
}

#[test]
fn shards_stay_in_the_directory() {
    let index = "model.safetensors.index.json";
    for name in ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ""] {
        let dir = sharded(|index| index["weight_map"]["lm_head.weight"] = name.into());
        assert_invalid(dir.path(), index, "shard path escapes model directory");
    }
    let dir = sharded(|index| index["weight_map"]["lm_head.weight"] = "b.safetensors".into());
    assert_invalid(dir.path(), "b.safetensors", "tensor lm_head.weight: missing");
    let dir = sharded(|index| index["weight_map"]["lm_head.weight"] = "pytorch_model.bin".into());
    assert_invalid(dir.path(), "pytorch_model.bin", "pickle-based weights are not supported");
    let dir = sharded(|index| index["weight_map"] = json!([]));
    assert_invalid(dir.path(), index, "weight_map");
    let dir = sharded(|_| {});
    fs_err::remove_file(dir.path().join("b.safetensors")).unwrap();
    assert_unreadable(settings(dir.path()), "b.safetensors");
}

#[cfg(unix)]
#[test]
fn links_may_point_into_a_hugging_face_cache_and_nowhere_else() {
    use std::os::unix::fs::symlink;
    let link_weights = |snapshot: PathBuf, blobs: PathBuf| {
        let model = Model::awkward().write();
        for dir in [&snapshot, &blobs] {
            fs_err::create_dir_all(dir).unwrap();
        }
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs_err::copy(model.path().join(file), snapshot.join(file)).unwrap();
        }
        fs_err::copy(model.path().join("model.safetensors"), blobs.join("0123")).unwrap();
        symlink(blobs.join("0123"), snapshot.join("model.safetensors")).unwrap();
        snapshot
    };
    let root = tempfile::tempdir().unwrap();
    let cached = link_weights(root.path().join("model/snapshots/main"), root.path().join("model/blobs"));
    load(settings(&cached), |_| {}).unwrap();
    let stray = link_weights(root.path().join("stray"), root.path().join("blobs"));
    assert_invalid(&stray, "model.safetensors", "shard path escapes model directory");
}

#[test]
fn damaged_files_are_refused_whatever_their_length() {
    let dir = Model::awkward().write();
    let path = dir.path().join("model.safetensors");
    let whole = fs_err::read(&path).unwrap();
    for len in [0, 1, 7, 8, 9, 500, 5000, whole.len() - 1] {
        fs_err::write(&path, &whole[..len]).unwrap();
        assert_invalid(dir.path(), "model.safetensors", "invalid safetensors file");
    }
    fs_err::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert_invalid(dir.path(), "model.safetensors", "invalid safetensors file");
    let mut endless = whole;
    endless[..8].fill(0xff);
    fs_err::write(&path, endless).unwrap();
    assert_invalid(dir.path(), "model.safetensors", "invalid safetensors file");
}

#[test]
fn pickles_are_never_read() {
    let reason = "pickle-based weights are not supported";
    let dir = Model::awkward().write();
    let path = dir.path().join("model.safetensors");
    for magic in [&b"\x80\x02}q\x00X\x05\x00\x00\x00"[..], b"PK\x03\x04\x00\x00\x08\x08\x00"] {
        fs_err::write(&path, magic).unwrap();
        assert_invalid(dir.path(), "model.safetensors", reason);
    }
    fs_err::rename(&path, dir.path().join("pytorch_model.bin")).unwrap();
    assert_invalid(dir.path(), "model.safetensors", reason);
    assert_invalid(&dir.path().join("pytorch_model.bin"), "pytorch_model.bin", reason);
    assert_invalid(&dir.path().join("config.json"), "config.json", "loads a model directory");
}

#[test]
fn tokenizers_are_checked() {
    let cases: [(&str, Value, &str); 6] = [
        ("/model/merges", json!([["h", "nothing"]]), "tokenizer rejected"),
        ("/model", json!({}), "tokenizer rejected"),
        (
            "/decoder",
            json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
            "decoder \"WordPiece\" is not supported",
        ),
        ("/decoder", json!({ "type": "Fuse" }), "says how tokens spell bytes"),
        ("/added_tokens/2/id", json!(270), "added token \"<|end|>\" has id 270 in the file and 259 by the order"),
        ("/added_tokens/2/content", json!("<|stop|>"), "eos_token \"<|end|>\" is not in the vocabulary"),
    ];
    for (place, value, reason) in cases {
        let mut model = Model::awkward();
        *model.tokenizer.pointer_mut(place).unwrap() = value;
        assert_invalid(model.write().path(), "tokenizer.json", reason);
    }
    let mut large = Model::awkward();
    large.tokenizer["added_tokens"]
        .as_array_mut()
        .unwrap()
        .extend((260..301).map(|id| control(id, &format!("<|{id}|>"))));
    assert_invalid(large.write().path(), "tokenizer.json", "tokenizer size mismatch");
    let mut stray = Model::awkward();
    stray.config["eos_token_id"] = 300.into();
    assert_invalid(stray.write().path(), "tokenizer.json", "special token id 300 out of range");
    let mut wordy = Model::awkward();
    wordy.tokenizer_config["chat_template"] = "x".repeat(300 << 10).into();
    assert_invalid(wordy.write().path(), "tokenizer_config.json", "chat template");
}

#[test]
fn settings_that_cannot_be_honoured_are_refused() {
    let dir = Model::awkward().write();
    let refused = |change: fn(&mut CandleSettings), reason: &str| {
        let mut settings = settings(dir.path());
        change(&mut settings);
        match refusal(settings) {
            LoadError::Unsupported(got) => assert!(got.contains(reason), "{got:?} does not say {reason:?}"),
            other => panic!("not unsupported: {other:?}"),
        }
    };
    refused(|settings| settings.block_size = 0, "block_size");
    refused(|settings| settings.block_size = 24, "block_size 24 is no multiple of 16");
    refused(|settings| settings.parallel = 0, "parallel");
    refused(|settings| settings.threads = Some(0), "threads");
    refused(|settings| settings.context = Some(161), "context 161 is more than the 160 tokens");
    refused(|settings| settings.kv_tokens = Some(159), "cannot hold one context");
    refused(
        |settings| {
            settings.parallel = u32::MAX;
            settings.block_size = 16;
        },
        "too many blocks",
    );
}

#[test]
fn the_spec_says_what_the_settings_and_the_model_allow() {
    let dir = Model::awkward().write();
    let settings =
        CandleSettings { context: Some(99), dtype: Dtype::F32, kv_tokens: Some(201), ..settings(dir.path()) };
    load(settings, |loaded| {
        let spec = loaded.backend.generator().unwrap().spec();
        assert_eq!((spec.name, spec.vocab_size, spec.max_context, spec.max_sequences), ("candle", 300, 99, 3));
        assert_eq!((spec.max_step_tokens, spec.mixes_phases), (128, true));
        assert_eq!(spec.kv, KvLayout::Blocks { count: 13, block_size: 16 });
    })
    .unwrap();
}

#[test]
fn the_version_is_that_of_the_lock_file() {
    let lock = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock")).unwrap();
    let entry = format!("name = \"candle-core\"\nversion = \"{}\"", tandem_candle::version());
    assert!(lock.contains(&entry), "candle was updated: change version()");
}

#[test]
fn a_generation_config_says_how_tokens_are_chosen() {
    let dir = Model::awkward().write();
    let defaults = || {
        let mut found = None;
        load(settings(dir.path()), |loaded| found = Some(loaded.defaults)).unwrap();
        found.unwrap()
    };
    assert_eq!(defaults(), GenerationDefaults::default());
    let file =
        json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 2048, "min_p": -1});
    fs_err::write(dir.path().join("generation_config.json"), file.to_string()).unwrap();
    let expected = GenerationDefaults {
        temperature: Some(0.6),
        top_k: Some(20),
        top_p: Some(0.95),
        max_tokens: Some(2048),
        ..GenerationDefaults::default()
    };
    assert_eq!(defaults(), expected);
}
