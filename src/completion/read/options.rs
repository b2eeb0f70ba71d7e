use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tandem_core::{GenerationDefaults, SamplingParams, TokenId};
use tandem_engine::Repetition;

use super::fields::{Fields, integer, kind};
use super::structured::{Structure, structure};
use super::telling::{Telling, rank, repetition};
use super::text::without_nul;
use super::truncation::{Side, Truncation};
use crate::completion::Limits;
use crate::openai::error::ApiError;

const MAX_SALT_BYTES: usize = 128;
const MAX_ADAPTER_BYTES: usize = 256;
const MAX_STOP_STRINGS: usize = 4;
const MAX_STOP_BYTES: usize = 256;
const MAX_STOP_TOKENS: usize = 128;
const MAX_BIASES: usize = 300;
/// A choice among a thousand labels; a rule for more is a grammar's.
const MAX_ALLOWED_TOKENS: usize = 1_024;
/// As vLLM has it.
const MAX_REPORTED: usize = 128;
const MAX_BAD_WORDS: usize = 128;
const MAX_BAD_WORD_BYTES: usize = 256;
const MAX_TOP_K: i64 = i32::MAX as i64;

/// What chat and completion requests have in common.
#[derive(Clone, Debug)]
pub(in crate::completion) struct Options {
    /// Choices for each prompt.
    pub(in crate::completion) n: u32,
    pub(in crate::completion) max_tokens: Option<MaxTokens>,
    pub(in crate::completion) min_tokens: u32,
    pub(in crate::completion) sampling: SamplingFields,
    pub(in crate::completion) allowed_token_ids: Option<Vec<TokenId>>,
    pub(in crate::completion) bad_words: Vec<String>,
    pub(in crate::completion) stop: Vec<String>,
    pub(in crate::completion) stop_token_ids: Vec<TokenId>,
    pub(in crate::completion) ignore_eos: bool,
    pub(in crate::completion) repetition: Option<Repetition>,
    /// Within the priority of the request; lower goes first.
    pub(in crate::completion) rank: i64,
    pub(in crate::completion) truncation: Option<Truncation>,
    /// Put in front of the prompt what the model was trained to find there; `None` is as usual.
    pub(in crate::completion) add_special_tokens: Option<bool>,
    pub(in crate::completion) seed: Option<u64>,
    /// The prefix cache is shared with requests of the same salt alone; 0 when the request names none.
    pub(in crate::completion) cache_salt: u64,
    /// The name of an adapter. Whether the model has it is checked where the model is known.
    pub(in crate::completion) lora: Option<String>,
    pub(in crate::completion) stream: bool,
    pub(in crate::completion) telling: Telling,
    /// What the answer has to look like.
    pub(in crate::completion) structure: Option<Structure>,
}

/// A limit on the output, with the field that set it.
#[derive(Clone, Copy, Debug)]
pub(in crate::completion) struct MaxTokens {
    pub(in crate::completion) tokens: u32,
    pub(in crate::completion) name: &'static str,
}

