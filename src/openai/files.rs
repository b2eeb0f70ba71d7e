use schemars::JsonSchema;
use serde::Serialize;

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
