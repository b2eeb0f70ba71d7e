use std::{
    io::{self, BufReader, Seek as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::FileExt as _;
use tandem_core::LoadError;

use crate::{
    arrays,
    cursor::HeaderError,
    header::{Header, PICKLE, Tensor},
    pin,
};

/// How the names of pickled weights end.
const PICKLED: &[&str] = &["bin", "pt", "pth", "pkl", "ckpt", "h5"];

/// More files than any model has.
const MAX_SHARDS: u64 = 99_999;

/// A file whose header was read and found good.
#[derive(Debug)]
pub struct GgufFile {
    shard: Shard,
    file: fs_err::File,
    len: u64,
    header: Header,
}

/// A file as it was when it was checked.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Where it lies.
    pub path: PathBuf,
    /// Length, device, inode, and the time of the last change to the nanosecond.
    identity: (u64, u64, u64, i64, i64),
}

impl Shard {
    fn new(path: &Path, metadata: &std::fs::Metadata) -> Self {
        let identity = (metadata.len(), metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        Self { path: path.to_owned(), identity }
    }

    /// Whether the path now leads to something else.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        fs_err::metadata(&self.path).map_or(true, |now| Self::new(&self.path, &now).identity != self.identity)
    }
}

impl GgufFile {
    /// Reads and checks a file's header, which says what is in it.
    ///
    /// # Errors
    /// When there is no such file, or with the first rule that it breaks.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Self::open_pinned(path, None)
    }

    fn open_pinned(path: &Path, sha256: Option<&[u8; 32]>) -> Result<Self, LoadError> {
        let unreadable = |error: io::Error| unreadable(path, &error);
        // Opening a pipe would wait for somebody to write into it.
        if !fs_err::metadata(path).map_err(unreadable)?.is_file() {
            return Err(invalid(path, "not a regular file"));
        }
        let file = fs_err::File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let len = metadata.len();
        // The identity was taken before and the header is read after, both of the open file: none of it is of other bytes than were hashed,
        // unless the identity has changed.
        if let Some(sha256) = sha256 {
            pin::compare(&file, sha256).map_err(unreadable)?.map_err(|reason| invalid(path, reason))?;
            (&file).rewind().map_err(unreadable)?;
        }
        let header = Header::read(BufReader::new(&file), len).map_err(|error| match error {
            HeaderError::NotGguf(_) if is_pickled(path) => invalid(path, PICKLE),
            error @ (HeaderError::Io(_) | HeaderError::NotGguf(_) | HeaderError::Malformed(_)) => refused(path, &error),
        })?;
        Ok(Self { shard: Shard::new(path, &metadata), file, len, header })
    }

    /// Opens a model: its file, or all of them when it is the first of several. A large model may come as `NAME-00001-of-00003.gguf` and so
    /// on; what describes it stands in the first.
    ///
    /// Where there is a SHA-256 hash, the model is one file with that hash. It is compared before anything of the file is looked at.
    ///
    /// # Errors
    /// With the first rule that a file breaks, and which file it is.
    pub fn open_model(path: &Path, sha256: Option<&[u8; 32]>) -> Result<Vec<Self>, LoadError> {
        let first = Self::open_pinned(path, sha256)?;
        let count = first.header.unsigned("split.count").unwrap_or(0);
        let mut files = vec![first];
        if count <= 1 {
            return Ok(files);
        }
        if sha256.is_some() {
            return Err(invalid(path, format!("sha256 is the hash of one file, and this is a model in {count}")));
        }
        if count > MAX_SHARDS {
            return Err(invalid(path, format!("implausible shard count {count}")));
        }
        let number = files[0].header.unsigned("split.no").unwrap_or(0);
        if number != 0 {
            return Err(invalid(path, format!("shard {} of {count}: name the first shard", number + 1)));
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(&format!("-{:05}-of-{count:05}.gguf", 1)) else {
            return Err(invalid(
                path,
                format!("the first of {count} shards must be called `NAME-00001-of-{count:05}.gguf`"),
            ));
        };
        for number in 2..=count {
            let shard = path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
            if !shard.exists() {
                return Err(invalid(path, format!("missing shard {number} of {count}")));
            }
            let file = Self::open(&shard)?;
            let says = |key| file.header.unsigned(key);
            if says("split.count") != Some(count) || says("split.no") != Some(number - 1) {
                return Err(invalid(&shard, format!("not shard {number} of {count}, which its name claims")));
            }
            files.push(file);
        }
        Ok(files)
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shard.path
    }

    /// What it says of itself.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// By what it is known again.
    #[must_use]
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The header and by what the file is known again; the file is closed.
    #[must_use]
    pub fn into_parts(self) -> (Header, Shard) {
        (self.header, self.shard)
    }

    /// An array of strings, `None` when there is none of that name.
    ///
    /// # Errors
    /// When it holds something else, or more than any model needs.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<Box<[u8]>>>, LoadError> {
        let array = self.header.array(key);
        let strings = array.map(|array| arrays::strings(BufReader::new(&self.file), self.len, key, array));
        strings.transpose().map_err(|error| refused(self.path(), &error))
    }

    /// An array of numbers, `None` when there is none of that name.
    ///
    /// # Errors
    /// When it holds something else, or more than any model needs.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, LoadError> {
        let array = self.header.array(key);
        let numbers = array.map(|array| arrays::numbers(BufReader::new(&self.file), self.len, key, array));
        numbers.transpose().map_err(|error| refused(self.path(), &error))
    }

    /// Fills `buffer` with the data of one of this file's tensors, from `offset` on. Several threads may do so at a time.
    ///
    /// # Errors
    /// When the file was cut short since it was opened.
    ///
    /// # Panics
    /// When the tensor has not that many bytes.
    pub fn read(&self, tensor: &Tensor, offset: u64, buffer: &mut [u8]) -> Result<(), LoadError> {
        assert!(offset + buffer.len() as u64 <= tensor.bytes, "beyond the tensor");
        self.file
            .read_exact_at(buffer, self.header.place(tensor) + offset)
            .map_err(|error| unreadable(self.path(), &error))
    }
}

