//! `LoRA` adapters on the small model.

use std::path::{Path, PathBuf};

use tandem_core::{AdapterId, BackendLoader as _, InferenceBackend, KvOp, LoadError, StepError, TokenId, conformance};
use tandem_llama_cpp::{AdapterSettings, Assumptions, LlamaCppLoader, LlamaCppSettings, Planner};

use crate::{
    TOLERANCE,
    adapter_writer::{ALIGNMENT, AdapterFile, tensor_entry},
    forger::Forger,
    helpers::{empty, forward_with, generator, likeliest, model, prompt, sample, settings, with_backend},
};

/// Each with its scale, under a name that nobody looks at.
fn with_adapters(settings: LlamaCppSettings, adapters: &[(&Path, f32)]) -> LlamaCppSettings {
    let adapters = std::iter::zip(0.., adapters)
        .map(|(at, (path, scale))| AdapterSettings {
            name: format!("adapter-{at}"),
            path: path.to_path_buf(),
            scale: *scale,
        })
        .collect();
    LlamaCppSettings { adapters, ..settings }
}

/// The five likeliest tokens behind the prompt and behind each of some more tokens, with their log-probabilities.
fn run(backend: &mut dyn InferenceBackend, adapter: Option<AdapterId>, prompt: &[TokenId]) -> Vec<Vec<(TokenId, f32)>> {
    forward_with(backend, adapter, &[empty(0)], &[(0, 0, prompt, true)]).expect("a prompt that fits");
    let mut all = likeliest(backend, &[0]);
    for at in 0..8 {
        let token = all[all.len() - 1][0].0;
        forward_with(backend, adapter, &[], &[(0, prompt.len() as u32 + at, &[token], true)]).expect("a token fits");
        all.extend(likeliest(backend, &[0]));
    }
    all
}

#[test]
fn it_keeps_the_contract_with_adapters() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = [1, 2].map(|seed| folder.path().join(format!("{seed}.gguf")));
    std::iter::zip(1.., &paths).for_each(|(seed, path)| AdapterFile::for_tiny(seed).write(path));
    // The same one at two strengths is two adapters.
    let settings = with_adapters(settings(4, 512), &[(&paths[0], 1.0), (&paths[1], 1.0), (&paths[0], -0.5)]);
    conformance::check(Box::new(LlamaCppLoader::new(settings)), TOLERANCE).expect("the model loads");
}

#[test]
fn an_adapter_changes_what_is_said_and_one_of_scale_0_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    AdapterFile::for_tiny(1).write(&path);
    let settings = with_adapters(settings(2, 128), &[(&path, 1.0), (&path, 0.0)]);
    with_backend(LlamaCppLoader::new(settings), |loaded| {
        let (backend, prompt) = (generator(loaded), prompt(1, 24));
        assert_eq!(backend.spec().adapters, ["adapter-0", "adapter-1"]);
        let plain = run(backend, None, &prompt);
        let adapted = run(backend, Some(AdapterId(0)), &prompt);
        let tokens = |all: &[Vec<(TokenId, f32)>]| all.iter().map(|top| top[0].0).collect::<Vec<_>>();
        assert_ne!(tokens(&plain), tokens(&adapted));
        assert_eq!(run(backend, Some(AdapterId(1)), &prompt), plain, "to the last bit");
        assert_eq!(run(backend, None, &prompt), plain);
        assert_eq!(run(backend, Some(AdapterId(0)), &prompt), adapted);
    });
}

#[test]
fn an_adapter_in_any_type_that_is_let_through_can_be_computed_with() {
    let folder = tempfile::tempdir().expect("a folder");
    // F32, F16, BF16 and Q8_0, the bytes of 32 numbers each.
    let types = [(0, 128), (1, 64), (30, 64), (8, 34)];
    let paths: Vec<_> = types
        .iter()
        .map(|(kind, bytes)| {
            let path = folder.path().join(format!("{kind}.gguf"));
            let zeros = |numbers: usize| vec![0; numbers / 32 * bytes];
            AdapterFile::empty()
                .with_tensor("blk.0.ffn_up.weight.lora_a", &[256, 32], *kind, zeros(256 * 32))
                .with_tensor("blk.0.ffn_up.weight.lora_b", &[32, 512], *kind, zeros(32 * 512))
                .write(&path);
            path
        })
        .collect();
    let adapters: Vec<_> = paths.iter().map(|path| (&**path, 1.0)).collect();
    with_backend(LlamaCppLoader::new(with_adapters(settings(2, 64), &adapters)), |loaded| {
        let (backend, prompt) = (generator(loaded), prompt(2, 12));
        let plain = run(backend, None, &prompt);
        for adapter in 0..4 {
            assert_eq!(run(backend, Some(AdapterId(adapter)), &prompt), plain, "zeros change nothing");
        }
    });
}

