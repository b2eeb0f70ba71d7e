//! GGUF files: the same model as the directory that it was made of, and what is refused.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]

#[path = "../../gguf/tests/forger/mod.rs"]
mod forger;
mod support;
#[path = "../../llama-cpp/tests/backend/gguf.rs"]
#[expect(dead_code, reason = "a part of it is for files that are broken in places that candle does not read")]
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use forger::Forger;
use serde_json::json;
use support::{Model, greedy, load, settings};
use tandem_candle::{CandleLoader, CandleSettings};
use tandem_core::{LoadError, TokenId, Tokenizer, Vocab, conformance};
use writer::{Gguf, Value};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

/// What a test keeps of a model that is gone.
struct Text {
    tokenizer: Arc<dyn Tokenizer>,
    vocab: Arc<Vocab>,
    chat_template: Option<String>,
}

fn text(path: &Path) -> Text {
    let mut text = None;
    load(settings(path), |loaded| {
        text = Some(Text { tokenizer: loaded.tokenizer, vocab: loaded.vocab, chat_template: loaded.chat_template });
    })
    .unwrap();
    text.unwrap()
}

/// The likeliest next tokens, best first, and the likeliest continuation.
fn run(path: &Path, prompt: &[TokenId], tokens: usize) -> (Vec<(TokenId, f32)>, Vec<TokenId>) {
    let mut out = None;
    load(settings(path), |loaded| out = Some(greedy(loaded.backend.generator().unwrap(), prompt, tokens))).unwrap();
    out.unwrap()
}

fn question(text: &Text, question: &str) -> Vec<TokenId> {
    let special = |name: &str| text.vocab.specials().iter().find(|special| special.text == name).unwrap().id;
    let plain = |words: &str| text.tokenizer.encode(words).unwrap();
    let user = [vec![special("<|im_start|>")], plain(&format!("user\n{question}")), vec![special("<|im_end|>")]];
    [user.concat(), plain("\n"), vec![special("<|im_start|>")], plain("assistant\n")].concat()
}

const TEXTS: [&str; 24] = [
    "",
    " ",
    "Hello, world!",
    "  leading and   many    spaces   ",
    "\n\n\t \r\n tabs\tand\nlines\n\n",
    "What is 12+345? It's 357, isn't it; we'll, they're, I'd, YOU'LL",
    "naïve café, Ångström — “quotes” …",
    "東京は日本の首都です。 中文字符 한국어",
    "🦀🔥👩‍👩‍👧‍👦 e\u{301} \u{200d}\u{feff}",
    "\0\u{1}\u{7f}\u{80}\u{a0}\u{ad}\u{2028}",
    "<|im_start|>user\nhi<|im_end|>",
    "<|endoftext|><|im_end|> <|im_start|>",
    "<0x0A> <s> </s> ▁ ▁▁a Ġb Ċ",
    "snake_case camelCase SCREAMING 0x1F 1e-9 3.14159 1,000,000",
    "fn main() { println!(\"{}\", 1 << 20); } // done",
    "https://example.org/a?b=c&d=%20#e",
    "a\u{300}\u{301}\u{302}b क्षि ไทย עברית العربية",
    "ǅ ß ﬁ İ ı ſ K Ω ½ ² Ⅷ 一二三 ١٢٣",
    "'s 't 're 've 'm 'll 'd 'S",
    "!!!???...---***",
    "one\u{3000}two\u{2003}three",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx hehehehehehehehehe",
    "The quick brown fox jumps over the lazy dog.",
    "{\"name\": \"Ann\", \"age\": 7, \"city\": \"Paris\"}",
];

/// The alphabet of byte-level vocabularies is how the writer spells bytes; nothing of it is a word.
fn bare_with_bytes(architecture: &'static str, extra: &[(&str, i32)]) -> Gguf {
    let mut file = Gguf::bare(architecture);
    let Some(serde_json::Value::Object(vocab)) = support::byte_level().pointer("/model/vocab").cloned() else {
        panic!("a vocabulary")
    };
    let mut tokens: Vec<(String, i32)> = vocab.keys().map(|token| (token.clone(), 1)).collect();
    tokens.extend(extra.iter().map(|(token, kind)| ((*token).to_owned(), *kind)));
    file.value("tokenizer.ggml.model", Value::Text("gpt2".to_owned()));
    file.value("tokenizer.ggml.pre", Value::Text("gpt-2".to_owned()));
    file.value("tokenizer.ggml.token_type", Value::I32s(tokens.iter().map(|(_, kind)| *kind).collect()));
    file.value("tokenizer.ggml.tokens", Value::Texts(tokens.into_iter().map(|(token, _)| token).collect()));
    file.value("tokenizer.ggml.merges", Value::Texts(vec!["h e".to_owned()]));
    file
}

