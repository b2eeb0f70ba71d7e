//! What outlives the process: one SQLite database and a folder of blobs, in one data directory that one process owns.
//!
//! Every write is one transaction on the one writer connection, begun `IMMEDIATE`; readers have a pool of their own. Each file here is
//! one table (or the blobs) with its queries; statements that carry a fence or an index hint are bound SQL, the rest goes through entities.

mod api_keys;
mod batches;
mod blobs;
mod error;
mod events;
mod files;
mod ids;
mod instances;
mod lines;
mod lock;
mod results;
mod tenant;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, Value,
};
use tandem_migrations::{Migrator, MigratorTrait};
use tokio::sync::watch;

pub use api_keys::{ApiKey, ApiKeys, NewApiKey, has_api_keys};
pub use batches::{Batch, BatchCounts, CancelOutcome, Created, Identity, NewBatch, PublishedFiles};
pub use blobs::{Blob, BlobWriter, Blobs};
pub use error::StoreError;
pub use events::Event;
pub use files::{File, NewFile};
pub use lines::{ClaimOrder, Claimed, Done, GroupOutcome, IngestPoint, LineEnd, NewLine, Tokens};
pub use results::{Finished, Record};
pub use tenant::{NotATenant, Tenant};

pub(crate) use blobs::hex;

use lock::DirLock;

/// First release of SQLite that is free of the WAL-reset corruption.
const SQLITE_VERSION_MIN: (u32, u32, u32) = (3, 51, 3);
const READERS: u32 = 4;
/// A client's own repetition of a request comes within this many seconds, if it names no key.
const REPETITION_S: i64 = 120;

/// The durable state of a server. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: DatabaseConnection,
    readers: DatabaseConnection,
    blobs: Blobs,
    /// Who leases lines: this process, for this opening of the store.
    instance: String,
    /// Whether the disk has failed to keep what it was given.
    lost: watch::Sender<bool>,
    _lock: DirLock,
}

/// Which part of a listing to answer with.
#[derive(Clone, Debug)]
pub struct Page {
    pub limit: u64,
    pub after: Option<String>,
    pub newest_first: bool,
}

impl Store {
    /// Takes the data directory, brings the schema up to date and checks the database if its last owner died.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        create_dir(dir).await?;
        let lock = DirLock::take(dir)?;
        let blobs = Blobs::open(dir).await?;
        let path = dir.join("tandem.db");
        let writer = connect(&path, 1, false).await?;
        check_version(&writer).await?;
        Migrator::up(&writer, None).await?;
        let readers = connect(&path, READERS, true).await?;
        let instance = ids::new_instance_id();
        let store = Self {
            inner: Arc::new(Inner { writer, readers, blobs, instance, lost: watch::Sender::new(false), _lock: lock }),
        };
        if store.begin_instance().await? {
            store.quick_check().await?;
        }
        Ok(store)
    }

    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// The name under which this process leases lines.
    pub fn instance(&self) -> &str {
        &self.inner.instance
    }

    /// Notes a clean end and folds the log into the database. The directory is free once the last clone is dropped.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.end_instance().await?;
        self.inner.writer.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await?;
        Ok(())
    }

    /// Done when the disk has failed under a commit. What the database believes to be written may not be there then, and a sync that is
    /// tried again may succeed without writing it (`PostgreSQL` found that out in 2018): the process is to end, and the next one reads what is
    /// there.
    pub async fn lost(&self) {
        // The sender lives as long as the store.
        let _ = self.inner.lost.subscribe().wait_for(|lost| *lost).await;
    }

    /// The one way to end a transaction.
    async fn commit(&self, tx: DatabaseTransaction) -> Result<(), StoreError> {
        let committed = tx.commit().await.map_err(StoreError::from);
        if let Err(error @ StoreError::Lost(_)) = &committed {
            tracing::error!(error = error as &dyn std::error::Error, "the disk failed under a commit");
            self.inner.lost.send_replace(true);
        }
        committed
    }

    async fn begin(&self) -> Result<DatabaseTransaction, StoreError> {
        if *self.inner.lost.borrow() {
            return Err(StoreError::Lost("the disk has failed before".into()));
        }
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        Ok(self.inner.writer.begin_with_options(options).await?)
    }

    fn readers(&self) -> &DatabaseConnection {
        &self.inner.readers
    }

    async fn quick_check(&self) -> Result<(), StoreError> {
        let row = self.readers().query_one_raw(statement("PRAGMA quick_check(1)", [])).await?;
        let verdict: String = row.ok_or(StoreError::NotFound)?.try_get_by_index(0)?;
        if verdict == "ok" { Ok(()) } else { Err(StoreError::Corrupt(verdict)) }
    }
}

/// Makes a data directory, for its owner alone, if it is not there.
async fn create_dir(dir: &Path) -> Result<(), StoreError> {
    Ok(fs_err::tokio::DirBuilder::new().recursive(true).mode(0o700).create(dir).await?)
}

/// A bound statement in SQLite's dialect.
fn statement<I: IntoIterator<Item = Value>>(sql: &str, values: I) -> Statement {
    Statement::from_sql_and_values(DbBackend::Sqlite, sql, values)
}

async fn connect(path: &Path, connections: u32, read_only: bool) -> Result<DatabaseConnection, StoreError> {
    let path = path.to_owned();
    let mut options = ConnectOptions::new("sqlite://tandem.db");
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(60))
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |options| {
            let options = options
                .filename(&path)
                .create_if_missing(!read_only)
                .foreign_keys(true)
                .busy_timeout(Duration::from_secs(5))
                .pragma("synchronous", "FULL")
                .pragma("trusted_schema", "OFF")
                .pragma("mmap_size", "0")
                .pragma("temp_store", "MEMORY")
                .pragma("cache_size", "-32768")
                .pragma("journal_size_limit", "67108864")
                .pragma("fullfsync", "ON");
            if read_only {
                return options.pragma("query_only", "ON");
            }
            options
                .pragma("auto_vacuum", "INCREMENTAL")
                .pragma("journal_mode", "WAL")
                .pragma("wal_autocheckpoint", "1000")
        });
    Ok(Database::connect(options).await?)
}

/// The migrations that this program knows, and whether each is applied to the database of a data directory. Changes nothing.
pub async fn migrations(dir: &Path) -> Result<Vec<(String, bool)>, StoreError> {
    let path = dir.join("tandem.db");
    let known = Migrator::get_migration_files();
    let pending = if fs_err::tokio::try_exists(&path).await? {
        Migrator::get_pending_migrations_read_only(&connect(&path, 1, true).await?).await?
    } else {
        Migrator::get_migration_files()
    };
    let is_pending = |name: &str| pending.iter().any(|migration| migration.name() == name);
    Ok(known.iter().map(|migration| (migration.name().to_owned(), !is_pending(migration.name()))).collect())
}

async fn check_version(connection: &DatabaseConnection) -> Result<(), StoreError> {
    let row = connection.query_one_raw(statement("SELECT sqlite_version()", [])).await?.ok_or(StoreError::NotFound)?;
    let version: String = row.try_get_by_index(0)?;
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if (next(), next(), next()) < SQLITE_VERSION_MIN {
        return Err(StoreError::Corrupt(format!(
            "SQLite {version} can damage a database in WAL mode; 3.51.3 or newer is needed"
        )));
    }
    Ok(())
}
