use actix_web::HttpResponse;
use actix_web::web::{Data, Path};

use crate::models::{ModelCard, Models};
use crate::openai::error::ApiError;
use crate::openai::models::{Model, ModelList};

/// `GET /v1/models`
pub(super) async fn list(models: Data<Models>) -> HttpResponse {
    let data = models.list().into_iter().map(model).collect();
    HttpResponse::Ok().json(ModelList { object: "list", data })
}

/// `GET /v1/models/{id}`
pub(super) async fn show(models: Data<Models>, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let card = models.list().into_iter().find(|card| card.name == *id);
    let card = card.ok_or_else(|| ApiError::model_not_found(&id))?;
    Ok(HttpResponse::Ok().json(model(card)))
}

fn model(card: ModelCard) -> Model {
    let ModelCard { name, created, max_model_len, capabilities, adapters } = card;
    Model { id: name, object: "model", created, owned_by: "tandem", max_model_len, capabilities, adapters }
}
