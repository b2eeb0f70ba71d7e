use serde::Deserialize;
use serde_json::Value;
use tandem_core::{GenerationDefaults, LoadError, TokenId, TokenKind, VocabParts};
use tokenizers::Tokenizer;

use crate::{
    directory::{ModelDirectory, invalid},
    spelling::Spelling,
};

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

    /// How `generation_config.json` would have tokens chosen.
    pub(crate) fn defaults(&self) -> GenerationDefaults {
        let number = |name: &str| self.generation[name].as_f64().map(|number| number as f32);
        let count = |name: &str| self.generation[name].as_u64().and_then(|count| u32::try_from(count).ok());
        GenerationDefaults {
            temperature: number("temperature"),
            top_k: count("top_k"),
            top_p: number("top_p"),
            min_p: number("min_p"),
            typical_p: number("typical_p"),
            repetition_penalty: number("repetition_penalty"),
            max_tokens: count("max_new_tokens"),
            ..GenerationDefaults::default()
        }
        .within_range()
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
        Use::Generate => Spelling::find(file.decoder.as_ref().or(file.pre_tokenizer.as_ref()))?,
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
        None => {
            let adds_bos = adds_bos(tokenizer, files, bos)?;
            Ok(VocabParts { tokens, eog, bos, eos, adds_bos, ..VocabParts::default() })
        }
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