fn refused(path: &Path, error: &HeaderError) -> LoadError {
    match error {
        HeaderError::Io(error) => unreadable(path, error),
        HeaderError::NotGguf(_) | HeaderError::Malformed(_) => invalid(path, error.to_string()),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> LoadError {
    // The path is named beside it, so the bare cause is enough.
    LoadError::Unreadable { path: path.display().to_string(), reason: error.kind().to_string() }
}

fn invalid(path: &Path, reason: impl Into<String>) -> LoadError {
    LoadError::Invalid { path: path.display().to_string(), reason: reason.into() }
}

fn is_pickled(path: &Path) -> bool {
    path.extension().is_some_and(|extension| PICKLED.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_holds_is_read_on_demand() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/tiny-f16.gguf");
        let file = GgufFile::open(&path).expect("a good file");
        let tokens = file.strings("tokenizer.ggml.tokens").expect("strings").expect("a vocabulary");
        assert_eq!((tokens.len(), &*tokens[1]), (3072, &b"<|im_start|>"[..]));
        let types = file.numbers("tokenizer.ggml.token_type").expect("numbers").expect("types");
        assert_eq!((types.len(), types[1], types[3]), (3072, 3.0, 1.0));
        assert!(file.strings("no.such.key").expect("nothing").is_none());
        let error = file.numbers("tokenizer.ggml.tokens").expect_err("no numbers").to_string();
        assert!(error.ends_with("array `tokenizer.ggml.tokens`: numbers expected"), "{error}");

        let norm = file.header().tensors().iter().find(|tensor| tensor.name == "output_norm.weight").expect("a norm");
        let (mut whole, mut part) = ([0; 1024], [0; 8]);
        file.read(norm, 0, &mut whole).expect("its data");
        file.read(norm, 16, &mut part).expect("a part of it");
        assert_eq!(part, whole[16..24]);
        let numbers = whole.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        assert!(numbers.clone().all(|number| number.is_finite()) && numbers.sum::<f32>() > 0.0);
    }

    #[test]
    fn a_hash_is_compared_before_anything_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        // Not even a GGUF file, which would be said of it otherwise.
        fs_err::write(&path, "abc").expect("a file");
        let error = GgufFile::open_model(&path, Some(&[0xa5; 32])).expect_err("another hash").to_string();
        let got = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(error, format!("{}: sha256 mismatch: expected {} got {got}", path.display(), "a5".repeat(32)));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        fs_err::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/tiny-q4_0.gguf"), &path)
            .expect("the model");
        let file = GgufFile::open(&path).expect("a good file");
        assert!(!file.shard().has_changed());
        fs_err::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(100)).expect("cut short");
        let tensor = &file.header().tensors()[0];
        for error in [
            file.read(tensor, 0, &mut [0; 4]).expect_err("no data"),
            file.strings("tokenizer.ggml.tokens").expect_err("no tokens"),
        ] {
            assert!(matches!(error, LoadError::Unreadable { .. }), "{error}");
        }
        assert!(file.shard().has_changed());
    }
}
