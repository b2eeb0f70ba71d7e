//! How integer weights are laid out in a panel, and how they are read.
//!
//! A panel has two regions. The *quants* of a block of 32 inputs are 8 vectors, the `v`th with the weights of inputs `4 v` to `4 v + 3` of
//! each of the 16 outputs. Two vectors share a line of nibbles: the one with the even number is in the low ones. What exceeds four bits is
//! in further lines. The *scales* are by output too.

use crate::{isa::Isa, line::Line};

/// Vectors of a block.
pub(crate) const VECTORS: usize = 8;
/// Blocks of GGUF's K formats that share a scale of scales.
pub(crate) const SUPER: usize = 8;

/// How the quants of a block are laid out.
pub(crate) trait Quants {
    /// For each block.
    const LINES: usize;
    /// Whether they have all eight bits.
    const WIDE: bool;

    fn read<I: Isa>(isa: I, lines: &[Line]) -> [I::Bytes; VECTORS];
}

/// How the scales of a panel are laid out.
pub(crate) trait Scales {
    /// Scales of a block: one, or one for each half of it.
    const PARTS: usize;

    /// Lines for so many blocks.
    fn lines(blocks: usize) -> usize;

    /// By part, what a quant is multiplied with, and what is taken away from the product.
    fn read<I: Isa>(isa: I, lines: &[Line], block: usize) -> [(I::Floats, I::Floats); 2];
}

/// Four bits.
pub(crate) struct Four;
/// Five: nibbles, then a line with bit `v` for vector `v`.
pub(crate) struct Five;
/// Six: nibbles, then two lines with two bits for each of four vectors.
pub(crate) struct Six;
/// Eight: a line for each vector.
pub(crate) struct Eight;

#[inline(always)]
fn nibbles<I: Isa>(isa: I, lines: &[Line]) -> [I::Bytes; VECTORS] {
    let [a, b, c, d] = [isa.bytes(&lines[0]), isa.bytes(&lines[1]), isa.bytes(&lines[2]), isa.bytes(&lines[3])];
    [
        isa.low_nibbles(a),
        isa.high_nibbles(a),
        isa.low_nibbles(b),
        isa.high_nibbles(b),
        isa.low_nibbles(c),
        isa.high_nibbles(c),
        isa.low_nibbles(d),
        isa.high_nibbles(d),
    ]
}

impl Quants for Four {
    const LINES: usize = 4;
    const WIDE: bool = false;

    #[inline(always)]
    fn read<I: Isa>(isa: I, lines: &[Line]) -> [I::Bytes; VECTORS] {
        nibbles(isa, lines)
    }
}

impl Quants for Five {
    const LINES: usize = 5;
    const WIDE: bool = false;

    #[inline(always)]
    fn read<I: Isa>(isa: I, lines: &[Line]) -> [I::Bytes; VECTORS] {
        let [a, b, c, d, e, f, g, h] = nibbles(isa, lines);
        let bits = isa.bytes(&lines[4]);
        [
            isa.with_bit::<0>(a, bits),
            isa.with_bit::<1>(b, bits),
            isa.with_bit::<2>(c, bits),
            isa.with_bit::<3>(d, bits),
            isa.with_bit::<4>(e, bits),
            isa.with_bit::<5>(f, bits),
            isa.with_bit::<6>(g, bits),
            isa.with_bit::<7>(h, bits),
        ]
    }
}

impl Quants for Six {
    const LINES: usize = 6;
    const WIDE: bool = false;

    #[inline(always)]
    fn read<I: Isa>(isa: I, lines: &[Line]) -> [I::Bytes; VECTORS] {
        let [a, b, c, d, e, f, g, h] = nibbles(isa, lines);
        let (first, second) = (isa.bytes(&lines[4]), isa.bytes(&lines[5]));
        [
            isa.with_two_bits::<0>(a, first),
            isa.with_two_bits::<2>(b, first),
            isa.with_two_bits::<4>(c, first),
            isa.with_two_bits::<6>(d, first),
            isa.with_two_bits::<0>(e, second),
            isa.with_two_bits::<2>(f, second),
            isa.with_two_bits::<4>(g, second),
            isa.with_two_bits::<6>(h, second),
        ]
    }
}

impl Quants for Eight {
    const LINES: usize = 8;
    const WIDE: bool = true;

    #[inline(always)]
    fn read<I: Isa>(isa: I, lines: &[Line]) -> [I::Bytes; VECTORS] {
        let mut vectors = [isa.bytes(&lines[0]); VECTORS];
        for (vector, line) in vectors.iter_mut().zip(lines).skip(1) {
            *vector = isa.bytes(line);
        }
        vectors
    }
}

/// A scale for each block, in F16 and two blocks in a line; quants are above zero by `ZERO`.
pub(crate) struct Plain<const ZERO: u8>;
/// For each eight blocks: a line with the scales of scales and of minimums, in F16; two lines of scales and two of minimums, in 8 bits.
pub(crate) struct WithMinimums;
/// For each eight blocks: a line that begins with the scales of scales, in F16; four lines of signed scales, one for each half of a block.
/// Quants are above zero by 32.
pub(crate) struct Halved;

impl<const ZERO: u8> Scales for Plain<ZERO> {
    const PARTS: usize = 1;

    fn lines(blocks: usize) -> usize {
        blocks.div_ceil(2)
    }

    #[inline(always)]
    fn read<I: Isa>(isa: I, lines: &[Line], block: usize) -> [(I::Floats, I::Floats); 2] {
        let scale = isa.of_f16(lines[block / 2].half(block % 2));
        [(scale, isa.mul(scale, isa.splat(ZERO.into()))); 2]
    }
}

impl Scales for WithMinimums {
    const PARTS: usize = 1;

    fn lines(blocks: usize) -> usize {
        blocks / SUPER * 5
    }

    #[inline(always)]
    fn read<I: Isa>(isa: I, lines: &[Line], block: usize) -> [(I::Floats, I::Floats); 2] {
        let (lines, block) = (&lines[block / SUPER * 5..][..5], block % SUPER);
        let (scales, minimums) = (isa.of_f16(lines[0].half(0)), isa.of_f16(lines[0].half(1)));
        let scale = isa.mul(scales, isa.of_u8(lines[1 + block / 4].quarter(block % 4)));
        let minimum = isa.mul(minimums, isa.of_u8(lines[3 + block / 4].quarter(block % 4)));
        [(scale, minimum); 2]
    }
}

impl Scales for Halved {
    const PARTS: usize = 2;

    fn lines(blocks: usize) -> usize {
        blocks / SUPER * 5
    }

    #[inline(always)]
    fn read<I: Isa>(isa: I, lines: &[Line], block: usize) -> [(I::Floats, I::Floats); 2] {
        let (lines, block) = (&lines[block / SUPER * 5..][..5], block % SUPER);
        let scales = isa.of_f16(lines[0].half(0));
        let first = isa.mul(scales, isa.of_i8(lines[1 + block / 2].quarter(block % 2 * 2)));
        let second = isa.mul(scales, isa.of_i8(lines[1 + block / 2].quarter(block % 2 * 2 + 1)));
        [(first, isa.mul(first, isa.splat(32.0))), (second, isa.mul(second, isa.splat(32.0)))]
    }
}
