use super::{ApiError, shortened};

/// What happens on the way.
impl ApiError {
    #[must_use]
    pub fn internal() -> Self {
        Self::server(500, "internal_error", "The server had an error while processing your request.")
    }

    #[must_use]
    pub fn overloaded() -> Self {
        let error = Self::server(503, "overloaded", "The server is overloaded, please retry later.");
        Self { retry_after: Some(1), ..error }
    }

    /// The model is being loaded, or loading it failed.
    #[must_use]
    pub fn model_unavailable(model: &str) -> Self {
        let message = format!("The model `{}` is not available at the moment, please retry later.", shortened(model));
        Self { retry_after: Some(5), ..Self::server(503, "model_unavailable", message) }
    }

    #[must_use]
    pub fn engine_gone() -> Self {
        let error = Self::server(503, "engine_unavailable", "The inference engine has stopped, please retry later.");
        Self { retry_after: Some(5), ..error }
    }

    #[must_use]
    pub fn non_finite_logits() -> Self {
        Self::server(500, "non_finite_logits", "The model produced non-finite logits for this request.")
    }

    #[must_use]
    pub fn non_finite_embedding() -> Self {
        Self::server(500, "non_finite_embedding", "The model produced a non-finite embedding for this request.")
    }

    #[must_use]
    pub fn non_finite_score() -> Self {
        Self::server(500, "non_finite_score", "The model produced a non-finite score for this request.")
    }

    #[must_use]
    pub fn no_token_left() -> Self {
        let message = "Invalid request: 'logit_bias', 'allowed_token_ids' and 'bad_words' leave no token to sample.";
        Self::request(400, "invalid_value", None, message)
    }

    #[must_use]
    pub fn grammar_dead_end() -> Self {
        let message = "The output ran into a dead end of the grammar or schema that it has to follow.";
        Self::server(500, "grammar_dead_end", message)
    }

    /// A batch's files were deleted or have expired.
    #[must_use]
    pub fn results_gone() -> Self {
        Self::request(404, "results_gone", None, "The results of this batch are no longer stored.")
    }

    #[must_use]
    pub fn file_expired() -> Self {
        Self::request(404, "file_expired", Some("id".to_owned()), "This file has expired and is no longer stored.")
    }

    #[must_use]
    pub fn stopping() -> Self {
        let error = Self::server(503, "server_stopping", "The server is stopping, please reconnect later.");
        Self { retry_after: Some(5), ..error }
    }

    #[must_use]
    pub fn generation_timeout(seconds: u64) -> Self {
        Self::request(408, "request_timeout", None, format!("The request was not answered within {seconds} seconds."))
    }

    #[must_use]
    pub fn body_timeout() -> Self {
        Self::request(408, "request_timeout", None, "Request body was not received in time.")
    }

    #[must_use]
    pub fn unreadable_body() -> Self {
        Self::request(400, "invalid_body", None, "The request body could not be read.")
    }

    #[must_use]
    pub fn body_too_large(max_bytes: usize) -> Self {
        Self::request(413, "request_too_large", None, format!("Request body exceeds {max_bytes} bytes."))
    }

    #[must_use]
    pub fn too_many_pieces(max: usize) -> Self {
        let message = format!("Request body comes in more than {max} small pieces.");
        Self::request(413, "request_too_large", None, message)
    }

    #[must_use]
    pub fn unsupported_media_type() -> Self {
        Self::request(415, "unsupported_media_type", None, "Expected application/json.")
    }

    #[must_use]
    pub fn unsupported_content_encoding() -> Self {
        Self::request(415, "unsupported_content_encoding", None, "Compressed request bodies are not supported.")
    }

    #[must_use]
    pub fn unreadable_query() -> Self {
        Self::request(400, "invalid_query", None, "The query of the URL could not be read, or names a parameter twice.")
    }

    #[must_use]
    pub fn range_not_satisfiable(bytes: u64) -> Self {
        let message = format!("The range lies outside of the file, which has {bytes} bytes.");
        Self::request(416, "range_not_satisfiable", None, message)
    }

    #[must_use]
    pub fn unknown_url(method: &str, path: &str) -> Self {
        let path: String = path.escape_default().take(200).collect();
        Self::request(404, "unknown_url", None, format!("Unknown request URL: {method} {path}."))
    }

    #[must_use]
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let path: String = path.escape_default().take(200).collect();
        Self::request(405, "method_not_allowed", None, format!("Method not allowed: {method} {path}."))
    }
}
