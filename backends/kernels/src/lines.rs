use std::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use memmap2::{MmapOptions, MmapRaw};

use crate::line::Line;

/// Bytes that are had from the system at once, for lines that many owners share.
const REGION: usize = 64 << 20;
/// From so many bytes on, lines have a region to themselves.
const LARGE: usize = REGION / 4;

/// Lines that are zeros at first, of memory in pages as large as the system has.
///
/// A step reads all weights, which are far more than a processor knows the places of: with pages of 4 KiB it would look up one every 64
/// lines, and what brings memory near ahead of time ends at each. Matrices are smaller than a large page or do not end with one, so
/// they lie behind each other in regions, which live until the last of their lines is dropped.
pub(crate) struct Lines {
    start: NonNull<Line>,
    len: usize,
    /// What `start` points into; `None` of no lines.
    _region: Option<Arc<MmapRaw>>,
}

/// The region that has room, and how many of its bytes are given away.
struct Open {
    region: Weak<MmapRaw>,
    used: usize,
}

static OPEN: Mutex<Open> = Mutex::new(Open { region: Weak::new(), used: 0 });

impl Lines {
    /// `None` when the system cannot promise as many.
    pub(crate) fn zeros(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(Line::BYTES)?;
        match bytes {
            0 => Some(Self { start: NonNull::dangling(), len, _region: None }),
            1..LARGE => {
                let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
                let (region, used) = match open.region.upgrade().filter(|_| REGION - open.used >= bytes) {
                    Some(region) => (region, open.used),
                    None => (map(REGION)?, 0),
                };
                *open = Open { region: Arc::downgrade(&region), used: used + bytes };
                drop(open);
                Self::within(region, used, len)
            }
            _ => Self::within(map(bytes)?, 0, len),
        }
    }

    /// The `len` lines of a region from the `offset`th byte on, which nobody else is given.
    fn within(region: Arc<MmapRaw>, offset: usize, len: usize) -> Option<Self> {
        assert!(offset.is_multiple_of(Line::BYTES) && offset + len * Line::BYTES <= region.len(), "lines of a region");
        // SAFETY: inside of the mapping, by the check above.
        let start = unsafe { region.as_mut_ptr().add(offset) };
        Some(Self { start: NonNull::new(start.cast())?, len, _region: Some(region) })
    }
}

/// Zeros that the system finds memory for when they are first touched.
fn map(bytes: usize) -> Option<Arc<MmapRaw>> {
    let region = MmapRaw::from(MmapOptions::new().len(bytes).map_anon().ok()?);
    // A wish: where it is not granted, pages are small.
    #[cfg(target_os = "linux")]
    let _ = region.advise(memmap2::Advice::HugePage);
    Some(Arc::new(region))
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: so many lines lie there, aligned since pages and all sizes before them are whole lines, and any bytes are a line; they live
        // as long as the region, which `self` holds, and are borrowed as `self` is.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above; nobody else has been given these lines.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: lines are plain bytes, reached as a slice that `self` owns is.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zeros_and_nobody_elses() {
        let sizes = [1, 3, 1000, 0, LARGE / Line::BYTES - 1, LARGE / Line::BYTES, 5, REGION / Line::BYTES + 1];
        for _ in 0..3 {
            let mut all = Vec::new();
            for (number, len) in (1..).zip(sizes) {
                let mut lines = Lines::zeros(len).unwrap();
                assert!(lines.len() == len && lines.iter().all(|line| line.0 == [0; Line::BYTES]));
                lines.iter_mut().for_each(|line| line.0 = [number; Line::BYTES]);
                all.push((number, lines));
            }
            // Some go before others, and what they leave is not given away.
            all.remove(1);
            let late = Lines::zeros(1000).unwrap();
            assert!(late.iter().all(|line| line.0 == [0; Line::BYTES]));
            for (number, lines) in &all {
                assert!(lines.iter().all(|line| line.0 == [*number; Line::BYTES]));
            }
        }
    }

    #[test]
    fn what_no_system_has_is_refused() {
        assert!(Lines::zeros(usize::MAX).is_none());
        assert!(Lines::zeros(usize::MAX / Line::BYTES / 2).is_none());
    }

    #[test]
    fn many_threads_are_given_different_lines() {
        let given: Vec<_> = std::thread::scope(|scope| {
            let take = || (0..200).map(|_| Lines::zeros(500).unwrap()).collect::<Vec<_>>();
            let takers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
        });
        let mut starts: Vec<usize> = given.iter().map(|lines| lines.as_ptr().addr()).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 500 * Line::BYTES));
    }
}
