use std::fmt;
use std::panic::AssertUnwindSafe;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpResponse, HttpResponseBuilder, ResponseError};
use futures_util::FutureExt as _;

use crate::completion::random_id;
use crate::openai::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names a request, in its response and in the log. Found in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

/// A handler that panicked, as its client is told of it: with the request's id, by which the panic is found in the log.
#[derive(Debug)]
struct Panicked(String);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the handler of request {} panicked", self.0)
    }
}

impl ResponseError for Panicked {
    fn status_code(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = ApiError::internal().error_response();
        let headers = response.headers_mut();
        // No other middleware sees it.
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(&self.0) {
            headers.insert(REQUEST_ID, id);
        }
        response
    }
}

/// Middleware that gives each request an id and each response the same in `x-request-id`. A panic is its request's alone.
///
/// # Errors
/// Those of the services within, and panics; errors of handlers are responses already.
pub async fn with_request_id<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let id = random_id("req_");
    let header = HeaderValue::from_str(&id);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = match AssertUnwindSafe(next.call(request)).catch_unwind().await {
        Ok(response) => response?,
        Err(_) => {
            tracing::error!(request.id = %id, "a handler panicked");
            return Err(Panicked(id).into());
        }
    };
    // A client that has named its request finds it by that name.
    if let Ok(header) = header
        && !response.headers().contains_key(REQUEST_ID)
    {
        response.headers_mut().insert(REQUEST_ID, header);
    }
    Ok(response)
}

/// Gives a response an id of its own, where no request came to be.
pub(super) fn name_anew(headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::from_str(&random_id("req_")) {
        headers.insert(REQUEST_ID, id);
    }
}

/// Answers under the name that the client has given its request, if it has.
pub(super) fn name(response: &mut HttpResponseBuilder, request_id: Option<&str>) {
    if let Some(Ok(header)) = request_id.map(HeaderValue::from_str) {
        response.insert_header((REQUEST_ID, header));
    }
}
