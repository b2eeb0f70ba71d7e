use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::jsonl::JsonlReader;
use super::line::custom_hash;
use super::state::BatchStatus;
use super::{Batches, FILE_EXPIRES_S};
use crate::openai::AllowedModels;
use crate::store::{Batch, Blob, Created, File, Identity, NewBatch, NewFile, StoreError, Tenant};

/// The key in the metadata of a batch that names the one whose lines it runs again.
pub const RETRY_OF: &str = "retry_of";

/// Why a batch's lines are not run again.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// It has not ended.
    #[error("the batch has not ended")]
    Running(BatchStatus),
    /// No line of it failed or was left out.
    #[error("no line is to be run again")]
    Nothing,
    /// The file that names the lines, or the lines themselves, are no longer stored.
    #[error("the failed lines are no longer stored")]
    Gone,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a record of an error file is looked at for.
#[derive(Deserialize)]
struct Named {
    custom_id: String,
}

/// As much of an input line.
#[derive(Deserialize)]
struct Request {
    custom_id: String,
}

impl Batches {
    /// Makes a batch of the lines of an ended one that failed, expired or were cancelled: the same bytes, from the batch's own copy of its
    /// input, under the same `custom_id`s. Its metadata name the first batch as [`RETRY_OF`]. `models` are those of whoever asks.
    pub async fn retry(
        &self,
        tenant: &Tenant,
        models: AllowedModels,
        id: &str,
        identity: Option<Identity>,
    ) -> Result<Created, RetryError> {
        let batch = self.get(tenant, id).await?;
        let status = batch.status()?;
        if !status.has_ended() {
            return Err(RetryError::Running(status.shown(batch.stop_reason())));
        }
        let Some(error_file_id) = &batch.error_file_id else { return Err(RetryError::Nothing) };
        let now = self.settings.clock.seconds();
        let failed = self.failed_custom_ids(tenant, error_file_id, now).await?;
        let blob = self.copy_lines(&batch, &failed).await?;
        let file = NewFile {
            tenant: tenant.clone(),
            purpose: "batch".to_owned(),
            filename: format!("{id}_retry.jsonl"),
            blob,
            created_at: now,
            expires_at: Some(now + FILE_EXPIRES_S),
        };
        let file = self.store.add_file(file, None).await?;
        let created = self.create(NewBatch { models, ..again(&batch, &file, identity)? }).await?;
        if !matches!(created, Created::New(_)) {
            self.store.delete_file(tenant, &file.id, now).await?;
        }
        Ok(created)
    }

    /// The `custom_id`s in an error file, as their hashes.
    async fn failed_custom_ids(
        &self,
        tenant: &Tenant,
        error_file_id: &str,
        now: i64,
    ) -> Result<HashSet<[u8; 16]>, RetryError> {
        let file = match self.store.file(tenant, error_file_id, now).await {
            Err(StoreError::NotFound) => return Err(RetryError::Gone),
            file => file?,
        };
        let mut failed = HashSet::new();
        // Records are longer than requests may be.
        let mut reader = self.reader(&file.storage_key, usize::MAX >> 1).await?;
        while let Some(line) = reader.next().await.map_err(StoreError::from)? {
            let record: Named = parse(line.text)?;
            failed.insert(custom_hash(&record.custom_id));
        }
        Ok(failed)
    }

    async fn copy_lines(&self, batch: &Batch, wanted: &HashSet<[u8; 16]>) -> Result<Blob, RetryError> {
        let key = batch.input_key.as_deref().ok_or(RetryError::Gone)?;
        let mut reader = self.reader(key, self.settings.line_bytes_max).await?;
        let mut blob = self.store.blobs().create().await?;
        let mut copied = 0;
        while let Some(line) = reader.next().await.map_err(StoreError::from)? {
            let request: Request = parse(line.text)?;
            if wanted.contains(&custom_hash(&request.custom_id)) {
                blob.write(line.text.unwrap_or_default()).await?;
                blob.write(b"\n").await?;
                copied += 1;
            }
        }
        if copied != wanted.len() {
            return Err(StoreError::Corrupt(format!("the input of batch {} lacks failed lines", batch.id)).into());
        }
        Ok(blob.finish().await?)
    }

    async fn reader(
        &self,
        key: &str,
        line_bytes_max: usize,
    ) -> Result<JsonlReader<tokio::io::BufReader<fs_err::tokio::File>>, RetryError> {
        let file = match self.store.blobs().open_blob(key).await {
            Err(StoreError::Corrupt(_)) => return Err(RetryError::Gone),
            opened => opened?,
        };
        Ok(JsonlReader::new(tokio::io::BufReader::with_capacity(256 * 1024, file), line_bytes_max, 1, 0))
    }
}

fn parse<'a, T: Deserialize<'a>>(text: Option<&'a [u8]>) -> Result<T, StoreError> {
    serde_json::from_slice(text.unwrap_or_default())
        .map_err(|_| StoreError::Corrupt("a line that was checked or written does not parse".to_owned()))
}

/// The same order, for other lines.
fn again(batch: &Batch, file: &File, identity: Option<Identity>) -> Result<NewBatch, StoreError> {
    let damaged = |error: serde_json::Error| StoreError::Corrupt(error.to_string());
    let mut metadata: Map<String, Value> = match &batch.metadata {
        Some(text) => serde_json::from_str(text).map_err(damaged)?,
        None => Map::new(),
    };
    metadata.insert(RETRY_OF.to_owned(), batch.id.as_str().into());
    Ok(NewBatch {
        tenant: batch.tenant(),
        input_file_id: file.id.clone(),
        endpoint: batch.endpoint.clone(),
        window: batch.window.clone(),
        window_s: batch.expires_at - batch.created_at,
        metadata: Some(serde_json::to_string(&metadata).map_err(damaged)?),
        output_expires_s: batch.output_expires_s,
        priority: batch.priority,
        not_before: None,
        models: batch.models(),
        identity,
    })
}
