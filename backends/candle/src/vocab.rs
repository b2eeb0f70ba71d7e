use serde::Deserialize;
use serde_json::Value;
use tandem_core::{LoadError, TokenId, TokenKind, VocabParts};
use tokenizers::Tokenizer;

use crate::directory::{ModelDirectory, invalid};

const MAX_BYTES: u64 = 16 << 20;
const MAX_TEMPLATE_BYTES: usize = 256 << 10;

/// The small files beside `tokenizer.json`.
pub(crate) struct Files {
    config: Value,
    generation: Value,
    tokenizer: Value,
    pub(crate) chat_template: Option<String>,
}

impl Files {
    pub(crate) fn load(directory: &ModelDirectory, config: &Value) -> Result<Self, LoadError> {
        let json = |name| directory.read_json(name, MAX_BYTES).map(Option::unwrap_or_default);
        let (generation, tokenizer) = (json("generation_config.json")?, json("tokenizer_config.json")?);
        // A file of its own goes before the field, as in the library that writes them.
        let chat_template = match directory.read("chat_template.jinja", MAX_BYTES)? {
            Some(file) => {
                let path = directory.path("chat_template.jinja");
                Some(String::from_utf8(file).map_err(|_| invalid(path, "not UTF-8"))?)
            }
            None => template_of(&tokenizer["chat_template"]),
        };
        match &chat_template {
            Some(template) if template.len() > MAX_TEMPLATE_BYTES => {
                let reason = format!("a chat template of {} bytes, more than {MAX_TEMPLATE_BYTES}", template.len());
                Err(invalid(directory.path("tokenizer_config.json"), reason))
            }
            _ => Ok(Self { config: config.clone(), generation, tokenizer, chat_template }),
        }
    }

    /// A named token such as `bos`. `tokenizer_config.json` decides where it mentions it, even as null; `config.json` where not.
    fn named(&self, name: &str, tokenizer: &Tokenizer) -> Result<Option<TokenId>, String> {
        let spelled = match &self.tokenizer[format!("{name}_token")] {
            Value::String(text) => text,
            Value::Object(token) => token.get("content").and_then(Value::as_str).unwrap_or_default(),
            Value::Null if self.tokenizer.get(format!("{name}_token")).is_some() => return Ok(None),
            Value::Null => return Ok(ids(&self.config[format!("{name}_token_id")])?.first().copied()),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_)) => {
                return Err(format!("{name}_token is {other}, not a token"));
            }
        };
        tokenizer
            .token_to_id(spelled)
            .map(Some)
            .ok_or_else(|| format!("{name}_token {spelled:?} is not in the vocabulary"))
    }

    /// A flag of `tokenizer_config.json`.
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.tokenizer[name].as_bool()
    }

    fn eog(&self, eos: Option<TokenId>) -> Result<Vec<TokenId>, String> {
        let mut all = ids(&self.config["eos_token_id"])?;
        all.extend(ids(&self.generation["eos_token_id"])?);
        all.extend(eos);
        Ok(all)
    }
}

/// What a vocabulary is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Tokens become text again.
    Generate,
    /// They do not.
    Embed,
}

/// The token that stands for what `tokenizer`, read from `file`, has no other for.
pub(crate) fn unknown(file: &[u8], tokenizer: &Tokenizer) -> Result<Option<TokenId>, String> {
    let ModelParts { unk_token, unk_id } = FileParts::parse(file)?.model;
    Ok(unk_id.or_else(|| tokenizer.token_to_id(&unk_token?)))
}

