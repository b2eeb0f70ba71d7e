use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

/// Longer strings are walked over, not kept.
pub(crate) const MAX_KEPT_BYTES: u64 = 1 << 20;

/// Why a header was refused.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not a GGUF v2/v3 file: {0}")]
    NotGguf(String),
    /// It breaks a rule.
    #[error("{0}")]
    Malformed(String),
}

pub(crate) type Result<T> = std::result::Result<T, HeaderError>;

/// A place in the file that knows how much is left.
pub(crate) struct Cursor<S> {
    pub(crate) source: S,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

impl<S: Read + Seek> Cursor<S> {
    pub(crate) fn remaining(&self) -> u64 {
        self.len.saturating_sub(self.at)
    }

    pub(crate) fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut buffer = [0; N];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    /// The next `len` bytes. Callers bound `len`.
    pub(crate) fn vec(&mut self, len: u64, what: &str) -> Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(len).map_err(|_| truncated(what))?];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        let len = buffer.len() as u64;
        if len > self.remaining() {
            return Err(truncated(what));
        }
        self.source.read_exact(buffer)?;
        self.at += len;
        Ok(())
    }

    /// The length in front of a string, which lies within the file.
    pub(crate) fn string_len(&mut self, what: &str, max: u64) -> Result<u64> {
        let len = u64::from_le_bytes(self.bytes(what)?);
        if len > max || len > self.remaining() {
            return Err(malformed(format!("string in {what}: length {len} exceeds file")));
        }
        Ok(len)
    }

    /// A string that must be short and UTF-8.
    pub(crate) fn name(&mut self, what: &str, max: u64) -> Result<String> {
        let len = self.string_len(what, max.min(MAX_KEPT_BYTES))?;
        String::from_utf8(self.vec(len, what)?).map_err(|_| malformed(format!("{what} is not UTF-8")))
    }

    /// Walks over bytes that are known to be there.
    pub(crate) fn skip(&mut self, len: u64) -> Result<()> {
        // Reading over a few bytes is cheaper than a seek, which empties a buffered reader.
        let mut scratch = [0; 256];
        match scratch.get_mut(..usize::try_from(len).unwrap_or(usize::MAX)) {
            Some(short) => self.source.read_exact(short)?,
            None => {
                self.source.seek(SeekFrom::Start(self.at + len))?;
            }
        }
        self.at += len;
        Ok(())
    }
}

pub(crate) fn malformed(reason: impl Into<String>) -> HeaderError {
    HeaderError::Malformed(reason.into())
}

fn truncated(what: &str) -> HeaderError {
    malformed(format!("truncated in {what}"))
}
