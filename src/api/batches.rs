mod results;
mod steer;

use std::ops::RangeInclusive;

use actix_web::http::Method;
use actix_web::web::{self, Data, Json, Path, Query, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub(super) use results::ResultsParams;

use super::listing::{ListQuery, list, page_error, store_error};
use super::query::is_strict;
use super::repetition::is_repetition;
use super::{JsonBody, Rule, resource, sse};
use crate::access::{Caller, Scope};
use crate::batch::{BatchStatus, Batches, Settings};
use crate::completion::{json_integer, json_object};
use crate::openai::batches::{
    BatchErrors, BatchObject, BatchProgress, BatchUsage, InputTokensDetails, OutputTokensDetails, RequestCounts,
};
use crate::openai::error::ApiError;
use crate::openai::files::ListObject;
use crate::openai::{AllowedModels, Endpoint};
use crate::store::{Batch, Created, Identity, NewBatch, StoreError, Tenant, hex};

const RULE: Rule = Rule::ReadWrite { read: Scope::BatchesRead, write: Scope::BatchesWrite };
const LIMIT_DEFAULT: u64 = 20;
const LIMIT_MAX: u64 = 100;
/// What a request to create a batch may have; other fields are named in the response.
pub(super) const CREATE_FIELDS: [&str; 8] = [
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
    "idempotency_key",
    "priority",
    "not_before",
];
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
const EXPIRES_AFTER_S: RangeInclusive<i64> = 3600..=2_592_000;

/// `/v1/batches` and what is under it.
pub fn routes(cfg: &mut ServiceConfig) {
    cfg.service(
        resource("/v1/batches", &[Method::GET, Method::POST], RULE)
            .route(web::post().to(create))
            .route(web::get().to(index)),
    )
    .service(resource("/v1/batches/{id}", &[Method::GET], RULE).route(web::get().to(show)))
    .service(resource("/v1/batches/{id}/results", &[Method::GET], RULE).route(web::get().to(results::results)))
    .service(resource("/v1/batches/{id}/cancel", &[Method::POST], RULE).route(web::post().to(steer::cancel)))
    .service(resource("/v1/batches/{id}/pause", &[Method::POST], RULE).route(web::post().to(steer::pause)))
    .service(resource("/v1/batches/{id}/resume", &[Method::POST], RULE).route(web::post().to(steer::resume)))
    .service(resource("/v1/batches/{id}/retry", &[Method::POST], RULE).route(web::post().to(steer::retry)));
}

async fn create(
    request: HttpRequest,
    JsonBody(body): JsonBody,
    caller: Caller,
    batches: Data<Batches>,
) -> Result<HttpResponse, ApiError> {
    let object = json_object(&body)?;
    let mut new = read_create(&object, caller.tenant().clone(), batches.settings())?;
    new.models = caller.models().clone();
    let key = match object.get("idempotency_key") {
        None | Some(Value::Null) => None,
        Some(_) => Some(required_text(&object, "idempotency_key")?),
    };
    new.identity = Some(identity(&request, key, &body)?);
    let ignored: Vec<String> = object.keys().filter(|key| !CREATE_FIELDS.contains(&key.as_str())).cloned().collect();
    if let Some(name) = ignored.first().filter(|_| is_strict(&request)) {
        return Err(ApiError::unknown_parameter(name));
    }
    let created = answer_created(&batches, batches.create(new).await.map_err(store_error)?)?;
    let mut response = HttpResponse::Ok();
    let mut response = response.json(created);
    sse::name_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

/// By what a repetition of this request is known: the key that the client gives it, or that the client's library says it is one.
fn identity(request: &HttpRequest, key: Option<&str>, content: &[u8]) -> Result<Identity, ApiError> {
    let header = request.headers().get("idempotency-key").map(|key| key.to_str().unwrap_or_default());
    let key = header.or(key);
    if key.is_some_and(|key| !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())) {
        let message =
            format!("Invalid 'Idempotency-Key': expected 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable characters.");
        return Err(ApiError::invalid_value("Idempotency-Key", message));
    }
    let repeated = is_repetition(request);
    Ok(Identity { key: key.map(str::to_owned), hash: hex(&Sha256::digest(content)), repeated })
}

fn answer_created(batches: &Batches, created: Created) -> Result<BatchObject, ApiError> {
    match created {
        Created::New(batch) | Created::Known(batch) => show_batch(batches, &batch),
        Created::Mismatch => {
            Err(conflict("idempotency_mismatch", "This Idempotency-Key was used before with another request."))
        }
        Created::TooMany => Err(too_many(batches.settings().active_max)),
    }
}

async fn index(
    query: Query<ListQuery>,
    tenant: Tenant,
    batches: Data<Batches>,
) -> Result<Json<ListObject<BatchObject>>, ApiError> {
    let page = query.page(LIMIT_DEFAULT, LIMIT_MAX)?;
    let (rows, more) = batches.list(&tenant, &page).await.map_err(page_error)?;
    let objects = rows.iter().map(|batch| show_batch(&batches, batch)).collect::<Result<Vec<_>, _>>()?;
    Ok(Json(list(objects, more, |batch| &batch.id)))
}

async fn show(id: Path<String>, tenant: Tenant, batches: Data<Batches>) -> Result<Json<BatchObject>, ApiError> {
    let batch = batches.get(&tenant, &id).await.map_err(|error| not_found(error, &id))?;
    show_batch(&batches, &batch).map(Json)
}

fn show_batch(batches: &Batches, batch: &Batch) -> Result<BatchObject, ApiError> {
    let status = batch.status().map_err(store_error)?.shown(batch.stop_reason());
    let errors = match &batch.errors {
        Some(text) if status == BatchStatus::Failed => {
            Some(BatchErrors { object: "list", data: serde_json::from_str(text).map_err(|error| unreadable(&error))? })
        }
        _ => None,
    };
    let metadata =
        batch.metadata.as_deref().map(serde_json::from_str).transpose().map_err(|error| unreadable(&error))?;
    Ok(BatchObject {
        id: batch.id.clone(),
        object: "batch",
        endpoint: batch.endpoint.clone(),
        model: batch.model.clone(),
        errors,
        input_file_id: batch.input_file_id.clone(),
        completion_window: batch.window.clone(),
        status: status.as_str(),
        output_file_id: batch.output_file_id.clone(),
        error_file_id: batch.error_file_id.clone(),
        created_at: batch.created_at,
        in_progress_at: batch.in_progress_at,
        expires_at: batch.expires_at,
        finalizing_at: batch.finalizing_at,
        completed_at: batch.completed_at,
        failed_at: batch.failed_at,
        expired_at: batch.expired_at,
        cancelling_at: batch.cancelling_at,
        cancelled_at: batch.cancelled_at,
        request_counts: counts(batch, status),
        usage: usage(batch),
        metadata,
        priority: Some(batch.priority).filter(|priority| *priority != 0),
        not_before: batch.not_before,
        progress: progress(batches, batch, status),
    })
}

/// How a batch that runs gets on. One that is only being checked has nothing to tell, unless it is paused.
fn progress(batches: &Batches, batch: &Batch, status: BatchStatus) -> Option<BatchProgress> {
    let is_held = status == BatchStatus::Validating && batch.paused_at.is_some();
    if !is_held && !matches!(status, BatchStatus::InProgress | BatchStatus::Finalizing) {
        return None;
    }
    let rate = batches.rate(&batch.id);
    let eta_seconds = match &rate {
        _ if batch.open_lines == 0 && status != BatchStatus::Validating => Some(0),
        // Lines that repeat others cost next to nothing.
        Some(rate) if batch.paused_at.is_none() && rate.lines_per_second > 0.0 => {
            Some(((batch.open_work as f64 / rate.lines_per_second).ceil() as i64).max(1))
        }
        _ => None,
    };
    Some(BatchProgress {
        completed_tokens: batch.input_tokens + batch.output_tokens,
        tokens_per_second: rate.as_ref().map(|rate| (rate.tokens_per_second * 100.0).round() / 100.0),
        cached_tokens: batch.cached_tokens,
        eta_seconds,
        current_model: rate.map(|rate| rate.model),
        paused_at: batch.paused_at,
    })
}

/// A client that sees a total takes the file for checked, so there is none before.
fn counts(batch: &Batch, status: BatchStatus) -> RequestCounts {
    let total = if status == BatchStatus::Validating { 0 } else { batch.total };
    RequestCounts { total, completed: batch.done, failed: batch.failed }
}

fn usage(batch: &Batch) -> BatchUsage {
    BatchUsage {
        input_tokens: batch.input_tokens,
        input_tokens_details: InputTokensDetails { cached_tokens: batch.cached_tokens },
        output_tokens: batch.output_tokens,
        output_tokens_details: OutputTokensDetails { reasoning_tokens: batch.reasoning_tokens },
        total_tokens: batch.input_tokens + batch.output_tokens,
    }
}

pub(super) fn read_create(
    body: &Map<String, Value>,
    tenant: Tenant,
    settings: &Settings,
) -> Result<NewBatch, ApiError> {
    let input_file_id = required_text(body, "input_file_id")?.to_owned();
    let endpoint = required_text(body, "endpoint")?;
    let endpoint = Endpoint::from_path(endpoint)
        .ok_or_else(|| ApiError::not_one_of("endpoint", endpoint, &Endpoint::ALL.map(Endpoint::path)))?;
    let window = required_text(body, "completion_window")?;
    let window = settings.completion_windows.iter().find(|known| known.name == window).ok_or_else(|| {
        let names: Vec<_> = settings.completion_windows.iter().map(|known| format!("'{}'", known.name)).collect();
        let message = format!("Invalid 'completion_window'. Supported values are: {}.", names.join(", "));
        ApiError::invalid_value("completion_window", message)
    })?;
    Ok(NewBatch {
        tenant,
        input_file_id,
        endpoint: endpoint.path().to_owned(),
        window: window.name.clone(),
        window_s: window.seconds,
        metadata: read_metadata(body)?,
        output_expires_s: read_expires_after(body)?,
        priority: read_integer(body, "priority", i64::MIN..=i64::MAX)?.unwrap_or(0),
        not_before: read_integer(body, "not_before", 0..=settings.clock.seconds() + window.seconds - 1)?,
        models: AllowedModels::default(),
        identity: None,
    })
}

fn required_text<'a>(body: &'a Map<String, Value>, name: &str) -> Result<&'a str, ApiError> {
    match body.get(name) {
        None | Some(Value::Null) => Err(ApiError::missing(name)),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(ApiError::invalid_type(name, "a string", type_of(other))),
    }
}

