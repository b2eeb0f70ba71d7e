use sea_orm_migration::prelude::*;

/// Models that a key may use, and those that a batch may name whose key is so limited: a line for each, `NULL` for all.
const MODELS: &str = "
ALTER TABLE api_keys ADD COLUMN models TEXT;
ALTER TABLE batches ADD COLUMN models TEXT;
";

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(MODELS).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
