use serde_json::Value;
use tandem_core::{LoadError, Pooling};

use super::{DecoderConfig, EncoderConfig, Fields};
use crate::{
    directory::{ModelDirectory, invalid, unreadable},
    models,
    sentence::SentenceFiles,
};

const FILE: &str = "config.json";
const MAX_BYTES: u64 = 1 << 20;

/// A model by what it does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ModelConfig {
    /// Continues prompts.
    Generator(DecoderConfig),
    /// Turns texts into vectors.
    Embedder(EmbedderConfig),
}

/// What an embedding model computes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EmbedderConfig {
    pub(crate) body: BodyConfig,
    pub(crate) pooling: Pooling,
    /// Its texts are to be in lower case, which the tokenizer has to see to.
    pub(crate) lower_case: bool,
}

/// What makes hidden states of tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum BodyConfig {
    Encoder(EncoderConfig),
    Decoder(DecoderConfig),
}

impl ModelConfig {
    /// Reads and checks `config.json`, and what says that the model is for vectors; also gives back the parsed file, which names the
    /// end-of-generation tokens.
    pub(crate) fn load(directory: &ModelDirectory) -> Result<(Self, Value), LoadError> {
        let path = directory.path(FILE);
        let Some(file) = directory.read_json(FILE, MAX_BYTES)? else {
            return Err(unreadable(path, &std::io::ErrorKind::NotFound.into()));
        };
        let sentence = SentenceFiles::load(directory)?;
        let config = Self::parse(&file, sentence.as_ref()).map_err(|reason| invalid(path, reason))?;
        if let (Self::Embedder(config), Some(sentence)) = (&config, sentence) {
            sentence.check(directory, config.body.hidden_size())?;
        }
        Ok((config, file))
    }

    /// Checks what `config.json` holds.
    fn parse(file: &Value, sentence: Option<&SentenceFiles>) -> Result<Self, String> {
        let fields = Fields::new(file.as_object().ok_or("invalid config: not an object")?);
        let named = architecture(&fields)?;
        if let Some(describe) = models::encoder_family(&named) {
            refuse_quantized(&fields)?;
            let body = BodyConfig::Encoder(describe(&fields)?);
            return Ok(Self::Embedder(EmbedderConfig::new(body, sentence)));
        }
        if named.ends_with("ForSequenceClassification") {
            return Err(format!(
                "architecture {named} gives scores, and is none of the rerankers that are served: those of BERT, RoBERTa and XLM-R"
            ));
        }
        // What a decoder is called that was saved without its head.
        let headless = named.strip_suffix("Model").map(|family| format!("{family}ForCausalLM"));
        let headless = headless.filter(|family| models::family(family).is_some());
        match (headless, sentence) {
            (Some(_), None) => Err(format!(
                "architecture {named} has no head to generate with, and no modules.json says how to pool its vectors"
            )),
            (None, None) => DecoderConfig::of_family(&named, &fields).map(Self::Generator),
            (headless, Some(_)) => {
                let decoder = DecoderConfig::of_family(headless.as_deref().unwrap_or(&named), &fields)?;
                if fields.optional::<bool>("is_causal")? == Some(false) {
                    return Err("invalid config: is_causal: only true is supported".to_owned());
                }
                Ok(Self::Embedder(EmbedderConfig::new(BodyConfig::Decoder(decoder), sentence)))
            }
        }
    }
}

impl DecoderConfig {
    /// Checks what another format says in the terms of `config.json`.
    pub(crate) fn parse(file: &Value) -> Result<Self, String> {
        let fields = Fields::new(file.as_object().ok_or("invalid config: not an object")?);
        Self::of_family(&architecture(&fields)?, &fields)
    }

    fn of_family(named: &str, fields: &Fields<'_>) -> Result<Self, String> {
        let describe = models::family(named).ok_or_else(|| {
            let known: Vec<_> = models::architectures().collect();
            format!("architecture {named} is not supported; known: {}", known.join(", "))
        })?;
        describe(fields)
    }
}

impl EmbedderConfig {
    /// Encoders of which no file says how to pool are pooled by the mean, as most are.
    fn new(body: BodyConfig, sentence: Option<&SentenceFiles>) -> Self {
        let pooling = match &body {
            BodyConfig::Encoder(EncoderConfig { head: Some(_), .. }) => Pooling::Rank,
            BodyConfig::Encoder(_) | BodyConfig::Decoder(_) => sentence.map_or(Pooling::Mean, |files| files.pooling),
        };
        Self { body, pooling, lower_case: sentence.is_some_and(|files| files.lower_case) }
    }
}

impl BodyConfig {
    pub(crate) fn vocab_size(&self) -> usize {
        match self {
            Self::Encoder(config) => config.vocab_size,
            Self::Decoder(config) => config.vocab_size,
        }
    }

    pub(crate) fn hidden_size(&self) -> usize {
        match self {
            Self::Encoder(config) => config.hidden_size,
            Self::Decoder(config) => config.hidden_size,
        }
    }

    /// Rows of its table of token types, if it has one.
    pub(crate) fn token_types(&self) -> Option<usize> {
        match self {
            Self::Encoder(config) => config.token_types,
            Self::Decoder(_) => None,
        }
    }

    /// Tokens of one text that the model was made for.
    pub(crate) fn max_positions(&self) -> u32 {
        match self {
            Self::Encoder(config) => config.max_positions(),
            Self::Decoder(config) => config.max_positions,
        }
    }

    /// Heads of K and of V, and the width of one.
    pub(crate) fn kv_heads(&self) -> (usize, usize) {
        match self {
            Self::Encoder(config) => (config.heads, config.head_dim()),
            Self::Decoder(config) => (config.kv_heads, config.head_dim),
        }
    }
}

fn architecture(fields: &Fields<'_>) -> Result<String, String> {
    let architectures = fields.optional::<Vec<String>>("architectures")?.unwrap_or_default();
    Ok(architectures.into_iter().next().unwrap_or_else(|| "none".to_owned()))
}

fn refuse_quantized(fields: &Fields<'_>) -> Result<(), String> {
    match fields.optional::<Value>("quantization_config")? {
        Some(_) => Err("invalid config: quantization_config: quantised encoders are not supported".to_owned()),
        None => Ok(()),
    }
}
