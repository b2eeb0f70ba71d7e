use actix_web::HttpResponse;
use actix_web::web::Data;
use tandem_engine::Priority;

use super::{JsonBody, sse};
use crate::completion::{Completions, Form};
use crate::openai::error::ApiError;

/// `POST /v1/chat/completions`
pub(super) async fn create(completions: Data<Completions>, body: JsonBody) -> Result<HttpResponse, ApiError> {
    let started = completions.start(Form::Chat, &body.0, Priority::Interactive).await?;
    sse::answer(started).await
}
