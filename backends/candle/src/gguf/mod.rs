//! GGUF models, told in the words of Hugging Face: the configuration as a `config.json` would have it, tensors by the names that the model
//! code asks for, and the tokenizer as the library for `tokenizer.json` runs it.
//!
//! In reading order: `family` says what differs between architectures, `config`, `names` and `text` translate.

mod bpe;
mod config;
mod family;
mod names;
mod pre_tokenizer;
mod sentence_piece;
mod text;
mod tokens;

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tandem_core::LoadError;
use tandem_gguf::{GgufFile, Header, Tensor, check_tokenizer};

use crate::{directory::invalid, tokenizer::Text};

pub(crate) use family::Family;
pub(crate) use names::{Change, Name, Names, ROPE_FACTORS};
pub(crate) use pre_tokenizer::PreTokenizer;

/// A model in one file, or in several of which the first describes it.
#[derive(Debug)]
pub(crate) struct GgufModel {
    pub(crate) files: Vec<GgufFile>,
    family: Family,
}

impl GgufModel {
    /// Whether a file is to be read as GGUF: by its name, or by what it begins with.
    pub(crate) fn is_at(path: &Path) -> bool {
        let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let begins = || {
            let mut magic = [0; 4];
            fs_err::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
        };
        named || (path.is_file() && begins())
    }

    /// Reads and checks the headers of all files, after the hash of the one that has to have it.
    pub(crate) fn open(path: &Path, sha256: Option<&[u8; 32]>) -> Result<Self, LoadError> {
        let files = GgufFile::open_model(path, sha256)?;
        let header = files[0].header();
        let family = header
            .text("general.architecture")
            .ok_or_else(|| "names no architecture (`general.architecture`)".to_owned())
            .and_then(Family::find)
            .and_then(|family| check_tokenizer(header).map(|()| family))
            .map_err(|reason| invalid(path, reason))?;
        Ok(Self { files, family })
    }

    /// Where the file that describes the model lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.files[0].path().to_owned()
    }

    /// What `config.json` would say.
    pub(crate) fn config(&self) -> Result<Value, LoadError> {
        config::config(self)
    }

    /// The tokenizer, the vocabulary and the chat template.
    pub(crate) fn text(&self) -> Result<Text, LoadError> {
        text::text(&self.files[0])
    }

    /// How tensors are called.
    pub(crate) fn names(&self) -> Result<Names, LoadError> {
        let head_dim = config::head_dim(self.header(), self.family).map_err(|reason| invalid(self.path(), reason))?;
        Ok(Names { family: self.family, head_dim })
    }

    fn header(&self) -> &Header {
        self.files[0].header()
    }

    /// A tensor of any of the files, and its file.
    fn tensor(&self, name: &str) -> Option<(&GgufFile, &Tensor)> {
        self.files.iter().find_map(|file| {
            let tensor = file.header().tensors().iter().find(|tensor| tensor.name == name)?;
            Some((file, tensor))
        })
    }
}

#[cfg(test)]
mod tests;
