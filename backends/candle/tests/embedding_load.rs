//! What is refused of an embedding model, and what its tokenizer is told to do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{
    embedding::{EmbeddingModel, with_pairs},
    load, settings,
};
use tandem_core::{LoadError, Matryoshka};

/// Loads a model that was changed, and looks for the reason why it is refused.
fn refused(name: &'static str, file: &str, reason: &str, change: impl FnOnce(&mut EmbeddingModel)) {
    let mut model = EmbeddingModel::fixture(name);
    change(&mut model);
    let error = load(settings(model.write().path()), |_| panic!("{reason}: it was loaded")).unwrap_err();
    let LoadError::Invalid { path, reason: got } = &error else { panic!("{reason}: {error}") };
    assert!(path.ends_with(file) && got.contains(reason), "{reason}: {path}: {got}");
}

#[test]
fn configurations_of_encoders_are_checked_field_by_field() {
    for (name, field, value, reason) in [
        ("bert", "hidden_act", json!("relu"), "hidden_act: relu is not supported; known: gelu, gelu_new"),
        ("bert", "position_embedding_type", json!("relative_key"), "position_embedding_type: relative_key"),
        ("bert", "is_decoder", json!(true), "is_decoder: only false"),
        ("bert", "num_attention_heads", json!(5), "hidden_size: 36 is no multiple of 5 heads"),
        ("bert", "num_hidden_layers", Value::Null, "num_hidden_layers: missing"),
        ("bert", "layer_norm_eps", json!(0.0), "layer_norm_eps: 0 is not positive"),
        ("bert", "type_vocab_size", json!(0), "type_vocab_size: 0 is not in"),
        ("bert", "quantization_config", json!({}), "quantization_config"),
        ("bert", "architectures", json!(["BertForMaskedLM"]), "architecture BertForMaskedLM is not supported; known: "),
        (
            "bert",
            "architectures",
            json!(["BertForSequenceClassification"]),
            "id2label: 2 labels, where a reranker has one",
        ),
        (
            "distilbert",
            "architectures",
            json!(["DistilBertForSequenceClassification"]),
            "none of the rerankers that are served",
        ),
        ("roberta_ranks", "id2label", json!({"0": "a", "1": "b", "2": "c"}), "id2label: 3 labels"),
        ("roberta", "pad_token_id", json!(65), "pad_token_id: 65 leaves none of 66 positions"),
        ("distilbert", "n_heads", json!(0), "n_heads: 0 is not in"),
        ("llama_embedding", "is_causal", json!(false), "is_causal: only true"),
    ] {
        refused(name, "config.json", reason, |model| model.config[field] = value);
    }
    refused("llama_embedding", "config.json", "architecture LlamaModel has no head", |model| {
        model.config["architectures"] = json!(["LlamaModel"]);
        (model.modules, model.pooling) = (None, None);
    });
}

#[test]
fn tensors_must_be_those_of_the_configuration() {
    let weights = "model.safetensors";
    let name = "tensor encoder.layer.3.attention.self.query.weight: missing";
    refused("bert", weights, name, |model| model.config["num_hidden_layers"] = 4.into());
    let name = "tensor embeddings.position_embeddings.weight: expected [65, 36] got [64, 36]";
    refused("bert", weights, name, |model| model.config["max_position_embeddings"] = 65.into());
    let name = "tensor encoder.layer.2.attention.output.LayerNorm.bias: config.json has no place for it";
    refused("bert", weights, name, |model| model.config["num_hidden_layers"] = 2.into());
}

/// What stands between a query and a document, and which of their tokens have the second type, is the tokenizer's to say.
#[test]
fn tokenizers_of_rerankers_put_two_texts_together_as_the_model_computes_them() {
    for (name, separator) in [("bert_ranks", None), ("roberta_ranks", Some(3))] {
        let dir = EmbeddingModel::fixture(name).write();
        load(settings(dir.path()), |loaded| {
            assert_eq!((loaded.vocab.closing(), loaded.vocab.separator()), (Some(3), separator), "{name}");
        })
        .unwrap();
    }
    let file = "tokenizer.json";
    let types = "gives the tokens of a pair the types [0, 0, 0, 0, 0]";
    refused("bert_ranks", file, types, |model| model.tokenizer = with_pairs(&[], 0));
    let pair = "makes [2, 7, 3, 3, 3, 1, 3] of a pair of texts";
    refused("bert_ranks", file, pair, |model| model.tokenizer = with_pairs(&["[SEP]", "[SEP]"], 1));
    // A model with one type is told of none.
    let mut model = EmbeddingModel::fixture("roberta_ranks");
    model.tokenizer = with_pairs(&["[SEP]"], 1);
    model.run(|backend| assert!(backend.spec().ranks()));
}

