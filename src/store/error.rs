use std::error::Error;

use sea_orm::{DbErr, RuntimeErr, SqlxError};

type BoxError = Box<dyn Error + Send + Sync>;

/// Why the store could not do what it was asked, named by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such row, or one that is deleted.
    #[error("not found")]
    NotFound,
    /// The disk or the quota is full: try again later, nothing was written.
    #[error("no space left in the data directory")]
    Full(#[source] BoxError),
    /// The tenant has as much as it may have.
    #[error("the tenant's quota is used up")]
    Quota,
    /// Another process owns the data directory.
    #[error("the data directory is locked by {}", pid.map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}")))]
    Locked { pid: Option<u32> },
    /// The database was busy for longer than its timeout: try again.
    #[error("the database is busy")]
    Busy(#[source] BoxError),
    /// What is stored is not what was written.
    #[error("{0}")]
    Corrupt(String),
    #[error("the data directory could not be read or written")]
    Io(#[source] std::io::Error),
    #[error("the database refused")]
    Database(#[source] DbErr),
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
            Self::Full(error.into())
        } else {
            Self::Io(error)
        }
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        // The low byte of an extended result code is the primary one: https://sqlite.org/rescode.html
        match sqlite_code(&error).map(|code| code & 0xff) {
            Some(5 | 6) => Self::Busy(error.into()),
            Some(11 | 26) => Self::Corrupt(error.to_string()),
            Some(13) => Self::Full(error.into()),
            _ => Self::Database(error),
        }
    }
}

fn sqlite_code(error: &DbErr) -> Option<i32> {
    let (DbErr::Conn(source) | DbErr::Exec(source) | DbErr::Query(source)) = error else { return None };
    let RuntimeErr::SqlxError(source) = source else { return None };
    let SqlxError::Database(source) = source.as_ref() else { return None };
    source.code()?.parse().ok()
}