impl Options {
    /// `least` is the fewest tokens of output that `max_tokens` may ask for.
    pub(super) fn read(fields: &mut Fields<'_>, limits: &Limits, least: u32) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let (rank, service_tier) = rank(fields)?;
        let mut options = Self {
            n: fields.count("n", limits.max_n)?.unwrap_or(1),
            max_tokens: None,
            min_tokens: fields.integer("min_tokens", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32,
            sampling: SamplingFields::read(fields)?,
            allowed_token_ids: allowed_token_ids(fields)?,
            bad_words: bad_words(fields)?,
            stop: stop(fields)?,
            stop_token_ids: stop_token_ids(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            repetition: repetition(fields)?,
            rank,
            truncation: Truncation::read(fields, Side::Left)?,
            add_special_tokens: fields.boolean("add_special_tokens")?,
            seed: seed(fields)?,
            cache_salt: cache_salt(fields)?,
            lora: lora(fields)?,
            stream,
            telling: Telling { service_tier, ..Telling::read(fields, stream)? },
            structure: structure(fields)?,
        };
        options.max_tokens = options.max_tokens_named(fields, "max_tokens", least)?;
        Ok(options)
    }

    /// How much work the request is, in bytes of prompt. Compiling a grammar is always much.
    pub(in crate::completion) fn work(&self, prompt_bytes: usize) -> usize {
        if self.structure.is_some() { usize::MAX } else { prompt_bytes }
    }

    /// Tokens to report on are for answers with log-probabilities.
    pub(super) fn check_reported(&self, logprobs: Option<u8>) -> Result<(), ApiError> {
        if logprobs.is_none() && !self.sampling.reported.is_empty() {
            let text = "Invalid 'logprob_token_ids': when using 'logprob_token_ids', 'logprobs' must be set.";
            return Err(ApiError::invalid_value("logprob_token_ids", text));
        }
        Ok(())
    }

    /// The limit of that name, if the request has it.
    pub(super) fn max_tokens_named(
        &self,
        fields: &mut Fields<'_>,
        name: &'static str,
        least: u32,
    ) -> Result<Option<MaxTokens>, ApiError> {
        let Some(tokens) = fields.integer(name, i64::from(least)..=i64::MAX)? else { return Ok(None) };
        // More than any context has, whose length is what such a limit is refused for.
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        if self.min_tokens > tokens {
            let text = format!("Invalid 'min_tokens': it must not be greater than '{name}', which is {tokens}.");
            return Err(ApiError::invalid_value("min_tokens", text));
        }
        Ok(Some(MaxTokens { tokens, name }))
    }
}

/// How tokens are chosen, as far as the request says it. What it leaves open is the model's own to say, and OpenAI's where it does not.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::completion) struct SamplingFields {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    pub(in crate::completion) logit_bias: Vec<(TokenId, f32)>,
    /// Whose log-probabilities are told in the place of the likeliest tokens'.
    pub(in crate::completion) reported: Vec<TokenId>,
}

impl SamplingFields {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        let repetition_penalty = fields.number("repetition_penalty", 0.0..=10.0)?;
        if let Some(penalty) = repetition_penalty.filter(|penalty| *penalty <= 0.0) {
            return Err(ApiError::decimal_below("repetition_penalty", "> 0", penalty.into()));
        }
        Ok(Self {
            temperature: fields.number("temperature", 0.0..=2.0)?,
            // -1 is how some clients say "off".
            top_k: fields.integer("top_k", -1..=MAX_TOP_K)?.map(|k| k.max(0) as u32),
            top_p: fields.number("top_p", 0.0..=1.0)?,
            min_p: fields.number("min_p", 0.0..=1.0)?,
            typical_p: fields.number("typical_p", 0.0..=1.0)?,
            repetition_penalty,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            logit_bias: logit_bias(fields)?,
            reported: token_ids(
                "logprob_token_ids",
                fields.array("logprob_token_ids")?.unwrap_or_default(),
                MAX_REPORTED,
            )?,
        })
    }

    /// With the model's defaults. Without the allowed tokens and the bad words, which take its tokenizer to read.
    pub(in crate::completion) fn resolve(&self, defaults: &GenerationDefaults) -> SamplingParams {
        let openai = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.or(defaults.temperature).unwrap_or(openai.temperature),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(openai.top_k),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(openai.top_p),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(openai.min_p),
            typical_p: self.typical_p.or(defaults.typical_p).unwrap_or(openai.typical_p),
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(openai.repetition_penalty),
            frequency_penalty: self
                .frequency_penalty
                .or(defaults.frequency_penalty)
                .unwrap_or(openai.frequency_penalty),
            presence_penalty: self.presence_penalty.or(defaults.presence_penalty).unwrap_or(openai.presence_penalty),
            logit_bias: self.logit_bias.clone(),
            reported: self.reported.clone(),
            ..openai
        }
    }
}

/// Whether the keys are tokens of the model is checked where the model is known.
fn logit_bias(fields: &mut Fields<'_>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(entries) = fields.entries("logit_bias")? else { return Ok(Vec::new()) };
    if entries.len() > MAX_BIASES {
        return Err(ApiError::object_too_large("logit_bias", MAX_BIASES, entries.len()));
    }
    let mut biases = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let path = format!("logit_bias.{key}");
        // Only the plain spelling: "+1" and "01" could name a token a second time.
        let token = key.parse::<TokenId>().ok().filter(|token| token.to_string() == *key);
        let Some(token) = token else {
            return Err(ApiError::invalid_value(
                &path,
                format!("Invalid key in 'logit_bias': '{key}' is not a token id."),
            ));
        };
        let Some(bias) = value.as_f64() else { return Err(ApiError::invalid_type(&path, "a decimal", kind(value))) };
        if !(-100.0..=100.0).contains(&bias) {
            let text = format!("Invalid '{path}': expected a value between -100 and 100, but got {bias} instead.");
            return Err(ApiError::invalid_value(&path, text));
        }
        biases.push((token, bias as f32));
    }
    Ok(biases)
}

