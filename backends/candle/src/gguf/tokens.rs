use std::collections::BTreeSet;

use tandem_core::{LoadError, TokenId, TokenKind};
use tandem_gguf::GgufFile;

use crate::{directory::invalid, spelling};

/// Tokens that end generation whatever the file says of them, as llama.cpp has it: files rarely name more than one.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Tokens about the middle of a text that is to be filled in, or about files. Some of them end generation too.
const PADS: [&str; 5] = ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const REPOSITORIES: [&str; 5] = ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const SEPARATORS: [&str; 1] = ["<|file_sep|>"];

/// The vocabulary of a file, token by token.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) all: Vec<Token>,
    /// Tokens that end generation.
    pub(super) eog: Vec<TokenId>,
}

/// One token as the file has it.
#[derive(Debug, PartialEq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: Kind,
    pub(super) score: f64,
}

/// What the file says a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    /// Text that is one token wherever it stands.
    UserDefined,
    Unused,
    Byte,
    /// A number that has no meaning.
    Undefined,
}

impl Kind {
    fn of(number: f64) -> Self {
        let kinds = [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];
        let found = kinds.into_iter().zip(1u32..).find(|(_, known)| f64::from(*known) == number);
        found.map_or(Self::Undefined, |(kind, _)| kind)
    }

    /// Whether it steers the model, so that nothing that a user writes may become it.
    pub(super) fn steers(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }

    pub(super) fn token_kind(self) -> TokenKind {
        match self {
            Self::Normal | Self::UserDefined | Self::Byte => TokenKind::Text,
            Self::Control | Self::Unknown => TokenKind::Control,
            Self::Unused | Self::Undefined => TokenKind::Unused,
        }
    }
}

impl Tokens {
    pub(super) fn read(file: &GgufFile) -> Result<Self, LoadError> {
        let refused = |reason: String| invalid(file.path(), reason);
        let texts = file.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let kinds = file.numbers("tokenizer.ggml.token_type")?;
        let scores = file.numbers("tokenizer.ggml.scores")?;
        let mut all = Vec::with_capacity(texts.len());
        for (id, bytes) in texts.into_iter().enumerate() {
            let text = text(id, bytes.into_vec()).map_err(refused)?;
            let kind = kinds.as_ref().map_or(Kind::Normal, |kinds| Kind::of(kinds[id]));
            let score = scores.as_ref().map_or(0.0, |scores| scores[id]);
            if score.is_nan() {
                return Err(refused(format!("`tokenizer.ggml.scores`: that of token {id} is not a number")));
            }
            all.push(Token { text, kind, score });
        }
        let mut tokens = Self { all, eog: Vec::new() };
        tokens.find_ends(file);
        Ok(tokens)
    }

    /// A special token's id, `None` when there is none: some converters write it as a number with all bits set.
    pub(super) fn special(&self, file: &GgufFile, name: &str) -> Option<TokenId> {
        let id = file.header().unsigned(&format!("tokenizer.ggml.{name}_token_id"))?;
        TokenId::try_from(id).ok().filter(|id| (*id as usize) < self.all.len())
    }

    /// Finds the tokens that end generation, by number and by text. Those that do it by their text steer, whatever the file says.
    fn find_ends(&mut self, file: &GgufFile) {
        let mut ends: BTreeSet<TokenId> =
            ["eos", "eot", "eom"].iter().filter_map(|name| self.special(file, name)).collect();
        for (name, texts) in [("fim_pad", &PADS[..]), ("fim_rep", &REPOSITORIES), ("fim_sep", &SEPARATORS)] {
            let id = self.special(file, name).or_else(|| self.take_control(texts));
            ends.extend(id);
        }
        for (id, token) in (0..).zip(&mut self.all) {
            if ENDS.contains(&token.text.as_str()) {
                token.kind = Kind::Control;
                ends.insert(id);
            }
        }
        self.eog = ends.into_iter().collect();
    }

    /// The first token of one of these texts, which from now on steers.
    fn take_control(&mut self, texts: &[&str]) -> Option<TokenId> {
        let (id, token) = (0..).zip(&mut self.all).find(|(_, token)| texts.contains(&token.text.as_str()))?;
        token.kind = Kind::Control;
        Some(id)
    }
}

/// A token as llama.cpp reads it: up to a zero byte, and with a name where nothing is left.
fn text(id: usize, mut bytes: Vec<u8>) -> Result<String, String> {
    bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
    match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => Ok(format!("[EMPTY_{id}]")),
        Ok(text) => Ok(text),
        Err(_) => Err(format!("`tokenizer.ggml.tokens`: token {id} is not UTF-8")),
    }
}

/// The token that spells a byte in a vocabulary of `SentencePiece`.
pub(super) fn spelled_byte(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// What a text token of `SentencePiece` stands for.
pub(super) fn piece_bytes(token: &Token) -> Box<[u8]> {
    match (token.kind, spelling::fallback_byte(&token.text)) {
        (Kind::Byte, Some(byte)) => [byte].into(),
        (Kind::Normal, _) => token.text.replace(spelling::SPACE_MARK, " ").into_bytes().into(),
        _ => token.text.as_bytes().into(),
    }
}
