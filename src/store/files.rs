use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::entity::prelude::*;
use sea_orm::{ActiveModelTrait, Condition, ConnectionTrait, DatabaseTransaction, QueryOrder, QuerySelect};

use super::{Blob, Page, REPETITION_S, Store, StoreError, Tenant, ids, statement};
use crate::failpoint::failpoint;

/// A row of `files`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "files")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub seq: i64,
    pub id: String,
    pub tenant: String,
    pub purpose: String,
    pub filename: String,
    pub bytes: i64,
    pub sha256: String,
    pub storage_key: String,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub deleted_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

pub use Model as File;

/// What is known about a file before it has an id.
#[derive(Clone, Debug)]
pub struct NewFile {
    pub tenant: Tenant,
    pub purpose: String,
    pub filename: String,
    pub blob: Blob,
    pub created_at: i64,
    pub expires_at: Option<i64>,
}

impl Store {
    /// `Quota` if the tenant's files would come to more than `quota` bytes; the blob is then nobody's, and is removed.
    pub async fn add_file(&self, file: NewFile, quota: Option<u64>) -> Result<File, StoreError> {
        let tx = self.begin().await?;
        if !fits(&tx, &file, quota).await? {
            tx.rollback().await?;
            self.blobs().remove(&file.blob.key).await?;
            return Err(StoreError::Quota);
        }
        let file = insert(&tx, file).await?;
        failpoint("file.uncommitted");
        self.commit(tx).await?;
        failpoint("file.committed");
        Ok(file)
    }

    /// Adds a file that the client may have sent before, when it did not hear of its arrival: an equal one of the last moments is the same.
    pub async fn add_repeated_file(&self, file: NewFile, quota: Option<u64>) -> Result<File, StoreError> {
        let tx = self.begin().await?;
        let known = visible(&file.tenant, file.created_at)
            .filter(Column::Sha256.eq(&file.blob.sha256))
            .filter(Column::Filename.eq(&file.filename))
            .filter(Column::Purpose.eq(&file.purpose))
            .filter(Column::CreatedAt.gt(file.created_at - REPETITION_S))
            .order_by_desc(Column::Seq)
            .one(&tx)
            .await?;
        let key = file.blob.key.clone();
        let (file, unneeded) = match known {
            Some(known) => (Ok(known), Some(key)),
            None if !fits(&tx, &file, quota).await? => (Err(StoreError::Quota), Some(key)),
            None => (Ok(insert(&tx, file).await?), None),
        };
        self.commit(tx).await?;
        if let Some(key) = unneeded {
            self.blobs().remove(&key).await?;
        }
        file
    }

    /// Bytes of all files that a tenant has.
    pub async fn stored_bytes(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        stored_bytes(self.readers(), tenant).await
    }

    /// A tenant's file that is neither deleted nor expired at `now`.
    pub async fn file(&self, tenant: &Tenant, id: &str, now: i64) -> Result<File, StoreError> {
        if !ids::is_file_id(id) {
            return Err(StoreError::NotFound);
        }
        visible(tenant, now).filter(Column::Id.eq(id)).one(self.readers()).await?.ok_or(StoreError::NotFound)
    }

    /// Whether a file that is not visible was a tenant's own until its time was over.
    pub async fn has_expired(&self, tenant: &Tenant, id: &str, now: i64) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM files WHERE id = ?1 AND tenant = ?2 AND expires_at <= ?3
                   AND (deleted_at IS NULL OR deleted_at >= expires_at)";
        let values = [id.into(), tenant.as_str().into(), now.into()];
        Ok(self.readers().query_one_raw(statement(sql, values)).await?.is_some())
    }

    /// One page of a tenant's visible files, and whether more follow. `NotFound` if `after` names none of them.
    pub async fn files(
        &self,
        tenant: &Tenant,
        purpose: Option<&str>,
        page: &Page,
        now: i64,
    ) -> Result<(Vec<File>, bool), StoreError> {
        let mut query = visible(tenant, now);
        if let Some(purpose) = purpose {
            query = query.filter(Column::Purpose.eq(purpose));
        }
        if let Some(after) = &page.after {
            let seq = self.file(tenant, after, now).await?.seq;
            query = query.filter(if page.newest_first { Column::Seq.lt(seq) } else { Column::Seq.gt(seq) });
        }
        let query = if page.newest_first { query.order_by_desc(Column::Seq) } else { query.order_by_asc(Column::Seq) };
        let mut files = query.limit(page.limit + 1).all(self.readers()).await?;
        let more = files.len() as u64 > page.limit;
        files.truncate(usize::try_from(page.limit).unwrap_or(usize::MAX));
        Ok((files, more))
    }

    /// Deletes a file. Its bytes stay for as long as a batch reads them: while it runs, and while its failed lines can be run again.
    pub async fn delete_file(&self, tenant: &Tenant, id: &str, now: i64) -> Result<(), StoreError> {
        let file = self.file(tenant, id, now).await?;
        let tx = self.begin().await?;
        let sql = "UPDATE files SET deleted_at = ? WHERE id = ? AND deleted_at IS NULL";
        if tx.execute_raw(statement(sql, [now.into(), id.into()])).await?.rows_affected() == 0 {
            return Err(StoreError::NotFound);
        }
        let released = release(&tx, &file).await?;
        self.commit(tx).await?;
        failpoint("file.deleted");
        for key in released {
            self.blobs().remove(&key).await?;
        }
        Ok(())
    }

    /// Deletes the files whose time is over and answers how many they were.
    pub async fn delete_expired_files(&self, now: i64) -> Result<usize, StoreError> {
        let expired = Entity::find()
            .filter(Column::DeletedAt.is_null())
            .filter(Column::ExpiresAt.lte(now))
            .limit(256)
            .all(self.readers())
            .await?;
        for file in &expired {
            let tx = self.begin().await?;
            tx.execute_raw(statement("UPDATE files SET deleted_at = ? WHERE seq = ?", [now.into(), file.seq.into()]))
                .await?;
            let released = release(&tx, file).await?;
            self.commit(tx).await?;
            for key in released {
                self.blobs().remove(&key).await?;
            }
        }
        Ok(expired.len())
    }

    /// Removes the blobs that no file, batch or result names. For the start only, while nothing is being written.
    pub async fn collect_garbage(&self) -> Result<usize, StoreError> {
        let sql = format!(
            "SELECT storage_key FROM files WHERE deleted_at IS NULL
             UNION SELECT input_key FROM batches WHERE input_key IS NOT NULL AND {READS_INPUT}
             UNION SELECT index_key FROM batches WHERE index_key IS NOT NULL
             UNION SELECT spill_key FROM results WHERE spill_key IS NOT NULL"
        );
        let rows = self.readers().query_all_raw(statement(&sql, [])).await?;
        let keys = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, DbErr>>()?;
        self.blobs().collect_garbage(&keys).await
    }
}

