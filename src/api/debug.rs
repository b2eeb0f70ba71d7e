use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::Data;

use crate::models::Models;

/// `GET /debug/engine`: what runs and what waits, a section for each model.
pub(super) async fn engine(models: Data<Models>) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body(models.describe().await)
}
