use std::fs::TryLockError;
use std::io::{Read, Seek, Write};
use std::path::Path;

use fs_err::{File, OpenOptions};

use super::StoreError;

/// Exclusive ownership of a data directory, for as long as this value lives. The kernel drops the lock with the process, so a crash
/// leaves nothing to clean up; the file's text, our pid, is only there to be named in another process's error.
#[derive(Debug)]
pub(super) struct DirLock {
    _file: File,
}

impl DirLock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                return Err(StoreError::Locked { pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}
