//! The HTTP surface: one file per resource, and this table of what is served where.

mod auth;
pub mod batches;
mod body;
mod chat;
mod completions;
mod connection;
mod debug;
mod embeddings;
mod error;
pub mod files;
mod guard;
mod health;
mod listing;
mod models;
mod openapi;
mod query;
mod repetition;
mod request_id;
mod rerank;
mod sse;
mod tokens;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::web::{self, PathConfig, QueryConfig, ServiceConfig};
use actix_web::{Error, HttpRequest, HttpResponse, Resource, ResponseError as _};

use crate::access::Scope;
use crate::openai::error::ApiError;

pub use auth::Rule;
pub use body::{JsonBody, MAX_JSON_BYTES};
pub use connection::{Connections, serve};
pub use files::UploadLimits;
pub use guard::{Guard, with_guard};
pub use request_id::{RequestId, with_request_id};

/// Everything that is served. The app around it wraps [`with_request_id`] and [`with_guard`], and shares `Access`, `Completions`,
/// `Models`, `Store`, `Batches` and `UploadLimits` as data.
pub fn routes(cfg: &mut ServiceConfig) {
    let query = QueryConfig::default().error_handler(|_, _| ApiError::unreadable_query().into());
    let path = PathConfig::default()
        .error_handler(|_, request| ApiError::unknown_url(request.method().as_str(), request.path()).into());
    cfg.app_data(query)
        .app_data(path)
        .configure(files::routes)
        .configure(batches::routes)
        .configure(openapi::routes)
        .service(resource("/v1/chat/completions", &[Method::POST], INFERENCE).route(web::post().to(chat::create)))
        .service(resource("/v1/completions", &[Method::POST], INFERENCE).route(web::post().to(completions::create)))
        .service(resource("/v1/embeddings", &[Method::POST], INFERENCE).route(web::post().to(embeddings::create)))
        .service(resource("/v1/rerank", &[Method::POST], INFERENCE).route(web::post().to(rerank::create)))
        .service(resource("/v2/rerank", &[Method::POST], INFERENCE).route(web::post().to(rerank::create)))
        .service(resource("/rerank", &[Method::POST], INFERENCE).route(web::post().to(rerank::create)))
        .service(resource("/v1/models", &[Method::GET], Rule::AnyKey).route(web::get().to(models::list)))
        .service(resource("/v1/models/{id:.+}", &[Method::GET], Rule::AnyKey).route(web::get().to(models::show)))
        .service(resource("/tokenize", &[Method::POST], INFERENCE).route(web::post().to(tokens::tokenize)))
        .service(resource("/detokenize", &[Method::POST], INFERENCE).route(web::post().to(tokens::detokenize)))
        .service(resource("/health", &[Method::GET], Rule::Open).route(web::get().to(health::ready)))
        .service(resource("/health/live", &[Method::GET], Rule::Open).route(web::get().to(health::live)))
        .service(resource("/health/ready", &[Method::GET], Rule::Open).route(web::get().to(health::ready)))
        .service(resource("/version", &[Method::GET], Rule::AnyKey).route(web::get().to(health::version)))
        .default_service(web::to(unknown_url));
}

/// What is served to developers beside [`routes`], where the settings allow it.
pub fn debug_routes(cfg: &mut ServiceConfig) {
    cfg.service(
        resource("/debug/engine", &[Method::GET], Rule::Scope(Scope::Admin)).route(web::get().to(debug::engine)),
    );
}

const INFERENCE: Rule = Rule::Scope(Scope::Inference);

/// A resource that answers other methods than its own with 405 and the list of its own, and nobody whom its rule does not allow.
pub(crate) fn resource(
    path: &str,
    methods: &'static [Method],
    rule: Rule,
) -> Resource<
    impl ServiceFactory<ServiceRequest, Config = (), Response = ServiceResponse<BoxBody>, Error = Error, InitError = ()>,
> {
    #[cfg(test)]
    openapi::tests::served(path, methods);
    let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let refuse = move |request: HttpRequest| {
        let error = ApiError::method_not_allowed(request.method().as_str(), request.path());
        let mut response = error.error_response();
        if let Ok(allow) = allow.parse() {
            response.headers_mut().insert(actix_web::http::header::ALLOW, allow);
        }
        std::future::ready(response)
    };
    web::resource(path.to_owned())
        .default_service(web::to(refuse))
        .wrap(from_fn(move |request, next| auth::authorize(rule, request, next)))
}

async fn unknown_url(request: HttpRequest) -> HttpResponse {
    ApiError::unknown_url(request.method().as_str(), request.path()).error_response()
}
