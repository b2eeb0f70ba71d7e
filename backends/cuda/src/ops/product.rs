use std::{
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use super::{F32, blocks, grid, size};
use crate::{
    Buffer, CudaError, Device, Number, Place, WeightFormat,
    executor::{Arg, Extent, Gemm},
};

/// Rows that are multiplied by kernels that read a weight once for all of them.
pub const SKINNY_ROWS: usize = 8;
/// Rows that quantised weights are multiplied with as they are in the file, at most; as many times as are needed for so many at a time. For
/// more of them it pays to make plain numbers first.
const NARROW_ROWS: usize = 96;
const NARROW_ROWS_AT_A_TIME: usize = 32;
/// Rows that plain weights are multiplied with by kernels of our own, at most.
const NARROW_PLAIN_ROWS: usize = 16;
/// Inputs that these take at a time, and warps of a block.
pub(super) const NARROW_CHUNK: usize = 64;
const NARROW_WARPS: usize = 8;

const WARP: usize = 32;
const THREADS: u32 = 128;
/// Outputs of a block: a warp has two.
const OUTPUTS: usize = 8;

/// A matrix of `outputs` rows of `inputs` numbers.
#[derive(Debug)]
pub struct Weight {
    format: WeightFormat,
    outputs: usize,
    inputs: usize,
    /// Of the rows in the buffer, the first that is of this weight.
    first: usize,
    buffer: Arc<Buffer>,
}

impl Weight {
    /// `bytes` are its rows behind each other.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// When there are more or fewer bytes, or a row is no whole blocks.
    pub fn new(
        device: &Device,
        format: WeightFormat,
        outputs: usize,
        inputs: usize,
        bytes: &[u8],
    ) -> Result<Self, CudaError> {
        assert!(format.divides(inputs), "{inputs} inputs in {format:?}");
        assert_eq!(bytes.len(), outputs * format.row_bytes(inputs), "{outputs} x {inputs} in {format:?}");
        Ok(Self { format, outputs, inputs, first: 0, buffer: Arc::new(device.allocate_with(bytes)?) })
    }

    /// Some of its outputs, as a weight that lies in the same memory.
    ///
    /// # Panics
    /// When it has not so many.
    #[must_use]
    pub fn part(&self, outputs: Range<usize>) -> Self {
        let Self { format, inputs, first, ref buffer, .. } = *self;
        assert!(outputs.end <= self.outputs, "outputs {outputs:?} of {}", self.outputs);
        Self { format, outputs: outputs.len(), inputs, first: first + outputs.start, buffer: Arc::clone(buffer) }
    }

    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn place(&self) -> Arg {
        self.rows_from(0, self.outputs)
    }

    fn rows_from(&self, first: usize, count: usize) -> Arg {
        Arg::Address(self.address_of_rows(first, count))
    }

    fn address_of_rows(&self, first: usize, count: usize) -> u64 {
        let row = self.format.row_bytes(self.inputs);
        self.buffer.at((self.first + first) * row).address_of(count * row)
    }
}

/// Rows of activations that are multiplied with a weight.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub x: Place<'a>,
    pub number: Number,
    pub rows: usize,
}

