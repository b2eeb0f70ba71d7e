//! A model's file or files, checked before llama.cpp opens them.

use std::path::{Path, PathBuf};

use llama_cpp_2::{
    LlamaModelLoadError,
    model::{LlamaModel, params::LlamaModelParams},
};
use tandem_core::{FillInTheMiddle, GenerationDefaults, LoadError, Pooling};
use tandem_gguf::{
    GgufFile, Header, Shard, Tensor, Value, chat_template, check_tokenizer, fill_in_the_middle, ggml_type,
    pair_template, sampling,
};

use crate::{
    Numa, hyper_parameters,
    ranking::{self, Head},
    runtime,
    vocab::VocabKind,
};

/// What `tokenizer.ggml.token_type` has for a token that stands for one byte.
const BYTE_TOKEN: f64 = 6.0;

/// llama.cpp aborts when it spells a byte in the vocabulary of word pieces, which has none.
fn check_byte_tokens(file: &GgufFile, kind: VocabKind) -> Result<(), LoadError> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let types = if kind == VocabKind::WordPieces { file.numbers(KEY)? } else { None };
    match types.iter().flatten().position(|kind| *kind == BYTE_TOKEN) {
        Some(token) => Err(LoadError::Invalid {
            path: file.path().display().to_string(),
            reason: format!("token {token} is a byte by `{KEY}`, which word pieces do not have"),
        }),
        None => Ok(()),
    }
}

/// Architectures whose tokens see those behind them too: they turn a text into a vector and cannot continue it.
pub(crate) const EMBEDDERS: &[&str] = &[
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
    "llama-embed",
];

/// Other architectures that llama.cpp runs without a KV cache or with an encoder: translation, speech, diffusion. They cannot continue a text
/// token by token, and have no vectors for it either.
const NOT_SERVED: &[&str] =
    &["t5", "t5encoder", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1", "clef", "clip"];

/// What a model's file is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Generate,
    Embed(Pooling),
    /// Documents, by how well they answer a query.
    Rank(Head),
}

impl Purpose {
    /// How it pools, of a model that does not generate, and the head of one that ranks.
    pub(crate) fn embedder(self) -> Option<(Pooling, Option<Head>)> {
        match self {
            Self::Generate => None,
            Self::Embed(pooling) => Some((pooling, None)),
            Self::Rank(head) => Some((Pooling::Rank, Some(head))),
        }
    }
}

/// A file that llama.cpp may see, and what it says of its model.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: PathBuf,
    /// Every file of the model, as it was when it was checked.
    shards: Vec<Shard>,
    architecture: String,
    pub(crate) purpose: Purpose,
    pub(crate) vocab_kind: VocabKind,
    /// Of all its files.
    tensors: Vec<Tensor>,
    /// The Jinja source that the file ships, whole.
    pub(crate) chat_template: Option<String>,
    /// Of a model that ranks: the prompt that a query and a document are put into.
    pub(crate) pair_template: Option<String>,
    /// How the model's makers would have its tokens chosen.
    pub(crate) defaults: GenerationDefaults,
    pub(crate) fill_in_the_middle: Option<FillInTheMiddle>,
    /// Some layers attend to the last tokens only.
    pub(crate) has_sliding_window: bool,
}

impl ModelFile {
    /// Checks the file, and its further shards when it is the first of several. With a hash to compare, that comes first: what is checked
    /// and loaded afterwards is what was hashed, since [`Self::load`] notices another file, or other bytes in it.
    ///
    /// # Errors
    /// With the first rule that a file breaks, and which file it is.
    pub(crate) fn check(path: &Path, sha256: Option<&[u8; 32]>) -> Result<Self, LoadError> {
        refuse_directory(path)?;
        let files = GgufFile::open_model(path, sha256)?;
        let invalid = |reason| LoadError::Invalid { path: path.display().to_string(), reason };
        let header = files[0].header();
        if header.tensors().is_empty() {
            return Err(invalid("holds no tensors, only metadata".into()));
        }
        let architecture = header
            .text("general.architecture")
            .ok_or_else(|| invalid("names no architecture (`general.architecture`)".into()))?
            .to_owned();
        let tensors: Vec<_> = files.iter().flat_map(|file| file.header().tensors()).cloned().collect();
        let purpose = purpose(header, &tensors, &architecture).map_err(invalid)?;
        hyper_parameters::check(&files[0], &architecture)?;
        check_tensor_types(header).map_err(invalid)?;
        if architecture == "jina-bert-v2" {
            check_wide_mlp(header, &tensors).map_err(invalid)?;
        }
        check_tokenizer(header).map_err(invalid)?;
        let vocab_kind = VocabKind::of(header, &architecture);
        check_byte_tokens(&files[0], vocab_kind)?;
        let chat_template = chat_template(header).map_err(invalid)?;
        let pair_template = match purpose {
            Purpose::Rank(_) => pair_template(header).map_err(invalid)?,
            Purpose::Generate | Purpose::Embed(_) => None,
        };
        pair_template.iter().try_for_each(|template| ranking::check_template(template)).map_err(invalid)?;
        let window = header.unsigned(&format!("{architecture}.attention.sliding_window"));
        let has_sliding_window = window.is_some_and(|tokens| tokens > 0);
        Ok(Self {
            path: path.to_owned(),
            architecture,
            purpose,
            vocab_kind,
            tensors,
            shards: files.iter().map(|file| file.shard().clone()).collect(),
            chat_template,
            pair_template,
            defaults: sampling(header),
            fill_in_the_middle: fill_in_the_middle(header),
            has_sliding_window,
        })
    }

