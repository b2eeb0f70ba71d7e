//! The HTTP surface: one file per resource, and this table of what is served where.

pub mod batches;
mod body;
mod chat;
mod completions;
mod debug;
mod embeddings;
mod error;
pub mod files;
mod health;
mod listing;
mod models;
mod openapi;
mod request_id;
mod sse;
mod tokens;

use actix_web::http::Method;
use actix_web::web::{self, PathConfig, QueryConfig, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, Resource, ResponseError as _};

use crate::openai::error::ApiError;

pub use body::{JsonBody, MAX_JSON_BYTES};
pub use files::UploadLimits;
pub use request_id::{RequestId, with_request_id};

/// Everything that is served. The app around it wraps [`with_request_id`] and shares `Completions`,
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
        .service(resource("/v1/chat/completions", &[Method::POST]).route(web::post().to(chat::create)))
        .service(resource("/v1/completions", &[Method::POST]).route(web::post().to(completions::create)))
        .service(resource("/v1/embeddings", &[Method::POST]).route(web::post().to(embeddings::create)))
        .service(resource("/v1/models", &[Method::GET]).route(web::get().to(models::list)))
        .service(resource("/v1/models/{id:.+}", &[Method::GET]).route(web::get().to(models::show)))
        .service(resource("/tokenize", &[Method::POST]).route(web::post().to(tokens::tokenize)))
        .service(resource("/detokenize", &[Method::POST]).route(web::post().to(tokens::detokenize)))
        .service(resource("/health", &[Method::GET]).route(web::get().to(health::ready)))
        .service(resource("/health/live", &[Method::GET]).route(web::get().to(health::live)))
        .service(resource("/health/ready", &[Method::GET]).route(web::get().to(health::ready)))
        .service(resource("/version", &[Method::GET]).route(web::get().to(health::version)))
        .default_service(web::to(unknown_url));
}

/// What is served to developers beside [`routes`], where the settings allow it.
pub fn debug_routes(cfg: &mut ServiceConfig) {
    cfg.service(resource("/debug/engine", &[Method::GET]).route(web::get().to(debug::engine)));
}

/// A resource that answers other methods than its own with 405 and the list of its own.
pub(crate) fn resource(path: &str, methods: &'static [Method]) -> Resource {
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
    web::resource(path.to_owned()).default_service(web::to(refuse))
}

async fn unknown_url(request: HttpRequest) -> HttpResponse {
    ApiError::unknown_url(request.method().as_str(), request.path()).error_response()
}