#[test]
fn an_adapter_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    AdapterFile::for_tiny(1).write(&path);
    for (adapters, wrong) in [(vec![], 0), (vec![(&*path, 1.0)], 1), (vec![(&*path, 1.0)], u32::MAX)] {
        with_backend(LlamaCppLoader::new(with_adapters(settings(2, 64), &adapters)), |loaded| {
            let backend = generator(loaded);
            let step = |backend: &mut dyn InferenceBackend, adapter| {
                forward_with(
                    backend,
                    adapter,
                    &[KvOp::Truncate { slot: tandem_core::SlotId(0), from: 0 }],
                    &[(0, 0, &[300], true)],
                )
            };
            let result = step(backend, Some(AdapterId(wrong)));
            assert!(matches!(result, Err(StepError::Device(_))), "{wrong}: {result:?}");
            assert!(sample(backend, &[0]).is_err(), "nothing was computed");
            step(backend, None).expect("a good step");
        });
    }
}

/// The small model with an output matrix of its own, a copy of its embedding's, which it otherwise computes the output with.
fn untied_model(folder: &Path) -> PathBuf {
    const LAST: &[u8] = b"output_norm.weight";
    let bytes = fs_err::read(model()).expect("the model");
    let last = bytes.windows(LAST.len()).rposition(|window| window == LAST).expect("the table's last tensor");
    // Behind the name: how many dimensions (4), one of them (8), the type (4) and the offset (8).
    let table_end = last + LAST.len() + 24;
    let data = &bytes[table_end.next_multiple_of(ALIGNMENT)..];
    let embedding = &data[..256 * 3072 * 2];
    let mut out = bytes[..table_end].to_vec();
    let tensors = u64::from_le_bytes(out[8..16].try_into().expect("eight bytes"));
    out[8..16].copy_from_slice(&(tensors + 1).to_le_bytes());
    let offset = data.len().next_multiple_of(ALIGNMENT);
    out.extend(tensor_entry("output.weight", &[256, 3072], 1, offset as u64));
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out.extend_from_slice(embedding);
    let path = folder.join("untied.gguf");
    fs_err::write(&path, out).expect("the model");
    path
}

#[test]
fn an_embedding_can_be_adapted_where_the_output_is_not_computed_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    let ones = |numbers: usize| [0.05f32.to_le_bytes()].concat().repeat(numbers);
    AdapterFile::empty()
        .with_tensor("token_embd.weight.lora_a", &[4, 3072], 0, ones(4 * 3072))
        .with_tensor("token_embd.weight.lora_b", &[4, 256], 0, ones(4 * 256))
        .with_pair("output.weight", &[256, 4], &[4, 3072])
        .write(&path);
    let settings = LlamaCppSettings { model: untied_model(folder.path()), ..settings(2, 64) };
    with_backend(LlamaCppLoader::new(with_adapters(settings, &[(&path, 1.0)])), |loaded| {
        let (backend, prompt) = (generator(loaded), prompt(3, 12));
        assert_ne!(run(backend, None, &prompt), run(backend, Some(AdapterId(0)), &prompt));
    });
}

