use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, oneshot};

use super::Batches;
use super::jsonl::JsonlReader;
use super::line::{LineExecutor, LineSize, is_transient};
use super::meter::Meter;
use super::offline::first_endpoint;
use super::settings::Settings;
use super::validate::{Check, empty_file, too_many};
use crate::openai::batches::BatchError;
use crate::openai::error::ApiError;
use crate::openai::{AllowedModels, Endpoint};
use crate::store::{Store, StoreError, Tenant};

/// Estimates that are made at a time: each keeps a thread busy.
const ESTIMATES_MAX: usize = 2;

/// What a file would come to as a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    pub endpoint: Endpoint,
    /// Lines that are not blank.
    pub requests: u64,
    /// Those that would fail the batch or be answered with an error.
    pub invalid: u64,
    /// Why, for the first hundred.
    pub errors: Vec<BatchError>,
    /// By the model's name.
    pub models: BTreeMap<String, ModelEstimate>,
}

/// What the valid lines for one model come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelEstimate {
    pub requests: u64,
    /// Exact: counted by the model's tokenizer.
    pub input_tokens: u64,
    pub max_output_tokens: u64,
    /// Going by the answers that the model has given to lines before; `None` if it has given none since the server started.
    pub expected_output_tokens: Option<f64>,
    /// For all of its lines with nothing else to do, at the rate that was measured; `None` likewise.
    pub seconds: Option<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum EstimateError {
    /// The file is not one that a batch may read.
    #[error("the file's purpose is not 'batch'")]
    Purpose,
    /// A model is not there to count with.
    #[error(transparent)]
    Unavailable(ApiError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which file to look at, and as what.
#[derive(Clone, Debug)]
pub struct EstimateOrder {
    pub tenant: Tenant,
    pub file_id: String,
    /// What the first line names if absent.
    pub endpoint: Option<Endpoint>,
    /// Those of whoever asks.
    pub models: AllowedModels,
}

/// Makes estimates with whatever executor the batches run on.
#[derive(Clone)]
pub(super) struct Estimator {
    run: Arc<dyn Fn(EstimateOrder, oneshot::Receiver<()>) -> Job + Send + Sync>,
    room: Arc<Semaphore>,
}

type Job = BoxFuture<'static, Result<Estimate, EstimateError>>;

impl fmt::Debug for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Estimator").finish_non_exhaustive()
    }
}

impl Estimator {
    pub(super) fn new<E: LineExecutor>(executor: Arc<E>, store: Store, settings: Arc<Settings>, meter: Meter) -> Self {
        let run = move |order, gone| -> Job {
            let (executor, store, settings, meter) =
                (Arc::clone(&executor), store.clone(), Arc::clone(&settings), meter.clone());
            Box::pin(async move { estimate(&*executor, &store, &settings, &meter, order, gone).await })
        };
        Self { run: Arc::new(run), room: Arc::new(Semaphore::new(ESTIMATES_MAX)) }
    }
}

impl Batches {
    /// Reads a file as validation would, and counts what its lines ask for. The file is streamed and tokenized on a thread for such work;
    /// dropping the future ends it at the next line.
    pub async fn estimate(&self, order: EstimateOrder) -> Result<Estimate, EstimateError> {
        let Estimator { run, room } = &self.estimator;
        let permit = Arc::clone(room).acquire_owned().await;
        let (_here, gone) = oneshot::channel();
        let job = run(order, gone);
        let runtime = tokio::runtime::Handle::current();
        let counting = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            runtime.block_on(job)
        });
        counting.await.map_err(|error| StoreError::from(std::io::Error::other(error)))?
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    body: &'a RawValue,
}

async fn estimate<E: LineExecutor>(
    executor: &E,
    store: &Store,
    settings: &Settings,
    meter: &Meter,
    order: EstimateOrder,
    mut gone: oneshot::Receiver<()>,
) -> Result<Estimate, EstimateError> {
    let file = store.file(&order.tenant, &order.file_id, settings.clock.seconds()).await?;
    if file.purpose != "batch" {
        return Err(EstimateError::Purpose);
    }
    let endpoint = match order.endpoint {
        Some(endpoint) => endpoint,
        None => first_endpoint(store, settings, &file.storage_key).await?,
    };
    let blob = store.blobs().open_blob(&file.storage_key).await?;
    let input = tokio::io::BufReader::with_capacity(256 * 1024, blob);
    let mut reader = JsonlReader::new(input, settings.line_bytes_max, 1, 0);
    let mut check = Check::new(executor, settings, endpoint, order.models);
    let mut sum = Sum { meter, models: BTreeMap::new(), invalid: 0 };
    while let Some(line) = reader.next().await.map_err(StoreError::from)? {
        if check.lines >= settings.lines_max {
            check.note(too_many(settings.lines_max));
            break;
        }
        check.lines += 1;
        let model = match check.line(&line) {
            Ok(line) => line.model,
            Err(error) => {
                sum.invalid += 1;
                check.note(error);
                continue;
            }
        };
        let request: Body<'_> = serde_json::from_slice(line.text.unwrap_or_default())
            .map_err(|_| StoreError::Corrupt("a checked line does not parse".to_owned()))?;
        match executor.measure(endpoint, request.body.get().as_bytes()).await {
            Ok(size) => sum.add(model, size),
            Err(error) if is_transient(&error) => return Err(EstimateError::Unavailable(error)),
            Err(error) => {
                sum.invalid += 1;
                check.note(line_error(line.number, error));
            }
        }
        if gone.try_recv() == Err(oneshot::error::TryRecvError::Closed) {
            return Err(StoreError::from(std::io::Error::from(std::io::ErrorKind::Interrupted)).into());
        }
    }
    if check.lines == 0 {
        check.note(empty_file());
    }
    let requests = u64::try_from(check.lines).unwrap_or(0);
    let Sum { models, invalid, .. } = sum;
    Ok(Estimate { endpoint, requests, invalid, errors: check.errors, models: rated(models, meter) })
}

struct Sum<'a> {
    meter: &'a Meter,
    models: BTreeMap<String, ModelEstimate>,
    invalid: u64,
}

impl Sum<'_> {
    fn add(&mut self, model: String, size: LineSize) {
        let LineSize { input_tokens, max_output_tokens } = size;
        let rate = self.meter.model(&model);
        let sum = self.models.entry(model).or_default();
        sum.requests += 1;
        sum.input_tokens += input_tokens;
        sum.max_output_tokens += max_output_tokens;
        if let Some(rate) = rate {
            let expected = rate.output_tokens_per_line.min(max_output_tokens as f64);
            *sum.expected_output_tokens.get_or_insert(0.0) += expected;
        }
    }
}

/// Adds the times that the tokens take.
fn rated(mut models: BTreeMap<String, ModelEstimate>, meter: &Meter) -> BTreeMap<String, ModelEstimate> {
    for (model, sum) in &mut models {
        let rate = meter.model(model).filter(|rate| rate.tokens_per_second > 0.0);
        sum.seconds = rate
            .zip(sum.expected_output_tokens)
            .map(|(rate, output)| (sum.input_tokens as f64 + output) / rate.tokens_per_second);
    }
    models
}

fn line_error(number: i64, error: ApiError) -> BatchError {
    let body = error.body;
    let param = body.param.map(|param| format!("body.{param}"));
    BatchError { code: body.code.unwrap_or(body.kind).to_owned(), message: body.message, param, line: Some(number) }
}
