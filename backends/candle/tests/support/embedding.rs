//! Embedding models whose tensors lie among the fixtures, written as model directories.

use std::path::Path;

use serde_json::{Value, json};
use tandem_core::{EmbeddingBackend, TokenId};
use tempfile::TempDir;

use super::{control, load, settings};

/// A model that is not yet written; tests break it in the way that they are about.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddingModel {
    pub(crate) name: &'static str,
    pub(crate) config: Value,
    /// `modules.json` and the settings of pooling, where the fixture has them.
    pub(crate) modules: Option<Value>,
    pub(crate) pooling: Option<Value>,
    pub(crate) tokenizer: Value,
    pub(crate) tokenizer_config: Value,
    /// `sentence_bert_config.json`.
    pub(crate) transformer: Option<Value>,
}

impl EmbeddingModel {
    pub(crate) fn fixture(name: &'static str) -> Self {
        let json = |file: &str| {
            let bytes = fs_err::read(fixture(name).join(file)).ok()?;
            Some(serde_json::from_slice(&bytes).unwrap())
        };
        Self {
            name,
            config: json("config.json").unwrap(),
            modules: json("modules.json"),
            pooling: json("1_Pooling/config.json"),
            tokenizer: if name == "roberta_ranks" { with_pairs(&["[SEP]"], 0) } else { word_pieces() },
            tokenizer_config: json!({ "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]" }),
            transformer: None,
        }
    }

    pub(crate) fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| fs_err::write(dir.path().join(name), value.to_string()).unwrap();
        fs_err::copy(fixture(self.name).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        fs_err::create_dir(dir.path().join("1_Pooling")).unwrap();
        write("config.json", &self.config);
        write("tokenizer.json", &self.tokenizer);
        write("tokenizer_config.json", &self.tokenizer_config);
        let others = [
            ("modules.json", &self.modules),
            ("1_Pooling/config.json", &self.pooling),
            ("sentence_bert_config.json", &self.transformer),
        ];
        for (name, value) in others {
            value.iter().for_each(|value| write(name, value));
        }
        dir
    }

    pub(crate) fn run(&self, mut work: impl FnMut(&mut dyn EmbeddingBackend)) {
        load(settings(self.write().path()), |loaded| work(loaded.backend.embedder().unwrap())).unwrap();
    }
}

/// Where the fixture lies.
pub(crate) fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/embedding_fixtures").join(name)
}

/// The vectors of `inputs` computed in one pass.
pub(crate) fn embed(backend: &mut dyn EmbeddingBackend, inputs: &[&[TokenId]]) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    backend.embed(inputs, &mut out).unwrap();
    out.chunks_exact(backend.spec().dimensions as usize).map(<[f32]>::to_vec).collect()
}

/// Word pieces of a few words, in lower case, between `[CLS]` and `[SEP]`.
pub(crate) fn word_pieces() -> Value {
    with_pairs(&[], 1)
}

/// The same with more between the texts of a pair, the second of which has tokens of this type.
pub(crate) fn with_pairs(between: &[&str], second_type: u32) -> Value {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "wor", "##ld", "a", "quick", "brown", "fox"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), id.into())).collect();
    let special = |id: u32, text: &str| json!({ "id": text, "ids": [id], "tokens": [text] });
    let piece = |text: &str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let second = [
        json!({ "Sequence": { "id": "B", "type_id": second_type } }),
        json!({ "SpecialToken": { "id": "[SEP]", "type_id": second_type } }),
    ];
    let first = [piece("[CLS]"), text.clone(), piece("[SEP]")].into_iter();
    let pair: Vec<Value> = first.chain(between.iter().map(|text| piece(text))).chain(second).collect();
    json!({
        "version": "1.0", "truncation": { "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 },
        "padding": null,
        "added_tokens": [control(0, "[PAD]"), control(1, "[UNK]"), control(2, "[CLS]"), control(3, "[SEP]")],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing", "single": [piece("[CLS]"), text, piece("[SEP]")], "pair": pair,
            "special_tokens": { "[CLS]": special(2, "[CLS]"), "[SEP]": special(3, "[SEP]") }
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab
        }
    })
}
