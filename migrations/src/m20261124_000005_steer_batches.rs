use sea_orm_migration::prelude::*;

/// `paused_at`: no line of the batch starts while it is set. `index_key`: the blob that says where in the published files each finished
/// line stands, in the order in which lines ended. An ended batch keeps its input for as long as its error file is there, so the input is
/// looked up for those too.
const BATCHES: &str = "
ALTER TABLE batches ADD COLUMN paused_at INTEGER;
ALTER TABLE batches ADD COLUMN index_key TEXT;
CREATE INDEX batches_input_key ON batches (input_key) WHERE input_key IS NOT NULL;
CREATE INDEX batches_output_file ON batches (output_file_id) WHERE output_file_id IS NOT NULL;
CREATE INDEX batches_error_file ON batches (error_file_id) WHERE error_file_id IS NOT NULL;
DROP INDEX batches_input;
";

/// `seq` counts the finished lines of a batch from 1, in the order in which they ended: a reader's place among them.
const RESULTS: &str = "
ALTER TABLE results ADD COLUMN seq INTEGER;
UPDATE results SET seq = ranked.seq FROM
    (SELECT rowid AS id, ROW_NUMBER() OVER (PARTITION BY batch_id ORDER BY rowid) AS seq FROM results) AS ranked
WHERE results.rowid = ranked.id;
CREATE UNIQUE INDEX results_seq ON results (batch_id, seq);
";

/// What is to be told of to the configured URL: written in the transaction that ends the batch, deleted once it has been taken.
const EVENTS: &str = "
CREATE TABLE webhook_events (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    kind       TEXT    NOT NULL,
    batch_id   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    next_at    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX webhook_events_due ON webhook_events (next_at);
";

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for part in [BATCHES, RESULTS, EVENTS] {
            manager.get_connection().execute_unprepared(part).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
