use std::path::Path;

use serde_json::Value;
use tandem_core::{LoadError, Pooling};
use tandem_gguf::Shard;

use crate::{
    config::{DecoderConfig, EmbedderConfig, ModelConfig},
    directory::{ModelDirectory, invalid},
    gguf::GgufModel,
    tokenizer::Text,
    weights::{Kept, Stored, Weights},
};

/// What a path leads to, either of which says the same of a model.
#[derive(Debug)]
pub(crate) enum ModelFiles {
    Directory(ModelDirectory),
    Gguf(GgufModel),
}

impl ModelFiles {
    /// With a SHA-256 hash there is one file that has it, and nothing is read of any other.
    pub(crate) fn open(path: &Path, sha256: Option<&[u8; 32]>) -> Result<Self, LoadError> {
        if sha256.is_some() && path.is_dir() {
            return Err(invalid(path, "sha256 is the hash of one file, and this is a directory"));
        }
        if sha256.is_some() || GgufModel::is_at(path) {
            return GgufModel::open(path, sha256).map(Self::Gguf);
        }
        ModelDirectory::open(path).map(Self::Directory)
    }

    /// The GGUF files as they were when they were opened. Those of a directory are not watched: they were not hashed.
    pub(crate) fn shards(&self) -> Vec<Shard> {
        match self {
            Self::Directory(_) => Vec::new(),
            Self::Gguf(model) => model.files.iter().map(|file| file.shard().clone()).collect(),
        }
    }

    /// The configuration, and where it comes from, which names the end-of-generation tokens.
    pub(crate) fn config(&self) -> Result<(ModelConfig, Value), LoadError> {
        match self {
            Self::Directory(directory) => ModelConfig::load(directory),
            Self::Gguf(model) => {
                let json = model.config()?;
                let parsed = DecoderConfig::parse(&json).map_err(|reason| invalid(model.path(), reason))?;
                Ok((ModelConfig::Generator(parsed), json))
            }
        }
    }

    /// Tokenizer, vocabulary and chat template of a model with this configuration and `logits` logits.
    pub(crate) fn text(&self, config: &Value, logits: u32) -> Result<Text, LoadError> {
        match self {
            Self::Directory(directory) => Text::load(directory, config, logits),
            // Which has one logit for each token: that is how many it says it has.
            Self::Gguf(model) => model.text(),
        }
    }

    /// Tokenizer and vocabulary of an embedding model.
    pub(crate) fn embedder_text(&self, config: &Value, embedder: &EmbedderConfig) -> Result<Text, LoadError> {
        match self {
            Self::Directory(directory) => {
                let tokens = embedder.body.vocab_size() as u32;
                let pair_types = (embedder.pooling == Pooling::Rank).then(|| embedder.body.token_types().unwrap_or(1));
                Text::load_embedder(directory, config, tokens, embedder.lower_case, pair_types)
            }
            Self::Gguf(_) => unreachable!("a GGUF file is taken for a generator's, or refused"),
        }
    }

    /// The tensors, with the configuration that says how they are stored.
    pub(crate) fn weights(self, config: &Value, kept: Kept) -> Result<Weights, LoadError> {
        match self {
            Self::Directory(directory) => {
                let stored = Stored::parse(config).map_err(|reason| invalid(directory.path("config.json"), reason))?;
                Weights::open(&directory, stored, kept)
            }
            Self::Gguf(model) => Weights::open_gguf(model, kept),
        }
    }
}
