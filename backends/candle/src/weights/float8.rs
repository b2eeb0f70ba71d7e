use std::ops::Range;

use half::bf16;

use super::stored::Shared;

/// What eight-bit floats (E4M3) of a matrix are multiplied with.
#[derive(Clone, Debug)]
pub(super) struct Scales {
    values: Vec<f32>,
    /// Of `values`, which are by output and then by input.
    columns: usize,
    /// Outputs and inputs that share a scale.
    block: (usize, usize),
}

impl Scales {
    /// `values` are `[rows, columns]` of blocks that divide a matrix of `outputs` and `inputs` evenly but for the last ones. `Err` says what
    /// does not fit.
    pub(super) fn new(
        values: Vec<f32>,
        (rows, columns): (usize, usize),
        (outputs, inputs): (usize, usize),
        shared: Shared,
    ) -> Result<Self, String> {
        let even = (outputs.div_ceil(rows.max(1)).max(1), inputs.div_ceil(columns.max(1)).max(1));
        let block = match shared {
            Shared::ByShape => even,
            // Some layers may have one scale for all.
            Shared::Block(..) if (rows, columns) == (1, 1) => even,
            Shared::Block(outputs, inputs) => (outputs, inputs),
            Shared::Output => (1, inputs.max(1)),
            Shared::All => (outputs.max(1), inputs.max(1)),
        };
        if outputs.div_ceil(block.0) != rows || inputs.div_ceil(block.1) != columns {
            return Err(format!("{rows} x {columns} scales of blocks of {} x {}", block.0, block.1));
        }
        Ok(Self { values, columns, block })
    }

    /// The numbers of some rows of the matrix in BF16; `floats` are their bytes.
    pub(super) fn scale(&self, floats: &[u8], rows: Range<usize>, inputs: usize) -> Vec<u8> {
        let mut scaled = Vec::with_capacity(2 * floats.len());
        for (output, floats) in rows.zip(floats.chunks_exact(inputs)) {
            for (input, &float) in floats.iter().enumerate() {
                let scale = self.values[output / self.block.0 * self.columns + input / self.block.1];
                scaled.extend_from_slice(&bf16::from_f32(e4m3(float) * scale).to_le_bytes());
            }
        }
        scaled
    }
}

/// A float of four bits of exponent and three of mantissa, without infinities.
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats() {
        for (bits, value) in
            [(0x38, 1.0), (0xb8, -1.0), (0x7e, 448.0), (0x01, 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0, 0.0)]
        {
            assert_eq!(e4m3(bits), value, "{bits:x}");
        }
        assert!(e4m3(0x7f).is_nan());
    }

    #[test]
    fn scales_are_of_their_blocks() {
        let scaled = |values: &[f32], sizes, shared, rows: Range<usize>| {
            let scales = Scales::new(values.to_vec(), sizes, (4, 5), shared)?;
            let bytes = scales.scale(&vec![0x38; 5 * rows.len()], rows, 5);
            Ok::<_, String>(
                bytes.as_chunks().0.iter().map(|&value| bf16::from_le_bytes(value).to_f32()).collect::<Vec<_>>(),
            )
        };
        // Three columns of blocks two wide, of which the last is cut.
        let blocks = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
        let expected = [1.0, 1.0, 2.0, 2.0, 4.0, 8.0, 8.0, 16.0, 16.0, 32.0];
        assert_eq!(scaled(&blocks, (2, 3), Shared::Block(2, 2), 1..3).unwrap(), expected);
        assert_eq!(scaled(&[2.0], (1, 1), Shared::Block(2, 2), 0..1).unwrap(), [2.0; 5]);
        assert_eq!(scaled(&[2.0], (1, 1), Shared::All, 3..4).unwrap(), [2.0; 5]);
        let by_output = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(scaled(&by_output, (4, 1), Shared::Output, 2..3).unwrap(), [4.0; 5]);
        assert_eq!(scaled(&by_output, (4, 1), Shared::ByShape, 2..3).unwrap(), [4.0; 5]);
        for (sizes, shared) in [((1, 1), Shared::Output), ((4, 1), Shared::All), ((1, 1), Shared::Output)] {
            assert!(scaled(&by_output[..sizes.0], sizes, shared, 0..1).is_err(), "{sizes:?} for {shared:?}");
        }
        assert!(scaled(&blocks, (2, 3), Shared::Block(2, 3), 0..1).is_err());
    }
}
