use std::borrow::Cow;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::settings::Settings;
use super::twins::SharedAnswer;
use crate::failpoint::{failpoint, poison};
use crate::openai::Endpoint;
use crate::openai::batches::{LineBody, LineError, LineResponse, OutputRecord};
use crate::openai::error::{ApiError, ErrorBody, ErrorEnvelope};
use crate::store::{Batch, Claimed, Done, LineEnd, Store, StoreError, Tenant, Tokens, hex};

/// Answers one request of a batch: the same path that online requests take. Dropping the future cancels the request.
pub trait LineExecutor: Send + Sync + 'static {
    fn knows(&self, model: &str) -> bool;

    /// Done when requests would be taken. A line waits here for a model that is being loaded, however long that takes: neither its time
    /// nor its attempts are spent on it.
    fn ready(&self) -> impl Future<Output = ()> + Send;

    /// `tenant` is whose batch it is.
    fn execute(
        &self,
        tenant: &Tenant,
        endpoint: Endpoint,
        body: &[u8],
    ) -> impl Future<Output = Result<LineAnswer, ApiError>> + Send;

    /// Checks a request as for execution and counts its tokens, without running it. May keep the thread busy.
    fn measure(&self, endpoint: Endpoint, body: &[u8]) -> impl Future<Output = Result<LineSize, ApiError>> + Send;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineSize {
    pub input_tokens: u64,
    pub max_output_tokens: u64,
}

/// What the endpoint answered with status 200.
#[derive(Debug)]
pub struct LineAnswer {
    pub body: Box<RawValue>,
    pub tokens: Tokens,
}

impl LineAnswer {
    /// The same answer to another line: under an id of its own, which keeps the kind of the first.
    pub(super) fn for_another(&self, own: &str) -> Self {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            id: Cow<'a, str>,
        }

        let text = self.body.get();
        let renamed = serde_json::from_str::<Named<'_>>(text).ok().and_then(|Named { id }| {
            let (kind, _) = id.split_once('-')?;
            let named = text.replacen(&format!("\"{id}\""), &format!("\"{kind}-{own}\""), 1);
            RawValue::from_string(named).ok()
        });
        Self { body: renamed.unwrap_or_else(|| self.body.clone()), tokens: self.tokens }
    }
}

/// The input of a batch, open for reading.
#[derive(Clone, Debug)]
pub(super) struct Source {
    file: Arc<fs_err::File>,
    tenant: Tenant,
}

/// One claim of one line.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) batch_id: String,
    pub(super) line: Claimed,
    pub(super) source: Source,
    /// Where the answer is or will be that other lines ask for too.
    pub(super) shared: Option<SharedAnswer>,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// A line that was run.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) done: Done,
    /// Whether its answer is that of another line, so that nothing was computed for it.
    pub(super) repeated: bool,
}

/// How an execution ended, before it is worded as a record.
type Outcome = Result<Arc<LineAnswer>, Unanswered>;

enum Unanswered {
    Refused(ApiError),
    NotExecuted { code: &'static str, message: &'static str },
    Later { delay_ms: i64 },
}

impl Execution {
    /// The end of an execution for a reason that lies with us: the line is to be run again.
    pub(super) fn reopen(&self, settings: &Settings) -> Done {
        let delay_ms = retry_delay_ms(settings, self.line.attempt, None);
        self.done(LineEnd::Reopen { not_before: settings.clock.millis() + delay_ms })
    }

    fn done(&self, end: LineEnd) -> Done {
        Done { batch_id: self.batch_id.clone(), line_no: self.line.line_no, epoch: self.line.epoch, end }
    }
}

impl Source {
    pub(super) async fn open(store: &Store, batch: &Batch) -> Result<Self, StoreError> {
        let damaged = || StoreError::Corrupt(format!("batch {} has no input", batch.id));
        let file = store.blobs().open_blob(batch.input_key.as_deref().ok_or_else(damaged)?).await?;
        Ok(Self { file: Arc::new(file.into_std().await), tenant: batch.tenant() })
    }

