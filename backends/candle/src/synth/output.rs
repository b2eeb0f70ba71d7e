use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::SynthError;

/// The directory that a model is written to. A file gets its name when it is whole.
#[derive(Debug)]
pub(super) struct Output {
    directory: PathBuf,
    pub(super) written: Vec<PathBuf>,
}

/// What is removed again unless it gets its name.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already, if all went well.
        let _ = fs_err::remove_file(&self.0);
    }
}

impl Output {
    /// Makes the directory. One with something in it is refused, unless `force` says that it may be written over.
    pub(super) fn open(directory: &Path, force: bool) -> Result<Self, SynthError> {
        fs_err::create_dir_all(directory)?;
        if !force && fs_err::read_dir(directory)?.next().is_some() {
            return Err(SynthError::NotEmpty(directory.to_owned()));
        }
        Ok(Self { directory: directory.to_owned(), written: Vec::new() })
    }

    pub(super) fn file(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<(), SynthError>,
    ) -> Result<(), SynthError> {
        let part = Part(self.directory.join(format!(".{name}.part")));
        let mut file = BufWriter::new(fs_err::File::create(&part.0)?);
        write(&mut file)?;
        file.flush()?;
        let path = self.directory.join(name);
        fs_err::rename(&part.0, &path)?;
        self.written.push(path);
        Ok(())
    }

    pub(super) fn json(&mut self, name: &str, value: &Value) -> Result<(), SynthError> {
        self.file(name, |file| {
            serde_json::to_writer_pretty(&mut *file, value).map_err(io::Error::from)?;
            Ok(file.write_all(b"\n")?)
        })
    }

    /// Removes the files of these names.
    pub(super) fn forget(&self, is_old: impl Fn(&str) -> bool) -> Result<(), SynthError> {
        for entry in fs_err::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.file_name().and_then(|name| name.to_str()).is_some_and(&is_old) {
                fs_err::remove_file(&path)?;
            }
        }
        Ok(())
    }
}