    /// As `general.architecture` names it.
    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    /// What the files hold.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// The tensor of that name.
    pub(crate) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Has llama.cpp load it, or a part of it.
    ///
    /// # Errors
    /// When llama.cpp says no, or what it read may be another file than the one that was checked. llama.cpp says no more than no; the reason
    /// is in its log, which is the server's.
    pub(crate) fn load(&self, params: &LlamaModelParams) -> Result<LlamaModel, LoadError> {
        let Self { path, architecture, .. } = self;
        let invalid = |path: &Path, reason| LoadError::Invalid { path: path.display().to_string(), reason };
        let model = LlamaModel::load_from_file(&runtime::init(Numa::Off)?.backend, path, params);
        // Asked for first: a file that was replaced is why llama.cpp may have said no.
        if let Some(shard) = self.shards.iter().find(|shard| shard.has_changed()) {
            return Err(invalid(&shard.path, "the file changed while it was being loaded".into()));
        }
        model.map_err(|error| {
            let reason = match error {
                LlamaModelLoadError::NullResult => {
                    format!("llama.cpp cannot load this model of architecture `{architecture}`; its log says why")
                }
                LlamaModelLoadError::NullError(_) => "its path contains a NUL byte".into(),
                LlamaModelLoadError::PathToStrError(_) => "its path is not UTF-8".into(),
            };
            invalid(path, reason)
        })
    }
}

/// Reads a file's header, which says what is in it.
///
/// # Errors
/// When there is no such file, or it is none that llama.cpp may see.
pub(crate) fn read_header(path: &Path) -> Result<(Header, Shard), LoadError> {
    refuse_directory(path)?;
    GgufFile::open(path).map(GgufFile::into_parts)
}

fn refuse_directory(path: &Path) -> Result<(), LoadError> {
    if path.is_dir() {
        let reason = "a directory; llama.cpp loads a .gguf file".to_owned();
        return Err(LoadError::Invalid { path: path.display().to_string(), reason });
    }
    Ok(())
}

/// A model that looks back only may be either: a file that says how to pool the vectors of its tokens is an embedder's.
fn purpose(header: &Header, tensors: &[Tensor], architecture: &str) -> Result<Purpose, String> {
    if NOT_SERVED.contains(&architecture) {
        return Err(format!("a model of architecture `{architecture}` cannot generate text"));
    }
    let causal = header.get(&format!("{architecture}.attention.causal"));
    let looks_ahead = EMBEDDERS.contains(&architecture) || causal == Some(&Value::Bool(false));
    let key = format!("{architecture}.pooling_type");
    // Numbers as llama.cpp has them.
    match header.unsigned(&key) {
        Some(1) => Ok(Purpose::Embed(Pooling::Mean)),
        Some(2) => Ok(Purpose::Embed(Pooling::Cls)),
        Some(3) => Ok(Purpose::Embed(Pooling::Last)),
        Some(4) => Head::check(header, tensors, architecture).map(Purpose::Rank),
        Some(other) if other > 0 => Err(format!("unknown pooling: `{key}` is {other}")),
        Some(_) | None if looks_ahead => Err(format!(
            "a model of architecture `{architecture}` that embeds tokens and no texts: `{key}` names no pooling"
        )),
        Some(_) | None => Ok(Purpose::Generate),
    }
}

/// What is added to activations, or multiplied with them, is of their own type: ggml aborts on others.
fn check_tensor_types(header: &Header) -> Result<(), String> {
    let is_added =
        |name: &str| name.ends_with(".bias") || name.ends_with("norm.weight") || name == "token_types.weight";
    match header.tensors().iter().find(|tensor| is_added(&tensor.name) && tensor.kind != ggml_type::F32) {
        Some(tensor) => Err(format!("tensor `{}`: type {}, F32 expected", tensor.name, tensor.kind)),
        None => Ok(()),
    }
}

/// The inner layer of a Jina BERT v2 may hold its gate too, which llama.cpp tells by its width, and asserts.
fn check_wide_mlp(header: &Header, tensors: &[Tensor]) -> Result<(), String> {
    let inner = header.unsigned("jina-bert-v2.feed_forward_length").unwrap_or(0);
    let has_gate = tensors.iter().any(|tensor| tensor.name.ends_with("ffn_gate.weight"));
    let fits = |rows: u64| rows == inner || rows == 2 * inner && !has_gate;
    match tensors.iter().find(|tensor| tensor.name.ends_with("ffn_up.weight") && !fits(tensor.shape()[1])) {
        Some(tensor) => Err(format!("tensor `{}`: shape {:?}, {inner} rows expected", tensor.name, tensor.dims)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_while_it_is_loaded_is_refused() {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny/tiny-q4_0.gguf");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        fs_err::copy(shipped, &path).expect("the model");
        let vocabulary = || LlamaModelParams::default().with_vocab_only(true);
        let file = ModelFile::check(&path, None).expect("a good file");
        file.load(&vocabulary()).expect("a good file");
        // Another file under the same name, with the same bytes: only what was checked is trusted.
        fs_err::remove_file(&path).expect("the file");
        fs_err::copy(shipped, &path).expect("the model");
        let error = file.load(&vocabulary()).expect_err("another file");
        assert!(error.to_string().contains("the file changed while it was being loaded"), "{error}");
        fs_err::remove_file(&path).expect("the file");
        assert!(file.load(&vocabulary()).is_err());
    }
}
