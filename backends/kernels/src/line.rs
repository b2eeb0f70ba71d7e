use std::{
    alloc::{Layout, alloc_zeroed},
    fmt,
};

/// A cache line: what one load of the widest vector instructions reads.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; Self::BYTES]);

impl Line {
    pub(crate) const BYTES: usize = 64;

    /// Lines of zeros. `None` when the system cannot promise as many.
    pub(crate) fn zeros(len: usize) -> Option<Vec<Self>> {
        if len == 0 {
            return Some(Vec::new());
        }
        let layout = Layout::array::<Self>(len).ok()?;
        // SAFETY: the layout has a size, since there is a line.
        let start = unsafe { alloc_zeroed(layout) }.cast::<Self>();
        if start.is_null() {
            return None;
        }
        // SAFETY: allocated as the vector would have it; `len` lines of zeros, which are valid lines.
        Some(unsafe { Vec::from_raw_parts(start, len, len) })
    }

    /// One of its quarters, as small integers by output.
    #[inline(always)]
    pub(crate) fn quarter(&self, at: usize) -> &[u8; 16] {
        &self.0.as_chunks().0[at]
    }

    /// One of its halves, as 16-bit floats by output.
    #[inline(always)]
    pub(crate) fn half(&self, at: usize) -> &[u8; 32] {
        &self.0.as_chunks().0[at]
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}
