use actix_web::HttpResponse;
use actix_web::web::{Data, Path};

use crate::access::Caller;
use crate::models::{ModelCard, Models};
use crate::openai::error::ApiError;
use crate::openai::models::{Model, ModelList};

/// `GET /v1/models`
pub(super) async fn list(models: Data<Models>, caller: Caller) -> HttpResponse {
    let data = allowed(&models, &caller).map(model).collect();
    HttpResponse::Ok().json(ModelList { object: "list", data })
}

/// `GET /v1/models/{id}`
pub(super) async fn show(models: Data<Models>, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let card = allowed(&models, &caller).find(|card| card.name == *id);
    let card = card.ok_or_else(|| ApiError::model_not_found(&id))?;
    Ok(HttpResponse::Ok().json(model(card)))
}

/// Those that there are for whoever asks.
fn allowed(models: &Models, caller: &Caller) -> impl Iterator<Item = ModelCard> {
    models.list().into_iter().filter(|card| caller.models().contain(&card.name))
}

fn model(card: ModelCard) -> Model {
    let ModelCard { name, created, max_model_len, capabilities, adapters } = card;
    Model { id: name, object: "model", created, owned_by: "tandem", max_model_len, capabilities, adapters }
}
