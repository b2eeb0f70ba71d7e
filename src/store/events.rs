use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult};

use super::{Store, StoreError, ids, statement};

/// The end of a batch, which is still to be told of.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Event {
    pub seq: i64,
    pub id: String,
    /// `batch.completed`, `batch.failed`, `batch.expired` or `batch.cancelled`.
    pub kind: String,
    pub batch_id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// How often it was tried to tell of it.
    pub attempts: i64,
}

impl Store {
    /// Events that are to be told of at `now_ms`, the longest due first.
    pub async fn due_events(&self, now_ms: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
        let sql = "SELECT seq, id, kind, batch_id, created_at, attempts FROM webhook_events
                   WHERE next_at <= ? ORDER BY next_at, seq LIMIT ?";
        Ok(Event::find_by_statement(statement(sql, [now_ms.into(), limit.into()])).all(self.readers()).await?)
    }

    /// When the next event is to be told of, in Unix milliseconds.
    pub async fn next_event_at(&self) -> Result<Option<i64>, StoreError> {
        let row = self.readers().query_one_raw(statement("SELECT MIN(next_at) FROM webhook_events", [])).await?;
        Ok(row.map(|row| row.try_get_by_index(0)).transpose()?.flatten())
    }

    /// Notes that an attempt failed and when the next one is due.
    pub async fn put_event_off(&self, seq: i64, next_at_ms: i64) -> Result<(), StoreError> {
        let sql = "UPDATE webhook_events SET attempts = attempts + 1, next_at = ? WHERE seq = ?";
        let tx = self.begin().await?;
        tx.execute_raw(statement(sql, [next_at_ms.into(), seq.into()])).await?;
        self.commit(tx).await
    }

    /// Forgets an event: it was taken, or is given up.
    pub async fn forget_event(&self, seq: i64) -> Result<(), StoreError> {
        let tx = self.begin().await?;
        tx.execute_raw(statement("DELETE FROM webhook_events WHERE seq = ?", [seq.into()])).await?;
        self.commit(tx).await
    }
}

/// Notes that a batch has ended, in the transaction that ends it.
pub(super) async fn insert(tx: &DatabaseTransaction, batch_id: &str, now: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO webhook_events (id, kind, batch_id, created_at)
               SELECT ?, 'batch.' || status, id, ? FROM batches WHERE id = ?";
    tx.execute_raw(statement(sql, [ids::new_event_id().into(), now.into(), batch_id.into()])).await?;
    Ok(())
}
