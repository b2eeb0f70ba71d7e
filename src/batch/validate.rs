use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::jsonl::{JsonlReader, RawLine};
use super::line::{LineExecutor, custom_hash, digest};
use super::order::{Body, LineOrder, Outline, Prefixes};
use super::settings::Settings;
use crate::failpoint::failpoint;
use crate::openai::batches::BatchError;
use crate::openai::{AllowedModels, Endpoint};
use crate::store::{Batch, IngestPoint, NewLine, Store, StoreError};

/// Errors that are listed; a file with more of them is no easier to mend for seeing them all.
const ERRORS_MAX: usize = 100;
const CHUNK: usize = 1000;
const CUSTOM_ID_BYTES_MAX: usize = 512;

/// Fields without which a body is no request, with their paths and what is said of their absence.
const MESSAGES: (&str, &str, &str) = ("messages", "body.messages", "Messages parameter is required.");
const INPUT: (&str, &str, &str) = ("input", "body.input", "Input parameter is required.");
const DOCUMENTS: (&str, &str, &str) = ("documents", "body.documents", "Documents parameter is required.");

/// Checks every line of a batch's input and stores where each lies, then sets the batch to run or to `failed`.
///
/// What was found is stored with every chunk, so a restart goes on where the last chunk ended.
pub(super) async fn validate<E: LineExecutor>(
    executor: &E,
    store: &Store,
    settings: &Settings,
    batch: &Batch,
) -> Result<(), StoreError> {
    let (Some(key), Some(endpoint)) = (&batch.input_key, Endpoint::from_path(&batch.endpoint)) else {
        return fail(store, settings, batch, &[unknown_file(&batch.input_file_id)]).await;
    };
    let file = store.blobs().open_blob(key).await?;
    let file = seek(file, batch.ingest_offset).await?;
    let input = tokio::io::BufReader::with_capacity(256 * 1024, file);
    let mut reader = JsonlReader::new(input, settings.line_bytes_max, batch.ingest_line, batch.ingest_offset);
    let mut check = Check::resume(executor, store, settings, batch, endpoint).await?;
    let mut chunk = Vec::with_capacity(CHUNK);
    while let Some(line) = reader.next().await? {
        if check.lines >= settings.lines_max {
            check.errors = vec![too_many(settings.lines_max)];
            break;
        }
        check.lines += 1;
        match check.line(&line) {
            Ok(line) => chunk.push(line),
            Err(error) => check.note(error),
        }
        if chunk.len() == CHUNK && !check.store(store, batch, &mut chunk, reader.position()).await? {
            return Ok(());
        }
    }
    if check.lines == 0 {
        check.errors.push(empty_file());
    }
    if !check.errors.is_empty() {
        return fail(store, settings, batch, &check.errors).await;
    }
    let stored = check.store(store, batch, &mut chunk, reader.position()).await?;
    failpoint("ingest.done");
    if stored && store.start_lines(&batch.id, settings.clock.seconds()).await? {
        tracing::info!(batch.id = %batch.id, lines = check.lines, "a batch is ready to run");
    }
    Ok(())
}

/// What one pass over a file has found.
pub(super) struct Check<'a, E> {
    executor: &'a E,
    settings: &'a Settings,
    endpoint: Endpoint,
    allowed: AllowedModels,
    pub(super) lines: i64,
    pub(super) errors: Vec<BatchError>,
    custom_ids: HashMap<[u8; 16], i64>,
    known_models: HashSet<String>,
    first_model: Option<String>,
    prefixes: Prefixes,
    twins: HashSet<[u8; 16]>,
}

/// A line as it must look, so far only in its outline.
#[derive(Deserialize)]
struct Envelope<'a> {
    custom_id: Option<Value>,
    method: Option<Value>,
    url: Option<Value>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Why a line is refused: code, parameter, message.
type Refusal = (&'static str, Option<&'static str>, String);

impl<'a, E: LineExecutor> Check<'a, E> {
    pub(super) fn new(executor: &'a E, settings: &'a Settings, endpoint: Endpoint, allowed: AllowedModels) -> Self {
        Self {
            executor,
            settings,
            endpoint,
            allowed,
            lines: 0,
            errors: Vec::new(),
            custom_ids: HashMap::new(),
            known_models: HashSet::new(),
            first_model: None,
            prefixes: Prefixes::default(),
            twins: HashSet::new(),
        }
    }

