use std::ops::Range;

use super::matrix::Matrix;

/// What is wanted of a weight of a file: some of its rows, in their order, and some of their columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Without `.weight`.
    pub(crate) name: String,
    /// Outputs and inputs of all of it.
    pub(crate) shape: [usize; 2],
    pub(crate) rows: Vec<Range<usize>>,
    pub(crate) columns: Range<usize>,
}

impl Slice {
    pub(crate) fn whole(name: &str, outputs: usize, inputs: usize) -> Self {
        let rows = std::iter::once(0..outputs).collect();
        Self { name: name.to_owned(), shape: [outputs, inputs], rows, columns: 0..inputs }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }
}

impl Matrix {
    /// Some of its columns, which are whole blocks: whoever has a share of them has been asked whether it is.
    pub(super) fn into_columns(self, columns: Range<usize>) -> Self {
        let Self { dtype, rows, columns: all, bytes } = self;
        let (block, size) = (dtype.block_size(), dtype.type_size());
        let whole = columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block);
        assert!(whole && columns.end <= all, "columns {columns:?} of {all} in blocks of {block}");
        if columns.len() == all {
            return Self { dtype, rows, columns: all, bytes };
        }
        let place = columns.start / block * size..columns.end / block * size;
        let bytes = bytes.chunks_exact(all / block * size).flat_map(|row| &row[place.clone()]).copied().collect();
        Self { dtype, rows, columns: columns.len(), bytes }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;

    #[test]
    fn columns_are_cut_where_blocks_begin() {
        let plain = Matrix { dtype: GgmlDType::F16, rows: 2, columns: 3, bytes: (0..12).collect() };
        assert_eq!(
            plain.into_columns(1..3),
            Matrix { dtype: GgmlDType::F16, rows: 2, columns: 2, bytes: vec![2, 3, 4, 5, 8, 9, 10, 11] }
        );
        let row = |from: u8| [[from; 34], [from + 1; 34]].concat();
        let blocks = Matrix { dtype: GgmlDType::Q8_0, rows: 2, columns: 64, bytes: [row(1), row(3)].concat() };
        assert_eq!(
            blocks.into_columns(32..64),
            Matrix { dtype: GgmlDType::Q8_0, rows: 2, columns: 32, bytes: [[2; 34], [4; 34]].concat() }
        );
    }
}