/// Metadata comes back as it was sent, so it is kept as text.
fn read_metadata(body: &Map<String, Value>) -> Result<Option<String>, ApiError> {
    let pairs = match body.get("metadata") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(pairs)) => pairs,
        Some(other) => return Err(ApiError::invalid_type("metadata", "an object", type_of(other))),
    };
    if pairs.len() > METADATA_PAIRS_MAX {
        let message = format!(
            "Invalid 'metadata': expected at most {METADATA_PAIRS_MAX} pairs, but got {} instead.",
            pairs.len()
        );
        return Err(ApiError::invalid_value("metadata", message));
    }
    for (key, value) in pairs {
        if key.chars().count() > METADATA_KEY_CHARS_MAX {
            let message = format!("Invalid 'metadata': a key is longer than {METADATA_KEY_CHARS_MAX} characters.");
            return Err(ApiError::invalid_value("metadata", message));
        }
        let param = format!("metadata.{key}");
        let Value::String(text) = value else {
            return Err(ApiError::invalid_type(&param, "a string", type_of(value)));
        };
        if text.chars().count() > METADATA_VALUE_CHARS_MAX {
            let message = format!("Invalid '{param}': the value is longer than {METADATA_VALUE_CHARS_MAX} characters.");
            return Err(ApiError::invalid_value(&param, message));
        }
    }
    serde_json::to_string(pairs).map(Some).map_err(|error| unreadable(&error))
}

