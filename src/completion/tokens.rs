//! Text to token ids and back, as requests would have it: `vllm serve` calls it `/tokenize` and `/detokenize`.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use tandem_core::TokenId;
use tandem_engine::ModelKind;

use super::prompt::{self, Conversation};
use super::read::{self, Fields};
use super::{Completions, Form, off_the_reactor, prepare};
use crate::openai::AllowedModels;
use crate::openai::error::ApiError;

/// A text as the model reads it.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Tokenized {
    pub count: usize,
    pub max_model_len: u32,
    pub tokens: Vec<TokenId>,
    /// The tokens' texts, where they were asked for; bytes that are no characters are replaced.
    pub token_strs: Option<Vec<String>>,
}

/// The text that tokens stand for.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Detokenized {
    pub prompt: String,
}

impl Completions {
    /// The tokens of `prompt`, or of `messages`, under one of the models that are `allowed`.
    ///
    /// # Errors
    /// When the request is wrong or its model is not there.
    pub async fn tokenize(&self, body: &[u8], allowed: &AllowedModels) -> Result<Tokenized, ApiError> {
        let object = read::body::object(body)?;
        let mut fields = Fields::new("", &object);
        let model = fields.required_string("model")?;
        let lease = self.lease(model, allowed).await?;
        let kind = lease.kind().clone();
        let max_model_len = kind.max_tokens();
        let vocab = Arc::clone(kind.vocab());
        let token_strs = fields.boolean("return_token_strs")?.unwrap_or(false);
        let framed = fields.boolean("add_special_tokens")?;
        let tokens = if fields.value("messages").is_some() {
            let messages = read::messages(&mut fields)?;
            let tools = read::tools(&mut fields)?.map(|tools| tools.list).unwrap_or_default();
            let lease = self.generator(model, Form::Chat, allowed).await?;
            let info = Arc::clone(lease.info());
            prepare::check_messages(&messages, &info)?;
            let (add_generation_prompt, continue_final_message) = read::ending(&mut fields)?;
            read::nothing_else(&fields, &self.shared.limits)?;
            let template = self.shared.templates.of(&lease)?;
            off_the_reactor(body.len(), move || {
                let variables = serde_json::Map::new();
                let conversation = Conversation {
                    messages: &messages,
                    tools: &tools,
                    add_generation_prompt,
                    continue_final_message,
                    variables: &variables,
                };
                let ids = prompt::of_chat(conversation, &template, &info.vocab, &*info.tokenizer)?.ids;
                Ok::<_, ApiError>(if framed == Some(true) { prompt::opened(ids, &info.vocab) } else { ids })
            })
            .await??
        } else {
            let text = fields.required_string("prompt")?.to_owned();
            prepare::check_length("prompt", text.chars().count(), max_model_len)?;
            let framed = framed.unwrap_or(true);
            read::nothing_else(&fields, &self.shared.limits)?;
            off_the_reactor(body.len(), move || {
                let plain = || kind.tokenizer().encode(&text).map_err(|_| ApiError::not_encodable("prompt"));
                match &kind {
                    _ if !framed => plain(),
                    ModelKind::Generator(info) => Ok(prompt::opened(plain()?, &info.vocab)),
                    // A reranker too: there is no second text here.
                    ModelKind::Embedder(info) => Ok(prompt::framed(plain()?, &info.vocab)),
                }
            })
            .await??
        };
        let token_strs = token_strs.then(|| tokens.iter().map(|id| prompt::text_of(&[*id], &vocab)).collect());
        Ok(Tokenized { count: tokens.len(), max_model_len, tokens, token_strs })
    }

    /// The text of `tokens`.
    ///
    /// # Errors
    /// When the request is wrong or its model is not there.
    pub async fn detokenize(&self, body: &[u8], allowed: &AllowedModels) -> Result<Detokenized, ApiError> {
        let object = read::body::object(body)?;
        let mut fields = Fields::new("", &object);
        let lease = self.lease(fields.required_string("model")?, allowed).await?;
        let ids = fields.array("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
        let max = lease.kind().vocab().len().saturating_sub(1) as i64;
        let ids = (ids.iter().enumerate())
            .map(|(at, id)| Ok(read::integer(&format!("tokens[{at}]"), id, 0..=max)? as TokenId))
            .collect::<Result<Vec<_>, ApiError>>()?;
        Ok(Detokenized { prompt: prompt::text_of(&ids, lease.kind().vocab()) })
    }
}
