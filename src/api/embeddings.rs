use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::Data;
use tandem_engine::Priority;

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
    let Answered { answer, ignored, request_id } = completions.embed(&body.0, Priority::Interactive).await?;
    caller.charge(answer.usage.total_tokens);
    let mut response = HttpResponse::Ok();
    sse::name_ignored(&mut response, &ignored);
    request_id::name(&mut response, request_id.as_deref());
    Ok(response.content_type(ContentType::json()).body(answer.body.get().to_owned()))
}