fn read_expires_after(body: &Map<String, Value>) -> Result<Option<i64>, ApiError> {
    let fields = match body.get("output_expires_after") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(fields)) => fields,
        Some(other) => return Err(ApiError::invalid_type("output_expires_after", "an object", type_of(other))),
    };
    if fields.get("anchor").and_then(Value::as_str) != Some("created_at") {
        let message = "Invalid 'output_expires_after.anchor'. Supported values are: 'created_at'.";
        return Err(ApiError::invalid_value("output_expires_after.anchor", message));
    }
    match fields.get("seconds").and_then(Value::as_i64).filter(|seconds| EXPIRES_AFTER_S.contains(seconds)) {
        Some(seconds) => Ok(Some(seconds)),
        None => {
            let message = "Invalid 'output_expires_after.seconds': expected an integer from 3600 to 2592000.";
            Err(ApiError::invalid_value("output_expires_after.seconds", message))
        }
    }
}

fn read_integer(body: &Map<String, Value>, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
    body.get(name).filter(|value| !value.is_null()).map(|value| json_integer(name, value, range)).transpose()
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn conflict(code: &'static str, message: &str) -> ApiError {
    let mut error = ApiError::invalid(code, "", message);
    error.status = 409;
    error.body.param = None;
    error
}

fn too_many(active_max: u64) -> ApiError {
    let mut error =
        ApiError::invalid("batch_limit_exceeded", "", format!("No more than {active_max} batches may be unfinished."));
    error.status = 429;
    error.body.param = None;
    error.retry_after = Some(60);
    error
}

fn not_found(error: StoreError, id: &str) -> ApiError {
    let StoreError::NotFound = error else { return store_error(error) };
    let id: String = id.chars().take(100).collect();
    let mut error = ApiError::invalid("batch_not_found", "", format!("No batch found with id '{id}'."));
    error.status = 404;
    error.body.param = None;
    error
}

fn unreadable(error: &serde_json::Error) -> ApiError {
    tracing::error!(error = %error, "a stored value is not JSON");
    ApiError::internal()
}
