use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use sea_orm::{ActiveModelTrait, ConnectionTrait, DatabaseTransaction, QueryOrder, QuerySelect};

use super::files::{self, NewFile};
use super::{Blob, Page, REPETITION_S, Store, StoreError, Tenant, events, ids, statement};
use crate::batch::{BatchStatus, StopReason};
use crate::failpoint::failpoint;
use crate::openai::AllowedModels;

/// A row of `batches`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "batches")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub seq: i64,
    pub id: String,
    pub tenant: String,
    pub endpoint: String,
    pub input_file_id: String,
    /// The blob that the lines are read from; `None` if the input file was not one that a batch may read.
    pub input_key: Option<String>,
    pub window: String,
    pub status: String,
    pub stop_reason: Option<String>,
    pub epoch: i64,
    pub total: i64,
    pub done: i64,
    pub failed: i64,
    pub open_lines: i64,
    /// Open lines whose answer no earlier line has: those that cost something.
    pub open_work: i64,
    pub ingest_line: i64,
    pub ingest_offset: i64,
    pub model: Option<String>,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub output_expires_s: Option<i64>,
    pub errors: Option<String>,
    pub metadata: Option<String>,
    pub idem_key: Option<String>,
    pub idem_hash: Option<String>,
    pub input_tokens: i64,
    pub cached_tokens: i64,
    pub output_tokens: i64,
    pub reasoning_tokens: i64,
    pub created_at: i64,
    pub expires_at: i64,
    pub in_progress_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    pub purged: i64,
    /// Since when no line of it starts, in Unix seconds.
    pub paused_at: Option<i64>,
    /// The blob that says where each finished line stands in the published files.
    pub index_key: Option<String>,
    /// Names of the models that its lines may name, a line for each; `None` is all.
    pub models: Option<String>,
    /// Among the batches of its tenant: the lower goes first.
    pub priority: i64,
    /// No line of it starts before this time, in Unix seconds.
    pub not_before: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

pub use Model as Batch;

impl Model {
    pub fn status(&self) -> Result<BatchStatus, StoreError> {
        self.status.parse().map_err(|()| StoreError::Corrupt(format!("batch {} has an unknown status", self.id)))
    }

    pub fn tenant(&self) -> Tenant {
        Tenant::stored(&self.tenant)
    }

    pub fn models(&self) -> AllowedModels {
        AllowedModels::from_lines(self.models.as_deref())
    }

    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop_reason.as_deref().and_then(|text| text.parse().ok())
    }
}

/// What a client asked for, checked.
#[derive(Clone, Debug)]
pub struct NewBatch {
    pub tenant: Tenant,
    pub input_file_id: String,
    pub endpoint: String,
    pub window: String,
    pub window_s: i64,
    pub metadata: Option<String>,
    pub output_expires_s: Option<i64>,
    pub priority: i64,
    pub not_before: Option<i64>,
    /// Those of whoever asks.
    pub models: AllowedModels,
    pub identity: Option<Identity>,
}

/// By which a tenant's repeated request is known.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What the client names its request by.
    pub key: Option<String>,
    /// Of the request: the same key with another request is a mistake of the client.
    pub hash: String,
    /// Whether the client says that it has sent this request before: an equal one of the last moments is then the same.
    pub repeated: bool,
}

#[derive(Debug)]
pub enum Created {
    New(Batch),
    /// The same request came before.
    Known(Batch),
    /// The key came before with another request.
    Mismatch,
    /// So many of the tenant's batches are unfinished already.
    TooMany,
}

#[derive(Debug)]
pub enum CancelOutcome {
    Cancelling(Batch),
    /// Too late, or not needed: the batch as it is.
    Unchanged(Batch),
}

/// What a batch's lines came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    pub done: i64,
    pub failed: i64,
    pub open: i64,
}

/// The blobs that hold a batch's records, for those that have any.
#[derive(Debug)]
pub struct PublishedFiles {
    pub output: Option<NewFile>,
    pub error: Option<NewFile>,
    /// Where each record stands in them.
    pub index: Option<Blob>,
}

/// A repeated key counts as the same request for this long.
const IDEMPOTENCY_S: i64 = 24 * 3600;

