//! Files that are no model, or a broken one, and settings that nothing can satisfy.

use std::path::Path;

use tandem_core::{BackendLoader, LoadError};
use tandem_llama_cpp::{LlamaCppLoader, LlamaCppSettings};

use crate::helpers::{generator, model, settings};

fn load(settings: LlamaCppSettings) -> LoadError {
    let mut served = false;
    let result = Box::new(LlamaCppLoader::new(settings)).with_backend(&mut |_| served = true);
    assert!(!served, "a failed load serves nothing");
    result.expect_err("the load fails")
}

fn load_file(path: &Path) -> LoadError {
    load(LlamaCppSettings { model: path.to_owned(), ..settings(2, 64) })
}

/// The reason, of a file that is there and wrong.
fn invalid(path: &Path) -> String {
    match load_file(path) {
        LoadError::Invalid { path: named, reason } => {
            assert_eq!(named, path.display().to_string());
            assert!(!reason.contains('\n'), "one line: {reason}");
            reason
        }
        error @ (LoadError::Unreadable { .. }
        | LoadError::Unsupported(_)
        | LoadError::DeviceLost(_)
        | LoadError::Other { .. }) => {
            panic!("another error: {error}")
        }
    }
}

/// The tiny model with something changed.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = fs_err::read(model()).expect("the model");
    change(&mut bytes);
    let path = folder.path().join("changed.gguf");
    fs_err::write(&path, bytes).expect("the changed model");
    (folder, path)
}

/// Where the value of a key stands, behind the key and its type.
fn value_of(bytes: &[u8], key: &str) -> usize {
    let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).expect("the key is in the file");
    at + key.len() + 4
}

#[test]
fn what_is_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.gguf");
    match load_file(&missing) {
        LoadError::Unreadable { path, reason } => {
            assert_eq!((path, &*reason), (missing.display().to_string(), "entity not found"));
        }
        error @ (LoadError::Invalid { .. }
        | LoadError::Unsupported(_)
        | LoadError::DeviceLost(_)
        | LoadError::Other { .. }) => {
            panic!("another error: {error}")
        }
    }
    assert_eq!(invalid(folder.path()), "a directory; llama.cpp loads a .gguf file");
}

#[test]
fn files_that_are_no_gguf() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes, reason) in [
        ("empty", &b""[..], "not a GGUF v2/v3 file: shorter than a header"),
        ("short", b"GGUF\x03\0\0\0", "not a GGUF v2/v3 file: shorter than a header"),
        ("other", b"a text that is longer than a header", "not a GGUF v2/v3 file: it does not begin with `GGUF`"),
        ("pickle", b"\x80\x02 a pickle, longer than a header", "pickle-based weights are not supported"),
        ("pytorch_model.bin", b"PK\x03\x04 a zip, as PyTorch writes it", "pickle-based weights are not supported"),
    ] {
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).expect("a file");
        assert_eq!(invalid(&path), reason);
    }
}

#[test]
fn a_download_cut_short() {
    let len = fs_err::metadata(model()).expect("the model").len();
    for keep in [4096, len / 2, len - 1] {
        let (_folder, path) = changed(|bytes| bytes.truncate(keep as usize));
        let reason = invalid(&path);
        assert!(
            reason.contains("truncated") || reason.contains("exceeds file") || reason.contains("exceeds the file"),
            "{keep}: {reason}"
        );
    }
}

#[test]
fn hyper_parameters_that_make_no_sense() {
    for (key, value, reason) in [
        ("llama.block_count", 0u32, "invalid hyper-parameter llama.block_count: 0"),
        ("llama.block_count", 513, "invalid hyper-parameter llama.block_count: 513"),
        ("llama.attention.value_length", 1 << 31, "invalid hyper-parameter llama.attention.value_length: 2147483648"),
        ("llama.embedding_length", 0, "invalid hyper-parameter llama.embedding_length: 0"),
        ("llama.context_length", u32::MAX, "invalid hyper-parameter llama.context_length: 4294967295"),
        (
            "llama.attention.head_count",
            0,
            "invalid hyper-parameter llama.attention.head_count: 0, with 2 for keys and values",
        ),
        (
            "llama.attention.head_count",
            3,
            "invalid hyper-parameter llama.attention.head_count: 3, with 2 for keys and values",
        ),
        ("llama.rope.freq_base", f32::NAN.to_bits(), "invalid hyper-parameter llama.rope.freq_base: NaN"),
        (
            "llama.attention.layer_norm_rms_epsilon",
            (-1f32).to_bits(),
            "invalid hyper-parameter llama.attention.layer_norm_rms_epsilon: -1",
        ),
        (
            "tokenizer.ggml.bos_token_id",
            3072,
            "special token id out of range: `tokenizer.ggml.bos_token_id` is 3072 of 3072 tokens",
        ),
    ] {
        let (_folder, path) = changed(|bytes| {
            let at = value_of(bytes, key);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        });
        assert_eq!(invalid(&path), reason);
    }
}