    async fn resume(
        executor: &'a E,
        store: &Store,
        settings: &'a Settings,
        batch: &Batch,
        endpoint: Endpoint,
    ) -> Result<Self, StoreError> {
        let mut custom_ids = HashMap::new();
        for (hash, line_no) in store.custom_hashes(&batch.id).await? {
            let hash = hash.try_into().map_err(|_| StoreError::Corrupt("a hash has the wrong length".to_owned()))?;
            custom_ids.insert(hash, line_no);
        }
        let twins = store.twins(&batch.id).await?.into_iter().map(|twin| {
            <[u8; 16]>::try_from(twin).map_err(|_| StoreError::Corrupt("a hash has the wrong length".to_owned()))
        });
        let twins = twins.collect::<Result<_, _>>()?;
        let errors = match &batch.errors {
            Some(text) => serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))?,
            None => Vec::new(),
        };
        let (lines, first_model) = (batch.total, store.first_model(&batch.id).await?);
        // Lines before a restart are not read again for their prefixes: later ones are grouped among themselves.
        Ok(Self {
            lines,
            errors,
            custom_ids,
            first_model,
            twins,
            ..Self::new(executor, settings, endpoint, batch.models())
        })
    }

    pub(super) fn line(&mut self, line: &RawLine<'_>) -> Result<NewLine, BatchError> {
        let number = line.number;
        self.check(line).map_err(|(code, param, message)| BatchError {
            code: code.to_owned(),
            message,
            param: param.map(str::to_owned),
            line: Some(number),
        })
    }

    fn check(&mut self, line: &RawLine<'_>) -> Result<NewLine, Refusal> {
        let bytes = line.text.ok_or_else(|| {
            let message = format!("This line is longer than {} bytes.", self.settings.line_bytes_max);
            ("line_too_long", None, message)
        })?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| ("invalid_utf8", None, "This line is not valid UTF-8.".to_owned()))?;
        let envelope = parse(text)?;
        let custom_id = check_custom_id(envelope.custom_id)?;
        check_method(envelope.method)?;
        let endpoint = self.check_url(envelope.url)?;
        let body = envelope.body.ok_or_else(|| missing("body"))?;
        let (model, fields) = self.check_body(endpoint, body)?;
        let custom_hash = custom_hash(&custom_id);
        if let Some(first) = self.custom_ids.get(&custom_hash) {
            let message = format!("The custom_id '{custom_id}' is duplicated: line {first} has it too.");
            return Err(("duplicate_custom_id", Some("custom_id"), message));
        }
        self.custom_ids.insert(custom_hash, line.number);
        let len = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let Outline { mut prefix, twin, expected } =
            Outline::of(endpoint, line.number, &fields, body.get(), &mut self.prefixes);
        if self.settings.order == LineOrder::File {
            prefix.clear();
        }
        let (line_no, off, digest) = (line.number, line.offset, digest(bytes));
        let repeats = twin.is_some_and(|twin| !self.twins.insert(twin));
        Ok(NewLine { line_no, custom_hash, digest, off, len, model, prefix, twin, repeats, expected })
    }

    fn check_url(&self, url: Option<Value>) -> Result<Endpoint, Refusal> {
        let url = url.ok_or_else(|| missing("url"))?;
        match url.as_str().and_then(Endpoint::from_path) {
            Some(endpoint) if endpoint == self.endpoint || self.settings.any_endpoint => Ok(endpoint),
            _ => {
                let message = "The URL provided for this request does not match the batch endpoint.";
                Err(("invalid_url", Some("url"), message.to_owned()))
            }
        }
    }

    /// Looks only at what decides whether the file can run at all; the rest is the endpoint's to judge, line by line.
    fn check_body<'b>(&mut self, endpoint: Endpoint, body: &'b RawValue) -> Result<(String, Body<'b>), Refusal> {
        let refuse = |code, param, message: &str| Err((code, Some(param), message.to_owned()));
        let Ok(body) = serde_json::from_str::<Body<'b>>(body.get()) else {
            return refuse("invalid_type", "body", "Invalid type for 'body': expected an object.");
        };
        let field = |name| body.get(name).map(|value| value.get()).filter(|value| *value != "null");
        let (required, label) = match endpoint {
            Endpoint::ChatCompletions => (Some(MESSAGES), "Chat Completions"),
            Endpoint::Completions => (None, "Completions"),
            Endpoint::Embeddings => (Some(INPUT), "Embeddings"),
            Endpoint::Rerank => (Some(DOCUMENTS), "Rerank"),
        };
        if field("stream") == Some("true") {
            let message = format!("{label}: Streaming is not supported in the Batch API.");
            return refuse("streaming_unsupported", "body.stream", &message);
        }
        let Some(model) = field("model") else {
            return refuse("invalid_request", "body.model", "Model parameter is required.");
        };
        let Ok(model) = serde_json::from_str::<String>(model) else {
            return refuse("invalid_type", "body.model", "Invalid type for 'body.model': expected a string.");
        };
        self.check_model(&model)?;
        if let Some((name, param, message)) = required
            && field(name).is_none()
        {
            return refuse("invalid_request", param, message);
        }
        Ok((model, body))
    }

    fn check_model(&mut self, model: &str) -> Result<(), Refusal> {
        let param = Some("body.model");
        if !self.known_models.contains(model) {
            if !self.executor.knows(model) || !self.allowed.contain(model) {
                let name: String = model.chars().take(200).collect();
                let message = format!("The provided model '{name}' is not supported by the Batch API.");
                return Err(("model_not_found", param, message));
            }
            self.known_models.insert(model.to_owned());
        }
        let first = self.first_model.get_or_insert_with(|| model.to_owned());
        if self.settings.single_model && first != model {
            let message = format!("All requests of a batch must name the same model, here '{first}'.");
            return Err(("mismatched_model", param, message));
        }
        Ok(())
    }

    pub(super) fn note(&mut self, error: BatchError) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }

    /// False if the batch no longer validates.
    async fn store(
        &self,
        store: &Store,
        batch: &Batch,
        chunk: &mut Vec<NewLine>,
        (next_line, next_offset): (i64, i64),
    ) -> Result<bool, StoreError> {
        let errors = if self.errors.is_empty() { None } else { Some(to_json(&self.errors)?) };
        let stored = store.ingest(&batch.id, chunk, &IngestPoint { next_line, next_offset, errors }).await?;
        chunk.clear();
        Ok(stored)
    }
}

