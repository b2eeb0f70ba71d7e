use sea_orm_migration::prelude::*;

/// API keys by the id that they carry. Of the secret there is a SHA-256 hash alone; a key is never deleted, so that its id is never given
/// away again. Limits are per minute, and `NULL` is none.
const API_KEYS: &str = "
CREATE TABLE api_keys (
    id                      TEXT    PRIMARY KEY,
    name                    TEXT    NOT NULL,
    tenant                  TEXT    NOT NULL,
    digest                  BLOB    NOT NULL CHECK (length(digest) = 32),
    scopes                  TEXT    NOT NULL,
    max_requests_per_minute INTEGER CHECK (max_requests_per_minute > 0),
    max_tokens_per_minute   INTEGER CHECK (max_tokens_per_minute > 0),
    max_concurrent          INTEGER CHECK (max_concurrent > 0),
    created_at              INTEGER NOT NULL,
    expires_at              INTEGER,
    revoked_at              INTEGER,
    last_used_at            INTEGER
) STRICT;
";

/// What there was before belongs to the one tenant that there was. `idem_key` is unique as a column, and stays so: from here on it begins
/// with the tenant's name, which has no line breaks.
const TENANTS: &str = "
ALTER TABLE files ADD COLUMN tenant TEXT NOT NULL DEFAULT 'default';
ALTER TABLE batches ADD COLUMN tenant TEXT NOT NULL DEFAULT 'default';
UPDATE batches SET idem_key = 'default' || char(10) || idem_key WHERE idem_key IS NOT NULL;
CREATE INDEX files_of_tenant ON files (tenant, seq);
CREATE INDEX batches_of_tenant ON batches (tenant, seq);
";

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for change in [API_KEYS, TENANTS] {
            manager.get_connection().execute_unprepared(change).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
