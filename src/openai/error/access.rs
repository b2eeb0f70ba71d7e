use std::time::Duration;

use super::{AUTHENTICATION_ERROR, ApiError, ErrorBody, PERMISSION_ERROR};

/// Who asks, and how much.
impl ApiError {
    fn of_kind(status: u16, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind, param: None, code: Some(code) };
        Self { status, body, retry_after: None }
    }

    #[must_use]
    pub fn missing_api_key() -> Self {
        Self::of_kind(401, AUTHENTICATION_ERROR, "missing_api_key", "You didn't provide an API key.")
    }

    /// Shows of the key as much as tells its owner which one it was.
    #[must_use]
    pub fn invalid_api_key(key: &str) -> Self {
        const SHOWN_CHARS_MIN: usize = 12;
        let shown = match (key.get(..3), key.len().checked_sub(4).and_then(|at| key.get(at..))) {
            (Some(first), Some(last))
                if key.len() >= SHOWN_CHARS_MIN && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                format!("{first}…{last}")
            }
            _ => "…".to_owned(),
        };
        let message = format!("Incorrect API key provided: {shown}.");
        Self::of_kind(401, AUTHENTICATION_ERROR, "invalid_api_key", message)
    }

    #[must_use]
    pub fn expired_api_key() -> Self {
        Self::of_kind(401, AUTHENTICATION_ERROR, "expired_api_key", "This API key has expired.")
    }

    #[must_use]
    pub fn revoked_api_key() -> Self {
        Self::of_kind(401, AUTHENTICATION_ERROR, "revoked_api_key", "This API key has been revoked.")
    }

    #[must_use]
    pub fn insufficient_scope(scope: &str) -> Self {
        Self::of_kind(403, PERMISSION_ERROR, "insufficient_scope", format!("This API key lacks scope {scope}."))
    }

    #[must_use]
    pub fn host_not_allowed() -> Self {
        let message = "This server does not answer to the host name of the request.";
        Self::of_kind(403, PERMISSION_ERROR, "host_not_allowed", message)
    }

    #[must_use]
    pub fn origin_not_allowed() -> Self {
        let message = "This server does not answer to web pages of the request's origin.";
        Self::of_kind(403, PERMISSION_ERROR, "origin_not_allowed", message)
    }

    /// `of` is what there were too many of: `requests` or `tokens`.
    #[must_use]
    pub fn rate_limited(of: &'static str, limit: u64, wait: Duration) -> Self {
        let seconds = whole_seconds(wait);
        let message = format!("Rate limit reached: {limit} {of} per minute. Please try again in {seconds} s.");
        Self { retry_after: Some(seconds), ..Self::of_kind(429, of, "rate_limit_exceeded", message) }
    }

    #[must_use]
    pub fn too_many_concurrent(limit: u32) -> Self {
        let message = format!("Rate limit reached: {limit} requests at a time.");
        Self { retry_after: Some(1), ..Self::of_kind(429, "requests", "rate_limit_exceeded", message) }
    }

    #[must_use]
    pub fn too_many_failed_auth(wait: Duration) -> Self {
        let message = "Too many incorrect API keys came from this address, please retry later.";
        let error = Self::of_kind(429, AUTHENTICATION_ERROR, "too_many_failed_auth", message);
        Self { retry_after: Some(whole_seconds(wait)), ..error }
    }

    #[must_use]
    pub fn quota_exceeded(max_bytes: u64) -> Self {
        let message = format!("Your files would exceed the {max_bytes} bytes that you may store.");
        Self::of_kind(429, "insufficient_quota", "quota_exceeded", message)
    }
}

/// Rounded up, for `Retry-After`: at least one.
fn whole_seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
