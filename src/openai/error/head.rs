use super::ApiError;

/// The head of a request.
impl ApiError {
    #[must_use]
    pub fn head_too_large(max_bytes: usize) -> Self {
        let message = format!("Request header block exceeds {max_bytes} bytes.");
        Self::request(431, "request_header_fields_too_large", None, message)
    }

    #[must_use]
    pub fn too_many_headers(max: usize) -> Self {
        let message = format!("Request has more than {max} header fields.");
        Self::request(431, "request_header_fields_too_large", None, message)
    }

    /// It came too slowly.
    #[must_use]
    pub fn head_timeout() -> Self {
        Self::request(408, "request_timeout", None, "Request head was not received in time.")
    }

    /// No HTTP/1.1, or something that could be read in two ways.
    #[must_use]
    pub fn malformed_request() -> Self {
        Self::request(400, "malformed_request", None, "The request could not be read as HTTP/1.1.")
    }

    #[must_use]
    pub fn uri_too_long(max_bytes: usize) -> Self {
        Self::request(414, "uri_too_long", None, format!("Request URI exceeds {max_bytes} bytes."))
    }
}
