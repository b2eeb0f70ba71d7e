use std::fmt;

/// A cache line: what one load of the widest vector instructions reads.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; Self::BYTES]);

impl Line {
    pub(crate) const BYTES: usize = 64;

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