pub(super) async fn insert(tx: &DatabaseTransaction, file: NewFile) -> Result<File, StoreError> {
    let NewFile { tenant, purpose, filename, blob, created_at, expires_at } = file;
    let row = ActiveModel {
        seq: NotSet,
        id: Set(ids::new_file_id()),
        tenant: Set(tenant.as_str().to_owned()),
        purpose: Set(purpose),
        filename: Set(filename),
        bytes: Set(i64::try_from(blob.bytes).unwrap_or(i64::MAX)),
        sha256: Set(blob.sha256),
        storage_key: Set(blob.key),
        created_at: Set(created_at),
        expires_at: Set(expires_at),
        deleted_at: NotSet,
    };
    Ok(row.insert(tx).await?)
}

/// Whether a tenant may have one file more.
async fn fits(tx: &DatabaseTransaction, file: &NewFile, quota: Option<u64>) -> Result<bool, StoreError> {
    match quota {
        Some(quota) => Ok(stored_bytes(tx, &file.tenant).await?.saturating_add(file.blob.bytes) <= quota),
        None => Ok(true),
    }
}

async fn stored_bytes(connection: &impl ConnectionTrait, tenant: &Tenant) -> Result<u64, StoreError> {
    let sql = "SELECT COALESCE(SUM(bytes), 0) FROM files WHERE tenant = ? AND deleted_at IS NULL";
    let row = connection.query_one_raw(statement(sql, [tenant.as_str().into()])).await?.ok_or(StoreError::NotFound)?;
    let bytes: i64 = row.try_get_by_index(0)?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Of a batch that may still read its input: it is not through, or it has lines that can be run again.
const READS_INPUT: &str = "(purged = 0 OR error_file_id IN (SELECT id FROM files WHERE deleted_at IS NULL))";

/// Whether a file or a batch still needs the blob of an input. Asked inside the transaction that lets go of it, so no batch can begin in
/// between.
pub(super) async fn is_needed(tx: &DatabaseTransaction, key: &str) -> Result<bool, StoreError> {
    let sql = format!(
        "SELECT 1 FROM files WHERE storage_key = ?1 AND deleted_at IS NULL
         UNION ALL SELECT 1 FROM batches WHERE input_key = ?1 AND {READS_INPUT} LIMIT 1"
    );
    Ok(tx.query_one_raw(statement(&sql, [key.into()])).await?.is_some())
}

/// The blobs that nothing needs after a file is deleted: its own, and of the batch that published it the index and the kept input.
async fn release(tx: &DatabaseTransaction, file: &File) -> Result<Vec<String>, StoreError> {
    let mut candidates = vec![file.storage_key.clone()];
    let sql = "SELECT b.id, b.input_key, b.index_key, b.purged,
                   EXISTS (SELECT 1 FROM files f WHERE f.id IN (b.output_file_id, b.error_file_id) AND f.deleted_at IS NULL)
               FROM batches b WHERE b.output_file_id = ?1 OR b.error_file_id = ?1";
    let mut released = Vec::new();
    if let Some(row) = tx.query_one_raw(statement(sql, [file.id.as_str().into()])).await? {
        let (id, input): (String, Option<String>) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        let (index, purged, left): (Option<String>, i64, i64) =
            (row.try_get_by_index(2)?, row.try_get_by_index(3)?, row.try_get_by_index(4)?);
        if left == 0 {
            tx.execute_raw(statement("UPDATE batches SET index_key = NULL WHERE id = ?", [id.into()])).await?;
            released.extend(index);
        }
        candidates.extend(input.filter(|_| purged == 1));
    }
    for key in candidates {
        if !is_needed(tx, &key).await? {
            released.push(key);
        }
    }
    Ok(released)
}

fn visible(tenant: &Tenant, now: i64) -> Select<Entity> {
    Entity::find().filter(Column::Tenant.eq(tenant.as_str())).filter(is_visible(now))
}

/// Neither deleted nor expired.
pub(super) fn is_visible(now: i64) -> Condition {
    let unexpired = Condition::any().add(Column::ExpiresAt.is_null()).add(Column::ExpiresAt.gt(now));
    Condition::all().add(Column::DeletedAt.is_null()).add(unexpired)
}
