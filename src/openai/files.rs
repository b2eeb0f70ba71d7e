use serde::Serialize;

/// An uploaded or published file.
#[derive(Clone, Debug, Serialize)]
pub struct FileObject {
    pub id: String,
    pub object: &'static str,
    pub bytes: i64,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub filename: String,
    pub purpose: String,
    /// Deprecated by OpenAI, yet its SDK waits for `processed`.
    pub status: &'static str,
    pub status_details: Option<String>,
}

/// The answer to a deletion.
#[derive(Clone, Debug, Serialize)]
pub struct FileDeleted {
    pub id: String,
    pub object: &'static str,
    pub deleted: bool,
}

/// One page of a listing, of files or of batches.
#[derive(Clone, Debug, Serialize)]
pub struct ListObject<T> {
    pub object: &'static str,
    pub data: Vec<T>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}