/// The same model as a GGUF file: the vocabulary is filled up to the number of logits, names are those of GGUF, and Q and K have their rows
/// in the order that llama.cpp turns.
fn twin(model: &Model) -> Gguf {
    let size = |name: &str| model.config[name].as_u64().unwrap() as u32;
    let fillers: Vec<String> = (260..size("vocab_size")).map(|id| format!("[PAD{id}]")).collect();
    let mut extra = vec![("<|begin|>", 3), ("<|user|>", 3), ("<|end|>", 3)];
    extra.extend(fillers.iter().map(|filler| (filler.as_str(), 5)));
    let mut file = bare_with_bytes("llama", &extra);
    file.value("tokenizer.ggml.eos_token_id", Value::U32(259));
    for (key, field) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("rope.dimension_count", "head_dim"),
    ] {
        file.number(key, size(field));
    }
    file.float("attention.layer_norm_rms_epsilon", model.config["rms_norm_eps"].as_f64().unwrap() as f32);
    file.float("rope.freq_base", model.config["rope_theta"].as_f64().unwrap() as f32);
    for (name, (shape, values)) in &model.tensors {
        let mut renamed = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd");
        for (theirs, ours) in [
            ("lm_head", "output"),
            ("model.norm", "output_norm"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.", "attn_"),
            ("mlp.", "ffn_"),
            ("_proj", ""),
        ] {
            renamed = renamed.replace(theirs, ours);
        }
        let turned = name.contains("q_proj") || name.contains("k_proj");
        let values = if turned { halves_to_pairs(values, shape, size("head_dim") as usize) } else { values.clone() };
        file.tensor(&renamed, &shape.iter().rev().map(|&dim| dim as u64).collect::<Vec<_>>(), values);
    }
    file
}

/// What the converter of llama.cpp does to Q and K.
fn halves_to_pairs(values: &[f32], shape: &[usize], head_dim: usize) -> Vec<f32> {
    let width = shape.get(1).copied().unwrap_or(1);
    let mut turned = Vec::new();
    for head in values.chunks(head_dim * width) {
        for row in 0..head_dim {
            let from = row / 2 + row % 2 * head_dim / 2;
            turned.extend_from_slice(&head[from * width..][..width]);
        }
    }
    turned
}

#[test]
fn the_shipped_files_are_tokenized_as_their_directory_is() {
    let directory = text(&shipped("tiny"));
    for name in ["tiny/tiny-f16.gguf", "tiny/tiny-q8_0.gguf", "tiny/tiny-q4_0.gguf"] {
        let file = text(&shipped(name));
        for words in TEXTS {
            assert_eq!(file.tokenizer.encode(words).unwrap(), directory.tokenizer.encode(words).unwrap(), "{words:?}");
        }
        assert_eq!(file.chat_template, directory.chat_template);
        let of = |text: &Text| {
            let vocab = &text.vocab;
            let bytes: Vec<_> =
                (0..vocab.len() as TokenId).map(|id| (vocab.bytes(id).to_vec(), vocab.is_text(id))).collect();
            (bytes, vocab.eog().to_vec(), vocab.specials().to_vec(), vocab.opening(), vocab.closing(), vocab.eos())
        };
        assert_eq!(of(&file), of(&directory), "{name}");
    }
}

#[test]
fn the_shipped_files_compute_what_their_directory_does() {
    let (directory, file) = (shipped("tiny"), shipped("tiny/tiny-f16.gguf"));
    let words = text(&directory);
    for asked in
        ["What is the capital of France?", "What is 7+5?", "Count from 3 to 8.", "Repeat after me: the quick brown fox"]
    {
        let prompt = question(&words, asked);
        let (expected, answer) = run(&directory, &prompt, 24);
        let (got, answer_of_file) = run(&file, &prompt, 24);
        assert_eq!(answer_of_file, answer, "{asked}");
        // BF16 and F16 are rounded differently.
        assert_close(&got, &expected, 0.02, asked);
        assert_close(&run(&shipped("tiny/tiny-q8_0.gguf"), &prompt, 1).0, &expected, 0.1, asked);
        assert_close(&run(&shipped("tiny/tiny-q4_0.gguf"), &prompt, 1).0, &expected, 1.0, asked);
    }
}