/// The vocabulary of a model with `logits` logits; `file` is the `tokenizer.json` that `tokenizer` was read from.
pub(crate) fn parts(
    tokenizer: &Tokenizer,
    file: &[u8],
    files: &Files,
    logits: u32,
    purpose: Use,
) -> Result<VocabParts, String> {
    let file = FileParts::parse(file)?;
    file.check_added(tokenizer)?;
    let spelling = match purpose {
        Use::Generate => Spelling::find(&file)?,
        Use::Embed => Spelling::AsWritten,
    };
    let vocab = tokenizer.get_vocab(true);
    let len = vocab.values().max().map_or(0, |&id| u64::from(id) + 1);
    if len > u64::from(logits) {
        return Err(format!(
            "tokenizer size mismatch: it has ids up to {}, the model {logits} logits",
            len.saturating_sub(1)
        ));
    }
    let mut tokens = vec![(Box::default(), Some(TokenKind::Unused)); len as usize];
    for (text, id) in vocab {
        tokens[id as usize] = (spelling.bytes(&text), Some(TokenKind::Text));
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        let kind = if token.special { TokenKind::Control } else { TokenKind::Text };
        tokens[id as usize] = (token.content.into_bytes().into(), Some(kind));
    }
    let (bos, eos) = (files.named("bos", tokenizer)?, files.named("eos", tokenizer)?);
    let eog = files.eog(eos)?;
    match eog.iter().chain(&bos).find(|id| **id >= logits) {
        Some(id) => Err(format!("special token id {id} out of range: the model has {logits} logits")),
        None => Ok(VocabParts { tokens, eog, bos, eos, adds_bos: adds_bos(tokenizer, files, bos)?, closing: None }),
    }
}

/// Whether a plain prompt begins with `bos`: as `tokenizer_config.json` says, or else as the post-processor does it.
fn adds_bos(tokenizer: &Tokenizer, files: &Files, bos: Option<TokenId>) -> Result<bool, String> {
    let Some(bos) = bos else { return Ok(false) };
    match files.flag("add_bos_token") {
        Some(adds) => Ok(adds),
        None => {
            let nothing = tokenizer.encode_fast("", true).map_err(|error| error.to_string())?;
            Ok(nothing.get_ids().first() == Some(&bos))
        }
    }
}

/// What the tokenizer does not tell of its file.
#[derive(Deserialize)]
struct FileParts {
    decoder: Option<Value>,
    pre_tokenizer: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    model: ModelParts,
}

#[derive(Default, Deserialize)]
struct ModelParts {
    unk_token: Option<String>,
    unk_id: Option<TokenId>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: TokenId,
    content: String,
}

impl FileParts {
    fn parse(file: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(file).map_err(|error| format!("tokenizer rejected: {error}"))
    }

    /// The library numbers added tokens on from the vocabulary, whatever the file says, and would let two tokens share an id.
    fn check_added(&self, tokenizer: &Tokenizer) -> Result<(), String> {
        for AddedToken { id, content } in &self.added_tokens {
            let got = tokenizer.token_to_id(content);
            if got != Some(*id) {
                let got = got.map_or_else(|| "none".to_owned(), |id| id.to_string());
                return Err(format!(
                    "tokenizer rejected: added token {content:?} has id {id} in the file and {got} by the order"
                ));
            }
        }
        Ok(())
    }
}

/// What is said of a tokenizer that cannot be used.
pub(crate) fn rejected(reason: &str) -> String {
    format!("tokenizer rejected: {reason}")
}

/// How the vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Each byte is a character of an alphabet of 256 (GPT-2).
    ByteLevel,
    /// Text, with a mark for spaces; single bytes are spelled `<0x0A>` (`SentencePiece`).
    SentencePiece { byte_fallback: bool },
    /// Nobody asks for bytes: tokens are kept as the vocabulary writes them.
    AsWritten,
}

pub(crate) const SPACE_MARK: &str = "▁";