#[test]
fn a_model_that_cannot_generate() {
    let (_folder, path) = changed(|bytes| {
        // A name of the same length in an architecture's place.
        let at = value_of(bytes, "general.architecture") + 8;
        bytes[at..at + 5].copy_from_slice(b"llada");
    });
    assert_eq!(invalid(&path), "a model of architecture `llada` cannot generate text");
}

#[test]
fn an_architecture_that_nobody_knows() {
    let (_folder, path) = changed(|bytes| {
        let positions: Vec<_> = (0..bytes.len() - 6).filter(|&at| &bytes[at..at + 6] == b"llama.").collect();
        for at in positions {
            bytes[at..at + 5].copy_from_slice(b"xxxxx");
        }
        let at = value_of(bytes, "general.architecture") + 8;
        bytes[at..at + 5].copy_from_slice(b"xxxxx");
    });
    assert_eq!(invalid(&path), "llama.cpp cannot load this model of architecture `xxxxx`; its log says why");
}

#[test]
fn weights_that_are_no_numbers() {
    let (_folder, path) = changed(|bytes| {
        // All tensors end where the file ends; the header ends long before its last third.
        let from = bytes.len() / 3 * 2;
        bytes[from..].fill(0xff);
    });
    assert_eq!(invalid(&path), "the model produced non-finite logits");
}

#[test]
fn settings_that_this_machine_cannot_give() {
    for wrong in [
        LlamaCppSettings { parallel: 0, ..settings(1, 64) },
        LlamaCppSettings { max_step_tokens: 0, ..settings(1, 64) },
        LlamaCppSettings { context: Some(0), ..settings(1, 64) },
    ] {
        assert!(matches!(load(wrong), LoadError::Unsupported(_)));
    }
}

#[test]
fn the_context_is_never_more_than_the_model_was_trained_on() {
    let mut context = 0;
    Box::new(LlamaCppLoader::new(LlamaCppSettings { context: Some(100_000), ..settings(1, 64) }))
        .with_backend(&mut |loaded| context = generator(loaded).spec().max_context)
        .expect("the model loads");
    assert_eq!(context, 1024);
}

mod shards {
    use super::*;

    /// A header that claims to be one of several files.
    fn shard(number: u16, count: u16) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend_from_slice(&0u64.to_le_bytes());
        out.extend_from_slice(&2u64.to_le_bytes());
        for (key, value) in [("split.no", number), ("split.count", count)] {
            out.extend_from_slice(&(key.len() as u64).to_le_bytes());
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(&2u32.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes());
        }
        out
    }

    #[test]
    fn all_of_them_are_needed_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |number: u16| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
        let write = |number: u16, bytes: Vec<u8>| fs_err::write(path(number), bytes).expect("a shard");
        write(1, shard(0, 3));
        assert_eq!(invalid(&path(1)), "missing shard 2 of 3");
        write(2, shard(1, 3));
        assert_eq!(invalid(&path(1)), "missing shard 3 of 3");
        assert_eq!(invalid(&path(2)), "shard 2 of 3: name the first shard");
        write(3, shard(1, 3));
        match load_file(&path(1)) {
            LoadError::Invalid { path: named, reason } => {
                assert_eq!(
                    (named, &*reason),
                    (path(3).display().to_string(), "not shard 3 of 3, which its name claims")
                );
            }
            error @ (LoadError::Unreadable { .. }
            | LoadError::Unsupported(_)
            | LoadError::DeviceLost(_)
            | LoadError::Other { .. }) => {
                panic!("another error: {error}")
            }
        }
        let renamed = folder.path().join("renamed.gguf");
        fs_err::write(&renamed, shard(0, 3)).expect("a shard");
        assert_eq!(invalid(&renamed), "the first of 3 shards must be called `NAME-00001-of-00003.gguf`");
    }
}
