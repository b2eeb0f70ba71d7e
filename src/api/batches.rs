use actix_web::http::Method;
use actix_web::web::{self, Data, Json, Path, Query, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::listing::{ListQuery, list, page_error, store_error};
use super::{JsonBody, resource, sse};
use crate::batch::{BatchStatus, Batches, Settings};
use crate::openai::Endpoint;
use crate::openai::batches::{
    BatchErrors, BatchObject, BatchUsage, InputTokensDetails, OutputTokensDetails, RequestCounts,
};
use crate::openai::error::ApiError;
use crate::openai::files::ListObject;
use crate::store::{Batch, CancelOutcome, Created, Identity, NewBatch, StoreError, hex};

const LIMIT_DEFAULT: u64 = 20;
const LIMIT_MAX: u64 = 100;
const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
const EXPIRES_AFTER_S: std::ops::RangeInclusive<i64> = 3600..=2_592_000;

/// What a request to create a batch may have; other fields are named in the response.
pub(super) const CREATE_FIELDS: [&str; 5] =
    ["input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"];

/// `/v1/batches` and what is under it.
pub fn routes(cfg: &mut ServiceConfig) {
    cfg.service(
        resource("/v1/batches", &[Method::GET, Method::POST]).route(web::post().to(create)).route(web::get().to(index)),
    )
    .service(resource("/v1/batches/{id}", &[Method::GET]).route(web::get().to(show)))
    .service(resource("/v1/batches/{id}/cancel", &[Method::POST]).route(web::post().to(cancel)));
}

async fn create(
    request: HttpRequest,
    JsonBody(body): JsonBody,
    batches: Data<Batches>,
) -> Result<HttpResponse, ApiError> {
    let object = read_object(&body)?;
    let mut new = read_create(&object, batches.settings())?;
    if let Some(key) = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()) {
        new.identity = Some(Identity { key: key.to_owned(), hash: hex(&Sha256::digest(&body)) });
    }
    let ignored: Vec<String> = object.keys().filter(|key| !CREATE_FIELDS.contains(&key.as_str())).cloned().collect();
    match batches.create(new).await.map_err(store_error)? {
        Created::New(batch) | Created::Known(batch) => {
            let mut response = HttpResponse::Ok();
            sse::name_ignored(&mut response, &ignored);
            Ok(response.json(show_batch(&batch)?))
        }
        Created::Mismatch => {
            Err(conflict("idempotency_mismatch", "This Idempotency-Key was used before with another request."))
        }
        Created::TooMany => Err(too_many(batches.settings().active_max)),
    }
}

async fn index(query: Query<ListQuery>, batches: Data<Batches>) -> Result<Json<ListObject<BatchObject>>, ApiError> {
    let page = query.page(LIMIT_DEFAULT, LIMIT_MAX)?;
    let (rows, more) = batches.list(&page).await.map_err(page_error)?;
    let objects = rows.iter().map(show_batch).collect::<Result<Vec<_>, _>>()?;
    Ok(Json(list(objects, more, |batch| &batch.id)))
}

async fn show(id: Path<String>, batches: Data<Batches>) -> Result<Json<BatchObject>, ApiError> {
    let batch = batches.get(&id).await.map_err(|error| not_found(error, &id))?;
    show_batch(&batch).map(Json)
}

async fn cancel(id: Path<String>, batches: Data<Batches>) -> Result<Json<BatchObject>, ApiError> {
    match batches.cancel(&id).await.map_err(|error| not_found(error, &id))? {
        CancelOutcome::Cancelling(batch) => show_batch(&batch).map(Json),
        CancelOutcome::Unchanged(batch) => match batch.status().map_err(store_error)? {
            status @ (BatchStatus::Completed | BatchStatus::Failed | BatchStatus::Expired) => {
                let message = format!("Cannot cancel a batch with status '{}'.", status.as_str());
                let mut error = conflict("invalid_state", &message);
                error.body.code = None;
                Err(error)
            }
            BatchStatus::Validating
            | BatchStatus::InProgress
            | BatchStatus::Finalizing
            | BatchStatus::Cancelling
            | BatchStatus::Cancelled => show_batch(&batch).map(Json),
        },
    }
}

fn show_batch(batch: &Batch) -> Result<BatchObject, ApiError> {
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

fn read_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| ApiError::invalid_json(error.line(), error.column()))?;
    let Value::Object(body) = body else { return Err(ApiError::not_an_object()) };
    Ok(body)
}

pub(super) fn read_create(body: &Map<String, Value>, settings: &Settings) -> Result<NewBatch, ApiError> {
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
        input_file_id,
        endpoint: endpoint.path().to_owned(),
        window: window.name.clone(),
        window_s: window.seconds,
        metadata: read_metadata(body)?,
        output_expires_s: read_expires_after(body)?,
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
        return Err(ApiError::object_too_large("metadata", METADATA_PAIRS_MAX, pairs.len()));
    }
    for (key, value) in pairs {
        let chars = key.chars().count();
        if chars > METADATA_KEY_CHARS_MAX {
            return Err(ApiError::string_too_long("metadata", METADATA_KEY_CHARS_MAX, chars));
        }
        let param = format!("metadata.{key}");
        let Value::String(text) = value else {
            return Err(ApiError::invalid_type(&param, "a string", type_of(value)));
        };
        let chars = text.chars().count();
        if chars > METADATA_VALUE_CHARS_MAX {
            return Err(ApiError::string_too_long(&param, METADATA_VALUE_CHARS_MAX, chars));
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
