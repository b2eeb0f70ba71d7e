use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::Batches;
use super::jsonl::JsonlReader;
use super::line::LineExecutor;
use super::settings::{CompletionWindow, Settings};
use super::state::BatchStatus;
use crate::openai::batches::BatchError;
use crate::openai::{AllowedModels, Endpoint};
use crate::store::{Batch, Created, Identity, NewBatch, NewFile, Page, Store, StoreError, Tenant, hex};

/// A batch file to answer without a server.
#[derive(Clone, Debug)]
pub struct OfflineJob {
    /// `-` is standard input.
    pub input: PathBuf,
    /// `-` is standard output.
    pub output: PathBuf,
    /// Where failed lines go; without it they go to the output, in their place.
    pub errors: Option<PathBuf>,
}

/// How far an offline batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
}

/// How it ended.
#[derive(Clone, Debug)]
pub struct OfflineReport {
    pub completed: i64,
    pub failed: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// Whether an earlier run had begun it.
    pub resumed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error("the input file is not a valid batch: {}", describe(.0))]
    Invalid(Vec<BatchError>),
    #[error("interrupted; run the same command again to go on")]
    Interrupted,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

const POLL: Duration = Duration::from_millis(100);
/// A file that is run offline may take as long as it needs.
const WINDOW_S: i64 = 10 * 365 * 24 * 3600;

/// Answers every line of a file through the same path as a served batch, each at the endpoint that it names.
///
/// What is finished is kept in a folder beside the output (`OUT.tandem`) until the output is written, so the same call goes on where an
/// interrupted one ended. `interrupted` ends the run early, in order.
pub async fn run_offline<E: LineExecutor>(
    job: &OfflineJob,
    executor: E,
    mut settings: Settings,
    mut progress: impl FnMut(Progress),
    interrupted: impl Future<Output = ()>,
) -> Result<OfflineReport, OfflineError> {
    settings.single_output = job.errors.is_none();
    settings.lines_max = i64::MAX;
    settings.any_endpoint = true;
    settings.completion_windows = vec![CompletionWindow { name: "offline".to_owned(), seconds: WINDOW_S }];
    let state_dir = state_dir(job);
    let store = Store::open(&state_dir).await?;
    let input = stage(job, &store, &settings).await?;
    let (batch, resumed) = adopt(&store, &settings, input).await?;
    let batches = Batches::start(store.clone(), executor, settings.clone()).await?;
    let tenant = Tenant::default();
    tokio::pin!(interrupted);
    let ended = loop {
        let batch = batches.get(&tenant, &batch.id).await?;
        progress(Progress { total: batch.total, completed: batch.done, failed: batch.failed });
        if batch.status()?.has_ended() {
            break Some(batch);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = &mut interrupted => break None,
            // Nothing that is still under way can be kept.
            () = store.lost() => return Err(StoreError::Lost("the disk has failed".into()).into()),
        }
    };
    batches.stop().await;
    let Some(batch) = ended else {
        store.close().await?;
        return Err(OfflineError::Interrupted);
    };
    if batch.status()? != BatchStatus::Completed {
        drop_state(store, &state_dir).await?;
        return Err(OfflineError::Invalid(errors(&batch)));
    }
    deliver(&store, &settings, batch.output_file_id.as_deref(), &job.output).await?;
    if let Some(path) = &job.errors {
        deliver(&store, &settings, batch.error_file_id.as_deref(), path).await?;
    }
    drop_state(store, &state_dir).await?;
    let Batch { done: completed, failed, input_tokens, output_tokens, .. } = batch;
    Ok(OfflineReport { completed, failed, input_tokens, output_tokens, resumed })
}

/// The input as the store holds it.
struct Staged {
    file: NewFile,
    endpoint: Endpoint,
}

/// Copies the input into the store: from here on it may change without harm.
async fn stage(job: &OfflineJob, store: &Store, settings: &Settings) -> Result<Staged, OfflineError> {
    let path = if job.input == Path::new("-") { Path::new("/dev/stdin") } else { &job.input };
    let mut input = fs_err::tokio::File::open(path).await?;
    let mut blob = store.blobs().create().await?;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = input.read(&mut chunk).await?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        blob.write(bytes).await?;
    }
    let blob = blob.finish().await?;
    let endpoint = first_endpoint(store, settings, &blob.key).await?;
    let filename = "input.jsonl".to_owned();
    let now = settings.clock.seconds();
    let (tenant, purpose) = (Tenant::default(), "batch".to_owned());
    let file = NewFile { tenant, purpose, filename, blob, created_at: now, expires_at: None };
    Ok(Staged { file, endpoint })
}

