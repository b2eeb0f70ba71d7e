use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};

use crate::openai::error::ApiError;

/// OpenAI's clients retry some client errors on their own, unless this says "false".
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Client errors that may pass when tried again: a time-out, too many requests.
const PASSING: [u16; 2] = [408, 429];

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code()).json(self.envelope());
        let headers = response.headers_mut();
        // A quota does not pass by waiting.
        let passes = PASSING.contains(&self.status) && self.body.code != Some("quota_exceeded");
        if (400..500).contains(&self.status) && !passes {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        } else if self.status == 429 {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
        }
        if self.status == 401 {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
