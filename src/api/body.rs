use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::web::{Bytes, BytesMut};
use actix_web::{FromRequest, HttpRequest};
use futures_util::StreamExt;

use super::guard;
use crate::openai::error::ApiError;

/// The largest body of a request that is JSON.
pub const MAX_JSON_BYTES: usize = 10 << 20;
/// A body has to arrive within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The bytes of a body that claims to be JSON, read up to [`MAX_JSON_BYTES`]. Whether it is JSON is for the reader of requests to say.
#[derive(Debug)]
pub struct JsonBody(pub Bytes);

impl FromRequest for JsonBody {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let acceptable = check_headers(request);
        let payload = payload.take();
        Box::pin(async move {
            acceptable?;
            let body = tokio::time::timeout(BODY_TIMEOUT, read(payload)).await;
            body.unwrap_or_else(|_| Err(ApiError::body_timeout())).map(Self)
        })
    }
}

fn check_headers(request: &HttpRequest) -> Result<(), ApiError> {
    not_compressed(request)?;
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default().trim());
    let is_json = |value: &str| {
        let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
    };
    if header(CONTENT_TYPE).is_some_and(|value| !is_json(value)) {
        return Err(ApiError::unsupported_media_type());
    }
    let length = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_JSON_BYTES as u64) {
        return Err(ApiError::body_too_large(MAX_JSON_BYTES));
    }
    Ok(())
}

/// What a small body unpacks to has no bounds.
pub(super) fn not_compressed(request: &HttpRequest) -> Result<(), ApiError> {
    let encoding = request.headers().get(CONTENT_ENCODING).map(|value| value.to_str().unwrap_or_default().trim());
    match encoding {
        Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => Err(ApiError::unsupported_content_encoding()),
        _ => Ok(()),
    }
}

async fn read(mut payload: Payload) -> Result<Bytes, ApiError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| {
            if let PayloadError::Io(error) = &error
                && let Some(refused) = guard::refusal(error)
            {
                return refused;
            }
            tracing::debug!(%error, "a request body broke off");
            ApiError::unreadable_body()
        })?;
        if body.len() + chunk.len() > MAX_JSON_BYTES {
            return Err(ApiError::body_too_large(MAX_JSON_BYTES));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
