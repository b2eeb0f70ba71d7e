use actix_web::HttpResponse;
use actix_web::web::Data;

use super::{JsonBody, embeddings};
use crate::access::Caller;
use crate::completion::Completions;
use crate::openai::error::ApiError;

/// `POST /v1/rerank`, and the other URLs that clients have for it.
pub(super) async fn create(
    completions: Data<Completions>,
    caller: Caller,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    Ok(embeddings::respond(&caller, completions.rerank(&body.0, caller.clone()).await?))
}