    pub(super) async fn read(&self, off: i64, len: i64) -> Result<Vec<u8>, StoreError> {
        let (Ok(off), Ok(len)) = (u64::try_from(off), usize::try_from(len)) else {
            return Err(StoreError::Corrupt("a line lies outside its file".to_owned()));
        };
        read_at(&self.file, off, len).await
    }
}

/// Some bytes of a blob, which are there.
pub(super) async fn read_at(file: &Arc<fs_err::File>, off: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; len];
        file.file().read_exact_at(&mut bytes, off).map(|()| bytes)
    });
    match read.await.map_err(std::io::Error::other)? {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(StoreError::Corrupt("a stored file is shorter than it was".to_owned()))
        }
        read => Ok(read?),
    }
}

/// Runs a line and words its record. `Corrupt` if the input is no longer what was validated.
pub(super) async fn run<E: LineExecutor>(
    executor: &E,
    store: &Store,
    settings: &Settings,
    execution: &Execution,
) -> Result<Ran, StoreError> {
    let Execution { batch_id, line, source, shared } = execution;
    let text = source.read(line.off, line.len).await?;
    if digest(&text) != line.digest.as_slice() {
        return Err(StoreError::Corrupt("an input file is not what it was".to_owned()));
    }
    let request: Request<'_> =
        serde_json::from_slice(&text).map_err(|_| StoreError::Corrupt("a checked line does not parse".to_owned()))?;
    let mut repeated = false;
    let outcome = if line.suspect >= settings.crashes_max {
        let message = "The inference engine crashed while processing this request.";
        Err(Unanswered::NotExecuted { code: "engine_crash", message })
    } else {
        let unknown = || StoreError::Corrupt("a checked line is for no endpoint".to_owned());
        let endpoint = Endpoint::from_path(&request.url).ok_or_else(unknown)?;
        executor.ready().await;
        let body = request.body.get().as_bytes();
        failpoint("line.running");
        poison(&request.custom_id);
        match shared {
            None => execute(executor, settings, execution, endpoint, body).await,
            Some(shared) => {
                let (outcome, computed) = execute_once(executor, settings, execution, endpoint, shared, body).await;
                repeated = !computed;
                outcome
            }
        }
    };
    failpoint("line.answered");
    let end = word(store, settings, batch_id, line, &request.custom_id, outcome).await?;
    Ok(Ran { done: execution.done(end), repeated })
}

async fn execute<E: LineExecutor>(
    executor: &E,
    settings: &Settings,
    Execution { line, source, .. }: &Execution,
    endpoint: Endpoint,
    body: &[u8],
) -> Outcome {
    // A panic is this line's failure and no other's.
    let answer = AssertUnwindSafe(executor.execute(&source.tenant, endpoint, body)).catch_unwind();
    match tokio::time::timeout(settings.line_timeout, answer).await {
        Err(_) => Err(Unanswered::NotExecuted { code: "request_timeout", message: "This request took too long." }),
        Ok(Err(_)) => Err(Unanswered::Refused(internal_error())),
        Ok(Ok(Ok(answer))) => Ok(Arc::new(answer)),
        Ok(Ok(Err(error))) if is_transient(&error) && line.attempt < settings.attempts_max => {
            Err(Unanswered::Later { delay_ms: retry_delay_ms(settings, line.attempt, error.retry_after) })
        }
        Ok(Ok(Err(error))) => Err(Unanswered::Refused(error)),
    }
}

/// Takes the answer of a line that is the same request, if that has one, and tells whether it was computed here. A line that fails answers
/// for itself alone.
async fn execute_once<E: LineExecutor>(
    executor: &E,
    settings: &Settings,
    execution: &Execution,
    endpoint: Endpoint,
    shared: &SharedAnswer,
    body: &[u8],
) -> (Outcome, bool) {
    let mut computed = false;
    let answer = shared.get_or_try_init(async || {
        computed = true;
        execute(executor, settings, execution, endpoint, body).await
    });
    let answer = answer.await;
    let own = || hash_id(&execution.batch_id, execution.line.line_no, 0);
    let answer = answer.map(|answer| if computed { Arc::clone(answer) } else { Arc::new(answer.for_another(&own())) });
    (answer, computed)
}

