//! Models with random weights: all their files are one model, and the same for the same seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use support::{greedy, load, settings};
use tandem_candle::synth::{Mix, SynthError, SynthOrder, known, synthesize};
use tandem_core::{TokenId, Vocab};
use tempfile::TempDir;

const TEXT: &str =
    "Please explain the difference between memory and storage:\n\n    return self.value == 42;\n— naïve 🦀";
const TOKENS: usize = 12;

fn order(arch: &str, directory: &Path) -> SynthOrder {
    SynthOrder {
        arch: arch.to_owned(),
        size: "tiny".to_owned(),
        seed: 1,
        directory: directory.to_owned(),
        gguf: Vec::new(),
        force: false,
    }
}

fn write(order: &SynthOrder) -> Vec<PathBuf> {
    synthesize(order, &mut |_, _| {}).unwrap()
}

/// The bytes of all files.
fn files(directory: &TempDir) -> BTreeMap<String, Vec<u8>> {
    let entries = fs_err::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    named.map(|(name, path)| (name, fs_err::read(path).unwrap())).collect()
}

/// What a model makes of a text.
struct Answer {
    prompt: Vec<TokenId>,
    /// The likeliest first tokens, best first.
    first: Vec<(TokenId, f32)>,
    tokens: Vec<TokenId>,
    vocab: Arc<Vocab>,
    chat_template: String,
}

fn ask(path: &Path) -> Answer {
    let mut answer = None;
    load(settings(path), |loaded| {
        let prompt = loaded.tokenizer.encode(TEXT).unwrap();
        let (first, tokens) = greedy(loaded.backend.generator().unwrap(), &prompt, TOKENS);
        let (vocab, chat_template) = (loaded.vocab, loaded.chat_template.unwrap());
        answer = Some(Answer { prompt, first, tokens, vocab, chat_template });
    })
    .unwrap();
    answer.unwrap()
}

/// By how much the log probabilities of tokens differ that both find likely.
fn distance(one: &Answer, other: &Answer) -> f32 {
    let likely: BTreeMap<_, _> = other.first.iter().copied().collect();
    let both = one.first.iter().filter_map(|(token, logprob)| Some((logprob - likely.get(token)?).abs()));
    both.fold(0.0, f32::max)
}

#[test]
fn the_files_of_a_model_are_one_model() {
    for (arch, _) in known() {
        let directory = tempfile::tempdir().unwrap();
        let mixes = vec![Mix::F16, Mix::Q8_0, Mix::Q4KM];
        write(&SynthOrder { gguf: mixes, ..order(arch, directory.path()) });
        let whole = ask(directory.path());
        assert_eq!(whole.vocab.len(), 1024, "{arch}");
        let spoken: Vec<u8> = whole.prompt.iter().flat_map(|token| whole.vocab.bytes(*token).to_vec()).collect();
        assert_eq!(String::from_utf8(spoken).unwrap(), TEXT, "{arch}");

        let file = |mix: &str| ask(&directory.path().join(format!("{arch}-tiny-{mix}.gguf")));
        let exact = file("F16");
        assert_eq!(exact.prompt, whole.prompt, "{arch}");
        assert_eq!(exact.chat_template, whole.chat_template, "{arch}");
        assert_eq!(exact.vocab.eog(), whole.vocab.eog(), "{arch}");
        assert_eq!(exact.tokens, whole.tokens, "{arch}");
        assert!(distance(&exact, &whole) < 1e-4, "{arch}: {}", distance(&exact, &whole));
        for (mix, least, most) in [("Q8_0", 1e-4, 0.4), ("Q4_K_M", 1e-2, 2.5)] {
            let distance = distance(&file(mix), &whole);
            assert!((least..most).contains(&distance), "{arch} {mix}: {distance}");
        }
    }
}

#[test]
fn answers_do_not_stand_still() {
    for (arch, _) in known() {
        let directory = tempfile::tempdir().unwrap();
        write(&order(arch, directory.path()));
        let tokens = ask(directory.path()).tokens;
        assert!(tokens.iter().collect::<BTreeSet<_>>().len() > TOKENS / 2, "{arch}: {tokens:?}");
    }
}

#[test]
fn a_seed_decides_every_byte() {
    let written = |seed| {
        let directory = tempfile::tempdir().unwrap();
        write(&SynthOrder { seed, gguf: vec![Mix::Q4_0], ..order("llama", directory.path()) });
        files(&directory)
    };
    let (one, again, other) = (written(1), written(1), written(2));
    assert_eq!(one, again);
    let differing: Vec<_> = one.iter().filter(|(name, bytes)| other[*name] != **bytes).map(|(name, _)| name).collect();
    assert_eq!(differing, ["llama-tiny-Q4_0.gguf", "model.safetensors"]);
}

#[test]
fn progress_ends_at_what_was_announced() {
    let directory = tempfile::tempdir().unwrap();
    let mut steps = Vec::new();
    let order = SynthOrder { gguf: vec![Mix::Q5KM, Mix::Q6K], ..order("llama", directory.path()) };
    synthesize(&order, &mut |bytes, total| steps.push((bytes, total))).unwrap();
    assert!(steps.is_sorted());
    let (bytes, total) = steps.pop().unwrap();
    assert_eq!(bytes, total);
}

#[test]
fn a_directory_is_written_over_only_when_told_to() {
    let directory = tempfile::tempdir().unwrap();
    fs_err::write(directory.path().join("model-00001-of-00002.safetensors"), "old").unwrap();
    fs_err::write(directory.path().join("notes.txt"), "mine").unwrap();
    let order = order("llama", directory.path());
    let error = synthesize(&order, &mut |_, _| {}).unwrap_err();
    assert!(matches!(&error, SynthError::NotEmpty(path) if path == directory.path()), "{error}");
    write(&SynthOrder { force: true, ..order });
    let names: Vec<_> = files(&directory).into_keys().collect();
    assert_eq!(
        names,
        [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "notes.txt",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
}

#[test]
fn a_model_of_no_known_shape_is_refused_with_those_that_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let refusal = |arch: &str, size: &str| {
        let order = SynthOrder { size: size.to_owned(), ..order(arch, directory.path()) };
        synthesize(&order, &mut |_, _| {}).unwrap_err().to_string()
    };
    assert_eq!(refusal("llama", "12b"), "no llama of size 12b is known; known: tiny, 0.2b, 0.5b, 1b, 1.7b, 4b, 8b");
    let error = refusal("mamba", "1b");
    assert!(error.starts_with("no shapes of architecture mamba are known; known: llama (tiny, 0.2b,"), "{error}");
    assert!(files(&directory).is_empty());
}