/// What is said of the adapter's file.
fn invalid(path: &Path) -> String {
    let mut served = false;
    let loader = Box::new(LlamaCppLoader::new(with_adapters(settings(2, 64), &[(path, 1.0)])));
    let result = loader.with_backend(&mut |_| served = true);
    assert!(!served, "a failed load serves nothing");
    match result.expect_err("the load fails") {
        LoadError::Invalid { path: named, reason } => {
            assert_eq!(named, path.display().to_string());
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

#[test]
fn files_that_are_no_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    assert_eq!(invalid(&model()), "no adapter: its `general.type` is not `adapter`");
    assert_eq!(invalid(folder.path()), "a directory; llama.cpp loads a .gguf file");
    fs_err::write(&path, "adapter_config.json and its like").expect("a file");
    assert_eq!(invalid(&path), "not a GGUF v2/v3 file: it does not begin with `GGUF`");
    let good = AdapterFile::for_tiny(1).bytes();
    for keep in [100, 300, good.len() / 2, good.len() - 1] {
        fs_err::write(&path, &good[..keep]).expect("a file");
        let reason = invalid(&path);
        let cut = ["implausible", "truncated", "exceeds"].iter().any(|word| reason.contains(word));
        assert!(cut, "{keep} bytes: {reason}");
    }
    let missing = folder.path().join("missing.gguf");
    let loader = Box::new(LlamaCppLoader::new(with_adapters(settings(2, 64), &[(&missing, 1.0)])));
    let error = loader.with_backend(&mut |_| {}).expect_err("nothing to load");
    assert!(matches!(&error, LoadError::Unreadable { path, .. } if *path == missing.display().to_string()), "{error}");
}

#[test]
fn metadata_that_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    let good = AdapterFile::for_tiny(1);
    let tokens = [&4u32.to_le_bytes()[..], &1u64.to_le_bytes(), &7u32.to_le_bytes()].concat();
    let (no_adapter, no_lora) = ("no adapter: its `general.type` is", "no LoRA adapter: its `adapter.type` is");
    for (file, expected) in [
        (good.clone().without_value("general.type"), no_adapter),
        (good.clone().with_text("general.type", "model"), no_adapter),
        // llama.cpp aborts on these two.
        (good.clone().with_value("general.type", 4, 7u32.to_le_bytes()), no_adapter),
        (
            good.clone().with_value("adapter.lora.alpha", 12, 4f64.to_le_bytes()),
            "`adapter.lora.alpha` is Double(4.0), a",
        ),
        (
            good.clone().with_value("adapter.lora.alpha", 6, f32::NAN.to_le_bytes()),
            "`adapter.lora.alpha` is Float(NaN)",
        ),
        (good.clone().without_value("adapter.lora.alpha"), "does not say its `adapter.lora.alpha`"),
        (good.clone().with_text("adapter.type", "control_vector"), no_lora),
        (good.clone().without_value("adapter.type"), no_lora),
        (
            good.clone().with_text("general.architecture", "qwen2"),
            "an adapter for the architecture `qwen2`, the model's is `llama`",
        ),
        (
            good.clone().without_value("general.architecture"),
            "an adapter for the architecture `none`, the model's is `llama`",
        ),
        (
            good.clone().with_value("adapter.alora.invocation_tokens", 9, tokens),
            "an adapter that certain tokens activate (aLoRA), which is not supported",
        ),
        (good.with_value("general.alignment", 4, 13u32.to_le_bytes()), "invalid alignment"),
    ] {
        file.write(&path);
        let reason = invalid(&path);
        assert!(reason.starts_with(expected), "{reason}, where expected: {expected}");
    }
}

#[test]
fn tensors_that_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    let (q, other) = ("blk.0.attn_q.weight", "is the adapter for another model?");
    let pair = |base: &str, a: &[u64], b: &[u64]| AdapterFile::empty().with_pair(base, a, b);
    let alone =
        |name: &str, dims: &[u64], kind, bytes| AdapterFile::empty().with_tensor(name, dims, kind, vec![0; bytes]);
    for (file, expected) in [
        (AdapterFile::empty(), "holds no tensors, only metadata".to_owned()),
        (
            alone("blk.0.attn_norm.weight", &[256], 0, 1024),
            "tensor `blk.0.attn_norm.weight`: neither `.lora_a` nor `.lora_b`; llama.cpp would not apply it".to_owned(),
        ),
        (alone(&format!("{q}.lora_a"), &[256, 4], 0, 4096), format!("tensor `{q}.lora_b` is missing")),
        (alone(&format!("{q}.lora_b"), &[4, 256], 0, 4096), format!("tensor `{q}.lora_a` is missing")),
        (
            alone(&format!("{q}.lora_a"), &[256, 4], 26, 4096),
            format!("tensor `{q}.lora_a`: adapters are stored as F32, F16, BF16 or Q8_0"),
        ),
        (
            pair("blk.9.attn_q.weight", &[256, 4], &[4, 256]),
            "tensor `blk.9.attn_q.weight` is not in the model: is the adapter for another one?".to_owned(),
        ),
        (
            pair(&format!("{q}.lora_a"), &[256, 4], &[4, 256]),
            format!("tensor `{q}.lora_a` is not in the model: is the adapter for another one?"),
        ),
        (
            pair("blk.0.attn_norm.weight", &[256, 4], &[4, 1]),
            "tensor `blk.0.attn_norm.weight` is no matrix; llama.cpp applies adapters to matrices alone".to_owned(),
        ),
        (
            pair("token_embd.weight", &[4, 3072], &[4, 256]),
            "tensor `token_embd.weight`: llama.cpp cannot adapt the embedding of this model".to_owned(),
        ),
        (
            pair(q, &[512, 4], &[4, 256]),
            format!("tensor `{q}` of [256, 256] cannot be adapted by [512, 4] and [4, 256]: {other}"),
        ),
        (
            pair(q, &[256, 4], &[4, 512]),
            format!("tensor `{q}` of [256, 256] cannot be adapted by [256, 4] and [4, 512]: {other}"),
        ),
        (
            pair(q, &[256, 4], &[8, 256]),
            format!("tensor `{q}` of [256, 256] cannot be adapted by [256, 4] and [8, 256]: {other}"),
        ),
        (
            pair(q, &[4, 256], &[256, 4]),
            format!("tensor `{q}` of [256, 256] cannot be adapted by [4, 256] and [256, 4]: {other}"),
        ),
        (
            pair(q, &[256, 4, 2], &[4, 256, 2]),
            format!("tensor `{q}` of [256, 256] cannot be adapted by [256, 4, 2] and [4, 256, 2]: {other}"),
        ),
    ] {
        file.write(&path);
        assert_eq!(invalid(&path), expected);
    }
}

