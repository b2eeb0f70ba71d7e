use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult};

use super::{Store, StoreError, statement};

/// A line of a batch with its result, if it has one.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Record {
    pub line_no: i64,
    pub off: i64,
    pub len: i64,
    pub is_error: Option<i64>,
    pub spill_key: Option<String>,
    pub body: Option<Vec<u8>>,
    pub seq: Option<i64>,
}

/// A finished line of a batch whose rows are not yet purged.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Finished {
    /// Which one it is, counted from 1 in the order in which lines ended.
    pub seq: i64,
    pub spill_key: Option<String>,
    pub body: Option<Vec<u8>>,
}

impl Store {
    /// The next lines of a batch after `line_no`, in file order.
    pub async fn records(&self, batch_id: &str, line_no: i64, limit: i64) -> Result<Vec<Record>, StoreError> {
        let sql = "SELECT l.line_no, l.off, l.len, r.is_error, r.spill_key, r.body, r.seq
                   FROM lines l LEFT JOIN results r ON r.batch_id = l.batch_id AND r.line_no = l.line_no
                   WHERE l.batch_id = ? AND l.line_no > ? ORDER BY l.line_no LIMIT ?";
        let values = [batch_id.into(), line_no.into(), limit.into()];
        Ok(Record::find_by_statement(statement(sql, values)).all(self.readers()).await?)
    }

    /// The next finished lines of a batch after `seq`, in the order in which they ended: all, or those that failed, or those that did not.
    pub async fn finished(
        &self,
        batch_id: &str,
        seq: i64,
        failed: Option<bool>,
        limit: i64,
    ) -> Result<Vec<Finished>, StoreError> {
        let sql = "SELECT seq, spill_key, body FROM results INDEXED BY results_seq
                   WHERE batch_id = ?1 AND seq > ?2 AND (?3 IS NULL OR is_error = ?3) ORDER BY seq LIMIT ?4";
        let failed = failed.map(i64::from);
        let values = [batch_id.into(), seq.into(), failed.into(), limit.into()];
        Ok(Finished::find_by_statement(statement(sql, values)).all(self.readers()).await?)
    }

    /// Deletes some rows of an ended batch and answers the blobs that are no longer named; `None` if there was no row left. Small bites:
    /// one large delete would hold the writer for seconds.
    pub(super) async fn purge_rows(
        &self,
        tx: &DatabaseTransaction,
        batch_id: &str,
        limit: i64,
    ) -> Result<Option<Vec<String>>, StoreError> {
        let sql = "DELETE FROM results WHERE (batch_id, line_no) IN
                       (SELECT batch_id, line_no FROM results WHERE batch_id = ? ORDER BY line_no LIMIT ?) RETURNING spill_key";
        let results = tx.query_all_raw(statement(sql, [batch_id.into(), limit.into()])).await?;
        let spilled =
            results.iter().map(|row| row.try_get_by_index(0)).collect::<Result<Vec<Option<String>>, DbErr>>()?;
        let sql = "DELETE FROM lines WHERE batch_id = ?1 AND line_no IN
                       (SELECT line_no FROM lines WHERE batch_id = ?1 ORDER BY line_no LIMIT ?2)";
        let lines = tx.execute_raw(statement(sql, [batch_id.into(), limit.into()])).await?;
        let purged = !results.is_empty() || lines.rows_affected() > 0;
        Ok(purged.then(|| spilled.into_iter().flatten().collect()))
    }
}