fn parse(text: &str) -> Result<Envelope<'_>, Refusal> {
    let refuse = |message: &str| ("invalid_json_line", None, message.to_owned());
    // The derived parser would take an array for the fields in their order.
    let is_object = text.starts_with('{');
    match serde_json::from_str::<Envelope<'_>>(text) {
        Ok(envelope) if is_object => Ok(envelope),
        Err(error) if is_object && error.is_data() => {
            // Every field takes every JSON value, so this can only be a field that comes twice.
            let error = error.to_string();
            let twice =
                ["custom_id", "method", "url", "body"].into_iter().find(|name| error.contains(&format!("`{name}`")));
            Err(refuse(&format!("Duplicate field '{}'.", twice.unwrap_or("body"))))
        }
        _ => Err(refuse("This line is not parseable as valid JSON.")),
    }
}

fn check_custom_id(value: Option<Value>) -> Result<String, Refusal> {
    if let Value::String(id) = value.ok_or_else(|| missing("custom_id"))?
        && (1..=CUSTOM_ID_BYTES_MAX).contains(&id.len())
        && !id.chars().any(char::is_control)
    {
        return Ok(id);
    }
    let message = format!(
        "Invalid 'custom_id': expected a string of 1 to {CUSTOM_ID_BYTES_MAX} bytes without control characters."
    );
    Err(("invalid_custom_id", Some("custom_id"), message))
}

fn check_method(value: Option<Value>) -> Result<(), Refusal> {
    if value.ok_or_else(|| missing("method"))? == "POST" {
        return Ok(());
    }
    Err(("invalid_method", Some("method"), "Invalid method: every request of a batch is a POST.".to_owned()))
}

fn missing(name: &'static str) -> Refusal {
    ("missing_required_parameter", Some(name), format!("Missing required parameter: '{name}'."))
}

/// Ends a batch as `failed`.
pub(super) async fn fail(
    store: &Store,
    settings: &Settings,
    batch: &Batch,
    errors: &[BatchError],
) -> Result<(), StoreError> {
    if store.fail_batch(&batch.id, &to_json(errors)?, settings.clock.seconds(), settings.tell_ends).await? {
        let code = errors.first().map_or("", |error| error.code.as_str());
        tracing::info!(batch.id = %batch.id, errors = errors.len(), code, "a batch failed");
    }
    Ok(())
}

/// Why a batch ends whose input is no longer what was validated.
pub(super) fn damaged_input() -> BatchError {
    file_error("input_file_corrupt", None, "The stored input file is damaged. Please upload it again.".to_owned())
}

fn unknown_file(id: &str) -> BatchError {
    let id: String = id.chars().take(100).collect();
    let message = format!("Cannot find file {id}, or organization default does not have access to it.");
    file_error("invalid_request", Some("file_id"), message)
}

pub(super) fn empty_file() -> BatchError {
    let message = "The input file is empty. Please ensure that the batch contains at least one request.";
    file_error("empty_file", None, message.to_owned())
}

pub(super) fn too_many(lines_max: i64) -> BatchError {
    file_error("too_many_tasks", None, format!("The input file contains more than {lines_max} requests."))
}

fn file_error(code: &str, param: Option<&str>, message: String) -> BatchError {
    BatchError { code: code.to_owned(), message, param: param.map(str::to_owned), line: None }
}

fn to_json(errors: &[BatchError]) -> Result<String, StoreError> {
    serde_json::to_string(errors).map_err(|error| std::io::Error::other(error).into())
}

async fn seek(mut file: fs_err::tokio::File, offset: i64) -> std::io::Result<fs_err::tokio::File> {
    use tokio::io::AsyncSeekExt;
    file.seek(std::io::SeekFrom::Start(u64::try_from(offset).unwrap_or(0))).await?;
    Ok(file)
}
