use std::{collections::HashSet, sync::Arc};

use futures_util::StreamExt as _;
use reqwest::{Body, multipart::Part};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    client::{Client, ClientError, Result},
    view::BatchView,
};
use crate::batch::RETRY_OF;

#[derive(Deserialize)]
struct Named {
    custom_id: String,
}

/// Has the lines of an ended batch that failed run again; the new batch. What a server does not do by itself is done from here, with the
/// files that it has.
pub(super) async fn retry(client: &Client, id: &str) -> Result<Value> {
    match client.post(&format!("/batches/{id}/retry"), None).await {
        Err(error) if error.is_unknown_route() => retry_from_files(client, id).await,
        answered => answered,
    }
}

async fn retry_from_files(client: &Client, id: &str) -> Result<Value> {
    let batch = BatchView::of(&client.get(&format!("/batches/{id}"), &[]).await?)?;
    let refuse = |message: String| Err(ClientError::Refused { status: 409, code: None, message });
    if !batch.has_ended() {
        return refuse(format!("Cannot retry a batch with status '{}'.", batch.status));
    }
    let Some(error_file_id) = batch.error_file_id.as_deref().filter(|id| !id.is_empty()) else {
        return refuse("No request of this batch failed, so there is nothing to retry.".to_owned());
    };
    let mut failed = HashSet::new();
    let mut records = client.file_lines(error_file_id).await?;
    while let Some(record) = records.next().await {
        failed.insert(custom_id(&record?)?);
    }
    let failed = Arc::new(failed);
    // One file is read while the other is written: neither is held.
    let lines = client.file_lines(&batch.input_file_id).await?.filter_map(move |line| {
        let failed = Arc::clone(&failed);
        std::future::ready(match line.and_then(|line| Ok((custom_id(&line)?, line))) {
            Ok((id, _)) if !failed.contains(&id) => None,
            Ok((_, mut line)) => {
                line.push(b'\n');
                Some(Ok(line))
            }
            Err(error) => Some(Err(error)),
        })
    });
    let part = Part::stream(Body::wrap_stream(lines)).file_name(format!("{id}_retry.jsonl"));
    let file_id = client.upload_part(part).await?;
    let mut metadata = batch.metadata.filter(Value::is_object).unwrap_or_else(|| json!({}));
    metadata[RETRY_OF] = json!(id);
    client.create(&file_id, &batch.endpoint, &batch.completion_window, metadata).await
}

fn custom_id(line: &[u8]) -> Result<String> {
    let named: Named = serde_json::from_slice(line)
        .map_err(|_| ClientError::Unreadable("a file with a line that has no custom_id".to_owned()))?;
    Ok(named.custom_id)
}
