use serde::Serialize;

/// An error as OpenAI's clients expect it, with the HTTP status it travels under.
///
/// Messages come from this program alone: text of foreign libraries is logged, never sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    pub body: ErrorBody,
    /// Seconds after which trying again makes sense: sent as `Retry-After`.
    pub retry_after: Option<u32>,
}

/// The value of `error` in an error response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

/// `{"error": {…}}`.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorEnvelope<'a> {
    pub error: &'a ErrorBody,
}