/// The likeliest token is the same, and the probabilities of all that are likely enough to be chosen agree.
#[track_caller]
fn assert_close(got: &[(TokenId, f32)], expected: &[(TokenId, f32)], error: f32, what: &str) {
    assert_eq!(got[0].0, expected[0].0, "{what}");
    for (token, expected) in expected.iter().filter(|(_, logprob)| *logprob > -4.0) {
        let got = got.iter().find(|(id, _)| id == token).unwrap_or_else(|| panic!("{what}: {token} is not likely"));
        assert!((got.1 - expected).abs() <= error, "{what}: {token} has {} for {expected}", got.1);
    }
}

#[test]
fn quantized_files_conform() {
    for name in ["tiny/tiny-q8_0.gguf", "tiny/tiny-q4_0.gguf"] {
        conformance::check(Box::new(CandleLoader::new(settings(&shipped(name)))), 0.0).unwrap();
    }
}

#[test]
fn a_file_is_the_model_that_it_was_made_of() {
    let plain = Model::awkward();
    let mut config = plain.config.clone();
    (config["attention_bias"], config["mlp_bias"]) = (true.into(), true.into());
    let biased = Model::random(config);
    let mut config = plain.config.clone();
    config["tie_word_embeddings"] = true.into();
    let tied = Model::random(config);
    for (what, model) in [("plain", plain), ("biased", biased), ("tied", tied)] {
        let (directory, file) = (model.write(), twin(&model).write());
        for prompt in [&[5u32, 6, 7][..], &[256; 40], &[104, 101, 9, 250, 33, 77, 256, 1, 2]] {
            // The same numbers in another order of rows: nothing is rounded.
            assert_eq!(run(&file, prompt, 12), run(directory.path(), prompt, 12), "{what}");
        }
    }
}

#[test]
fn factors_stretch_rotary_positions_as_llama_3_does() {
    let mut model = Model::awkward();
    model.config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32
    });
    let mut file = twin(&model);
    let factors = (0..5).map(|pair| {
        let frequency = 500f64.powf(-2.0 * f64::from(pair) / 10.0);
        let turns = 32.0 * frequency / std::f64::consts::TAU;
        let kept = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
        (1.0 / (kept + (1.0 - kept) / 8.0)) as f32
    });
    let factors: Vec<f32> = factors.collect();
    assert!(factors[0] < 1.5 && factors[4] == 8.0, "{factors:?}");
    file.tensor("rope_freqs.weight", &[5], factors);
    let prompt: Vec<TokenId> = (0..90).map(|at| at * 7 % 250).collect();
    let (expected, _) = run(model.write().path(), &prompt, 1);
    let (got, _) = run(&file.write(), &prompt, 1);
    assert_close(&got, &expected, 1e-4, "llama3");
    let unstretched = run(&twin(&model).write(), &prompt, 1).0;
    assert!(got.iter().zip(&unstretched).any(|(a, b)| (a.1 - b.1).abs() > 1e-2), "the factors matter");

    file.tensor("rope_freqs.weight", &[4], vec![1.0; 4]);
    assert_invalid(&file.write(), "invalid config: short_factor: 4 numbers for 5 pairs");
    file.tensor("rope_freqs.weight", &[5], vec![0.0; 5]);
    assert_invalid(&file.write(), "tensor rope_freqs.weight: a factor is not positive");
    file.tensor("rope_freqs.weight", &[5], vec![2.0; 5]);
    file.float("rope.scaling.factor", 2.0);
    assert_invalid(&file.write(), "rope factors beside `llama.rope.scaling.factor` are not supported");
}

