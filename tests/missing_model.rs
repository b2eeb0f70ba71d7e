//! A model that is not there, on each backend: one line that names it, and the exit code of wrong settings.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

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
