//! Text to ids and ids to bytes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Model, control, load, settings};
use tandem_core::{TokenId, Tokenizer, Vocab};

struct Text {
    tokenizer: Arc<dyn Tokenizer>,
    vocab: Arc<Vocab>,
    chat_template: Option<String>,
}

fn text(model: &Model) -> Text {
    let mut text = None;
    load(settings(model.write().path()), |loaded| {
        text = Some(Text { tokenizer: loaded.tokenizer, vocab: loaded.vocab, chat_template: loaded.chat_template });
    })
    .unwrap();
    text.unwrap()
}

fn bytes(vocab: &Vocab, ids: &[TokenId]) -> Vec<u8> {
    ids.iter().flat_map(|&id| vocab.bytes(id)).copied().collect()
}

/// Pieces of text with a mark for spaces, and bytes for what they do not cover.
fn sentence_piece() -> Value {
    let mut pieces: Vec<(String, f64)> =
        vec![("<unk>".to_owned(), 0.0), ("<s>".to_owned(), 0.0), ("</s>".to_owned(), 0.0)];
    pieces.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), -20.0)));
    pieces.extend(
        [("▁", -3.0), ("▁he", -2.0), ("llo", -2.0), ("l", -4.0), ("o", -4.0), ("s", -4.0)]
            .map(|(piece, score)| (piece.to_owned(), score)),
    );
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [control(0, "<unk>"), control(1, "<s>"), control(2, "</s>")],
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } }
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }
        ] },
        "model": { "type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": true }
    })
}

fn with_sentence_piece() -> Model {
    let mut model = Model::awkward();
    model.tokenizer = sentence_piece();
    model.tokenizer_config = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" } });
    model
}

#[test]
fn control_tokens_in_text_stay_text() {
    let Text { tokenizer, vocab, .. } = text(&Model::awkward());
    let ids = tokenizer.encode("a<|end|>b <|begin|>").unwrap();
    assert!(ids.iter().all(|&id| vocab.is_text(id)), "{ids:?}");
    assert_eq!(bytes(&vocab, &ids), b"a<|end|>b <|begin|>");
    let spelled: Vec<_> = vocab.specials().iter().map(|special| (special.text.as_str(), special.id)).collect();
    assert_eq!(spelled, [("<|begin|>", 257), ("<|user|>", 258), ("<|end|>", 259)]);
}

#[test]
fn text_that_can_only_become_a_control_token_is_refused() {
    // Unigram vocabularies hold their control tokens among the pieces, where they match as any other.
    let Text { tokenizer, vocab, .. } = text(&with_sentence_piece());
    match tokenizer.encode("</s>") {
        Ok(ids) => assert!(ids.iter().all(|&id| vocab.is_text(id)), "{ids:?}"),
        Err(error) => assert!(error.to_string().contains("control token 2"), "{error}"),
    }
}

#[test]
fn merges_are_applied_and_nothing_is_added() {
    let Text { tokenizer, .. } = text(&Model::awkward());
    assert_eq!(tokenizer.encode("he\n").unwrap(), [256, u32::from(b'\n')]);
    assert!(tokenizer.encode("").unwrap().is_empty());
    let Text { tokenizer, vocab, .. } = text(&with_sentence_piece());
    assert_eq!(bytes(&vocab, &tokenizer.encode(" hello").unwrap()), b" hello");
    assert_ne!(tokenizer.encode("o").unwrap().first(), Some(&1), "no bos");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn bytes_make_the_round_trip(texts in prop::collection::vec(any::<String>(), 32)) {
        for Text { tokenizer, vocab, .. } in [text(&Model::awkward()), text(&with_sentence_piece())] {
            for text in texts.iter().map(String::as_str).chain(["naïve 東京 🦀\u{200d}🔥\t\0"]) {
                let ids = tokenizer.encode(text).unwrap();
                prop_assert_eq!(String::from_utf8(bytes(&vocab, &ids)).unwrap(), text);
            }
        }
    }
}

#[test]
fn what_ends_generation_is_gathered_from_all_files() {
    let mut model = Model::awkward();
    model.config["eos_token_id"] = json!([257, 259]);
    model.tokenizer_config = json!({ "eos_token": "<|user|>", "bos_token": null });
    let vocab = text(&model).vocab;
    assert_eq!(vocab.eog(), [257, 258, 259]);
    assert_eq!((vocab.bos(), vocab.eos(), vocab.opening()), (None, Some(258), None));
    assert_eq!(vocab.len(), 260, "the model has 300 logits");
}

#[test]
fn bos_is_added_as_the_post_processor_or_the_configuration_says() {
    let mut model = with_sentence_piece();
    let vocab = text(&model).vocab;
    assert_eq!((vocab.bos(), vocab.eos(), vocab.opening()), (Some(1), Some(2), Some(1)));
    model.tokenizer_config["add_bos_token"] = false.into();
    assert_eq!(text(&model).vocab.opening(), None);
}

#[test]
fn tokens_that_are_special_to_the_tokenizer_are_control_tokens() {
    let mut model = Model::awkward();
    let mut tool = control(260, "<tool>");
    tool["special"] = false.into();
    model.tokenizer["added_tokens"].as_array_mut().unwrap().push(tool);
    let Text { tokenizer, vocab, .. } = text(&model);
    assert_eq!(vocab.bytes(260), b"<tool>");
    assert!(vocab.is_text(260) && !vocab.is_text(259));
    assert_eq!(tokenizer.encode("<tool>").unwrap(), [260], "an added token that is not special is matched in text");
}

#[test]
fn chat_templates_are_found_wherever_they_are_kept() {
    let mut model = Model::awkward();
    assert_eq!(text(&model).chat_template, None);
    model.tokenizer_config["chat_template"] = "one".into();
    assert_eq!(text(&model).chat_template.as_deref(), Some("one"));
    model.tokenizer_config["chat_template"] =
        json!([{ "name": "rag", "template": "no" }, { "name": "default", "template": "two" }]);
    assert_eq!(text(&model).chat_template.as_deref(), Some("two"));
    let dir = model.write();
    fs_err::write(dir.path().join("chat_template.jinja"), "three").unwrap();
    load(settings(dir.path()), |loaded| assert_eq!(loaded.chat_template.as_deref(), Some("three"))).unwrap();
}
