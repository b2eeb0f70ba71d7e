//! The document of everything that is served, `/openapi.json`, and a page that shows it, `/docs`.
//!
//! A route is an entry of [`operations`], a field of a request a line of [`requests`]; responses are described by the wire types
//! themselves. Tests compare each of them with what the server does.

mod messages;
mod operation;
mod operations;
mod requests;
mod submissions;
#[cfg(test)]
pub(super) mod tests;

use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::Method;
use actix_web::http::header::{CONTENT_SECURITY_POLICY, ContentType};
use actix_web::web::{self, Bytes, ServiceConfig};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Rule, resource};
use crate::openai::batches::OutputRecord;
use crate::openai::error::ErrorEnvelope;
use operation::{Operation, RATE_LIMITS, Schemas, headers};
use operations::{OPERATIONS, TAGS};
use submissions::BatchInputLine;

const VIEWER: &str = include_str!("viewer.html");
/// Statuses of errors, with what they mean here.
const ERRORS: [(u16, &str); 16] = [
    (400, "The request is wrong; `param` names what."),
    (401, "An API key is missing, unknown, expired or revoked."),
    (403, "The API key does not allow this, or the request comes from a host or page that is not allowed."),
    (404, "There is no such thing."),
    (405, "The URL does not have this method; `Allow` tells which it has."),
    (408, "The request did not arrive, or was not answered, in time."),
    (409, "It cannot be done in the state that things are in."),
    (413, "The request is too large."),
    (414, "The URL is too long."),
    (415, "The body is neither JSON nor uncompressed."),
    (416, "The range lies outside of the file."),
    (429, "Too many requests, tokens or unfinished batches; try again after `Retry-After`."),
    (431, "The headers are too large."),
    (500, "The server failed."),
    (503, "The model is not ready, or the server is overloaded or stopping; try again after `Retry-After`."),
    (507, "The server's storage is full."),
];

const ABOUT: &str = "Batch LLM inference by OpenAI's API. A field or a parameter of the URL that nothing here knows is named in the response header \
                     `X-Tandem-Ignored-Params`; one that would change the answer and is not done is refused by its name.\n\n\
                     Every error is an `Error`. Beside those that operations list: a URL that is not served is a 404 \
                     (`unknown_url`), and a method that a URL does not have a 405 (`method_not_allowed`).";

pub(super) fn routes(cfg: &mut ServiceConfig) {
    // The page is the same everywhere, and a browser has no key to send for it; the document tells the version, as `/version` does.
    cfg.service(resource("/openapi.json", &[Method::GET], Rule::AnyKey).route(web::get().to(document)))
        .service(resource("/docs", &[Method::GET], Rule::Open).route(web::get().to(viewer)));
}

/// The parameters that a route reads from its URL, by its pattern.
pub(super) fn query_names(method: &Method, pattern: &str) -> &'static [&'static str] {
    let is_asked = |one: &&Operation| one.path == pattern && method.as_str().eq_ignore_ascii_case(one.method);
    OPERATIONS.iter().find(is_asked).and_then(|one| one.query).map_or(&[], |(_, names)| names)
}

/// `GET /openapi.json`
async fn document() -> HttpResponse {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| describe().to_string().into());
    HttpResponse::Ok().content_type(ContentType::json()).body(DOCUMENT.clone())
}

/// `GET /docs`
async fn viewer() -> HttpResponse {
    static POLICY: LazyLock<String> = LazyLock::new(viewer_policy);
    let policy = (CONTENT_SECURITY_POLICY, POLICY.as_str());
    HttpResponse::Ok().content_type(ContentType::html()).insert_header(policy).body(VIEWER)
}

/// The page has all it needs in it but the document. Nothing else is run or loaded, from here or elsewhere.
fn viewer_policy() -> String {
    let hash_of = |tag: &str| {
        let inside = VIEWER.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        BASE64_STANDARD.encode(Sha256::digest(inside.map_or("", |(text, _)| text)))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style")
    )
}

/// The document.
fn describe() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for operation in OPERATIONS {
        let described = operation.describe(&mut schemas);
        paths.entry(operation.path).or_insert_with(|| json!({}))[operation.method] = described;
    }
    let error = schemas.response::<ErrorEnvelope<'_>>();
    // Lines of files, which no operation names.
    schemas.request::<BatchInputLine>();
    schemas.response::<OutputRecord<'_>>();
    let tags = TAGS.map(|(name, description)| json!({ "name": name, "description": description }));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tandem",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        // A key is sent where the server asks for keys.
        "security": [{}, { "apiKey": [] }],
        "tags": tags,
        "paths": paths,
        "components": {
            "securitySchemes": { "apiKey": { "type": "http", "scheme": "bearer" } },
            "headers": {
                "WWW-Authenticate": header("How to say who asks: `Bearer`."),
                "X-Should-Retry": header("`true` or `false`, where it is known whether trying again helps."),
                "X-RateLimit-Limit-Requests": header("What the API key may ask in a minute, if that is limited."),
                "X-RateLimit-Remaining-Requests": header("What is left of it."),
                "X-RateLimit-Reset-Requests": header("When all of it is there again, as `6m0s`."),
                "X-RateLimit-Limit-Tokens": header("Tokens that the API key may use in a minute, if they are limited."),
                "X-RateLimit-Remaining-Tokens": header("What is left of them."),
                "X-RateLimit-Reset-Tokens": header("When all of them are there again, as `6m0s`."),
                "X-Incomplete": header("Of a page: whether there are more finished lines, or will be."),
                "X-Last-Line": header("Of a page: what the next one comes `after`, also when this one is empty."),
                "X-Request-Id": header("Names the request, here and in the server's log."),
                "X-Tandem-Ignored-Params": header("Fields and parameters of the request that nothing here knows."),
                "Retry-After": header("Seconds after which trying again makes sense."),
            },
            "responses": errors(&error),
            "schemas": schemas.into_components(),
        },
    })
}

fn header(description: &str) -> Value {
    json!({ "description": description, "schema": {"type": "string"} })
}

fn errors(schema: &Value) -> Map<String, Value> {
    let described = ERRORS.map(|(status, description)| {
        let names: Vec<&str> = match status {
            401 => vec!["X-Request-Id", "WWW-Authenticate", "X-Should-Retry"],
            429 => ["X-Request-Id", "Retry-After", "X-Should-Retry"].into_iter().chain(RATE_LIMITS).collect(),
            503 | 507 => vec!["X-Request-Id", "Retry-After"],
            _ => vec!["X-Request-Id"],
        };
        let content = json!({ "application/json": { "schema": schema } });
        let response = json!({ "description": description, "headers": headers(&names), "content": content });
        (status.to_string(), response)
    });
    described.into_iter().collect()
}
