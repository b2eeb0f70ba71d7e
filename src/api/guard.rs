//! What is checked of every request before it reaches a resource: the size of its head, the host and the origin that it names, and how its
//! body comes in.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, HOST, HeaderMap, HeaderValue, ORIGIN,
    VARY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{ConnectionType, Method};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, HttpMessage, HttpResponse, ResponseError};
use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection::Serving;
use crate::openai::error::ApiError;

pub(super) const HEAD_BYTES_MAX: usize = 16 << 10;
pub(super) const HEADERS_MAX: usize = 64;
pub(super) const URI_BYTES_MAX: usize = 8 << 10;
/// A body has to bring this much in each [`Guard::body_timeout`].
const BODY_BYTES_MIN: usize = 1024;
/// Pieces of a body that are smaller than [`SMALL_PIECE`]; whoever sends more does it to cost time.
const SMALL_PIECES_MAX: usize = 100_000;
const SMALL_PIECE: usize = 64;

/// What requests may look like from outside.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Names that the server goes by, in lower case, beside `localhost` and every IP address.
    pub hosts: Arc<[String]>,
    /// Origins of web pages that may use the server, as browsers write them.
    pub origins: Arc<[String]>,
    /// In which a body has to bring a KiB.
    pub body_timeout: Duration,
    /// Refuse parameters of a URL that are not known, instead of naming them in the response.
    pub strict_params: bool,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            hosts: Arc::default(),
            origins: Arc::default(),
            body_timeout: Duration::from_secs(30),
            strict_params: false,
        }
    }
}

/// Middleware around everything that is served.
///
/// # Errors
/// Those of the services within; errors of handlers are responses already.
pub async fn with_guard<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let _served = request.conn_data::<Serving>().map(Serving::begin);
    let guard = request.app_data::<Data<Guard>>().map(|guard| guard.get_ref().clone()).unwrap_or_default();
    let origin = request.headers().get(ORIGIN).filter(|origin| guard.allows_origin(origin)).cloned();
    let mut response = match guard.check(&request) {
        Err(error) => {
            let mut response = error.error_response();
            // What else is on the connection is of the same kind.
            response.head_mut().set_connection_type(ConnectionType::Close);
            request.into_response(response)
        }
        Ok(()) if is_preflight(&request) => {
            let preflight = preflight(origin.is_some());
            request.into_response(preflight)
        }
        Ok(()) => {
            let body = Paced::new(request.take_payload(), guard.body_timeout);
            request.set_payload(Payload::Stream { payload: Box::pin(body) });
            next.call(request).await?.map_into_boxed_body()
        }
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
        headers.insert(VARY, HeaderValue::from_static("origin"));
    }
    Ok(response)
}

impl Guard {
    fn check(&self, request: &ServiceRequest) -> Result<(), ApiError> {
        let (headers, uri) = (request.headers(), request.uri());
        if uri.path_and_query().map_or(0, |path| path.as_str().len()) > URI_BYTES_MAX {
            return Err(ApiError::uri_too_long(URI_BYTES_MAX));
        }
        if headers.len() > HEADERS_MAX {
            return Err(ApiError::too_many_headers(HEADERS_MAX));
        }
        if size(headers) > HEAD_BYTES_MAX {
            return Err(ApiError::head_too_large(HEAD_BYTES_MAX));
        }
        let authority = uri.authority().map(|authority| authority.as_str());
        let host = headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
        if authority.into_iter().chain(host).any(|host| !self.answers_to(host)) {
            return Err(ApiError::host_not_allowed());
        }
        match headers.get(ORIGIN) {
            Some(origin) if !self.allows_origin(origin) && !is_same(origin, host) => {
                Err(ApiError::origin_not_allowed())
            }
            _ => Ok(()),
        }
    }

    /// A page elsewhere can have a name of its own point here (DNS rebinding), but no address: those are all as good as ours.
    fn answers_to(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return address.parse::<std::net::Ipv6Addr>().is_ok();
        }
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<std::net::Ipv4Addr>().is_ok()
            || self.hosts.contains(&name)
    }

    fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())
    }
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

/// Whether a page comes from this very server.
fn is_same(origin: &HeaderValue, host: Option<&str>) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some() && authority == host
}

fn is_preflight(request: &ServiceRequest) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(allowed: bool) -> HttpResponse {
    if !allowed {
        return ApiError::origin_not_allowed().error_response();
    }
    // Not `*`: browsers leave Authorization out of it.
    let names = "authorization, content-type, idempotency-key, x-stainless-arch, x-stainless-lang, x-stainless-os, \
                 x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, \
                 x-stainless-timeout, x-stainless-helper-method, openai-organization, openai-project, user-agent";
    HttpResponse::NoContent()
        .insert_header((ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"))
        .insert_header((ACCESS_CONTROL_ALLOW_HEADERS, names))
        .finish()
}

/// Why a body was not read to its end, inside the error that carries it through the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the body comes too slowly")]
    Slow,
    #[error("the body comes in too many pieces")]
    Crumbs,
}

/// What a reader of a body answers with, if the guard has stopped it.
pub(super) fn refusal(error: &std::io::Error) -> Option<ApiError> {
    match error.get_ref()?.downcast_ref::<Refusal>()? {
        Refusal::Slow => Some(ApiError::body_timeout()),
        Refusal::Crumbs => Some(ApiError::too_many_pieces(SMALL_PIECES_MAX)),
    }
}

/// A body that has to keep coming.
struct Paced {
    body: Payload,
    timeout: Duration,
    /// Set when the reader first waits.
    due: Option<Pin<Box<Sleep>>>,
    /// Since the timer was set.
    received: usize,
    small: usize,
}

impl Paced {
    fn new(body: Payload, timeout: Duration) -> Self {
        Self { body, timeout, due: None, received: 0, small: 0 }
    }
}

impl Stream for Paced {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let stop = |refusal| Poll::Ready(Some(Err(PayloadError::Io(std::io::Error::other(refusal)))));
        if let Poll::Ready(next) = Pin::new(&mut this.body).poll_next(cx) {
            if let Some(Ok(piece)) = &next {
                this.received += piece.len();
                this.small += usize::from(piece.len() < SMALL_PIECE);
                if this.small > SMALL_PIECES_MAX {
                    return stop(Refusal::Crumbs);
                }
                if this.received >= BODY_BYTES_MIN {
                    (this.received, this.due) = (0, None);
                }
            }
            return Poll::Ready(next);
        }
        let timeout = this.timeout;
        let due = this.due.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + timeout)));
        match due.as_mut().poll(cx) {
            Poll::Ready(()) => stop(Refusal::Slow),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_answered_to() {
        let guard = Guard { hosts: Arc::from(["gpu.example".to_owned()]), ..Guard::default() };
        for host in [
            "localhost",
            "LOCALHOST:8000",
            "a.localhost",
            "127.0.0.1:8000",
            "192.0.2.7",
            "[::1]:8000",
            "[::1]",
            "gpu.example:1",
            "gpu.example.",
        ] {
            assert!(guard.answers_to(host), "{host}");
        }
        for host in [
            "evil.example",
            "gpu.example.evil.example",
            "localhost.evil.example",
            "",
            "[evil]",
            "127.0.0.1.evil.example:80",
        ] {
            assert!(!guard.answers_to(host), "{host}");
        }
    }
}
