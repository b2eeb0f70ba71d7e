use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::Batches;
use super::index::{Place, places};
use super::line::read_at;
use crate::store::{Batch, Finished, StoreError, Tenant};

/// Rows or places read at a time.
const READ_LINES: usize = 16;
/// Of the records of one page, and of those that a follower holds; the last one may go beyond.
const PAGE_BYTES: usize = 4 << 20;

/// Which finished lines to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResultsQuery {
    /// The `seq` of the last one that is known; 0 for none.
    pub after: i64,
    /// Those that failed, or those that did not; all if absent.
    pub failed: Option<bool>,
}

/// A finished line: the very bytes that stand in the batch's output or error file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultLine {
    /// Which one it is, counted from 1 in the order in which lines ended. It does not change.
    pub seq: i64,
    /// Without a line end.
    pub record: Vec<u8>,
}

/// Some of a batch's finished lines.
#[derive(Clone, Debug)]
pub struct ResultsPage {
    pub lines: Vec<ResultLine>,
    /// Whether there are more already.
    pub has_more: bool,
    /// The batch at that time.
    pub batch: Batch,
}

/// A batch and finished lines of it, both of one time.
struct Read {
    batch: Batch,
    lines: Vec<ResultLine>,
    /// Whether there were no more.
    is_last: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// A file that held them was deleted or has expired.
    #[error("the results are no longer stored")]
    Gone,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Batches {
    /// The next finished lines of a batch, no more than `limit`; committed ones while it runs, published ones after its end. A page may be
    /// shorter than it could be, where records are large.
    pub async fn results(
        &self,
        tenant: &Tenant,
        id: &str,
        query: ResultsQuery,
        limit: usize,
    ) -> Result<ResultsPage, ResultsError> {
        let mut page = Vec::new();
        let (mut bytes, mut query) = (0, query);
        loop {
            let wanted = (limit + 1 - page.len()).min(READ_LINES);
            let Read { batch, lines, is_last } = self.finished(tenant, id, query, wanted).await?;
            for line in lines {
                if page.len() == limit || (bytes > PAGE_BYTES && !page.is_empty()) {
                    return Ok(ResultsPage { lines: page, has_more: true, batch });
                }
                query.after = line.seq;
                bytes += line.record.len();
                page.push(line);
            }
            if is_last {
                return Ok(ResultsPage { lines: page, has_more: false, batch });
            }
        }
    }

    /// Each finished line of a batch as soon as it is committed, until the batch has ended.
    pub async fn follow(&self, tenant: &Tenant, id: &str, query: ResultsQuery) -> Result<Follower, ResultsError> {
        // An unknown batch is told at once.
        self.get(tenant, id).await?;
        let news = self.feed.watch(id);
        Ok(Follower {
            batches: self.clone(),
            tenant: tenant.clone(),
            id: id.to_owned(),
            query,
            news,
            lines: VecDeque::new(),
        })
    }

    /// The next finished lines of a batch: no more than `limit`, and fewer where records are large.
    async fn finished(
        &self,
        tenant: &Tenant,
        id: &str,
        query: ResultsQuery,
        limit: usize,
    ) -> Result<Read, ResultsError> {
        let ResultsQuery { after, failed } = query;
        let batch = self.get(tenant, id).await?;
        if batch.status()?.has_ended() {
            return self.published(batch, query, limit).await;
        }
        let rows = self.store.finished(id, after, failed, i64::try_from(limit).unwrap_or(i64::MAX)).await?;
        let (mut lines, mut bytes, mut is_last, mut missing) = (Vec::new(), 0, rows.len() < limit, None);
        for row in rows {
            if bytes > PAGE_BYTES {
                is_last = false;
                break;
            }
            match self.record(row).await {
                Ok(line) => {
                    bytes += line.record.len();
                    lines.push(line);
                }
                // Purged since the row was read, if the batch has ended by now.
                Err(error @ StoreError::Corrupt(_)) => {
                    missing = Some(error);
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Rows go once the batch has ended, from the first on: of those that were read some may be missing then.
        let batch = self.get(tenant, id).await?;
        if batch.status()?.has_ended() {
            return self.published(batch, query, limit).await;
        }
        match missing {
            Some(error) => Err(error.into()),
            None => Ok(Read { batch, lines, is_last }),
        }
    }

    async fn record(&self, row: Finished) -> Result<ResultLine, StoreError> {
        let Finished { seq, spill_key, body } = row;
        let mut record = match (body, spill_key) {
            (Some(body), _) => body,
            (None, Some(key)) => self.store.blobs().read(&key).await?,
            (None, None) => return Err(StoreError::Corrupt("a result has no record".to_owned())),
        };
        if record.last() == Some(&b'\n') {
            record.pop();
        }
        Ok(ResultLine { seq, record })
    }

    async fn published(&self, batch: Batch, query: ResultsQuery, limit: usize) -> Result<Read, ResultsError> {
        let ResultsQuery { after, failed } = query;
        let Some(key) = &batch.index_key else {
            // A batch that has files and no index has lost the files.
            let published = batch.output_file_id.is_some() || batch.error_file_id.is_some();
            return if published {
                Err(ResultsError::Gone)
            } else {
                Ok(Read { batch, lines: Vec::new(), is_last: true })
            };
        };
        let after = u64::try_from(after).unwrap_or(0);
        let places = match places(self.store.blobs(), key, after, failed, limit).await {
            // Let go of with the last of the files.
            Err(StoreError::Corrupt(_)) => return Err(ResultsError::Gone),
            places => places?,
        };
        let (mut output, mut error) = (None, None);
        let (mut lines, mut bytes, mut is_last) = (Vec::new(), 0, places.len() < limit);
        for (seq, Place { failed, off, len }) in places {
            if bytes > PAGE_BYTES {
                is_last = false;
                break;
            }
            let (file, id) =
                if failed { (&mut error, &batch.error_file_id) } else { (&mut output, &batch.output_file_id) };
            let file = match file {
                Some(file) => file,
                None => file.insert(self.open_published(&batch.tenant(), id.as_deref()).await?),
            };
            let record = read_at(file, off, usize::try_from(len).unwrap_or(0)).await?;
            bytes += record.len();
            lines.push(ResultLine { seq, record });
        }
        Ok(Read { batch, lines, is_last })
    }

    async fn open_published(&self, tenant: &Tenant, file_id: Option<&str>) -> Result<Arc<fs_err::File>, ResultsError> {
        let found = match file_id {
            Some(id) => self.store.file(tenant, id, self.settings.clock.seconds()).await,
            None => Err(StoreError::NotFound),
        };
        let file = match found {
            Err(StoreError::NotFound) => return Err(ResultsError::Gone),
            found => found?,
        };
        match self.store.blobs().open_blob(&file.storage_key).await {
            // Deleted in between.
            Err(StoreError::Corrupt(_)) => Err(ResultsError::Gone),
            opened => Ok(Arc::new(opened?.into_std().await)),
        }
    }
}

/// What a follower is told.
#[derive(Debug)]
pub enum Followed {
    Line(ResultLine),
    /// The batch has ended, and this was all of it.
    Ended(Box<Batch>),
}

/// Reads the finished lines of a batch as they come. It holds a page of them at most, and reads no further until it is asked to: a slow
/// reader costs memory for that, and nothing else waits for it.
#[derive(Debug)]
pub struct Follower {
    batches: Batches,
    tenant: Tenant,
    id: String,
    query: ResultsQuery,
    news: watch::Receiver<()>,
    lines: VecDeque<ResultLine>,
}

impl Follower {
    /// Waits for what comes next; `None` when the server stops.
    pub async fn next(&mut self) -> Result<Option<Followed>, ResultsError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(Followed::Line(line)));
            }
            // Before the look, so that what is committed during it is not slept through.
            self.news.mark_unchanged();
            let page = self.batches.results(&self.tenant, &self.id, self.query, READ_LINES).await?;
            if let Some(last) = page.lines.last() {
                self.query.after = last.seq;
                self.lines = page.lines.into();
                continue;
            }
            if page.batch.status().map_err(ResultsError::from)?.has_ended() {
                return Ok(Some(Followed::Ended(Box::new(page.batch))));
            }
            if self.news.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