impl Store {
    /// T1. Looks the input file up in the same transaction, so that its bytes cannot be let go in between.
    pub async fn create_batch(&self, new: NewBatch, active_max: u64, now: i64) -> Result<Created, StoreError> {
        let tx = self.begin().await?;
        let of_tenant = Column::Tenant.eq(new.tenant.as_str());
        if let Some(identity) = &new.identity
            && let Some(known) = find_known(&tx, &new.tenant, identity, now).await?
        {
            let same = known.idem_hash.as_deref() == Some(&identity.hash);
            self.commit(tx).await?;
            return Ok(if same { Created::Known(known) } else { Created::Mismatch });
        }
        if Entity::find().filter(of_tenant).filter(Column::Purged.eq(0)).count(&tx).await? >= active_max {
            return Ok(Created::TooMany);
        }
        let input = files::Entity::find()
            .filter(files::Column::Id.eq(&new.input_file_id))
            .filter(files::Column::Tenant.eq(new.tenant.as_str()))
            .filter(files::Column::Purpose.eq("batch"))
            .filter(files::is_visible(now))
            .one(&tx)
            .await?;
        let (idem_key, idem_hash) = match new.identity {
            Some(Identity { key, hash, repeated: _ }) => (key.map(|key| idem_key(&new.tenant, &key)), Some(hash)),
            None => (None, None),
        };
        let row = ActiveModel {
            id: Set(ids::new_batch_id()),
            tenant: Set(new.tenant.as_str().to_owned()),
            endpoint: Set(new.endpoint),
            input_file_id: Set(new.input_file_id),
            input_key: Set(input.map(|file| file.storage_key)),
            window: Set(new.window),
            status: Set(BatchStatus::Validating.as_str().to_owned()),
            output_expires_s: Set(new.output_expires_s),
            metadata: Set(new.metadata),
            priority: Set(new.priority),
            not_before: Set(new.not_before),
            models: Set(new.models.to_lines()),
            idem_key: Set(idem_key),
            idem_hash: Set(idem_hash),
            created_at: Set(now),
            expires_at: Set(now + new.window_s),
            ..Default::default()
        };
        let batch = row.insert(&tx).await?;
        failpoint("batch.uncommitted");
        self.commit(tx).await?;
        failpoint("batch.committed");
        Ok(Created::New(batch))
    }

    pub async fn batch(&self, tenant: &Tenant, id: &str) -> Result<Batch, StoreError> {
        if !ids::is_batch_id(id) {
            return Err(StoreError::NotFound);
        }
        Entity::find()
            .filter(Column::Id.eq(id))
            .filter(Column::Tenant.eq(tenant.as_str()))
            .one(self.readers())
            .await?
            .ok_or(StoreError::NotFound)
    }

    /// One page of a tenant's batches, and whether more follow. `NotFound` if `after` names none of them.
    pub async fn batches(&self, tenant: &Tenant, page: &Page) -> Result<(Vec<Batch>, bool), StoreError> {
        let mut query = Entity::find().filter(Column::Tenant.eq(tenant.as_str()));
        if let Some(after) = &page.after {
            let seq = self.batch(tenant, after).await?.seq;
            query = query.filter(if page.newest_first { Column::Seq.lt(seq) } else { Column::Seq.gt(seq) });
        }
        let query = if page.newest_first { query.order_by_desc(Column::Seq) } else { query.order_by_asc(Column::Seq) };
        let mut batches = query.limit(page.limit + 1).all(self.readers()).await?;
        let more = batches.len() as u64 > page.limit;
        batches.truncate(usize::try_from(page.limit).unwrap_or(usize::MAX));
        Ok((batches, more))
    }

    /// The batches that still need work, oldest first: unfinished ones, and finished ones whose rows are not yet purged.
    pub async fn live_batches(&self) -> Result<Vec<Batch>, StoreError> {
        Ok(Entity::find().filter(Column::Purged.eq(0)).order_by_asc(Column::Seq).all(self.readers()).await?)
    }

    /// Has no more lines of a batch start, or lets them start again. Changes nothing where that is so already, or when the batch is ending.
    pub async fn pause_batch(&self, tenant: &Tenant, id: &str, paused: bool, now: i64) -> Result<Batch, StoreError> {
        let sql = "UPDATE batches SET paused_at = ?1
                   WHERE id = ?2 AND tenant = ?3 AND status IN ('validating', 'in_progress')
                     AND (paused_at IS NULL) = (?1 IS NOT NULL)";
        let tx = self.begin().await?;
        tx.execute_raw(statement(sql, [paused.then_some(now).into(), id.into(), tenant.as_str().into()])).await?;
        self.commit(tx).await?;
        self.batch(tenant, id).await
    }

