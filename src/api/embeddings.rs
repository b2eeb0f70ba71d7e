use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::Data;
use tandem_engine::Priority;

use super::{JsonBody, sse};
use crate::access::Caller;
use crate::completion::{Completions, Embedded};
use crate::openai::error::ApiError;

/// `POST /v1/embeddings`
pub(super) async fn create(
    completions: Data<Completions>,
    caller: Caller,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    let Embedded { answer, ignored } = completions.embed(&body.0, Priority::Interactive).await?;
    caller.charge(answer.usage.total_tokens);
    let mut response = HttpResponse::Ok();
    sse::name_ignored(&mut response, &ignored);
    Ok(response.content_type(ContentType::json()).body(answer.body.get().to_owned()))
}
