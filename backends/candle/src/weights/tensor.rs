use std::{fmt::Debug, ops::Range};

use candle_core::quantized::GgmlDType;
use tandem_core::LoadError;

use super::matrix::Matrix;

/// A tensor of a file, whose rows are read when they are wanted: no weight is in memory twice.
#[derive(Debug)]
pub(super) struct Tensor {
    /// Of what is read, which may be another than the file's.
    pub(super) dtype: GgmlDType,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows are to be read from a multiple of it to another, or to the end.
    pub(super) unit: usize,
    pub(super) source: Box<dyn Rows>,
}

/// Where rows come from. Several threads read at a time.
pub(super) trait Rows: Debug + Send + Sync {
    /// The bytes of some rows.
    fn read(&self, rows: Range<usize>) -> Result<Vec<u8>, LoadError>;
}

impl Tensor {
    /// Some of its rows.
    pub(super) fn read(&self, rows: Range<usize>) -> Result<Matrix, LoadError> {
        debug_assert!(rows.start.is_multiple_of(self.unit), "rows are read in units of {}", self.unit);
        let count = rows.len();
        let bytes = self.source.read(rows)?;
        Ok(Matrix { dtype: self.dtype, rows: count, columns: self.columns, bytes })
    }

    /// All of them.
    pub(super) fn whole(&self) -> Result<Matrix, LoadError> {
        self.read(0..self.rows)
    }
}