impl Spelling {
    /// As the decoder in `tokenizer.json` reads it, or where there is none as the pre-tokenizer writes it.
    fn find(parts: &FileParts) -> Result<Self, String> {
        let decoders = parts.decoder.as_ref().or(parts.pre_tokenizer.as_ref()).map(flatten).unwrap_or_default();
        let has = |kind: &str| decoders.iter().any(|decoder| decoder["type"] == kind);
        if has("ByteLevel") {
            return Ok(Self::ByteLevel);
        }
        let marks_spaces = decoders.iter().any(|decoder| match decoder["type"].as_str() {
            Some("Metaspace") => decoder["replacement"] == SPACE_MARK,
            Some("Replace") => decoder["pattern"]["String"] == SPACE_MARK && decoder["content"] == " ",
            _ => false,
        });
        let known = ["Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"];
        match decoders.iter().find(|decoder| !known.iter().any(|known| decoder["type"] == *known)) {
            None if marks_spaces => Ok(Self::SentencePiece { byte_fallback: has("ByteFallback") }),
            None => Err("tokenizer rejected: neither decoder nor pre_tokenizer says how tokens spell bytes".to_owned()),
            Some(other) => Err(format!(
                "tokenizer rejected: decoder {} is not supported; known: ByteLevel, {}",
                other["type"],
                known.join(", ")
            )),
        }
    }

    pub(crate) fn bytes(self, token: &str) -> Box<[u8]> {
        match self {
            // A token with a character outside the alphabet stands for itself, as in the decoder.
            Self::ByteLevel => {
                token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().into())
            }
            Self::SentencePiece { byte_fallback } => match fallback_byte(token) {
                Some(byte) if byte_fallback => [byte].into(),
                _ => token.replace(SPACE_MARK, " ").into_bytes().into(),
            },
            Self::AsWritten => token.as_bytes().into(),
        }
    }
}

/// The parts of a sequence, or the thing itself.
fn flatten(part: &Value) -> Vec<&Value> {
    let parts = ["decoders", "pretokenizers"].iter().find_map(|name| part.get(name)?.as_array());
    parts.map_or_else(|| vec![part], |parts| parts.iter().flat_map(flatten).collect())
}

/// The byte that a character of the byte-level alphabet stands for: printable ones of Latin-1 for themselves, the 68 others in order from
/// U+0100 on.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    match character {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => u8::try_from(character).ok(),
        'Ā'..='Ġ' => Some((u32::from(character) - 0x100) as u8),
        'ġ'..='ł' => Some((u32::from(character) - 0x121) as u8 + 0x7f),
        'Ń' => Some(0xad),
        _ => None,
    }
}

pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(hex, 16).ok())?
}

fn ids(value: &Value) -> Result<Vec<TokenId>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(all) => all.iter().map(ids).collect::<Result<Vec<_>, _>>().map(|all| all.concat()),
        one @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            let id = one.as_u64().and_then(|id| TokenId::try_from(id).ok());
            id.map(|id| vec![id]).ok_or_else(|| format!("{one} is not a token id"))
        }
    }
}

/// The chat template: a string, or one of several by name.
fn template_of(field: &Value) -> Option<String> {
    let default = || field.as_array()?.iter().find(|one| one["name"] == "default")?["template"].as_str();
    field.as_str().or_else(default).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_each_byte_once() {
        let mut bytes: Vec<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(
            ["Ġ", "Ċ", "é", "Ń"].map(|text| text.chars().next().and_then(byte_of)),
            [b' ', b'\n', 0xe9, 0xad].map(Some)
        );
    }

    #[test]
    fn sentence_piece_bytes() {
        let spelling = Spelling::SentencePiece { byte_fallback: true };
        for (token, bytes) in [
            ("<0x0A>", &b"\n"[..]),
            ("<0xE2>", b"\xe2"),
            ("▁the", b" the"),
            ("<0xZZ>", b"<0xZZ>"),
            ("<0x+1>", b"<0x+1>"),
        ] {
            assert_eq!(*spelling.bytes(token), *bytes, "{token}");
        }
        assert_eq!(*Spelling::SentencePiece { byte_fallback: false }.bytes("<0x0A>"), *b"<0x0A>");
    }
}
