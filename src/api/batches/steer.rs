//! What a client does to a batch that is there: cancel, pause, resume, run its failures again.

use actix_web::HttpRequest;
use actix_web::web::{Data, Json, Path};

use super::{answer_created, conflict, identity, not_found, show_batch};
use crate::access::Caller;
use crate::api::listing::store_error;
use crate::batch::{BatchStatus, Batches, RetryError};
use crate::openai::batches::BatchObject;
use crate::openai::error::ApiError;
use crate::store::{Batch, CancelOutcome, Tenant};

pub(super) async fn cancel(
    id: Path<String>,
    tenant: Tenant,
    batches: Data<Batches>,
) -> Result<Json<BatchObject>, ApiError> {
    let batch = match batches.cancel(&tenant, &id).await.map_err(|error| not_found(error, &id))? {
        CancelOutcome::Cancelling(batch) | CancelOutcome::Unchanged(batch) => batch,
    };
    match batch.status().map_err(store_error)? {
        status @ (BatchStatus::Completed | BatchStatus::Failed | BatchStatus::Expired) => {
            Err(wrong_status("cancel", status))
        }
        BatchStatus::Validating
        | BatchStatus::InProgress
        | BatchStatus::Finalizing
        | BatchStatus::Cancelling
        | BatchStatus::Cancelled => show_batch(&batches, &batch).map(Json),
    }
}

pub(super) async fn pause(
    id: Path<String>,
    tenant: Tenant,
    batches: Data<Batches>,
) -> Result<Json<BatchObject>, ApiError> {
    set_paused(&tenant, &id, &batches, true).await
}

pub(super) async fn resume(
    id: Path<String>,
    tenant: Tenant,
    batches: Data<Batches>,
) -> Result<Json<BatchObject>, ApiError> {
    set_paused(&tenant, &id, &batches, false).await
}

async fn set_paused(tenant: &Tenant, id: &str, batches: &Batches, paused: bool) -> Result<Json<BatchObject>, ApiError> {
    let batch = batches.pause(tenant, id, paused).await.map_err(|error| not_found(error, id))?;
    match batch.status().map_err(store_error)? {
        BatchStatus::Validating | BatchStatus::InProgress => show_batch(batches, &batch).map(Json),
        status @ (BatchStatus::Finalizing
        | BatchStatus::Cancelling
        | BatchStatus::Completed
        | BatchStatus::Failed
        | BatchStatus::Expired
        | BatchStatus::Cancelled) => Err(wrong_status(if paused { "pause" } else { "resume" }, shown(&batch, status))),
    }
}

pub(super) async fn retry(
    request: HttpRequest,
    id: Path<String>,
    caller: Caller,
    batches: Data<Batches>,
) -> Result<Json<BatchObject>, ApiError> {
    let identity = identity(&request, None, format!("retry {id}").as_bytes())?;
    let (tenant, models) = (caller.tenant(), caller.models().clone());
    let created = batches.retry(tenant, models, &id, Some(identity)).await.map_err(|error| match error {
        RetryError::Running(status) => wrong_status("retry", status),
        RetryError::Nothing => {
            let message = "No request of this batch failed, expired or was cancelled, so there is nothing to retry.";
            let mut error = ApiError::invalid("nothing_to_retry", "", message);
            error.body.param = None;
            error
        }
        RetryError::Gone => ApiError::results_gone(),
        RetryError::Store(error) => not_found(error, &id),
    })?;
    answer_created(&batches, created).map(Json)
}

/// A batch whose window is over is still shown as one that runs, which would be no reason.
fn shown(batch: &Batch, status: BatchStatus) -> BatchStatus {
    let shown = status.shown(batch.stop_reason());
    if shown == BatchStatus::InProgress { BatchStatus::Finalizing } else { shown }
}

fn wrong_status(what: &str, status: BatchStatus) -> ApiError {
    let message = format!("Cannot {what} a batch with status '{}'.", status.as_str());
    let mut error = conflict("invalid_state", &message);
    error.body.code = None;
    error
}