async fn word(
    store: &Store,
    settings: &Settings,
    batch_id: &str,
    line: &Claimed,
    custom_id: &str,
    outcome: Outcome,
) -> Result<LineEnd, StoreError> {
    let request_id = || format!("req_{}", hash_id(batch_id, line.line_no, line.attempt));
    let respond = |status_code, body| Some(LineResponse { status_code, request_id: request_id(), body });
    let (response, error, ok, tokens) = match &outcome {
        Err(Unanswered::Later { delay_ms }) => {
            return Ok(LineEnd::Reopen { not_before: settings.clock.millis() + delay_ms });
        }
        Ok(answer) => (respond(200, LineBody::Answer(&answer.body)), None, true, answer.tokens),
        Err(Unanswered::Refused(error)) => {
            let body = LineBody::Error(ErrorEnvelope { error: &error.body });
            (respond(error.status, body), None, false, Tokens::default())
        }
        Err(Unanswered::NotExecuted { code, message }) => {
            (None, Some(LineError { code, message }), false, Tokens::default())
        }
    };
    let record = OutputRecord { id: record_id(batch_id, line.line_no), custom_id, response, error };
    let body = to_jsonl(&record)?;
    if body.len() <= settings.spill_bytes {
        return Ok(LineEnd::Record { ok, body: Some(body), spill_key: None, tokens });
    }
    let blob = store.blobs().put(&body).await?;
    Ok(LineEnd::Record { ok, body: None, spill_key: Some(blob.key), tokens })
}

/// The record of a line that was never run.
pub(super) fn unexecuted_record(
    batch_id: &str,
    line_no: i64,
    text: &[u8],
    (code, message): (&str, &str),
) -> Result<Vec<u8>, StoreError> {
    let request: Request<'_> =
        serde_json::from_slice(text).map_err(|_| StoreError::Corrupt("a checked line does not parse".to_owned()))?;
    to_jsonl(&OutputRecord {
        id: record_id(batch_id, line_no),
        custom_id: &request.custom_id,
        response: None,
        error: Some(LineError { code, message }),
    })
}

/// The start of the line's SHA-256: enough to notice damage.
pub(super) fn digest(text: &[u8]) -> [u8; 8] {
    first_bytes(&Sha256::digest(text))
}

/// By which a `custom_id` is told from the others of its file.
pub(super) fn custom_hash(custom_id: &str) -> [u8; 16] {
    first_bytes(&Sha256::digest(custom_id.as_bytes()))
}

pub(super) fn first_bytes<const N: usize>(hash: &[u8]) -> [u8; N] {
    let mut first = [0; N];
    first.iter_mut().zip(hash).for_each(|(first, byte)| *first = *byte);
    first
}

/// Made from what the record is of, so that a file rebuilt after a crash is the same file.
fn record_id(batch_id: &str, line_no: i64) -> String {
    format!("batch_req_{}", hash_id(batch_id, line_no, 0))
}

fn hash_id(batch_id: &str, line_no: i64, attempt: i64) -> String {
    let hash = Sha256::digest(format!("{batch_id}:{line_no}:{attempt}").as_bytes());
    hex(&first_bytes::<12>(&hash))
}

fn to_jsonl(record: &OutputRecord<'_>) -> Result<Vec<u8>, StoreError> {
    let mut body = serde_json::to_vec(record).map_err(std::io::Error::other)?;
    body.push(b'\n');
    Ok(body)
}

/// The engine was gone or full: nothing is wrong with the line.
pub(super) fn is_transient(error: &ApiError) -> bool {
    matches!(error.status, 429 | 503)
}

fn retry_delay_ms(settings: &Settings, attempt: i64, retry_after: Option<u32>) -> i64 {
    let doublings = u32::try_from(attempt).unwrap_or(u32::MAX).min(16);
    let delay = settings.retry_delay.saturating_mul(1 << doublings).min(settings.retry_delay_max);
    let asked = i64::from(retry_after.unwrap_or(0)) * 1000;
    i64::try_from(delay.as_millis()).unwrap_or(i64::MAX).max(asked)
}

fn internal_error() -> ApiError {
    let message = "The server had an error while processing your request.".to_owned();
    let body = ErrorBody { message, kind: "server_error", param: None, code: Some("internal_error") };
    ApiError { status: 500, body, retry_after: None }
}
