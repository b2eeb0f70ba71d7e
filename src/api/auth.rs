//! Who may use a route. Each resource has its rule with it, so that there is none without.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, ResponseError};
use tandem_engine::Priority;

use super::listing::store_error;
use super::{query, sse};
use crate::access::{Access, Caller, RateLimit, Running, Scope};
use crate::completion::{Asker, Meter};
use crate::failpoint::request_begun;
use crate::openai::error::ApiError;
use crate::store::Tenant;

/// Whom a resource is for.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Everyone, with or without a key, as often as they like.
    Open,
    AnyKey,
    Scope(Scope),
    /// `read` for `GET`, `write` for everything else.
    ReadWrite {
        read: Scope,
        write: Scope,
    },
}

impl Rule {
    fn scope(self, method: &Method) -> Option<Scope> {
        match self {
            Self::Open | Self::AnyKey => None,
            Self::Scope(scope) => Some(scope),
            Self::ReadWrite { read, write } => Some(if method == Method::GET { read } else { write }),
        }
    }
}

/// Middleware of a resource: asks for a key with the scope that the rule wants, and holds it to its limits.
pub(super) async fn authorize<B: MessageBody + 'static>(
    rule: Rule,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if matches!(rule, Rule::Open) {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let caller = match identify(&request).await {
        Ok(caller) => caller,
        Err(error) => return Ok(refuse(request, &error)),
    };
    let scope = rule.scope(request.method());
    if let Some(missing) = scope.filter(|scope| !caller.may(*scope)) {
        return Ok(refuse(request, &ApiError::insufficient_scope(missing.name())));
    }
    let running = match caller.begin(scope == Some(Scope::Inference)) {
        Ok(running) => running,
        Err(error) => {
            let mut response = refuse(request, &error);
            tell_limits(response.headers_mut(), &caller.rate_limits());
            return Ok(response);
        }
    };
    let unknown = match query::unknown(&request) {
        Ok(unknown) => unknown,
        Err(error) => return Ok(refuse(request, &error)),
    };
    request_begun();
    request.extensions_mut().insert(caller.clone());
    let mut response = next.call(request).await?.map_into_boxed_body();
    sse::name_ignored(response.headers_mut(), &unknown);
    tell_limits(response.headers_mut(), &caller.rate_limits());
    Ok(if running.counts() {
        response.map_body(|_, body| BoxBody::new(Held { body, _running: running }))
    } else {
        response
    })
}

async fn identify(request: &ServiceRequest) -> Result<Caller, ApiError> {
    let Some(access) = request.app_data::<Data<Access>>() else {
        tracing::error!("a resource is served by an app that has no rules of access");
        return Err(ApiError::internal());
    };
    let keys: Vec<&[u8]> = request.headers().get_all(AUTHORIZATION).map(HeaderValue::as_bytes).collect();
    access.caller(&keys, request.peer_addr().map(|address| address.ip()), store_error).await
}

fn refuse(request: ServiceRequest, error: &ApiError) -> ServiceResponse<BoxBody> {
    request.into_response(error.error_response())
}

/// As OpenAI's clients read them.
fn tell_limits(headers: &mut HeaderMap, limits: &[RateLimit]) {
    for RateLimit { of, limit, remaining, reset } in limits {
        let mut tell = |what: &str, value: String| {
            let name = HeaderName::try_from(format!("x-ratelimit-{what}-{of}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        };
        tell("limit", limit.to_string());
        tell("remaining", remaining.to_string());
        tell("reset", duration(reset.as_millis()));
    }
}

/// `120ms`, `7s`, `6m0s`.
fn duration(millis: u128) -> String {
    match millis.div_ceil(1000) {
        _ if millis < 1000 => format!("{millis}ms"),
        seconds @ ..60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

/// A response whose request runs until it is told or given up.
struct Held {
    body: BoxBody,
    _running: Running,
}

impl MessageBody for Held {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

/// What the middleware has found out; without it there is nobody to answer.
fn found(request: &HttpRequest) -> Result<Caller, ApiError> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| {
        tracing::error!(path = request.path(), "a handler wants to know who asks, and nobody has looked");
        ApiError::internal()
    })
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(found(request))
    }
}

impl FromRequest for Tenant {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(found(request).map(|caller| caller.tenant().clone()))
    }
}

impl Meter for Caller {
    fn spend(&self, tokens: u64) {
        self.charge(tokens);
    }
}

impl From<Caller> for Asker {
    fn from(caller: Caller) -> Self {
        let (priority, cache_salt) = (Priority::Interactive, caller.tenant().cache_salt());
        let models = caller.models().clone();
        let meter: Option<Arc<dyn Meter>> = if caller.is_metered() { Some(Arc::new(caller)) } else { None };
        Self { priority, cache_salt, models, meter }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        for (millis, text) in
            [(0, "0ms"), (120, "120ms"), (1000, "1s"), (6500, "7s"), (60_000, "1m0s"), (125_000, "2m5s")]
        {
            assert_eq!(duration(millis), text);
        }
    }
}
