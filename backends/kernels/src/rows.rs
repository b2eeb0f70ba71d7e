use std::marker::PhantomData;

/// A row-major matrix whose columns are divided among threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    lives: PhantomData<&'a mut [f32]>,
}

// SAFETY: what is written through a shared reference is up to the callers of `put`, who promise not to write the same values.
unsafe impl Sync for Rows<'_> {}
// SAFETY: as above; the memory is borrowed for as long as the value lives.
unsafe impl Send for Rows<'_> {}

impl<'a> Rows<'a> {
    pub(crate) fn new(values: &'a mut [f32], width: usize) -> Self {
        Self { start: values.as_mut_ptr(), rows: values.len() / width, width, lives: PhantomData }
    }

    /// Writes the values of a row from a column on.
    ///
    /// # Safety
    /// No other thread may write any of them while this `Rows` is in use.
    #[inline(always)]
    pub(crate) unsafe fn put(&self, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.width, "a value outside of the matrix");
        // SAFETY: inside of the matrix by the check above, and borrowed mutably for as long as `self` lives.
        let place = unsafe { self.start.add(row * self.width + column) };
        // SAFETY: as above; `values` cannot overlap with memory that is mutably borrowed.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place, values.len()) };
    }
}
