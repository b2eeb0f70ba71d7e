use schemars::JsonSchema;
use serde::Serialize;

use super::Usage;

/// The answer of `POST /v1/chat/completions`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatCompletion<'a> {
    pub id: &'a str,
    #[schemars(extend("const" = "chat.completion"))]
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
    pub system_fingerprint: &'a str,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AssistantMessage,
    pub logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "length"]))]
    pub finish_reason: &'static str,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct AssistantMessage {
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    pub content: String,
    pub refusal: Option<String>,
}

#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct ChatLogprobs {
    pub content: Vec<TokenLogprob>,
    pub refusal: Option<Vec<TokenLogprob>>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// One event of a streamed answer.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatChunk<'a> {
    pub id: &'a str,
    #[schemars(extend("const" = "chat.completion.chunk"))]
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    pub system_fingerprint: &'a str,
    pub choices: Vec<ChunkChoice>,
    /// Absent unless usage was asked for; then null on all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChunkChoice {
    pub index: usize,
    pub delta: Delta,
    pub logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "length", null]))]
    pub finish_reason: Option<&'static str>,
}

#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
