use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::ErrorEnvelope;

/// A batch, with every field that OpenAI sends: `null` where nothing is to be said.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct BatchObject {
    pub id: String,
    #[schemars(extend("const" = "batch"))]
    pub object: &'static str,
    pub endpoint: String,
    pub model: Option<String>,
    pub errors: Option<BatchErrors>,
    pub input_file_id: String,
    pub completion_window: String,
    #[schemars(extend("enum" = ["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]))]
    pub status: &'static str,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub created_at: i64,
    pub in_progress_at: Option<i64>,
    pub expires_at: i64,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    pub request_counts: RequestCounts,
    pub usage: BatchUsage,
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub metadata: Option<serde_json::Value>,
    /// Ours: among the batches of its owner the lower goes first; absent where it is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Ours: no request starts before this time; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    /// Ours: only while the batch runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<BatchProgress>,
}

/// How a batch gets on.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct BatchProgress {
    /// Of the prompts and answers of finished lines.
    pub completed_tokens: i64,
    /// Of prompts and answers, over the last minute; `null` until a line has started.
    pub tokens_per_second: Option<f64>,
    /// Of the prompts of finished lines, those that were in the KV cache.
    pub cached_tokens: i64,
    /// At the rate of the last minute; `null` where that tells nothing.
    pub eta_seconds: Option<i64>,
    /// The model of the line that started last.
    pub current_model: Option<String>,
    /// Since when no more lines start; `null` if they do.
    pub paused_at: Option<i64>,
}

/// One page of finished lines.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ResultList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// Records as they stand in the output and error file.
    #[schemars(with = "Vec<OutputRecord<'_>>")]
    pub data: Vec<Box<RawValue>>,
    pub first_id: Option<String>,
    /// What the next page comes `after`.
    pub last_id: Option<String>,
    /// Whether more are finished already.
    pub has_more: bool,
    /// The batch's status at that time: unless it has ended, there will be more.
    #[schemars(extend("enum" = ["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]))]
    pub batch_status: &'static str,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct BatchErrors {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<BatchError>,
}

/// Why a batch failed validation.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct BatchError {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    /// From 1, blank lines counted.
    pub line: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct RequestCounts {
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
}

/// The tokens of all lines of a batch.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct BatchUsage {
    pub input_tokens: i64,
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: i64,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: i64,
}

#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct InputTokensDetails {
    pub cached_tokens: i64,
}

#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct OutputTokensDetails {
    pub reasoning_tokens: i64,
}

/// One record of an output or error file.
#[derive(Debug, JsonSchema, Serialize)]
pub struct OutputRecord<'a> {
    pub id: String,
    pub custom_id: &'a str,
    pub response: Option<LineResponse<'a>>,
    pub error: Option<LineError<'a>>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct LineResponse<'a> {
    pub status_code: u16,
    pub request_id: String,
    pub body: LineBody<'a>,
}

/// What the endpoint answered: its own JSON, or the error it would have sent online.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
pub enum LineBody<'a> {
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    Answer(&'a RawValue),
    Error(ErrorEnvelope<'a>),
}

/// Why a line has no response.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct LineError<'a> {
    pub code: &'a str,
    pub message: &'a str,
}