#[test]
fn ways_of_pooling_that_are_not_known() {
    let file = "1_Pooling/config.json";
    for (field, value, reason) in [
        ("pooling_mode_cls_token", json!(true), "pooling_mode_cls_token and pooling_mode_mean_tokens: several ways"),
        ("pooling_mode_mean_tokens", json!(false), "no way of pooling is set"),
        ("pooling_mode_mean_tokens", json!("yes"), "pooling_mode_mean_tokens: "),
        ("pooling_mode", json!("attention"), "pooling_mode: attention is not supported"),
        ("include_prompt", json!(false), "include_prompt: only true"),
        ("word_embedding_dimension", json!(35), "word_embedding_dimension: 35, where the model's vectors have 36"),
    ] {
        refused("bert", file, reason, |model| model.pooling.as_mut().unwrap()[field] = value);
    }
    refused("bert", file, "pooling_mode_max_tokens: not supported; known: cls, mean, lasttoken", |model| {
        model.pooling = Some(json!({ "pooling_mode_max_tokens": true }));
    });
    refused("bert", file, "not an object", |model| model.pooling = Some(json!([])));
    let model = EmbeddingModel { pooling: Some(json!({ "pooling_mode": "cls" })), ..EmbeddingModel::fixture("bert") };
    model.run(|backend| assert_eq!(backend.spec().pooling, tandem_core::Pooling::Cls));
}

#[test]
fn modules_that_are_not_known() {
    let module =
        |kind: &str, path: &str| json!({ "type": format!("sentence_transformers.models.{kind}"), "path": path });
    let (transformer, pooling) = (module("Transformer", ""), module("Pooling", "1_Pooling"));
    for (modules, reason) in [
        (json!({}), "not a list of modules"),
        (json!([transformer]), "no module pools"),
        (json!([transformer, pooling, module("Dense", "2_Dense")]), "module 2: Dense is not supported there"),
        (json!([pooling]), "module 0: Pooling is not supported there"),
        (json!([transformer, { "path": "" }]), "module 1: type: missing or not a text"),
        (json!([module("Transformer", "0_Transformer"), pooling]), "module 0: path: 0_Transformer, where only"),
        (json!([transformer, module("Pooling", "../1_Pooling")]), "module 1: path: \"../1_Pooling\" is not the name"),
    ] {
        refused("bert", "modules.json", reason, |model| model.modules = Some(modules));
    }
    let model = EmbeddingModel { pooling: None, ..EmbeddingModel::fixture("bert") };
    let error = load(settings(model.write().path()), |_| ()).unwrap_err();
    assert!(matches!(&error, LoadError::Unreadable { path, .. } if path.ends_with("1_Pooling/config.json")), "{error}");
}

#[test]
fn texts_are_framed_as_the_post_processor_does_it() {
    let frames = |model: &EmbeddingModel| {
        let mut frame = None;
        load(settings(model.write().path()), |loaded| frame = Some((loaded.vocab.opening(), loaded.vocab.closing())))
            .unwrap();
        frame.unwrap()
    };
    let mut model = EmbeddingModel::fixture("bert");
    assert_eq!(frames(&model), (Some(2), Some(3)));
    let single = model.tokenizer["post_processor"]["single"].clone();
    model.tokenizer["post_processor"]["single"] = json!([single[1], single[2]]);
    model.tokenizer_config["add_bos_token"] = false.into();
    assert_eq!(frames(&model), (None, Some(3)));
    model.tokenizer["post_processor"] = Value::Null;
    assert_eq!(frames(&model), (None, None));

    let file = "tokenizer.json";
    refused("bert", file, "its post_processor puts [2, 2] and [3] around a text", |model| {
        model.tokenizer["post_processor"]["single"] = json!([single[0], single[0], single[1], single[2]]);
    });
    let flag = "add_eos_token is false, and the post_processor of tokenizer.json adds token 3";
    refused("bert", "tokenizer_config.json", flag, |model| model.tokenizer_config["add_eos_token"] = false.into());
    let flag = "add_bos_token is true, and the post_processor of tokenizer.json adds nothing";
    refused("bert", "tokenizer_config.json", flag, |model| {
        model.tokenizer["post_processor"] = Value::Null;
        model.tokenizer_config["add_bos_token"] = true.into();
    });
}

#[test]
fn texts_become_word_pieces() {
    let model =
        EmbeddingModel { transformer: Some(json!({ "do_lower_case": true })), ..EmbeddingModel::fixture("bert") };
    load(settings(model.write().path()), |loaded| {
        let encode = |text: &str| loaded.tokenizer.encode(text).unwrap();
        assert_eq!(encode("Hello world a quick brown fox"), [4, 5, 6, 7, 8, 9, 10], "and nothing is cut off");
        // What the vocabulary has no piece for is unknown, a name of a control token too.
        assert_eq!(encode("hello \u{1f600} [CLS]"), [4, 1, 1, 1, 1]);
    })
    .unwrap();
    refused("bert", "tokenizer.json", "do_lower_case is true, and the tokenizer keeps capital letters", |model| {
        model.transformer = Some(json!({ "do_lower_case": true }));
        model.tokenizer["normalizer"]["lowercase"] = false.into();
    });
}

#[test]
fn a_configuration_says_whether_vectors_may_be_cut() {
    for (field, value, expected) in [
        ("is_matryoshka", json!(true), Matryoshka::Any),
        ("is_matryoshka", json!(false), Matryoshka::No),
        ("matryoshka_dimensions", json!([8, 16]), Matryoshka::Sizes(vec![8, 16])),
    ] {
        let mut model = EmbeddingModel::fixture("bert");
        model.config[field] = value;
        load(settings(model.write().path()), |loaded| assert_eq!(loaded.matryoshka, expected)).unwrap();
    }
}
