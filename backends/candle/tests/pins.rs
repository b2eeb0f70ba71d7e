//! Models that must have a hash.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use support::{load, settings};
use tandem_candle::CandleSettings;
use tandem_core::LoadError;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/tiny-q4_0.gguf")
}

fn pinned(path: &Path, sha256: [u8; 32]) -> CandleSettings {
    CandleSettings { sha256: Some(sha256), ..settings(path) }
}

fn refusal(settings: CandleSettings) -> String {
    match load(settings, |_| panic!("the model was served")).unwrap_err() {
        LoadError::Invalid { path, reason } => format!("{path}: {reason}"),
        other => panic!("not invalid: {other:?}"),
    }
}

#[test]
fn a_file_with_the_right_hash_loads() {
    let hash = Sha256::digest(fs_err::read(shipped()).unwrap()).into();
    let mut served = false;
    load(pinned(&shipped(), hash), |_| served = true).unwrap();
    assert!(served);
}

#[test]
fn a_file_with_another_hash_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    // What it is called does not matter, nor that it is no model: its hash comes first.
    for (name, bytes) in [("model.gguf", fs_err::read(shipped()).unwrap()), ("model.bin", b"pickled".to_vec())] {
        let path = folder.path().join(name);
        fs_err::write(&path, &bytes).unwrap();
        let expected = format!(
            "{}: sha256 mismatch: expected {} got {:x}",
            path.display(),
            "0b".repeat(32),
            Sha256::digest(&bytes)
        );
        assert_eq!(refusal(pinned(&path, [0x0b; 32])), expected);
        assert_eq!(fs_err::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_directory_has_no_hash() {
    let folder = tempfile::tempdir().unwrap();
    let expected = format!("{}: sha256 is the hash of one file, and this is a directory", folder.path().display());
    assert_eq!(refusal(pinned(folder.path(), [0; 32])), expected);
}
