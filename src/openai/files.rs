use schemars::JsonSchema;
use serde::Serialize;

use super::batches::BatchErrors;

/// An uploaded or published file.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct FileObject {
    pub id: String,
    #[schemars(extend("const" = "file"))]
    pub object: &'static str,
    pub bytes: i64,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub filename: String,
    pub purpose: String,
    /// Deprecated by OpenAI, yet its SDK waits for `processed`.
    #[schemars(extend("const" = "processed"))]
    pub status: &'static str,
    pub status_details: Option<String>,
}

/// The answer to a deletion.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct FileDeleted {
    pub id: String,
    #[schemars(extend("const" = "file"))]
    pub object: &'static str,
    pub deleted: bool,
}

/// One page of a listing, of files or of batches.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "{T}List")]
pub struct ListObject<T> {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<T>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// Ours: what a file would come to as a batch.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct EstimateObject {
    #[schemars(extend("const" = "file.estimate"))]
    pub object: &'static str,
    pub file_id: String,
    pub endpoint: &'static str,
    pub total_requests: u64,
    /// Of them, those that would fail the batch or be answered with an error. They are in no other count.
    pub invalid_requests: u64,
    /// Why, for the first hundred.
    pub errors: Option<BatchErrors>,
    pub input_tokens: u64,
    pub max_output_tokens: u64,
    /// Going by earlier answers; `null` while there are none.
    pub expected_output_tokens: Option<u64>,
    /// With nothing else to do; `null` while nothing has been measured.
    pub eta_seconds: Option<u64>,
    pub by_model: Vec<EstimateOfModel>,
}

/// The share of one model.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct EstimateOfModel {
    pub model: String,
    pub requests: u64,
    pub input_tokens: u64,
    pub max_output_tokens: u64,
    pub expected_output_tokens: Option<u64>,
    pub eta_seconds: Option<u64>,
}
