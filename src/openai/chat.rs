use schemars::JsonSchema;
use serde::Serialize;

use super::{ChoiceExtras, PromptExtras, Usage};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["default", "flex"]))]
    pub service_tier: Option<&'static str>,
    #[serde(flatten)]
    pub prompt: PromptExtras,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AssistantMessage,
    pub logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "length", "tool_calls", "function_call", "repetition"]))]
    pub finish_reason: &'static str,
    #[serde(flatten)]
    pub extras: ChoiceExtras,
}

#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct AssistantMessage {
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// None beside calls, unless there is text too.
    pub content: Option<String>,
    pub refusal: Option<String>,
    /// What the model said to itself, by the name that most clients know and by vLLM's newer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The deprecated form of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub kind: &'static str,
    pub function: FunctionCall,
}

#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct FunctionCall {
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["default", "flex"]))]
    pub service_tier: Option<&'static str>,
    /// Of the first chunk.
    #[serde(flatten)]
    pub prompt: PromptExtras,
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
    #[schemars(extend("enum" = ["stop", "length", "tool_calls", "function_call", "repetition", null]))]
    pub finish_reason: Option<&'static str>,
    #[serde(flatten)]
    pub extras: ChoiceExtras,
}

#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCallDelta>,
}

/// The beginning of a call has its id, type and name; what comes later has more of its arguments.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ToolCallDelta {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: FunctionCallDelta,
}

#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct FunctionCallDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}