#[test]
fn an_adapter_that_computes_no_numbers_is_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    let nans = f32::NAN.to_le_bytes().repeat(4 * 256);
    AdapterFile::empty()
        .with_tensor("blk.0.attn_q.weight.lora_a", &[256, 4], 0, nans.clone())
        .with_tensor("blk.0.attn_q.weight.lora_b", &[4, 256], 0, nans)
        .write(&path);
    assert_eq!(invalid(&path), "the model produced non-finite logits");
}

/// Whatever the check lets through, llama.cpp gets to see, and an assertion of its own would end the process: this test with it.
#[test]
fn forged_adapters_harm_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    let numbers = 0.01f32.to_le_bytes().repeat(4 * 256);
    let original = AdapterFile::empty()
        .with_tensor("blk.0.attn_q.weight.lora_a", &[256, 4], 0, numbers.clone())
        .with_tensor("blk.0.attn_q.weight.lora_b", &[4, 256], 0, numbers.clone())
        .bytes();
    let header = original.len() - 2 * numbers.len();
    let (mut loaded, mut refused) = (0, 0);
    for seed in 0..300 {
        let mut bytes = original.clone();
        Forger::new(seed).forge(&mut bytes, header);
        fs_err::write(&path, bytes).expect("a file");
        let loader = Box::new(LlamaCppLoader::new(with_adapters(settings(2, 64), &[(&path, 1.0)])));
        match loader.with_backend(&mut |_| ()) {
            Ok(()) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(loaded > 0 && refused > 0, "forgeries are bold enough, and not too bold: {loaded} and {refused}");
}

#[test]
fn memory_is_planned_for_adapters_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    AdapterFile::empty().with_pair("blk.0.attn_q.weight", &[256, 4], &[4, 256]).write(&path);
    let weights = |adapters: &[(&Path, f32)]| {
        let settings = with_adapters(settings(2, 64), adapters);
        let planner = Planner::new(&settings, Assumptions::default()).expect("a model to plan for");
        planner.plan().expect("a plan").needs().weights
    };
    assert_eq!(weights(&[(&path, 1.0), (&path, 0.5)]), weights(&[]) + 2 * 2 * 4096);
}
