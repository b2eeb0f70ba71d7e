use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::store::{Blob, Blobs, StoreError};

/// Where a finished line stands in the published files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) failed: bool,
    pub(super) off: u64,
    /// Without the line end.
    pub(super) len: u64,
}

const PLACE_BYTES: u64 = 16;
/// Places read at a time.
const READ_PLACES: u64 = 1024;
const FAILED: u64 = 1 << 63;

/// The places of a batch's records in the order in which its lines ended; those that were never run come last, in file order. Records are
/// published in the order of the input, so without this a reader that was among them could not go on after the end.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    executed: Vec<(i64, Place)>,
    unexecuted: Vec<Place>,
}

impl IndexBuilder {
    /// `seq` is the record's own, if its line was run.
    pub(super) fn add(&mut self, seq: Option<i64>, place: Place) {
        match seq {
            Some(seq) => self.executed.push((seq, place)),
            None => self.unexecuted.push(place),
        }
    }

    /// Writes the index; `None` if it is empty.
    pub(super) async fn finish(mut self, blobs: &Blobs) -> Result<Option<Blob>, StoreError> {
        if self.executed.is_empty() && self.unexecuted.is_empty() {
            return Ok(None);
        }
        self.executed.sort_unstable_by_key(|(seq, _)| *seq);
        let mut blob = blobs.create().await?;
        for place in self.executed.iter().map(|(_, place)| place).chain(&self.unexecuted) {
            blob.write(&place.to_bytes()).await?;
        }
        blob.finish().await.map(Some)
    }
}

impl Place {
    fn to_bytes(self) -> [u8; PLACE_BYTES as usize] {
        let first = self.off | if self.failed { FAILED } else { 0 };
        let mut bytes = [0; PLACE_BYTES as usize];
        let (off, len) = bytes.split_at_mut(8);
        off.copy_from_slice(&first.to_le_bytes());
        len.copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (first, len) = bytes.split_at_checked(8)?;
        let (first, len) = (u64::from_le_bytes(first.try_into().ok()?), u64::from_le_bytes(len.try_into().ok()?));
        Some(Self { failed: first & FAILED != 0, off: first & !FAILED, len })
    }
}

/// The next places after the `seq`th, each with its number from 1: all, or those that failed, or those that did not. No more than `limit`.
pub(super) async fn places(
    blobs: &Blobs,
    key: &str,
    seq: u64,
    failed: Option<bool>,
    limit: usize,
) -> Result<Vec<(i64, Place)>, StoreError> {
    let mut file = blobs.open_blob(key).await?;
    let places = file.metadata().await?.len() / PLACE_BYTES;
    let (mut next, mut found) = (seq.min(places), Vec::new());
    file.seek(std::io::SeekFrom::Start(next * PLACE_BYTES)).await?;
    while next < places && found.len() < limit {
        let mut bytes = vec![0; ((places - next).min(READ_PLACES) * PLACE_BYTES) as usize];
        file.read_exact(&mut bytes).await?;
        for place in bytes.chunks_exact(PLACE_BYTES as usize).filter_map(Place::from_bytes) {
            next += 1;
            if failed.is_none_or(|failed| failed == place.failed) && found.len() < limit {
                found.push((i64::try_from(next).unwrap_or(i64::MAX), place));
            }
        }
    }
    Ok(found)
}
