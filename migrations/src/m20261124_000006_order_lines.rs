use sea_orm_migration::prelude::*;

/// What decides when a line is run: lines are claimed in the order of `lines_open`. `twin` is the same for lines that must have the same
/// answer; `expected` is how many tokens the answer may have. Lines that were there before keep the order of their file.
const ORDER: &str = "
ALTER TABLE lines ADD COLUMN prefix BLOB NOT NULL DEFAULT x'';
ALTER TABLE lines ADD COLUMN twin BLOB;
ALTER TABLE lines ADD COLUMN expected INTEGER NOT NULL DEFAULT 0;
DROP INDEX lines_open;
CREATE INDEX lines_open ON lines (batch_id, model, prefix, line_no) WHERE state = 0 AND suspect = 0;
";

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(ORDER).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
