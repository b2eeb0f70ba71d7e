use std::error::Error;

use rustix::io::Errno;
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
    /// The disk did not keep what the database gave it, or may not have: nothing is acknowledged any more.
    #[error("the disk failed")]
    Lost(#[source] BoxError),
    /// Another process owns the data directory.
    #[error("the data directory is locked by {}", pid.map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}")))]
    Locked { pid: Option<u32> },
    /// The database was busy for longer than its timeout, or too many files are open: try again.
    #[error("the store is busy")]
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
        } else if too_many_open(&error) {
            // As soon as others close theirs there are files to open again.
            Self::Busy(error.into())
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
            Some(10) => Self::Lost(error.into()),
            Some(11 | 26) => Self::Corrupt(error.to_string()),
            Some(13) => Self::Full(error.into()),
            _ => Self::Database(error),
        }
    }
}

/// Whether the process, or the machine, has as many files open as it may. The number of the error is gone where the path was added to it,
/// its words are not.
fn too_many_open(error: &std::io::Error) -> bool {
    let text = error.to_string();
    let words = |errno: Errno| std::io::Error::from(errno).to_string();
    [Errno::MFILE, Errno::NFILE].into_iter().any(|errno| text.contains(&words(errno)))
}

fn sqlite_code(error: &DbErr) -> Option<i32> {
    let (DbErr::Conn(source) | DbErr::Exec(source) | DbErr::Query(source)) = error else { return None };
    let RuntimeErr::SqlxError(source) = source else { return None };
    let SqlxError::Database(source) = source.as_ref() else { return None };
    source.code()?.parse().ok()
}
