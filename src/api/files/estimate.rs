use actix_web::web::{Data, Json, Path, Query};
use schemars::JsonSchema;
use serde::Deserialize;

use super::not_found;
use crate::access::Caller;
use crate::batch::{Batches, Estimate, EstimateError, EstimateOrder, ModelEstimate};
use crate::openai::Endpoint;
use crate::openai::batches::BatchErrors;
use crate::openai::error::ApiError;
use crate::openai::files::{EstimateObject, EstimateOfModel};

#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct EstimateParams {
    /// That of the batch; that of the file's first line, if absent.
    #[schemars(extend("enum" = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"]))]
    endpoint: Option<String>,
}

pub(super) async fn show(
    id: Path<String>,
    caller: Caller,
    params: Query<EstimateParams>,
    batches: Data<Batches>,
) -> Result<Json<EstimateObject>, ApiError> {
    let endpoint = match params.endpoint.as_deref() {
        None => None,
        Some(path) => Some(
            Endpoint::from_path(path)
                .ok_or_else(|| ApiError::not_one_of("endpoint", path, &Endpoint::ALL.map(Endpoint::path)))?,
        ),
    };
    let id = id.into_inner();
    let (tenant, models) = (caller.tenant().clone(), caller.models().clone());
    let estimate = batches.estimate(EstimateOrder { tenant, file_id: id.clone(), endpoint, models }).await;
    let estimate = estimate.map_err(|error| match error {
        EstimateError::Purpose => ApiError::invalid_value("id", "Invalid file: its purpose must be 'batch'."),
        EstimateError::Unavailable(error) => error,
        EstimateError::Store(error) => not_found(error, &id),
    })?;
    Ok(Json(render(id, estimate)))
}

fn render(file_id: String, estimate: Estimate) -> EstimateObject {
    let Estimate { endpoint, requests, invalid, errors, models } = estimate;
    let sum = |of: fn(&ModelEstimate) -> u64| models.values().map(of).sum();
    // The models share the machine, so their times add up. One that is not known leaves the sum unknown.
    let expected: Option<f64> = models.values().map(|model| model.expected_output_tokens).sum();
    let seconds: Option<f64> = models.values().map(|model| model.seconds).sum();
    EstimateObject {
        object: "file.estimate",
        file_id,
        endpoint: endpoint.path(),
        total_requests: requests,
        invalid_requests: invalid,
        errors: (!errors.is_empty()).then_some(BatchErrors { object: "list", data: errors }),
        input_tokens: sum(|model| model.input_tokens),
        max_output_tokens: sum(|model| model.max_output_tokens),
        expected_output_tokens: expected.map(whole),
        eta_seconds: seconds.map(whole),
        by_model: models
            .iter()
            .map(|(name, model)| EstimateOfModel {
                model: name.clone(),
                requests: model.requests,
                input_tokens: model.input_tokens,
                max_output_tokens: model.max_output_tokens,
                expected_output_tokens: model.expected_output_tokens.map(whole),
                eta_seconds: model.seconds.map(whole),
            })
            .collect(),
    }
}

fn whole(number: f64) -> u64 {
    number.ceil() as u64
}