/// The endpoint that the first line names; a file that names none fails validation with every reason.
pub(super) async fn first_endpoint(store: &Store, settings: &Settings, key: &str) -> Result<Endpoint, StoreError> {
    let file = store.blobs().open_blob(key).await?;
    let mut reader = JsonlReader::new(tokio::io::BufReader::new(file), settings.line_bytes_max, 1, 0);
    let line = reader.next().await?;
    let line: Option<serde_json::Value> =
        line.and_then(|line| line.text).and_then(|text| serde_json::from_slice(text).ok());
    let url = line.as_ref().and_then(|line| line.get("url")).and_then(serde_json::Value::as_str);
    Ok(url.and_then(Endpoint::from_path).unwrap_or(Endpoint::ChatCompletions))
}

/// The batch of this very input that an earlier run began, or a new one.
async fn adopt(store: &Store, settings: &Settings, staged: Staged) -> Result<(Batch, bool), OfflineError> {
    let Staged { file, endpoint } = staged;
    // Failed lines in the output or apart is settled when the files are rendered, so it is part of what must be the same.
    let hash = hex(&Sha256::digest(format!("{}:{}", file.blob.sha256, settings.single_output)));
    let page = Page { limit: 1, after: None, newest_first: true };
    let (last, _) = store.batches(&Tenant::default(), &page).await?;
    if let Some(last) = last.into_iter().next()
        && last.idem_hash.as_deref() == Some(&hash)
    {
        return Ok((last, true));
    }
    let now = settings.clock.seconds();
    let file = store.add_file(file, None).await?;
    let new = NewBatch {
        tenant: Tenant::default(),
        input_file_id: file.id,
        endpoint: endpoint.path().to_owned(),
        window: "offline".to_owned(),
        window_s: WINDOW_S,
        metadata: None,
        output_expires_s: Some(WINDOW_S),
        priority: 0,
        not_before: None,
        models: AllowedModels::default(),
        identity: Some(Identity { key: Some(hash.clone()), hash, repeated: false }),
    };
    match store.create_batch(new, u64::MAX, now).await? {
        Created::New(batch) => Ok((batch, false)),
        Created::Known(batch) => Ok((batch, true)),
        Created::Mismatch | Created::TooMany => {
            Err(StoreError::Corrupt("the state folder is not ours".to_owned()).into())
        }
    }
}

/// Writes a published file to where the user wants it: complete or not at all. One without records is empty.
async fn deliver(store: &Store, settings: &Settings, file_id: Option<&str>, path: &Path) -> Result<(), OfflineError> {
    let mut blob: Box<dyn AsyncRead + Unpin + Send> = match file_id {
        Some(id) => {
            let file = store.file(&Tenant::default(), id, settings.clock.seconds()).await?;
            Box::new(store.blobs().open_blob(&file.storage_key).await?)
        }
        None => Box::new(tokio::io::empty()),
    };
    if path == Path::new("-") {
        return to_stdout(blob).await;
    }
    let part = beside(path, ".part");
    let mut file = fs_err::tokio::File::create(&part).await?;
    tokio::io::copy(&mut blob, &mut file).await?;
    file.flush().await?;
    file.sync_all().await?;
    Ok(fs_err::tokio::rename(&part, path).await?)
}

async fn to_stdout(mut blob: Box<dyn AsyncRead + Unpin + Send>) -> Result<(), OfflineError> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = blob.read(&mut chunk).await?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        std::io::stdout().write_all(bytes)?;
    }
    Ok(std::io::stdout().flush()?)
}

fn state_dir(job: &OfflineJob) -> PathBuf {
    if job.output == Path::new("-") {
        // Standard output has no place to keep state beside; the input's name stands in for it.
        let named = if job.input == Path::new("-") { Path::new("stdin") } else { job.input.as_path() };
        return beside(named, ".tandem");
    }
    beside(&job.output, ".tandem")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

async fn drop_state(store: Store, dir: &Path) -> Result<(), OfflineError> {
    store.close().await?;
    drop(store);
    Ok(fs_err::tokio::remove_dir_all(dir).await?)
}

fn errors(batch: &Batch) -> Vec<BatchError> {
    batch.errors.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn describe(errors: &[BatchError]) -> String {
    let listed = errors.iter().take(5).map(|error| match error.line {
        Some(line) => format!("line {line}: {}", error.message),
        None => error.message.clone(),
    });
    listed.collect::<Vec<_>>().join("; ")
}