#[test]
fn a_model_may_come_in_several_files() {
    let model = Model::awkward();
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u32| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
    let whole = twin(&model).bytes();
    // The second holds what is missing in the first, and no metadata but its number.
    let mut second = Gguf::bare("llama");
    let mut first = twin(&model);
    for (number, file) in [(0, &mut first), (1, &mut second)] {
        file.value("split.count", Value::U32(2));
        file.value("split.no", Value::U32(number));
    }
    let (shape, values) = &model.tensors["lm_head.weight"];
    second.tensor("output.weight", &[shape[1] as u64, shape[0] as u64], values.clone());
    first.remove("output.weight");
    fs_err::write(path(1), first.bytes()).unwrap();
    fs_err::write(path(2), second.bytes()).unwrap();
    fs_err::write(folder.path().join("whole.gguf"), whole).unwrap();
    assert_eq!(run(&path(1), &[5, 6, 7], 8), run(&folder.path().join("whole.gguf"), &[5, 6, 7], 8));
    assert_invalid(&path(2), "shard 2 of 2: name the first shard");
    second.tensor("output_norm.weight", &[44], vec![1.0; 44]);
    fs_err::write(path(2), second.bytes()).unwrap();
    assert_refused(&settings(&path(1)), "tensor output_norm.weight: another file of the model has it too");
    fs_err::remove_file(path(2)).unwrap();
    assert_invalid(&path(1), "missing shard 2 of 2");
}

fn refusal(settings: CandleSettings) -> LoadError {
    load(settings, |_| panic!("the model was served")).expect_err("the model is refused")
}

/// Asserts that the file is refused as [`LoadError::Invalid`], for exactly this reason.
#[track_caller]
fn assert_invalid(path: &Path, reason: &str) {
    match refusal(settings(path)) {
        LoadError::Invalid { path: named, reason: got } => {
            assert_eq!((named, &*got), (path.display().to_string(), reason));
        }
        other => panic!("not invalid: {other:?}"),
    }
}

#[track_caller]
fn assert_refused(settings: &CandleSettings, reason: &str) {
    let error = refusal(settings.clone()).to_string();
    assert!(error.contains(reason), "{error:?} does not say {reason:?}");
}

#[test]
fn headers_are_refused_in_the_words_of_the_other_backend() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, reason) in [
        ("empty.gguf", &b""[..], "not a GGUF v2/v3 file: shorter than a header"),
        ("short.gguf", b"GGUF\x03\0\0\0", "not a GGUF v2/v3 file: shorter than a header"),
        ("other.gguf", b"a text that is longer than a header", "not a GGUF v2/v3 file: it does not begin with `GGUF`"),
        ("old.gguf", b"GGUF\x01\0\0\0, and what else there was", "not a GGUF v2/v3 file: its version is 1"),
        ("pickle.gguf", b"\x80\x02 a pickle, longer than a header", "pickle-based weights are not supported"),
        // Known by what it begins with, under whatever name.
        ("model", b"GGUF\x03\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0", "implausible tensor count 4294967295"),
    ] {
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        assert_invalid(&path, reason);
    }
    let whole = fs_err::read(shipped("tiny/tiny-q4_0.gguf")).unwrap();
    let path = folder.path().join("cut.gguf");
    for keep in [4096, whole.len() / 2, whole.len() - 1] {
        fs_err::write(&path, &whole[..keep]).unwrap();
        let error = refusal(settings(&path)).to_string();
        assert!(
            ["truncated", "exceeds file", "exceeds the file"].iter().any(|reason| error.contains(reason)),
            "{error}"
        );
    }
    match refusal(settings(&folder.path().join("none.gguf"))) {
        LoadError::Unreadable { path, reason } => {
            assert!(path.ends_with("none.gguf"));
            assert_eq!(reason, "entity not found");
        }
        other => panic!("not unreadable: {other:?}"),
    }
}

