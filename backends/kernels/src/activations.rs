use std::cell::RefCell;

use rayon::prelude::*;

use crate::{
    BLOCK, PANEL,
    isa::{Isa, Work, dispatch},
};

/// Activations of one row that meet one block of integer weights, in 8 bits.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Block {
    /// Each instruction takes four.
    pub(crate) quants: [[i8; 4]; BLOCK / 4],
    pub(crate) scale: f32,
    /// The sum of the quants times the scale, negated: what a minimum or a zero point of the weights takes away.
    pub(crate) sum: f32,
    /// The same of each half.
    pub(crate) halves: [f32; 2],
}

/// Some rows of activations in the order in which the loops want them.
///
/// Rows come in tiles, and within a tile all rows of a block (or of one input) lie behind each other, so that a loop has one place to read
/// from. The last tile may have fewer rows.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) tile: usize,
    /// `[tile][block][row]`; empty when no weight is quantised.
    blocks: Vec<Block>,
    /// `[tile][input][row]`; empty when no weight is dense.
    floats: Vec<f32>,
}

thread_local! {
    /// Buffers that live from product to product.
    static BUFFERS: RefCell<Activations> = RefCell::default();
}

impl Activations {
    /// Lends the rows of `x` as integers, or as floats, or both.
    pub(crate) fn with<T>(x: &[f32], inputs: usize, integer: bool, dense: bool, work: impl FnOnce(&Self) -> T) -> T {
        let mut buffers = BUFFERS.take();
        buffers.set(x, inputs, integer, dense);
        let result = work(&buffers);
        BUFFERS.set(buffers);
        result
    }

    fn set(&mut self, x: &[f32], inputs: usize, integer: bool, dense: bool) {
        self.rows = x.len() / inputs;
        self.inputs = inputs;
        self.tile = dispatch(TileRows);
        let tile_len = self.tile * inputs;
        if integer {
            self.blocks.resize(self.rows * (inputs / BLOCK), Block::default());
            let tiles = self.blocks.par_chunks_mut(tile_len / BLOCK).zip(x.par_chunks(tile_len));
            tiles.for_each(|(blocks, x)| dispatch(Quantize { x, inputs, blocks }));
        }
        if dense {
            self.floats.resize(x.len(), 0.0);
            let tiles = self.floats.par_chunks_mut(tile_len).zip(x.par_chunks(tile_len));
            tiles.for_each(|(floats, x)| interleave(x, inputs, floats));
        }
    }

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile)
    }

    /// Rows of a tile.
    pub(crate) fn tile_rows(&self, tile: usize) -> usize {
        self.tile.min(self.rows - tile * self.tile)
    }

    /// All blocks of a tile.
    pub(crate) fn blocks(&self, tile: usize) -> &[Block] {
        let blocks = self.inputs / BLOCK;
        &self.blocks[tile * self.tile * blocks..][..self.tile_rows(tile) * blocks]
    }

    /// All floats of a tile.
    pub(crate) fn floats(&self, tile: usize) -> &[f32] {
        &self.floats[tile * self.tile * self.inputs..][..self.tile_rows(tile) * self.inputs]
    }
}

struct TileRows;

impl Work for TileRows {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> usize {
        I::ROWS
    }
}

/// Quantises the rows of one tile.
struct Quantize<'a> {
    x: &'a [f32],
    inputs: usize,
    blocks: &'a mut [Block],
}

impl Work for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let rows = self.x.len() / self.inputs;
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            for (at, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                self.blocks[at * rows + row] = quantize(isa, x);
            }
        }
    }
}

/// The largest value becomes 127, as in GGUF's `Q8_0`.
#[inline(always)]
fn quantize<I: Isa>(isa: I, x: &[f32; BLOCK]) -> Block {
    let halves: &[[f32; PANEL]] = x.as_chunks().0;
    let [first, second] = [isa.load(&halves[0]), isa.load(&halves[1])];
    let negated = |x| isa.mul(x, isa.splat(-1.0));
    let larger = isa.max(isa.max(first, negated(first)), isa.max(second, negated(second)));
    let largest = isa.largest(larger);
    let inverse = isa.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
    // Adding and subtracting this rounds to the nearest whole number, ties to even.
    const ROUND: f32 = 12_582_912.0;
    let round = |x| isa.add(isa.mul_add(x, inverse, isa.splat(ROUND)), isa.splat(-ROUND));
    let [first, second] = [round(first), round(second)];
    let mut block = Block { scale: largest / 127.0, ..Block::default() };
    let (quants, _) = block.quants.as_flattened_mut().as_chunks_mut();
    quants[0] = isa.to_i8(first);
    quants[1] = isa.to_i8(second);
    // Sums of whole numbers are exact. What is not finite is NaN by now, and makes them NaN: it cannot hide in a product.
    block.halves = [-block.scale * isa.sum(first), -block.scale * isa.sum(second)];
    block.sum = block.halves[0] + block.halves[1];
    block
}

/// Turns rows into columns.
fn interleave(x: &[f32], inputs: usize, floats: &mut [f32]) {
    let rows = x.len() / inputs;
    if rows == 1 {
        floats.copy_from_slice(x);
        return;
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (float, x) in floats[row..].iter_mut().step_by(rows).zip(x) {
            *float = *x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;

    #[derive(Clone, Copy)]
    struct One([f32; BLOCK]);

    impl Work for One {
        type Output = Block;

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Block {
            quantize(isa, &self.0)
        }
    }

    #[test]
    fn a_block_keeps_its_values_to_a_127th_of_the_largest() {
        let x: [f32; BLOCK] = std::array::from_fn(|at| (at as f32 - 11.0) * 0.37);
        for block in on_each(One(x)) {
            let step = 20.0 * 0.37 / 127.0;
            for (x, quant) in x.iter().zip(block.quants.as_flattened()) {
                assert!((x - f32::from(*quant) * block.scale).abs() <= step / 2.0 + 1e-6);
            }
            assert!((block.scale - step).abs() < 1e-6);
            let sum: i32 = block.quants.as_flattened().iter().map(|&quant| i32::from(quant)).sum();
            assert!((block.sum + sum as f32 * block.scale).abs() < 1e-5);
            assert_eq!(block.sum, block.halves[0] + block.halves[1]);
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_not_finite_is_not_hidden() {
        for block in on_each(One([0.0; BLOCK])) {
            assert_eq!((block.scale, block.sum), (0.0, 0.0));
        }
        for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..BLOCK {
                let mut x = [1.0; BLOCK];
                x[at] = strange;
                for block in on_each(One(x)) {
                    assert!(block.sum.is_nan(), "{strange} at {at}");
                    assert!(block.halves.iter().any(|half| half.is_nan()), "{strange} at {at}");
                }
            }
        }
    }
}
