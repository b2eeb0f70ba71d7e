//! A model's file or files, checked before llama.cpp opens them.

use std::{
    io::BufReader,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use llama_cpp_2::{
    LlamaModelLoadError,
    model::{LlamaModel, params::LlamaModelParams},
};
use tandem_core::{LoadError, Pooling};

use crate::{
    Numa, ggml_type,
    gguf::{self, Header, HeaderError, Tensor, Value},
    hyper_parameters, runtime,
};

/// How the names of pickled weights end.
const PICKLED: &[&str] = &["bin", "pt", "pth", "pkl", "ckpt", "h5"];

/// Templates beyond this are no templates.
const MAX_CHAT_TEMPLATE_BYTES: u64 = 256 << 10;

/// Architectures whose tokens see those behind them too: they turn a text into a vector and cannot continue it.
const EMBEDDERS: &[&str] = &[
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
}

/// A file that llama.cpp may see, and what it says of its model.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: PathBuf,
    /// Every file of the model, as it was when it was checked.
    shards: Vec<Shard>,
    architecture: String,
    pub(crate) purpose: Purpose,
    /// Its vocabulary is one of word pieces, as BERT's is.
    pub(crate) has_word_pieces: bool,
    /// Of all its files.
    tensors: Vec<Tensor>,
    /// The Jinja source that the file ships, whole.
    pub(crate) chat_template: Option<String>,
    /// Some layers attend to the last tokens only.
    pub(crate) has_sliding_window: bool,
    /// Bytes of the table of embeddings where it serves the first layer alone: llama.cpp keeps it from GPUs.
    pub(crate) kept_in_ram: u64,
}

/// A file as it was when it was checked.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    /// Length, device, inode, and the time of the last change to the nanosecond.
    identity: (u64, u64, u64, i64, i64),
}

impl Shard {
    fn new(path: &Path, metadata: &std::fs::Metadata) -> Self {
        let identity = (metadata.len(), metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        Self { path: path.to_owned(), identity }
    }

    pub(crate) fn has_changed(&self) -> bool {
        fs_err::metadata(&self.path).map_or(true, |now| Self::new(&self.path, &now).identity != self.identity)
    }
}

impl ModelFile {
    /// Checks the file, and its further shards when it is the first of several.
    ///
    /// # Errors
    /// With the first rule that a file breaks, and which file it is.
    pub(crate) fn check(path: &Path) -> Result<Self, LoadError> {
        let (header, first) = read_header(path)?;
        let invalid = |reason| LoadError::Invalid { path: path.display().to_string(), reason };
        let mut shards = vec![first];
        let mut tensors = check_shards(path, &header, &mut shards)?;
        tensors.extend_from_slice(header.tensors());
        if header.tensors().is_empty() {
            return Err(invalid("holds no tensors, only metadata".into()));
        }
        let architecture = header
            .text("general.architecture")
            .ok_or_else(|| invalid("names no architecture (`general.architecture`)".into()))?
            .to_owned();
        let purpose = purpose(&header, &architecture).map_err(invalid)?;
        hyper_parameters::check(&header, &architecture).map_err(invalid)?;
        check_tensor_types(&header).map_err(invalid)?;
        check_tokenizer(&header).map_err(invalid)?;
        let has_word_pieces = header.text("tokenizer.ggml.model") == Some("bert");
        let chat_template = chat_template(&header).map_err(invalid)?;
        let window = header.unsigned(&format!("{architecture}.attention.sliding_window"));
        let has_sliding_window = window.is_some_and(|tokens| tokens > 0);
        let bytes = |name: &str| header.tensors().iter().find(|tensor| tensor.name == name).map(|tensor| tensor.bytes);
        let kept_in_ram = bytes("output.weight").and_then(|_| bytes("token_embd.weight")).unwrap_or(0);
        Ok(Self {
            path: path.to_owned(),
            shards,
            architecture,
            purpose,
            has_word_pieces,
            tensors,
            chat_template,
            has_sliding_window,
            kept_in_ram,
        })
    }

