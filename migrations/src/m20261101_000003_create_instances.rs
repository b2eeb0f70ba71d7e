use sea_orm_migration::prelude::*;

/// The processes that have owned this database. One that never became `stopped` died: its leases are void.
const INSTANCES: &str = "
CREATE TABLE instances (
    id         TEXT    PRIMARY KEY,
    pid        INTEGER NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('running', 'stopped', 'dead')),
    started_at INTEGER NOT NULL,
    stopped_at INTEGER
) STRICT;
";

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(INSTANCES).await.map(drop)
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
