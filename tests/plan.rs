//! `tandem plan`: what a model would take, and whether it fits.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::process::{Command, Output};

fn plan(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_tandem")).arg("plan").args(args).env("RUST_LOG", "off").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn the_shipped_model_fits() {
    let (code, text, _) = plan(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("model tiny: 8 sequences of 1024 tokens (trained on 1024)\n"), "{text}");
    // 5 layers, 2 heads of 64, keys and values of 2 bytes.
    assert!(text.contains("\nKV               20.0 MiB  2.5 KiB a token\n"), "{text}");
    assert!(text.contains("longest context 1024 tokens for 8 sequences\n"), "{text}");
    assert!(text.ends_with("fits\n") && text.contains("\nweights           7.1 MiB\n"), "{text}");
    assert!(text.contains("\n  F16             7.1 MiB\n  F32 "), "{text}");
}

#[test]
fn what_does_not_fit_is_said_and_what_would() {
    let (code, text, _) = plan(&["--memory", "0.03"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.ends_with("does not fit\n"), "{text}");
    let line = text.lines().find(|line| line.starts_with("longest context")).unwrap();
    let tokens: u32 = line.split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!((256..1024).contains(&tokens), "{line}");
}

#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
#[test]
fn a_profile_for_a_card_is_planned_without_one() {
    let (code, text, error) = plan(&["--profile", "rtx4080", "--model", "models/tiny/tiny-f16.gguf"]);
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(
        text.contains(": 8 sequences of 1024 tokens (trained on 1024)\nlayers on GPUs          6 of 6\n"),
        "{text}"
    );
    let card = text.lines().find(|line| line.starts_with("in a GPU that is not here: ")).unwrap();
    assert!(
        card.contains(" of 16.0 GiB, of which 1.0 GiB stay free (weights ") && card.contains(", KV 10.6 MiB,"),
        "{card}"
    );
    assert!(text.lines().any(|line| line.starts_with("in free memory: ") && line.contains(", KV 0 B,")), "{text}");
    let (code, text, _) = plan(&["--profile", "rtx4080", "--model", "models/tiny/tiny-f16.gguf", "--memory", "1"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(" of 1.0 GiB, of which 1.0 GiB stay free") && text.ends_with("does not fit\n"), "{text}");
}

#[test]
fn candle_says_what_its_settings_cost() {
    let (code, text, _) = plan(&["--backend", "candle"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("model tiny: 8 sequences of 1024 tokens (trained on 1024)\n"), "{text}");
    assert!(text.contains("\nKV               20.0 MiB  2.5 KiB a token\n"), "{text}");
    assert!(text.ends_with("fits\n"), "{text}");
    assert!(text.contains("\n  BF16            7.1 MiB\n  F32 "), "{text}");
}

#[test]
fn candle_plans_embedding_models_too() {
    let (code, text, error) =
        plan(&["--backend", "candle", "--model", "backends/candle/tests/embedding_fixtures/bert"]);
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(text.contains(": 1 sequences of ") && text.contains("\nwork space "), "{text}");
    assert!(text.contains("\nmost sequences          1 of "), "{text}");
}

#[test]
fn what_cannot_be_planned_is_named() {
    let (code, _, error) = plan(&["--profile", "sim"]);
    assert_eq!((code, error.as_str()), (Some(78), "error: sim: the backend sim cannot plan its memory\n"));
    let (code, _, error) = plan(&["--model", "no/such/model.gguf"]);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("cannot read no/such/model.gguf"), "{error}");
    let (code, _, error) = plan(&["--memory", "much"]);
    assert_eq!(code, Some(2), "{error}");
}
