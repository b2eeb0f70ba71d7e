use std::{
    io,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;
use tandem_core::LoadError;

/// File name endings of weights that are Python pickles. Loading one runs code, so none is ever read.
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "pkl", "ckpt"];

/// A model directory, and the rules for reading files in it.
#[derive(Clone, Debug)]
pub(crate) struct ModelDirectory {
    root: PathBuf,
}

impl ModelDirectory {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let metadata = fs_err::metadata(path).map_err(|error| unreadable(path, &error))?;
        if metadata.is_dir() {
            return Ok(Self { root: path.to_owned() });
        }
        let reason = if is_pickle(path) {
            NO_PICKLES
        } else {
            "the candle backend loads a model directory with safetensors files, or a .gguf file"
        };
        Err(invalid(path, reason))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The contents of a file, `None` when there is none of that name.
    pub(crate) fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let path = self.path(name);
        let metadata = match fs_err::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| unreadable(&path, &error))?,
        };
        if metadata.len() > max_bytes {
            return Err(invalid(
                &path,
                format!("{} bytes, more than the {max_bytes} that are accepted", metadata.len()),
            ));
        }
        fs_err::read(&path).map(Some).map_err(|error| unreadable(&path, &error))
    }

    /// A JSON file, `None` when there is none of that name.
    pub(crate) fn read_json(&self, name: &str, max_bytes: u64) -> Result<Option<Value>, LoadError> {
        let Some(bytes) = self.read(name, max_bytes)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| invalid(self.path(name), format!("invalid JSON: {error}")))
    }

    /// The path of a weights file that an index names. It must be a plain name, and what it stands for must lie in the directory.
    pub(crate) fn shard(&self, index: &Path, name: &str) -> Result<PathBuf, LoadError> {
        let escapes = || invalid(index, format!("shard path escapes model directory: {name:?}"));
        let mut components = Path::new(name).components();
        let (Some(Component::Normal(_)), None) = (components.next(), components.next()) else { return Err(escapes()) };
        let path = self.path(name);
        if is_pickle(&path) {
            return Err(invalid(path, NO_PICKLES));
        }
        let canonical = fs_err::canonicalize(&path).map_err(|error| unreadable(&path, &error))?;
        let inside = self.roots()?.iter().any(|root| canonical.starts_with(root));
        if inside { Ok(path) } else { Err(escapes()) }
    }

    /// Whether the directory holds weights of a kind that is refused.
    pub(crate) fn has_pickles(&self) -> Result<bool, LoadError> {
        let unreadable = |error| unreadable(&self.root, &error);
        for entry in fs_err::read_dir(&self.root).map_err(unreadable)? {
            if is_pickle(&entry.map_err(unreadable)?.path()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where weights may lie: the directory, and for a snapshot in a Hugging Face cache the blobs that its links point to.
    fn roots(&self) -> Result<Vec<PathBuf>, LoadError> {
        let root = fs_err::canonicalize(&self.root).map_err(|error| unreadable(&self.root, &error))?;
        let snapshots = root.parent().filter(|parent| parent.ends_with("snapshots"));
        let blobs = snapshots.and_then(Path::parent).map(|repo| repo.join("blobs"));
        Ok(blobs.into_iter().chain([root]).collect())
    }
}

/// What is said of a pickle.
pub(crate) const NO_PICKLES: &str = "pickle-based weights are not supported, only safetensors and GGUF";

pub(crate) fn unreadable(path: impl AsRef<Path>, error: &io::Error) -> LoadError {
    // fs_err puts the path into its message; the cause below it does not.
    let cause =
        error.get_ref().and_then(std::error::Error::source).map_or_else(|| error.to_string(), ToString::to_string);
    LoadError::Unreadable { path: path.as_ref().display().to_string(), reason: cause }
}

pub(crate) fn invalid(path: impl AsRef<Path>, reason: impl Into<String>) -> LoadError {
    LoadError::Invalid { path: path.as_ref().display().to_string(), reason: reason.into() }
}

fn is_pickle(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    PICKLES.iter().any(|pickle| extension.eq_ignore_ascii_case(pickle))
}
