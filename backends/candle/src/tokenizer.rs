use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use serde_json::Value;
use tandem_core::{GenerationDefaults, LoadError, TokenId, TokenKind, TokenizeError, Tokenizer, Vocab, VocabParts};

use crate::{
    directory::{ModelDirectory, invalid, unreadable},
    frame::Frame,
    vocab::{self, Use, rejected},
};

const FILE: &str = "tokenizer.json";
const MAX_BYTES: u64 = 256 << 20;
/// Texts that a regular expression may take for ever on, each this long.
const PROBE_BYTES: usize = 64 << 10;
/// Each takes a fraction of a second, unless something is quadratic; the rest is for a busy machine.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything between text and token ids that comes with a model.
pub(crate) struct Text {
    pub(crate) tokenizer: HfTokenizer,
    pub(crate) vocab: Vocab,
    pub(crate) chat_template: Option<String>,
    pub(crate) defaults: GenerationDefaults,
}

/// A tokenizer of Hugging Face's library.
#[derive(Clone)]
pub(crate) struct HfTokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// By id, whether it is a control token.
    controls: Arc<[bool]>,
}

impl Text {
    /// Loads tokenizer, vocabulary and chat template of a model with `logits` logits.
    pub(crate) fn load(directory: &ModelDirectory, config: &Value, logits: u32) -> Result<Self, LoadError> {
        let Files { path, file, inner, files } = Files::load(directory, config)?;
        let parts =
            vocab::parts(&inner, &file, &files, logits, Use::Generate).map_err(|reason| invalid(&path, reason))?;
        let defaults = files.defaults();
        let text = Self::new(inner, parts, files.chat_template).map_err(|reason| invalid(&path, rejected(&reason)))?;
        Ok(Self { defaults, ..text })
    }

    /// Loads tokenizer and vocabulary of a model that has vectors for `tokens` tokens, and wants its texts in lower case or as they are. One
    /// that ranks has so many `pair_types` of tokens.
    pub(crate) fn load_embedder(
        directory: &ModelDirectory,
        config: &Value,
        tokens: u32,
        lower_case: bool,
        pair_types: Option<usize>,
    ) -> Result<Self, LoadError> {
        let Files { path, file, inner, files } = Files::load(directory, config)?;
        let parts = vocab::parts(&inner, &file, &files, tokens, Use::Embed);
        let mut parts = parts.map_err(|reason| invalid(&path, reason))?;
        let frame = Frame::find(&inner).map_err(|reason| invalid(&path, rejected(&reason)))?;
        let (adds_bos, adds_eos) = (files.flag("add_bos_token"), files.flag("add_eos_token"));
        let checked = frame.check(adds_bos, adds_eos);
        checked.map_err(|reason| invalid(directory.path("tokenizer_config.json"), reason))?;
        frame.put_into(&mut parts);
        if let Some(types) = pair_types {
            let separator = frame.separator(&inner, types);
            parts.separator = separator.map_err(|reason| invalid(&path, rejected(&reason)))?;
        }
        let unknown = vocab::unknown(&file, &inner).map_err(|reason| invalid(&path, reason))?;
        let mut text = Self::new(inner, parts, None).map_err(|reason| invalid(&path, rejected(&reason)))?;
        text.tokenizer.allow(unknown);
        if lower_case && !text.tokenizer.ignores_case() {
            let reason = "do_lower_case is true, and the tokenizer keeps capital letters".to_owned();
            return Err(invalid(path, rejected(&reason)));
        }
        Ok(text)
    }

    /// Puts a tokenizer and its vocabulary together, once it has shown that it comes to an end.
    pub(crate) fn new(
        mut inner: tokenizers::Tokenizer,
        parts: VocabParts,
        chat_template: Option<String>,
    ) -> Result<Self, String> {
        // Control tokens that are spelled out in a text stay text.
        inner.set_encode_special_tokens(true);
        let is_control = |(_, kind): &(Box<[u8]>, Option<TokenKind>)| *kind == Some(TokenKind::Control);
        let tokenizer = HfTokenizer { inner: Arc::new(inner), controls: parts.tokens.iter().map(is_control).collect() };
        probe(&tokenizer)?;
        Ok(Self { tokenizer, vocab: Vocab::new(parts), chat_template, defaults: GenerationDefaults::default() })
    }
}

/// What a directory has of them.
struct Files {
    path: PathBuf,
    file: Vec<u8>,
    inner: tokenizers::Tokenizer,
    files: vocab::Files,
}

impl Files {
    fn load(directory: &ModelDirectory, config: &Value) -> Result<Self, LoadError> {
        let path = directory.path(FILE);
        let Some(file) = directory.read(FILE, MAX_BYTES)? else {
            return Err(unreadable(path, &std::io::ErrorKind::NotFound.into()));
        };
        let inner = parse(&file).map_err(|reason| invalid(&path, rejected(&reason)))?;
        let files = vocab::Files::load(directory, config)?;
        Ok(Self { path, file, inner, files })
    }
}

impl HfTokenizer {
    /// Lets texts become a control token: that for what is unknown, which a model for vectors was trained to see.
    fn allow(&mut self, unknown: Option<TokenId>) {
        let is_control = |(id, control): (TokenId, &bool)| *control && Some(id) != unknown;
        self.controls = (0..).zip(self.controls.iter()).map(is_control).collect();
    }

    fn ignores_case(&self) -> bool {
        let ids = |text| self.encode(text).ok();
        ids("A Quick BROWN Fox") == ids("a quick brown fox")
    }
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
        // A crafted tokenizer.json can make the library panic on some texts; that must not end more than the request.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, false)))
            .map_err(|_| TokenizeError("the tokenizer panicked".to_owned()))?
            .map_err(|error| TokenizeError(error.to_string()))?;
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| self.controls.get(id as usize).copied().unwrap_or(true)) {
            // The unknown token, or a vocabulary that spells out a control token as text.
            Some(id) => Err(TokenizeError(format!("a part of it can only become control token {id}"))),
            None => Ok(ids.to_vec()),
        }
    }
}

fn parse(file: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let parsed =
        catch_unwind(|| tokenizers::Tokenizer::from_bytes(file)).map_err(|_| "it makes the parser panic".to_owned())?;
    let mut tokenizer = parsed.map_err(|error| error.to_string())?;
    // Settings for training, which would cut or lengthen prompts.
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Encodes texts that are hard on regular expressions and merges. On a thread of its own, since what does not end cannot be stopped.
fn probe(tokenizer: &HfTokenizer) -> Result<(), String> {
    let (done, result) = mpsc::channel();
    let tokenizer = tokenizer.clone();
    let run = move || {
        for text in ["a".repeat(PROBE_BYTES), "^".repeat(PROBE_BYTES), " ".repeat(PROBE_BYTES), noise()] {
            // Only the time matters: a tokenizer may be unable to encode some of it.
            let _ = tokenizer.encode(&text);
        }
        let _ = done.send(());
    };
    let started = thread::Builder::new().name("tokenizer-probe".to_owned()).spawn(run);
    started.map_err(|error| error.to_string())?;
    result
        .recv_timeout(PROBE_TIMEOUT)
        .map_err(|_| format!("it takes more than {PROBE_TIMEOUT:?} for texts of {PROBE_BYTES} bytes"))
}

/// Printable text without any pattern (a linear congruential generator).
fn noise() -> String {
    let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let states = std::iter::successors(Some(1), next).take(PROBE_BYTES);
    states.map(|state| char::from(b' ' + (state >> 24) as u8 % 95)).collect()
}
