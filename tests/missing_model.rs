//! A model that is not there, or is another one, on each backend, and a GPU that is not there: one line that names it, and the exit code of
//! wrong settings.

use std::process::Command;

#[test]
fn a_missing_model_is_named() {
    for (backend, path) in [("llama-cpp", "no/such/model.gguf"), ("candle", "no/such/model")] {
        let storage = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["serve", "--profile", "demo", "--backend", backend, "--model", path, "--port", "0"])
            .env("STORAGE_PATH", storage.path())
            .env("RUST_LOG", "off")
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{error}");
        assert!(error.starts_with("error: model model: cannot read no/such/model"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_model_with_another_hash_is_named() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny/tiny-q4_0.gguf");
    let expected = "ab".repeat(32);
    for backend in ["llama-cpp", "candle"] {
        let storage = tempfile::tempdir().unwrap();
        let config = storage.path().join("tandem.toml");
        let keys = format!("source = {path:?}\ngguf = {path:?}\nsha256 = {expected:?}");
        fs_err::write(&config, format!("[backend]\nkind = {backend:?}\n[models.tiny]\n{keys}\n")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["serve", "--profile", "demo", "--port", "0", "--config"])
            .arg(&config)
            .env("STORAGE_PATH", storage.path())
            .env("RUST_LOG", "off")
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{error}");
        let begins = format!("error: model tiny: {path}: sha256 mismatch: expected {expected} got ");
        assert!(error.starts_with(&begins), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
#[test]
fn layers_for_a_gpu_that_cannot_be_used_are_refused_with_the_reason() {
    for command in [&["serve", "--port", "0"][..], &["plan"]] {
        let storage = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(command)
            .args(["--profile", "demo"])
            .env("TANDEM__BACKEND__GPU_LAYERS", "3")
            .env("STORAGE_PATH", storage.path())
            .env("RUST_LOG", "off")
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{error}");
        assert!(error.contains("tiny: gpu_layers is 3, but this program was built without GPU support"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