    /// As `general.architecture` names it.
    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
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
        let model = LlamaModel::load_from_file(runtime::init(Numa::Off)?, path, params);
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
    let unreadable = |error: std::io::Error| LoadError::Unreadable {
        path: path.display().to_string(),
        // The path is named beside it, so the bare cause is enough.
        reason: error.kind().to_string(),
    };
    let invalid = |reason: &str| LoadError::Invalid { path: path.display().to_string(), reason: reason.to_owned() };
    let metadata = fs_err::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(invalid("a directory; llama.cpp loads a .gguf file"));
    }
    if !metadata.is_file() {
        return Err(invalid("not a regular file"));
    }
    let file = fs_err::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let header = Header::read(BufReader::new(file), metadata.len()).map_err(|error| match error {
        HeaderError::Io(error) => unreadable(error),
        HeaderError::NotGguf(_) if is_pickled(path) => invalid(gguf::PICKLE),
        HeaderError::NotGguf(reason) => invalid(&format!("not a GGUF v2/v3 file: {reason}")),
        HeaderError::Malformed(reason) => invalid(&reason),
    })?;
    Ok((header, Shard::new(path, &metadata)))
}

fn is_pickled(path: &Path) -> bool {
    path.extension().is_some_and(|extension| PICKLED.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// A large model may come in several files, `NAME-00001-of-00003.gguf` and so on. llama.cpp finds the others by the name of the first. They
/// are appended to `shards`, and their tensors are returned.
fn check_shards(path: &Path, header: &Header, shards: &mut Vec<Shard>) -> Result<Vec<Tensor>, LoadError> {
    let invalid = |path: &Path, reason: String| LoadError::Invalid { path: path.display().to_string(), reason };
    let count = header.unsigned("split.count").unwrap_or(0);
    let mut tensors = Vec::new();
    if count <= 1 {
        return Ok(tensors);
    }
    if count > 99_999 {
        return Err(invalid(path, format!("implausible shard count {count}")));
    }
    let number = header.unsigned("split.no").unwrap_or(0);
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
        let (header, checked) = read_header(&shard)?;
        shards.push(checked);
        if header.unsigned("split.count") != Some(count) || header.unsigned("split.no") != Some(number - 1) {
            return Err(invalid(&shard, format!("not shard {number} of {count}, which its name claims")));
        }
        tensors.extend_from_slice(header.tensors());
    }
    Ok(tensors)
}

/// A model that looks back only may be either: a file that says how to pool the vectors of its tokens is an embedder's.
fn purpose(header: &Header, architecture: &str) -> Result<Purpose, String> {
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
        Some(4) => Err("a reranker, which gives scores and no embeddings: rerankers are not served".into()),
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
        |name: &str| name.ends_with(".bias") || name.ends_with("_norm.weight") || name == "token_types.weight";
    match header.tensors().iter().find(|tensor| is_added(&tensor.name) && tensor.kind != ggml_type::F32) {
        Some(tensor) => Err(format!("tensor `{}`: type {}, F32 expected", tensor.name, tensor.kind)),
        None => Ok(()),
    }
}

fn check_tokenizer(header: &Header) -> Result<(), String> {
    let Some(tokens) = header.array_len("tokenizer.ggml.tokens").filter(|&len| len > 0) else {
        return Err("holds no tokenizer (`tokenizer.ggml.tokens`)".into());
    };
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        if let Some(len) = header.array_len(key)
            && len != tokens
        {
            return Err(format!("tokenizer size mismatch: {tokens} tokens, `{key}` has {len}"));
        }
    }
    if let Some(embedding) = header.tensors().iter().find(|tensor| tensor.name == "token_embd.weight")
        && embedding.dims.get(1) != Some(&tokens)
    {
        return Err(format!("tokenizer size mismatch: {tokens} tokens, the embedding has {:?}", embedding.dims));
    }
    // As llama.cpp spells them.
    for name in ["bos", "eos", "cls", "seperator", "unknown"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        // All bits set is how some converters write "none".
        if let Some(id) = header.unsigned(&key)
            && id >= tokens
            && id != u64::from(u32::MAX)
        {
            return Err(format!("special token id out of range: `{key}` is {id} of {tokens} tokens"));
        }
    }
    Ok(())
}

fn chat_template(header: &Header) -> Result<Option<String>, String> {
    let key = "tokenizer.chat_template";
    let len = match header.get(key) {
        None => return Ok(None),
        Some(Value::String(bytes)) => bytes.len() as u64,
        Some(&Value::LongString(len)) => len,
        Some(
            Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Double(_)
            | Value::Bool(_)
            | Value::Array(_),
        ) => return Err(format!("`{key}` is no string")),
    };
    if len > MAX_CHAT_TEMPLATE_BYTES {
        return Err(format!("a chat template of {len} bytes, {MAX_CHAT_TEMPLATE_BYTES} at most"));
    }
    match header.text(key) {
        Some(template) => Ok(Some(template.to_owned())),
        None => Err("the chat template is not UTF-8".into()),
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
        let file = ModelFile::check(&path).expect("a good file");
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
