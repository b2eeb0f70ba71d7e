//! Text to token ids and back, as requests would have it: `vllm serve` calls it `/tokenize` and `/detokenize`.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use tandem_core::TokenId;
use tandem_engine::ModelKind;

use super::prompt::{self, Conversation};
use super::read::{self, Fields};
use super::{Completions, Form, off_the_reactor, prepare};
use crate::openai::error::ApiError;

/// A text as the model reads it.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Tokenized {
    pub count: usize,
    pub max_model_len: u32,
    pub tokens: Vec<TokenId>,
}

/// The text that tokens stand for.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Detokenized {
    pub prompt: String,
}

impl Completions {
    /// The tokens of `prompt`, or of `messages`.
    ///
    /// # Errors
    /// When the request is wrong or its model is not there.
    pub async fn tokenize(&self, body: &[u8]) -> Result<Tokenized, ApiError> {
        let object = read::body::object(body)?;
        let mut fields = Fields::new("", &object);
        let model = fields.required_string("model")?;
        let lease = self.lease(model).await?;
        let kind = lease.kind().clone();
        let max_model_len = kind.max_tokens();
        let tokens = if fields.value("messages").is_some() {
            let messages = read::messages(&mut fields)?;
            let lease = self.generator(model, Form::Chat).await?;
            let info = Arc::clone(lease.info());
            prepare::check_messages(&messages, &info)?;
            let add_generation_prompt = fields.boolean("add_generation_prompt")?.unwrap_or(true);
            let template = self.shared.templates.of(&lease)?;
            off_the_reactor(body.len(), move || {
                let variables = serde_json::Map::new();
                let conversation = Conversation { messages: &messages, add_generation_prompt, variables: &variables };
                prompt::of_chat(conversation, &template, &info.vocab, &*info.tokenizer)
            })
            .await??
        } else {
            let text = fields.required_string("prompt")?.to_owned();
            prepare::check_length("prompt", text.chars().count(), max_model_len)?;
            let framed = fields.boolean("add_special_tokens")?.unwrap_or(true);
            off_the_reactor(body.len(), move || {
                let plain = || kind.tokenizer().encode(&text).map_err(|_| ApiError::not_encodable("prompt"));
                match &kind {
                    _ if !framed => plain(),
                    ModelKind::Generator(info) => prompt::of_text("prompt", &text, &info.vocab, &*info.tokenizer),
                    ModelKind::Embedder(info) => Ok(prompt::framed(plain()?, &info.vocab)),
                }
            })
            .await??
        };
        Ok(Tokenized { count: tokens.len(), max_model_len, tokens })
    }

    /// The text of `tokens`.
    ///
    /// # Errors
    /// When the request is wrong or its model is not there.
    pub async fn detokenize(&self, body: &[u8]) -> Result<Detokenized, ApiError> {
        let object = read::body::object(body)?;
        let mut fields = Fields::new("", &object);
        let lease = self.lease(fields.required_string("model")?).await?;
        let ids = fields.array("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
        let max = lease.kind().vocab().len().saturating_sub(1) as i64;
        let ids = (ids.iter().enumerate())
            .map(|(at, id)| Ok(read::integer(&format!("tokens[{at}]"), id, 0..=max)? as TokenId))
            .collect::<Result<Vec<_>, ApiError>>()?;
        Ok(Detokenized { prompt: prompt::text_of(&ids, lease.kind().vocab()) })
    }
}