impl Device {
    /// `y = x Wᵀ`; `y` is F32, its rows `stride` apart. Quantised weights are made plain numbers for the products of many rows, as many at a time
    /// as `scratch` has room for.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// When the weight's numbers are plain and other ones than those of `x`.
    pub fn multiply(
        &self,
        weight: &Weight,
        Input { x, number, rows }: Input<'_>,
        y: Place<'_>,
        stride: usize,
        scratch: &Buffer,
    ) -> Result<(), CudaError> {
        let &Weight { format, outputs, inputs, .. } = weight;
        if rows == 0 {
            return Ok(());
        }
        let y_bytes = ((rows - 1) * stride + outputs) * F32;
        if narrow_rows(format, number).contains(&rows) && inputs.is_multiple_of(NARROW_CHUNK) {
            return self.multiply_narrow(weight, Input { x, number, rows }, y, stride);
        }
        if rows <= SKINNY_ROWS && inputs.is_multiple_of(8) {
            let together = rows.next_power_of_two();
            let arguments = [
                weight.place(),
                x.for_bytes(rows * inputs * number.bytes()),
                y.for_bytes(y_bytes),
                size(rows),
                size(inputs),
                size(outputs),
                size(stride),
            ];
            let kernel = format!("skinny_{}_{}_{together}", format.kernel(), number.kernel());
            let extent = Extent { grid: [grid(outputs.div_ceil(OUTPUTS)), 1, 1], threads: THREADS, shared_bytes: 0 };
            return self.launch(&kernel, extent, &arguments);
        }
        let x_address = x.address_of(rows * inputs * number.bytes());
        y.address_of(y_bytes);
        let gemm = |weight, first: usize, outputs, y: u64| Gemm {
            number,
            weight,
            x: x_address,
            y: y + (first * F32) as u64,
            rows,
            inputs,
            outputs,
            stride,
        };
        let y = y.address_of(y_bytes);
        if let WeightFormat::Plain(plain) = format {
            assert_eq!(plain, number, "numbers of one kind meet");
            return self.gemm(&gemm(weight.address_of_rows(0, outputs), 0, outputs, y));
        }
        let row = inputs * number.bytes();
        let at_a_time = (scratch.len() / row).min(outputs);
        assert!(at_a_time > 0, "scratch for a row of {row} bytes");
        for first in (0..outputs).step_by(at_a_time) {
            let now = (outputs - first).min(at_a_time);
            let eights = now * inputs / 8;
            let count = Arg::I64(i64::try_from(eights).expect("a size of a weight"));
            let arguments = [weight.rows_from(first, now), scratch.all().for_bytes(now * row), count];
            let kernel = format!("widen_{}_{}", format.kernel(), number.kernel());
            let extent = Extent { grid: [blocks(eights, THREADS), 1, 1], threads: THREADS, shared_bytes: 0 };
            self.launch(&kernel, extent, &arguments)?;
            self.gemm(&gemm(scratch.all().address_of(now * row), first, now, y))?;
        }
        Ok(())
    }

    /// On tensor cores, of few rows and with the weight as it is.
    fn multiply_narrow(
        &self,
        weight: &Weight,
        Input { x, number, rows }: Input<'_>,
        y: Place<'_>,
        stride: usize,
    ) -> Result<(), CudaError> {
        let &Weight { format, outputs, inputs, .. } = weight;
        for first in (0..rows).step_by(NARROW_ROWS_AT_A_TIME) {
            let now = (rows - first).min(NARROW_ROWS_AT_A_TIME);
            let tiles = Tiles::of_rows(now);
            // Warps of a block that have other outputs load the same rows; but there are to be blocks for all processors.
            let fills = |&beside: &usize| tiles.blocks(outputs, beside) >= self.processors() as usize;
            let beside = [4, 2].into_iter().find(fills).unwrap_or(1);
            let arguments = [
                weight.place(),
                x.skip(first * inputs * number.bytes()).for_bytes(now * inputs * number.bytes()),
                y.skip(first * stride * F32).for_bytes(((now - 1) * stride + outputs) * F32),
                size(now),
                size(inputs),
                size(outputs),
                size(stride),
                size(beside),
            ];
            let kernel = format!("narrow_{}_{}_{}", format.kernel(), number.kernel(), tiles.rows);
            self.launch(&kernel, tiles.extent([tiles.blocks(outputs, beside), 1]), &arguments)?;
        }
        Ok(())
    }
}

/// What a warp multiplies together on tensor cores: so many times 8 rows, and so many times 16 outputs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    pub(super) rows: usize,
    outputs: usize,
}

impl Tiles {
    /// For so many rows. Of many two tiles of outputs are multiplied at a time, so that what is loaded of rows is used twice.
    pub(super) fn of_rows(rows: usize) -> Self {
        let rows = rows.div_ceil(8).next_power_of_two();
        Self { rows, outputs: if rows > 2 { 2 } else { 1 } }
    }

    /// Blocks for so many outputs, where `beside` warps of each have other outputs.
    pub(super) fn blocks(self, outputs: usize, beside: usize) -> usize {
        outputs.div_ceil(beside * 16 * self.outputs)
    }

    pub(super) fn extent(self, [x, y]: [usize; 2]) -> Extent {
        let shared_bytes = grid(NARROW_WARPS * self.outputs * self.rows * 4 * WARP * F32);
        Extent { grid: [grid(x), grid(y), 1], threads: grid(NARROW_WARPS * WARP), shared_bytes }
    }
}

/// Rows that [`multiply_narrow`](Device::multiply_narrow) is the fastest for. A single one of plain numbers has nothing to share.
fn narrow_rows(format: WeightFormat, number: Number) -> RangeInclusive<usize> {
    match (format, number) {
        (WeightFormat::Plain(Number::Bf16 | Number::F16), Number::Bf16 | Number::F16) => 2..=NARROW_PLAIN_ROWS,
        (WeightFormat::Plain(_), _) => RangeInclusive::new(1, 0),
        (_, Number::Bf16) => 1..=NARROW_ROWS,
        _ => RangeInclusive::new(1, 0),
    }
}
