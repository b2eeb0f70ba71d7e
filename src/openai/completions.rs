use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::{ChoiceExtras, PromptExtras, Usage};

/// The answer of `POST /v1/completions`, and, streamed, each of its events.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Completion<'a> {
    pub id: &'a str,
    #[schemars(extend("const" = "text_completion"))]
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    pub system_fingerprint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["default", "flex"]))]
    pub service_tier: Option<&'static str>,
    pub choices: Vec<CompletionChoice>,
    /// In a stream absent unless asked for; then null on all events but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct CompletionChoice {
    pub text: String,
    pub index: usize,
    pub logprobs: Option<CompletionLogprobs>,
    #[schemars(extend("enum" = ["stop", "length", "repetition", null]))]
    pub finish_reason: Option<&'static str>,
    #[serde(flatten)]
    pub extras: ChoiceExtras,
    #[serde(flatten)]
    pub prompt: PromptExtras,
}

/// Four lists of the same length, one entry for each token.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// Null for the first token of a prompt, which nothing comes before.
    pub token_logprobs: Vec<Option<f32>>,
    #[schemars(with = "Vec<Option<BTreeMap<String, f32>>>")]
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Where each token begins in the choice's text, in characters.
    pub text_offset: Vec<usize>,
}

/// Token text to log-probability, likeliest first: an object on the wire.
#[derive(Clone, Debug, Default)]
pub struct TopLogprobs(pub Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}
