use sea_orm_migration::prelude::*;

/// Lines that ask what an earlier one of their batch asks, whose answer costs nothing; and of each batch how many open lines are left
/// without them: the work that is still to be done. Lines that were there before are all taken for work.
const REPEATS: &str = "
ALTER TABLE lines ADD COLUMN repeats INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN open_work INTEGER NOT NULL DEFAULT 0 CHECK (open_work BETWEEN 0 AND open_lines);
UPDATE batches SET open_work = open_lines;
";

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(REPEATS).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
