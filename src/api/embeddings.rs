use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::Data;

use super::{JsonBody, request_id, sse};
use crate::access::Caller;
use crate::completion::{Answered, Completions};
use crate::openai::error::ApiError;

/// `POST /v1/embeddings`
pub(super) async fn create(
    completions: Data<Completions>,
    caller: Caller,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    Ok(respond(&caller, completions.embed(&body.0, caller.clone()).await?))
}

/// Sends what was computed as a whole, and charges the caller for it.
pub(super) fn respond(caller: &Caller, answered: Answered) -> HttpResponse {
    let Answered { answer, ignored, request_id } = answered;
    caller.charge(answer.usage.total_tokens);
    let mut response = HttpResponse::Ok();
    request_id::name(&mut response, request_id.as_deref());
    let mut response = response.content_type(ContentType::json()).body(answer.body.get().to_owned());
    sse::name_ignored(response.headers_mut(), &ignored);
    response
}
