use super::{F32, ROW_THREADS, blocks, size};
use crate::{
    CudaError, Device, Place,
    executor::{Arg, Extent},
};

impl Device {
    /// Puts rows together of which each rank made a share of the `width` columns, as [`Rank::share`](crate::Rank::share) divides them. `parts`
    /// has for each rank its rows behind each other, each as long as the longest share.
    ///
    /// # Errors
    /// Those of the device.
    pub fn join_parts(
        &self,
        parts: Place<'_>,
        ranks: usize,
        rows: usize,
        width: usize,
        out: Place<'_>,
    ) -> Result<(), CudaError> {
        let longest = width.div_ceil(ranks);
        let count = Arg::I64(i64::try_from(rows * width).expect("a number of logits"));
        let arguments = [
            parts.for_bytes(ranks * rows * longest * F32),
            out.for_bytes(rows * width * F32),
            size(ranks),
            size(rows),
            size(width),
            size(longest),
            count,
        ];
        let grid = [blocks(rows * width, ROW_THREADS), 1, 1];
        self.launch("join_parts", Extent { grid, threads: ROW_THREADS, shared_bytes: 0 }, &arguments)
    }
}
