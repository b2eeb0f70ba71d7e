use sea_orm_migration::prelude::*;

/// One row per batch. The CHECK on the counters turns a counting mistake into an error at once, instead of a batch that never ends; the
/// trigger keeps a finished batch finished.
const BATCHES: &str = "
CREATE TABLE batches (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    endpoint         TEXT    NOT NULL,
    input_file_id    TEXT    NOT NULL,
    input_key        TEXT,
    window           TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed',
                                                        'expired', 'cancelling', 'cancelled')),
    stop_reason      TEXT    CHECK (stop_reason IN ('cancel', 'expire')),
    epoch            INTEGER NOT NULL DEFAULT 0,
    total            INTEGER NOT NULL DEFAULT 0,
    done             INTEGER NOT NULL DEFAULT 0 CHECK (done >= 0),
    failed           INTEGER NOT NULL DEFAULT 0 CHECK (failed >= 0),
    open_lines       INTEGER NOT NULL DEFAULT 0 CHECK (open_lines >= 0),
    ingest_line      INTEGER NOT NULL DEFAULT 1,
    ingest_offset    INTEGER NOT NULL DEFAULT 0,
    model            TEXT,
    output_file_id   TEXT,
    error_file_id    TEXT,
    output_expires_s INTEGER,
    errors           TEXT,
    metadata         TEXT,
    idem_key         TEXT    UNIQUE,
    idem_hash        TEXT,
    input_tokens     INTEGER NOT NULL DEFAULT 0,
    cached_tokens    INTEGER NOT NULL DEFAULT 0,
    output_tokens    INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    created_at       INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    in_progress_at   INTEGER,
    finalizing_at    INTEGER,
    completed_at     INTEGER,
    failed_at        INTEGER,
    expired_at       INTEGER,
    cancelling_at    INTEGER,
    cancelled_at     INTEGER,
    purged           INTEGER NOT NULL DEFAULT 0,
    CHECK (done + failed + open_lines = total)
) STRICT;
CREATE INDEX batches_live ON batches (seq) WHERE purged = 0;
CREATE INDEX batches_input ON batches (input_key) WHERE purged = 0;
CREATE TRIGGER batches_stay_ended BEFORE UPDATE OF status ON batches
WHEN OLD.status IN ('completed', 'failed', 'cancelled', 'expired') AND NEW.status <> OLD.status
BEGIN
    SELECT RAISE(ABORT, 'a batch that has ended keeps its status');
END;
";

/// Where each request lies in the input blob. `state`: 0 open, 1 leased, 2 done, 3 failed. `epoch` fences: only the claim that raised it
/// last may write a result. `suspect` counts the times that an owner died while it held the line.
const LINES: &str = "
CREATE TABLE lines (
    batch_id    TEXT    NOT NULL,
    line_no     INTEGER NOT NULL,
    custom_hash BLOB    NOT NULL,
    digest      BLOB    NOT NULL,
    off         INTEGER NOT NULL,
    len         INTEGER NOT NULL,
    model       TEXT    NOT NULL,
    state       INTEGER NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 3),
    attempt     INTEGER NOT NULL DEFAULT 0,
    epoch       INTEGER NOT NULL DEFAULT 0,
    owner       TEXT,
    not_before  INTEGER NOT NULL DEFAULT 0,
    suspect     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, line_no),
    CHECK ((state = 1) = (owner IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX lines_custom ON lines (batch_id, custom_hash);
CREATE INDEX lines_open ON lines (batch_id, line_no) WHERE state = 0 AND suspect = 0;
CREATE INDEX lines_suspect ON lines (batch_id, line_no) WHERE state = 0 AND suspect > 0;
CREATE INDEX lines_leased ON lines (owner) WHERE state = 1;
";

/// Finished records of batches that still run; published into one file at the end, then purged.
const RESULTS: &str = "
CREATE TABLE results (
    batch_id  TEXT    NOT NULL,
    line_no   INTEGER NOT NULL,
    is_error  INTEGER NOT NULL,
    spill_key TEXT,
    body      BLOB,
    PRIMARY KEY (batch_id, line_no),
    CHECK ((spill_key IS NULL) <> (body IS NULL))
) STRICT;
";

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [BATCHES, LINES, RESULTS] {
            manager.get_connection().execute_unprepared(table).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
