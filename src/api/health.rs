use actix_web::HttpResponse;
use actix_web::web::Data;
use schemars::JsonSchema;
use serde::Serialize;

use crate::models::Models;
use crate::openai::error::ApiError;

/// Whether the server works.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Status {
    #[schemars(extend("const" = "ok"))]
    status: &'static str,
}

/// Which Tandem answers.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Version {
    version: &'static str,
}

/// `GET /health/live`: the process answers.
pub(super) async fn live() -> HttpResponse {
    HttpResponse::Ok().json(Status { status: "ok" })
}

/// `GET /health`, `GET /health/ready`: requests to every model would be served.
pub(super) async fn ready(models: Data<Models>) -> Result<HttpResponse, ApiError> {
    if models.all_usable() {
        Ok(HttpResponse::Ok().json(Status { status: "ok" }))
    } else {
        Err(ApiError::engine_gone())
    }
}

/// `GET /version`
pub(super) async fn version() -> HttpResponse {
    HttpResponse::Ok().json(Version { version: env!("CARGO_PKG_VERSION") })
}
