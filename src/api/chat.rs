use actix_web::HttpResponse;
use actix_web::web::Data;

use super::{JsonBody, sse};
use crate::access::Caller;
use crate::completion::{Completions, Form};
use crate::openai::error::ApiError;

/// `POST /v1/chat/completions`
pub(super) async fn create(
    completions: Data<Completions>,
    caller: Caller,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    let started = completions.start(Form::Chat, &body.0, caller).await?;
    sse::answer(started).await
}