    /// A client's cancel. One compare-and-swap decides between it and publication.
    pub async fn cancel_batch(&self, tenant: &Tenant, id: &str, now: i64) -> Result<CancelOutcome, StoreError> {
        let batch = self.batch(tenant, id).await?;
        if self.stop_batch(&batch.id, StopReason::Cancel, now).await? {
            return Ok(CancelOutcome::Cancelling(self.batch(tenant, id).await?));
        }
        self.batch(tenant, id).await.map(CancelOutcome::Unchanged)
    }

    /// Stops a batch that still validates or runs; false if it did neither.
    pub async fn stop_batch(&self, id: &str, reason: StopReason, now: i64) -> Result<bool, StoreError> {
        let sql = "UPDATE batches SET status = 'cancelling', stop_reason = ?,
                       cancelling_at = CASE ? WHEN 'cancel' THEN ? END
                   WHERE id = ? AND status IN ('validating', 'in_progress')";
        let reason = reason.as_str();
        let tx = self.begin().await?;
        let changed = tx.execute_raw(statement(sql, [reason.into(), reason.into(), now.into(), id.into()])).await?;
        self.commit(tx).await?;
        failpoint("cancel.marked");
        Ok(changed.rows_affected() == 1)
    }

    /// T3, the good end of validation; false if the batch was stopped meanwhile.
    pub async fn start_lines(&self, id: &str, now: i64) -> Result<bool, StoreError> {
        // The field is singular on the wire: a file of several models names none.
        let sql = "UPDATE batches SET status = 'in_progress', in_progress_at = ?,
                       model = (SELECT CASE WHEN MIN(model) = MAX(model) THEN MIN(model) END FROM lines WHERE batch_id = batches.id)
                   WHERE id = ? AND status = 'validating'";
        let tx = self.begin().await?;
        let changed = tx.execute_raw(statement(sql, [now.into(), id.into()])).await?;
        self.commit(tx).await?;
        failpoint("batch.started");
        Ok(changed.rows_affected() == 1)
    }

    /// T3, the bad end of validation, and the end of a batch whose input is damaged. Nothing of it is published.
    /// With `tell`, the end is noted as an event.
    pub async fn fail_batch(&self, id: &str, errors: &str, now: i64, tell: bool) -> Result<bool, StoreError> {
        let sql = "UPDATE batches SET status = 'failed', failed_at = ?, errors = ?, total = 0, done = 0, failed = 0, open_lines = 0, open_work = 0
                   WHERE id = ? AND status IN ('validating', 'in_progress', 'cancelling', 'finalizing')";
        let tx = self.begin().await?;
        let changed =
            tx.execute_raw(statement(sql, [now.into(), errors.into(), id.into()])).await?.rows_affected() == 1;
        if changed && tell {
            events::insert(&tx, id, now).await?;
        }
        self.commit(tx).await?;
        Ok(changed)
    }

    /// A stopped batch whose lines are all at rest goes on to publication.
    pub async fn finalize_stopped(&self, id: &str) -> Result<(), StoreError> {
        let tx = self.begin().await?;
        let sql = "UPDATE batches SET status = 'finalizing' WHERE id = ? AND status = 'cancelling'
                   AND NOT EXISTS (SELECT 1 FROM lines WHERE batch_id = batches.id AND state = 1)";
        tx.execute_raw(statement(sql, [id.into()])).await?;
        self.commit(tx).await
    }

    /// Fences publication: the answer must be given back to [`Store::publish`]. `None` if the batch is not to be published.
    pub async fn begin_publish(&self, id: &str) -> Result<Option<i64>, StoreError> {
        let sql = "UPDATE batches SET epoch = epoch + 1 WHERE id = ? AND status = 'finalizing' RETURNING epoch";
        let tx = self.begin().await?;
        let row = tx.query_one_raw(statement(sql, [id.into()])).await?;
        self.commit(tx).await?;
        Ok(row.map(|row| row.try_get_by_index(0)).transpose()?)
    }

