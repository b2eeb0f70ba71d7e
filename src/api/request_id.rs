use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpResponseBuilder};

use crate::completion::random_id;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names a request, in its response and in the log. Found in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

/// Middleware that gives each request an id and each response the same in `x-request-id`.
///
/// # Errors
/// Those of the services within; errors of handlers are responses already.
pub async fn with_request_id<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let id = random_id("req_");
    let header = HeaderValue::from_str(&id);
    request.extensions_mut().insert(RequestId(id));
    let mut response = next.call(request).await?;
    // A client that has named its request finds it by that name.
    if let Ok(header) = header
        && !response.headers().contains_key(REQUEST_ID)
    {
        response.headers_mut().insert(REQUEST_ID, header);
    }
    Ok(response)
}

/// Answers under the name that the client has given its request, if it has.
pub(super) fn name(response: &mut HttpResponseBuilder, request_id: Option<&str>) {
    if let Some(Ok(header)) = request_id.map(HeaderValue::from_str) {
        response.insert_header((REQUEST_ID, header));
    }
}
