use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use serde_json::Value;
use tandem_core::{LoadError, TokenId, TokenKind, TokenizeError, Tokenizer, Vocab, VocabParts};

use crate::{
    directory::{ModelDirectory, invalid, unreadable},
    vocab::{self, rejected},
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
        let path = directory.path(FILE);
        let Some(file) = directory.read(FILE, MAX_BYTES)? else {
            return Err(unreadable(path, &std::io::ErrorKind::NotFound.into()));
        };
        let inner = parse(&file).map_err(|reason| invalid(&path, rejected(&reason)))?;
        let files = vocab::Files::load(directory, config)?;
        let parts = vocab::parts(&inner, &file, &files, logits).map_err(|reason| invalid(&path, reason))?;
        Self::new(inner, parts, files.chat_template).map_err(|reason| invalid(&path, rejected(&reason)))
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
        Ok(Self { tokenizer, vocab: Vocab::new(parts), chat_template })
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