    /// T6. The files appear and the batch ends, together; false if another publication has overtaken this one. With `tell`, the end is noted
    /// as an event.
    pub async fn publish(
        &self,
        id: &str,
        epoch: i64,
        published: PublishedFiles,
        now: i64,
        tell: bool,
    ) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        let output = insert_published(&tx, published.output).await?;
        let error = insert_published(&tx, published.error).await?;
        let index = published.index.map(|blob| blob.key);
        let sql = "UPDATE batches SET output_file_id = ?, error_file_id = ?, index_key = ?,
                       status = CASE stop_reason WHEN 'cancel' THEN 'cancelled' WHEN 'expire' THEN 'expired' ELSE 'completed' END,
                       cancelled_at = CASE WHEN stop_reason = 'cancel' THEN ? END,
                       expired_at = CASE WHEN stop_reason = 'expire' THEN ? END,
                       completed_at = CASE WHEN stop_reason IS NULL THEN ? END
                   WHERE id = ? AND status = 'finalizing' AND epoch = ?";
        let values =
            [output.into(), error.into(), index.into(), now.into(), now.into(), now.into(), id.into(), epoch.into()];
        if tx.execute_raw(statement(sql, values)).await?.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        if tell {
            events::insert(&tx, id, now).await?;
        }
        self.commit(tx).await?;
        failpoint("publish.committed");
        Ok(true)
    }

    /// Deletes at most `limit` rows of an ended batch; true once none is left and its input bytes are let go.
    pub async fn purge(&self, id: &str, limit: i64) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        let spilled = self.purge_rows(&tx, id, limit).await?;
        let mut released = None;
        if spilled.is_none() {
            let sql = "UPDATE batches SET purged = 1 WHERE id = ? RETURNING input_key";
            let row = tx.query_one_raw(statement(sql, [id.into()])).await?.ok_or(StoreError::NotFound)?;
            let key: Option<String> = row.try_get_by_index(0)?;
            if let Some(key) = key {
                released = (!files::is_needed(&tx, &key).await?).then_some(key);
            }
        }
        self.commit(tx).await?;
        failpoint("purge.bite");
        let done = spilled.is_none();
        for key in spilled.into_iter().flatten().chain(released) {
            self.blobs().remove(&key).await?;
        }
        Ok(done)
    }

    /// Makes a batch's counters what its rows say, which they should be already; true if they were not.
    pub async fn recount(&self, id: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE batches SET (total, done, failed, open_lines, open_work) =
                       (SELECT COUNT(*), COUNT(*) FILTER (WHERE state = 2), COUNT(*) FILTER (WHERE state = 3),
                          COUNT(*) FILTER (WHERE state < 2), COUNT(*) FILTER (WHERE state < 2 AND repeats = 0)
                        FROM lines WHERE batch_id = batches.id)
                   WHERE id = ? AND status IN ('validating', 'in_progress', 'cancelling', 'finalizing')
                     AND (total, done, failed, open_work) <>
                       (SELECT COUNT(*), COUNT(*) FILTER (WHERE state = 2), COUNT(*) FILTER (WHERE state = 3),
                          COUNT(*) FILTER (WHERE state < 2 AND repeats = 0)
                        FROM lines WHERE batch_id = batches.id)";
        let tx = self.begin().await?;
        let changed = tx.execute_raw(statement(sql, [id.into()])).await?;
        self.commit(tx).await?;
        Ok(changed.rows_affected() == 1)
    }
}

/// The batch that an earlier sending of the same request has made, or of another under the same key.
async fn find_known(
    tx: &DatabaseTransaction,
    tenant: &Tenant,
    identity: &Identity,
    now: i64,
) -> Result<Option<Batch>, StoreError> {
    let Identity { key, hash, repeated } = identity;
    if let Some(key) = key {
        let key = idem_key(tenant, key);
        let sql = "UPDATE batches SET idem_key = NULL WHERE idem_key = ? AND created_at <= ?";
        tx.execute_raw(statement(sql, [key.as_str().into(), (now - IDEMPOTENCY_S).into()])).await?;
        return Ok(Entity::find().filter(Column::IdemKey.eq(key)).one(tx).await?);
    }
    if !repeated {
        return Ok(None);
    }
    let recent = Entity::find()
        .filter(Column::Tenant.eq(tenant.as_str()))
        .filter(Column::IdemHash.eq(hash))
        .filter(Column::CreatedAt.gt(now - REPETITION_S));
    Ok(recent.order_by_desc(Column::Seq).one(tx).await?)
}

/// The column is unique over all tenants, so a key is kept with the tenant's name before it.
fn idem_key(tenant: &Tenant, key: &str) -> String {
    format!("{tenant}\n{key}")
}

async fn insert_published(tx: &DatabaseTransaction, file: Option<NewFile>) -> Result<Option<String>, StoreError> {
    match file {
        Some(file) => Ok(Some(files::insert(tx, file).await?.id)),
        None => Ok(None),
    }
}
