use actix_web::HttpResponse;
use actix_web::web::Data;

use super::JsonBody;
use crate::access::Caller;
use crate::completion::Completions;
use crate::openai::error::ApiError;

/// `POST /tokenize`
pub(super) async fn tokenize(
    completions: Data<Completions>,
    caller: Caller,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(completions.tokenize(&body.0, caller.models()).await?))
}

/// `POST /detokenize`
pub(super) async fn detokenize(
    completions: Data<Completions>,
    caller: Caller,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(completions.detokenize(&body.0, caller.models()).await?))
}