fn stop(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    let strings: Vec<(String, &str)> = match fields.value("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![("stop".to_owned(), text)],
        Some(Value::Array(items)) if items.len() > MAX_STOP_STRINGS => {
            return Err(ApiError::array_too_long("stop", MAX_STOP_STRINGS, items.len()));
        }
        Some(Value::Array(items)) => (items.iter().enumerate())
            .map(|(at, item)| {
                let path = format!("stop[{at}]");
                let text = item.as_str().ok_or_else(|| ApiError::invalid_type(&path, "a string", kind(item)))?;
                Ok((path, text))
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(ApiError::invalid_type("stop", "a string or an array of strings", kind(other))),
    };
    for (path, text) in &strings {
        short_text(path, text, MAX_STOP_BYTES)?;
    }
    Ok(strings.into_iter().map(|(_, text)| text.to_owned()).collect())
}

fn stop_token_ids(fields: &mut Fields<'_>) -> Result<Vec<TokenId>, ApiError> {
    let items = fields.array("stop_token_ids")?.unwrap_or_default();
    token_ids("stop_token_ids", items, MAX_STOP_TOKENS)
}

/// Whether they are tokens of the model is checked where the model is known.
fn token_ids(name: &'static str, items: &[Value], max: usize) -> Result<Vec<TokenId>, ApiError> {
    if items.len() > max {
        return Err(ApiError::array_too_long(name, max, items.len()));
    }
    (items.iter().enumerate())
        .map(|(at, item)| Ok(integer(&format!("{name}[{at}]"), item, 0..=i64::from(u32::MAX))? as TokenId))
        .collect()
}

fn allowed_token_ids(fields: &mut Fields<'_>) -> Result<Option<Vec<TokenId>>, ApiError> {
    let Some(items) = fields.array("allowed_token_ids")? else { return Ok(None) };
    if items.is_empty() {
        return Err(ApiError::empty_array("allowed_token_ids"));
    }
    token_ids("allowed_token_ids", items, MAX_ALLOWED_TOKENS).map(Some)
}

fn bad_words(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    let items = fields.array("bad_words")?.unwrap_or_default();
    if items.len() > MAX_BAD_WORDS {
        return Err(ApiError::array_too_long("bad_words", MAX_BAD_WORDS, items.len()));
    }
    (items.iter().enumerate())
        .map(|(at, item)| {
            let path = format!("bad_words[{at}]");
            let text = item.as_str().ok_or_else(|| ApiError::invalid_type(&path, "a string", kind(item)))?;
            short_text(&path, text, MAX_BAD_WORD_BYTES)?;
            Ok(text.to_owned())
        })
        .collect()
}

/// A text of at least one byte and at most `max`.
pub(super) fn short_text(path: &str, text: &str, max: usize) -> Result<(), ApiError> {
    if text.is_empty() {
        return Err(ApiError::empty_string(path));
    }
    if text.len() > max {
        return Err(ApiError::string_too_long(path, max, text.len()));
    }
    without_nul(path, text)
}

/// Any 64-bit integer; negative ones are seeds like others.
fn seed(fields: &mut Fields<'_>) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.value("seed") else { return Ok(None) };
    match value.as_i64() {
        Some(seed) => Ok(Some(seed as u64)),
        None => Err(ApiError::invalid_type("seed", "a 64-bit integer", kind(value))),
    }
}

/// A number for the text, which nobody can make equal to that of another text.
fn cache_salt(fields: &mut Fields<'_>) -> Result<u64, ApiError> {
    let Some(value) = fields.value("cache_salt") else { return Ok(0) };
    let text = value.as_str().ok_or_else(|| ApiError::invalid_type("cache_salt", "a string", kind(value)))?;
    short_text("cache_salt", text, MAX_SALT_BYTES)?;
    if text.contains(['@', '/', '\\']) {
        let message = "Invalid 'cache_salt': it must not contain '@', '/' or '\\'.";
        return Err(ApiError::invalid_value("cache_salt", message));
    }
    let digest = Sha256::digest(text.as_bytes());
    Ok(digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A name. Clients of llama-server may send an empty list, which asks for none.
fn lora(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    match fields.value("lora") {
        None => Ok(None),
        Some(Value::Array(items)) if items.is_empty() => Ok(None),
        Some(Value::String(name)) => {
            short_text("lora", name, MAX_ADAPTER_BYTES)?;
            Ok(Some(name.clone()))
        }
        Some(other) => Err(ApiError::invalid_type("lora", "a string", kind(other))),
    }
}
