//! Models that must have a hash.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tandem_core::{BackendLoader, LoadError};
use tandem_llama_cpp::{Assumptions, LlamaCppLoader, LlamaCppSettings, Planner};

use crate::{
    architectures,
    gguf::Value,
    helpers::{generator, greedy, model, settings, with_backend},
};

fn pinned(model: PathBuf, sha256: [u8; 32]) -> LlamaCppSettings {
    LlamaCppSettings { model, sha256: Some(sha256), ..settings(2, 64) }
}

fn hash(path: &Path) -> [u8; 32] {
    Sha256::digest(fs_err::read(path).expect("the file")).into()
}

fn refusal(settings: LlamaCppSettings) -> String {
    let result = Box::new(LlamaCppLoader::new(settings)).with_backend(&mut |_| panic!("a failed load serves nothing"));
    match result.expect_err("the load fails") {
        LoadError::Invalid { path, reason } => format!("{path}: {reason}"),
        error @ (LoadError::Unreadable { .. }
        | LoadError::Unsupported(_)
        | LoadError::DeviceLost(_)
        | LoadError::Other { .. }) => {
            panic!("another error: {error}")
        }
    }
}

#[test]
fn a_file_with_the_right_hash_loads() {
    with_backend(LlamaCppLoader::new(pinned(model(), hash(&model()))), |loaded| {
        assert_eq!(greedy(generator(loaded), 0, &[5, 6, 7], 3).len(), 3);
    });
}

#[test]
fn a_file_with_another_hash_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let mut bytes = fs_err::read(model()).expect("the model");
    // A weight's lowest bit, which nothing else would notice.
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs_err::write(&path, &bytes).expect("the changed model");
    let expected = format!(
        "{}: sha256 mismatch: expected {} got {:x}",
        path.display(),
        format_args!("{:x}", Sha256::digest(fs_err::read(model()).expect("the model"))),
        Sha256::digest(&bytes)
    );
    let settings = pinned(path.clone(), hash(&model()));
    assert_eq!(refusal(settings.clone()), expected);
    assert_eq!(Planner::new(&settings, Assumptions::default()).expect_err("a plan reads it too").to_string(), expected);
    assert_eq!(fs_err::read(&path).expect("the file is where it was"), bytes);
}

#[test]
fn a_directory_and_a_model_in_several_files_have_no_hash() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display();
    assert_eq!(
        refusal(pinned(folder.path().to_owned(), [0; 32])),
        format!("{at}: a directory; llama.cpp loads a .gguf file")
    );
    let mut file = architectures::plain();
    file.value("split.count", Value::U32(2));
    file.value("split.no", Value::U32(0));
    let path = file.write();
    assert_eq!(
        refusal(pinned(path.to_path_buf(), hash(&path))),
        format!("{}: sha256 is the hash of one file, and this is a model in 2", path.display())
    );
}
