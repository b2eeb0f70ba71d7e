use super::index::{IndexBuilder, Place};
use super::line::{Source, unexecuted_record};
use super::settings::Settings;
use super::state::StopReason;
use crate::failpoint::failpoint;
use crate::store::{Batch, Blob, BlobWriter, NewFile, PublishedFiles, Record, Store, StoreError};

/// Records held in memory at once; each is at most as large as `spill_bytes`.
const PAGE: i64 = 64;
const PURGE_ROWS: i64 = 256;

/// The two files of a batch, each of which exists only if it has a record, and where in them the records stand.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    pub(super) output: Option<Blob>,
    pub(super) error: Option<Blob>,
    pub(super) index: Option<Blob>,
}

/// Ends a batch whose lines have all ended or are not to be run: its files appear and its status becomes final, in one transaction.
pub(super) async fn publish(store: &Store, settings: &Settings, batch: &Batch) -> Result<(), StoreError> {
    let Some(epoch) = store.begin_publish(&batch.id).await? else { return Ok(()) };
    failpoint("publish.begun");
    let Rendered { output, error, index } = render(store, settings, batch).await?;
    failpoint("publish.rendered");
    let now = settings.clock.seconds();
    let expires_at = Some(now + batch.output_expires_s.unwrap_or(settings.output_expires_s));
    let file = |blob, kind| NewFile {
        tenant: batch.tenant(),
        purpose: "batch_output".to_owned(),
        filename: format!("{}_{kind}.jsonl", batch.id),
        blob,
        created_at: now,
        expires_at,
    };
    let files = PublishedFiles {
        output: output.map(|blob| file(blob, "output")),
        error: error.map(|blob| file(blob, "error")),
        index,
    };
    if store.publish(&batch.id, epoch, files, now, settings.tell_ends).await? {
        tracing::info!(batch.id = %batch.id, "published a batch");
    }
    Ok(())
}

/// Deletes the rows of an ended batch, a bite at a time, so that other writers come in between.
pub(super) async fn purge(store: &Store, batch: &Batch) -> Result<(), StoreError> {
    while !store.purge(&batch.id, PURGE_ROWS).await? {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Writes a batch's records in the order of its lines. The same rows make the same bytes.
pub(super) async fn render(store: &Store, settings: &Settings, batch: &Batch) -> Result<Rendered, StoreError> {
    let (mut output, mut error, mut index) = (None, None, IndexBuilder::default());
    let mut source = None;
    let mut line_no = 0;
    loop {
        let records = store.records(&batch.id, line_no, PAGE).await?;
        let Some(last) = records.last() else { break };
        line_no = last.line_no;
        for record in records {
            let (failed, seq) = (record.is_error != Some(0), record.seq);
            let body = body(store, batch, &mut source, record).await?;
            let sink = if failed && !settings.single_output { &mut error } else { &mut output };
            let writer = writer(store, sink).await?;
            let len = body.trim_ascii_end().len() as u64;
            index.add(seq, Place { failed, off: writer.bytes(), len });
            writer.write(&body).await?;
        }
        failpoint("publish.half");
    }
    // Nobody reads pages of what is run without a server.
    let index = if settings.single_output { None } else { index.finish(store.blobs()).await? };
    Ok(Rendered { output: finish(output).await?, error: finish(error).await?, index })
}

async fn body(
    store: &Store,
    batch: &Batch,
    source: &mut Option<Source>,
    record: Record,
) -> Result<Vec<u8>, StoreError> {
    if let Some(body) = record.body {
        return Ok(body);
    }
    if let Some(key) = record.spill_key {
        return store.blobs().read(&key).await;
    }
    let source = match source {
        Some(source) => source,
        None => source.insert(Source::open(store, batch).await?),
    };
    let text = source.read(record.off, record.len).await?;
    let reason = batch.stop_reason().unwrap_or(StopReason::Cancel);
    unexecuted_record(&batch.id, record.line_no, &text, reason.line_error())
}

async fn writer<'a>(store: &Store, sink: &'a mut Option<BlobWriter>) -> Result<&'a mut BlobWriter, StoreError> {
    match sink {
        Some(writer) => Ok(writer),
        None => Ok(sink.insert(store.blobs().create().await?)),
    }
}

async fn finish(sink: Option<BlobWriter>) -> Result<Option<Blob>, StoreError> {
    match sink {
        Some(writer) => writer.finish().await.map(Some),
        None => Ok(None),
    }
}