#[test]
fn a_hundred_forgeries_harm_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forgery.gguf");
    let (mut loaded, mut refused) = (0, 0);
    for (file, prefix) in [(twin(&Model::awkward()), 0), (pieces(|_| {}), 1 << 32)] {
        let (bytes, header) = (file.bytes(), file.header_len());
        for seed in 0..50 {
            let mut bytes = bytes.clone();
            Forger::new(prefix + seed).forge(&mut bytes, header);
            fs_err::write(&path, bytes).unwrap();
            // A forger may ask for any context; memory is what the settings say.
            match load(CandleSettings { context: Some(16), ..settings(&path) }, |_| {}) {
                Ok(()) => loaded += 1,
                Err(error) => {
                    assert!(!error.to_string().contains('\n'), "one line: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(loaded > 0 && refused > 0, "forgeries are bold enough, and not too bold: {loaded} and {refused}");
}

#[test]
fn tensors_must_be_those_of_the_architecture() {
    let model = Model::awkward();
    let refused = |change: &dyn Fn(&mut Gguf), reason: &str| {
        let mut file = twin(&model);
        change(&mut file);
        assert_invalid(&file.write(), reason);
    };
    refused(
        &|file| file.remove("blk.1.attn_norm.weight"),
        "tensor model.layers.1.input_layernorm.weight (blk.1.attn_norm.weight in the file): missing",
    );
    refused(
        &|file| file.tensor("blk.1.attn_norm.weight", &[11, 4], vec![1.0; 44]),
        "tensor model.layers.1.input_layernorm.weight (blk.1.attn_norm.weight in the file): expected [44] got [4, 11]",
    );
    refused(
        &|file| file.tensor("blk.0.attn_q.weight", &[44, 50], vec![1.0; 2200]),
        "tensor model.layers.0.self_attn.q_proj.weight (blk.0.attn_q.weight in the file): expected [60, 44] got [50, 44]",
    );
    refused(
        &|file| file.tensor("blk.0.attn_q.bias", &[60], vec![1.0; 60]),
        "tensor model.layers.0.self_attn.q_proj.bias (blk.0.attn_q.bias in the file): the configuration has no place for it",
    );
    refused(
        &|file| file.tensor("blk.3.attn_norm.weight", &[44], vec![1.0; 44]),
        "tensor model.layers.3.input_layernorm.weight (blk.3.attn_norm.weight in the file): the configuration has no place for it",
    );
    refused(
        &|file| file.tensor("blk.0.ssm_a", &[44], vec![1.0; 44]),
        "tensor blk.0.ssm_a: a model of this architecture has no place for it",
    );
    refused(
        &|file| file.tensor("token_embd.weight", &[44, 299], vec![1.0; 44 * 299]),
        "tokenizer size mismatch: 300 tokens, the embedding has [44, 299]",
    );
    let mut broken = twin(&model);
    broken.constant("blk.2.ffn_down.weight", &[52, 44], f32::NAN);
    assert_invalid(&broken.write(), "model produces non-finite logits");
    // The number of a type follows name, dimensions; 20 is IQ4_NL, whose rows are of 32.
    let mut bytes = twin(&model).bytes();
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8;
    bytes[at] = 24;
    let path = writer::write("i8", &bytes);
    let error = refusal(settings(&path)).to_string();
    assert!(error.contains("tensor"), "{error}");
}

#[test]
fn metadata_must_be_what_the_backend_can_run() {
    let model = Model::awkward();
    let known = "known: llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3, smollm3, granite, olmo2";
    let refused = |change: &dyn Fn(&mut Gguf), reason: &str| {
        let mut file = twin(&model);
        change(&mut file);
        assert_refused(&settings(&file.write()), reason);
    };
    let text = |key: &'static str, text: &str| {
        let text = text.to_owned();
        move |file: &mut Gguf| file.set(key, Value::Text(text.clone()))
    };
    refused(
        &text("general.architecture", "mamba"),
        &format!("architecture `mamba` is not supported by the candle backend; {known}"),
    );
    let embeds = "a model that turns texts into vectors, which the candle backend does not run";
    refused(&|file| file.number("pooling_type", 3), embeds);
    refused(&|file| file.value("llama.attention.causal", Value::Bool(false)), embeds);
    refused(&|file| file.unset("general.architecture"), "names no architecture (`general.architecture`)");
    refused(&|file| file.unset("llama.block_count"), "`llama.block_count`: missing");
    refused(&|file| file.set("llama.block_count", Value::F32(3.0)), "`llama.block_count`: not a count");
    refused(&|file| file.set("llama.block_count", Value::U32(1 << 30)), "`llama.block_count`: 1073741824");
    refused(
        &|file| file.set("llama.attention.head_count_kv", Value::I32s(vec![2, 2, 1])),
        "`llama.attention.head_count_kv`: differs from layer to layer, which the candle backend does not support",
    );
    refused(&|file| file.set("llama.embedding_length", Value::U32(0)), "invalid config: hidden_size: 0");
    refused(&|file| file.set("llama.rope.freq_base", Value::F32(f32::NAN)), "`llama.rope.freq_base`: not a number");
    refused(
        &|file| file.unset("llama.attention.layer_norm_rms_epsilon"),
        "`llama.attention.layer_norm_rms_epsilon`: missing",
    );
    refused(
        &|file| file.set("llama.attention.value_length", Value::U32(12)),
        "`llama.attention.value_length`: 12, though keys are 10 wide",
    );
    refused(
        &|file| file.number("expert_count", 8),
        "`llama.expert_count`: 8 experts are not supported in this architecture",
    );
    refused(
        &|file| file.value("llama.rope.scaling.type", Value::Text("odd".to_owned())),
        "`llama.rope.scaling.type`: odd is not known",
    );
    refused(
        &text("tokenizer.ggml.model", "bert"),
        "`tokenizer.ggml.model`: bert is not supported by the candle backend; known: gpt2, llama",
    );
    refused(
        &text("tokenizer.ggml.pre", "odd"),
        "`tokenizer.ggml.pre`: odd is not supported by the candle backend; known: default, gpt-2,",
    );
    refused(&|file| file.unset("tokenizer.ggml.tokens"), "holds no tokenizer (`tokenizer.ggml.tokens`)");
    refused(&|file| file.unset("tokenizer.ggml.merges"), "holds no merges (`tokenizer.ggml.merges`)");
    let merges = |merge: &'static str| {
        move |file: &mut Gguf| file.set("tokenizer.ggml.merges", Value::Texts(vec![merge.to_owned()]))
    };
    refused(&merges("he"), "`tokenizer.ggml.merges`: number 0 is \"he\", two tokens expected");
    refused(&merges("h x"), "`tokenizer.ggml.merges`: number 0, \"h x\": \"hx\" is no token");
    refused(
        &|file| file.set("tokenizer.ggml.merges", Value::I32s(vec![1])),
        "array `tokenizer.ggml.merges`: strings expected",
    );
    refused(
        &|file| file.set("tokenizer.ggml.eos_token_id", Value::U32(300)),
        "special token id out of range: `tokenizer.ggml.eos_token_id` is 300 of 300 tokens",
    );
    refused(
        &|file| file.value("tokenizer.chat_template", Value::Text("x".repeat(300 << 10))),
        "a chat template of 307200 bytes",
    );
}

/// Pieces with scores, as Llama 2 and Gemma have them, on a model of no sense.
fn pieces(change: impl FnOnce(&mut Gguf)) -> Gguf {
    let mut model = Model::awkward();
    model.config["vocab_size"] = 280.into();
    let mut file = twin(&Model::random(model.config));
    let mut tokens = vec![("<unk>".to_owned(), 2, 0), ("<s>".to_owned(), 3, 0), ("</s>".to_owned(), 3, 0)];
    tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 6, 0)));
    tokens.extend(
        [("▁", -9), ("h", -9), ("e", -9), ("l", -9), ("o", -9), ("s", -9), ("<", -9), (">", -9), ("/", -9), ("he", -1)]
            .map(|(piece, score)| (piece.to_owned(), 1, score)),
    );
    tokens.extend(
        [("ll", -2), ("llo", -3), ("▁he", -4), ("hello", -5)].map(|(piece, score)| (piece.to_owned(), 1, score)),
    );
    tokens.push(("<tag>".to_owned(), 4, 0));
    tokens.push(("  ".to_owned(), 4, 0));
    tokens.extend((tokens.len()..280).map(|id| (format!("[PAD{id}]"), 5, 0)));
    file.set("tokenizer.ggml.model", Value::Text("llama".to_owned()));
    file.set("tokenizer.ggml.tokens", Value::Texts(tokens.iter().map(|(token, ..)| token.clone()).collect()));
    file.set("tokenizer.ggml.token_type", Value::I32s(tokens.iter().map(|(_, kind, _)| *kind).collect()));
    file.value("tokenizer.ggml.scores", Value::I32s(tokens.iter().map(|(.., score)| *score).collect()));
    file.value("tokenizer.ggml.bos_token_id", Value::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Value::U32(2));
    change(&mut file);
    file
}

