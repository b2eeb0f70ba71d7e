mod access;
mod head;
mod model;
mod service;
mod values;

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

/// An error as OpenAI's clients expect it, with the HTTP status it travels under.
///
/// Messages come from this program alone: text of foreign libraries is logged, never sent. The constructors below are the whole set of
/// what the online API can answer; where OpenAI has words for a mistake, they are OpenAI's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    pub body: ErrorBody,
    /// Seconds after which trying again makes sense: sent as `Retry-After`.
    pub retry_after: Option<u32>,
}

/// The value of `error` in an error response.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct ErrorBody {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

/// `{"error": {…}}`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "Error")]
pub struct ErrorEnvelope<'a> {
    pub error: &'a ErrorBody,
}

pub const INVALID_REQUEST: &str = "invalid_request_error";
pub const SERVER_ERROR: &str = "server_error";
pub const AUTHENTICATION_ERROR: &str = "authentication_error";
pub const PERMISSION_ERROR: &str = "permission_error";

impl ApiError {
    #[must_use]
    pub fn envelope(&self) -> ErrorEnvelope<'_> {
        ErrorEnvelope { error: &self.body }
    }

    /// A 400 about one parameter.
    #[must_use]
    pub fn invalid(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::request(400, code, Some(param.into()), message)
    }

    fn request(status: u16, code: &'static str, param: Option<String>, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind: INVALID_REQUEST, param, code: Some(code) };
        Self { status, body, retry_after: None }
    }

    fn server(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind: SERVER_ERROR, param: None, code: Some(code) };
        Self { status, body, retry_after: None }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.body.message)
    }
}

impl std::error::Error for ApiError {}

/// Names from a request are quoted in messages: at most this much of them.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
