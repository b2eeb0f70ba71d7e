use sea_orm::ConnectionTrait;

use super::{Store, StoreError, statement};
use crate::clock::Clock;

impl Store {
    /// Notes that this process owns the database; true if an earlier owner never said that it stopped.
    pub(super) async fn begin_instance(&self) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        let dead = tx.execute_raw(statement("UPDATE instances SET state = 'dead' WHERE state = 'running'", [])).await?;
        tx.execute_raw(statement(
            "INSERT INTO instances (id, pid, state, started_at) VALUES (?, ?, 'running', ?)",
            [self.instance().into(), i64::from(std::process::id()).into(), Clock::system().seconds().into()],
        ))
        .await?;
        self.commit(tx).await?;
        Ok(dead.rows_affected() > 0)
    }

    pub(super) async fn end_instance(&self) -> Result<(), StoreError> {
        let tx = self.begin().await?;
        tx.execute_raw(statement(
            "UPDATE instances SET state = 'stopped', stopped_at = ? WHERE id = ?",
            [Clock::system().seconds().into(), self.instance().into()],
        ))
        .await?;
        self.commit(tx).await
    }
}
