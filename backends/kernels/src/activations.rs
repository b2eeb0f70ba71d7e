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
    /// `[tile][input][row]`; empty when no weight is of floats.
    floats: Vec<f32>,
    /// `[tile][pair of inputs][row]`, rounded to BF16 with the first in the lower half; empty when no weight is in BF16.
    pairs: Vec<u32>,
}

/// The forms in which the weights of a product want its activations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forms {
    pub(crate) blocks: bool,
    pub(crate) floats: bool,
    pub(crate) pairs: bool,
}

thread_local! {
    /// Buffers that live from product to product.
    static BUFFERS: RefCell<Activations> = RefCell::default();
}

impl Activations {
    /// Lends the rows of `x` in all of the `forms`.
    pub(crate) fn with<T>(x: &[f32], inputs: usize, forms: Forms, work: impl FnOnce(&Self) -> T) -> T {
        let mut buffers = BUFFERS.take();
        buffers.set(x, inputs, forms);
        let result = work(&buffers);
        BUFFERS.set(buffers);
        result
    }

    fn set(&mut self, x: &[f32], inputs: usize, forms: Forms) {
        self.rows = x.len() / inputs;
        self.inputs = inputs;
        self.tile = dispatch(TileRows);
        let tile_len = self.tile * inputs;
        if forms.blocks {
            self.blocks.resize(self.rows * (inputs / BLOCK), Block::default());
            let tiles = self.blocks.par_chunks_mut(tile_len / BLOCK).zip(x.par_chunks(tile_len));
            tiles.for_each(|(blocks, x)| dispatch(Quantize { x, inputs, blocks }));
        }
        if forms.floats {
            self.floats.resize(x.len(), 0.0);
            let tiles = self.floats.par_chunks_mut(tile_len).zip(x.par_chunks(tile_len));
            tiles.for_each(|(floats, x)| interleave(x, inputs, floats));
        }
        if forms.pairs {
            let pairs = inputs.div_ceil(2);
            self.pairs.resize(self.rows * pairs, 0);
            let tiles = self.pairs.par_chunks_mut(self.tile * pairs).zip(x.par_chunks(tile_len));
            tiles.for_each(|(pairs, x)| dispatch(Pair { x, inputs, pairs }));
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

    /// All pairs of a tile.
    pub(crate) fn pairs(&self, tile: usize) -> &[u32] {
        let pairs = self.inputs.div_ceil(2);
        &self.pairs[tile * self.tile * pairs..][..self.tile_rows(tile) * pairs]
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

/// Rounds the rows of one tile to BF16 and turns them into columns of pairs.
struct Pair<'a> {
    x: &'a [f32],
    inputs: usize,
    pairs: &'a mut [u32],
}

impl Work for Pair<'_> {
    type Output = ();

    // No instruction is named, but the compiler has those of the processor for these loops.
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let rows = self.x.len() / self.inputs;
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            let (whole, rest) = x.as_chunks::<2>();
            let mut places = self.pairs[row..].iter_mut().step_by(rows);
            // The places come second, so that none is taken for a pair that is not there.
            for ([first, second], place) in whole.iter().zip(places.by_ref()) {
                *place = rounded(*first) >> 16 | rounded(*second);
            }
            if let (Some(place), [last]) = (places.next(), rest) {
                *place = rounded(*last) >> 16;
            }
        }
    }
}

/// The bits of the nearest BF16 as an F32, ties to even. What is NaN stays so: its lower half has no say, so the quiet bit is set.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (if x.is_nan() { bits | 0x0040_0000 } else { nearest }) & !0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;

    #[test]
    fn rounding_to_16_bits_is_that_of_the_type() {
        let around = |bits: u32| (0..=0x1_0000).step_by(0x4000).map(move |low: u32| f32::from_bits(bits + low));
        let strange =
            [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::MAX, f32::MIN, -0.0, 1e-40];
        for x in [0x3f80_0000, 0x3f81_0000, 0xbf81_0000, 0x4049_0000].into_iter().flat_map(around).chain(strange) {
            let expected = half::bf16::from_f32(x);
            assert_eq!(rounded(x), u32::from(expected.to_bits()) << 16, "{x}");
        }
    }

    #[test]
    fn pairs_of_an_odd_row_end_with_a_zero() {
        let forms = Forms { pairs: true, ..Forms::default() };
        let pair = |first: f32, second: f32| first.to_bits() >> 16 | second.to_bits();
        Activations::with(&[1.0, 2.0, 3.0, -1.0, -2.0, -3.0], 3, forms, |x| {
            assert_eq!(x.pairs(0), [pair(1.0, 2.0), pair(-1.0, -2.0), pair(3.0, 0.0), pair(-3.0, 0.0)]);
        });
    }

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