#[test]
fn pieces_are_put_together_by_score() {
    let Text { tokenizer, vocab, .. } = text(&pieces(|_| {}).write());
    let spelled = |words: &str| {
        let ids = tokenizer.encode(words).unwrap();
        assert!(ids.iter().all(|&id| vocab.is_text(id)), "{words:?}: {ids:?}");
        ids.iter().map(|&id| String::from_utf8_lossy(vocab.bytes(id)).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(spelled("hello"), [" he", "llo"]);
    assert_eq!(spelled(""), [""; 0]);
    assert_eq!(spelled("\n"), [" ", "\n"]);
    // Control tokens and spelled bytes are what they say and no more.
    assert_eq!(spelled("</s>"), [" ", "<", "/", "s", ">"]);
    assert_eq!(spelled("<0x0A>").concat(), " <0x0A>");
    assert_eq!(spelled("o<tag>o  o"), [" ", "o", "<tag>", " ", "o", "  ", " ", "o"]);
    for words in TEXTS {
        let bytes: Vec<u8> = tokenizer.encode(words).unwrap().iter().flat_map(|&id| vocab.bytes(id)).copied().collect();
        // Spaces are put in front, also behind added tokens, and the mark for a space cannot be told from one.
        let without = |text: &str| text.replace([' ', '▁'], "");
        assert_eq!(without(&String::from_utf8(bytes).unwrap()), without(words), "{words:?}");
    }
    assert_eq!((vocab.bos(), vocab.eos(), vocab.opening(), vocab.closing()), (Some(1), Some(2), Some(1), None));
    assert_eq!(vocab.eog(), [2]);
    assert_eq!(vocab.specials().iter().map(|special| &*special.text).collect::<Vec<_>>(), ["<unk>", "</s>", "<s>"]);
    assert!(!vocab.is_text(279) && vocab.bytes(279).is_empty());
}

#[test]
fn a_file_says_whether_there_is_a_space_in_front_and_a_token() {
    let file = pieces(|file| {
        file.value("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        file.value("tokenizer.ggml.add_bos_token", Value::Bool(false));
        file.value("tokenizer.ggml.add_eos_token", Value::Bool(true));
        file.value("tokenizer.ggml.eot_token_id", Value::U32(275));
    });
    let Text { tokenizer, vocab, .. } = text(&file.write());
    let bytes = |words: &str| {
        tokenizer.encode(words).unwrap().iter().flat_map(|&id| vocab.bytes(id)).copied().collect::<Vec<_>>()
    };
    for words in TEXTS {
        // The mark for a space cannot be told from one.
        assert_eq!(String::from_utf8(bytes(words)).unwrap(), words.replace('▁', " "));
    }
    assert_eq!((vocab.opening(), vocab.closing(), vocab.eog()), (None, Some(2), &[2, 275][..]));
    let missing = pieces(|file| file.set("tokenizer.ggml.token_type", Value::I32s(vec![3; 280])));
    assert_refused(&settings(&missing.write()), "`tokenizer.ggml.tokens`: <0x00> is missing, which spells a byte");
}

#[test]
fn types_of_tokens_decide_what_a_text_may_become() {
    let mut model = Model::awkward();
    model.config["vocab_size"] = 300.into();
    let mut file = twin(&model);
    // <|user|> becomes a token that somebody added, and `he` one that ends generation by its text.
    let Some(Value::Texts(mut tokens)) = file.get("tokenizer.ggml.tokens") else { panic!("tokens") };
    let Some(Value::I32s(mut kinds)) = file.get("tokenizer.ggml.token_type") else { panic!("types") };
    kinds[258] = 4;
    tokens[256] = "<eos>".to_owned();
    file.set("tokenizer.ggml.tokens", Value::Texts(tokens));
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    file.set("tokenizer.ggml.merges", Value::Texts(vec!["< eos>".to_owned(), "< e".to_owned()]));
    assert_refused(&settings(&file.write()), "number 0, \"< eos>\": \"eos>\" is no token");
    file.set("tokenizer.ggml.merges", Value::Texts(Vec::new()));
    let Text { tokenizer, vocab, .. } = text(&file.write());
    assert_eq!(tokenizer.encode("<|user|>").unwrap(), [258]);
    assert!(vocab.is_text(258) && !vocab.is_text(256));
    assert_eq!(tokenizer.encode("<eos>").unwrap(), b"<eos>".map(u32::from));
    assert_eq!(vocab.eog(), [256, 259]);
}
