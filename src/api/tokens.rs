use actix_web::HttpResponse;
use actix_web::web::Data;

use super::JsonBody;
use crate::completion::Completions;
use crate::openai::error::ApiError;

/// `POST /tokenize`
pub(super) async fn tokenize(completions: Data<Completions>, body: JsonBody) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(completions.tokenize(&body.0).await?))
}

/// `POST /detokenize`
pub(super) async fn detokenize(completions: Data<Completions>, body: JsonBody) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(completions.detokenize(&body.0).await?))
}
