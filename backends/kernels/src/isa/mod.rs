//! What the loops need of a processor.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::{PANEL, line::Line};

/// Instructions over one value for each of [`PANEL`] outputs.
///
/// A value of a type that implements it is the proof that the processor has the instructions.
pub(crate) trait Isa: Copy + Send + Sync {
    /// F32 by output.
    type Floats: Copy;
    /// I32 by output.
    type Ints: Copy;
    /// Four bytes by output.
    type Bytes: Copy;

    /// Rows of activations that one loop takes along, as many as have room in registers.
    const ROWS: usize;

    fn splat(self, value: f32) -> Self::Floats;
    fn load(self, values: &[f32; PANEL]) -> Self::Floats;
    fn store(self, values: Self::Floats) -> [f32; PANEL];
    /// A line of F32.
    fn floats(self, line: &Line) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `b` where either is NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `x` times two to the power of `n`, which is whole and from -126 to 127.
    fn scale(self, x: Self::Floats, n: Self::Floats) -> Self::Floats;
    /// The largest of all, as if NaN were not there.
    fn largest(self, values: Self::Floats) -> f32;
    fn sum(self, values: Self::Floats) -> f32;
    /// Whole numbers from -128 to 127 as such.
    fn to_i8(self, values: Self::Floats) -> [i8; PANEL];
    fn of_u8(self, values: &[u8; PANEL]) -> Self::Floats;
    fn of_i8(self, values: &[u8; PANEL]) -> Self::Floats;
    fn of_f16(self, values: &[u8; 2 * PANEL]) -> Self::Floats;
    fn of_bf16(self, values: &[u8; 2 * PANEL]) -> Self::Floats;

    /// Has a line brought near that will soon be read.
    fn prefetch(self, line: &Line);

    fn zero(self) -> Self::Ints;
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    fn bytes(self, line: &Line) -> Self::Bytes;
    fn low_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;
    fn high_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;
    /// `nibbles`, with bit `FROM` of each byte of `bits` as bit 4.
    fn with_bit<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes;
    /// `nibbles`, with bits `FROM` and `FROM + 1` of each byte of `bits` as bits 4 and 5.
    fn with_two_bits<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes;
    /// `sum` and, by output, the products of four unsigned weights below 64 with four signed activations.
    fn dot(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints;
    /// As [`dot`](Self::dot), with weights of all eight bits.
    fn dot_wide(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints;
    /// `sum` and, by output, the products of two weights in BF16 with two activations in BF16, the first of which is the lower half of `x`.
    fn dot_bf16(self, sum: Self::Floats, weights: &Line, x: u32) -> Self::Floats;
}

/// What is to be compiled for each kind of processor.
pub(crate) trait Work {
    type Output;

    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// The best kind of processor that this one is.
#[derive(Clone, Copy, Debug)]
enum Best {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512::Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Portable,
}

fn best() -> Best {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(isa) = avx512::Avx512::<true>::detect() {
            return Best::Avx512Bf16(isa);
        }
        if let Some(isa) = avx512::Avx512::<false>::detect() {
            return Best::Avx512(isa);
        }
        if let Some(isa) = avx2::Avx2::detect() {
            return Best::Avx2(isa);
        }
    }
    Best::Portable
}

/// Runs `work` with the best instructions that there are.
pub(crate) fn dispatch<W: Work>(work: W) -> W::Output {
    match best() {
        #[cfg(target_arch = "x86_64")]
        Best::Avx512Bf16(isa) => isa.run(work),
        #[cfg(target_arch = "x86_64")]
        Best::Avx512(isa) => isa.run(work),
        #[cfg(target_arch = "x86_64")]
        Best::Avx2(isa) => isa.run(work),
        Best::Portable => work.run(portable::Portable),
    }
}

/// The instructions that products are computed with, for people.
#[must_use]
pub fn name() -> &'static str {
    match best() {
        #[cfg(target_arch = "x86_64")]
        Best::Avx512Bf16(_) => "AVX-512 with VNNI and BF16",
        #[cfg(target_arch = "x86_64")]
        Best::Avx512(_) => "AVX-512 with VNNI",
        #[cfg(target_arch = "x86_64")]
        Best::Avx2(_) => "AVX2",
        Best::Portable => "portable",
    }
}

/// All kinds that can be tried on this processor.
#[cfg(test)]
pub(crate) fn on_each<W: Work + Clone>(work: W) -> Vec<W::Output> {
    let mut outputs = vec![work.clone().run(portable::Portable)];
    #[cfg(target_arch = "x86_64")]
    {
        outputs.extend(avx2::Avx2::detect().map(|isa| isa.run(work.clone())));
        outputs.extend(avx512::Avx512::<false>::detect().map(|isa| isa.run(work.clone())));
        outputs.extend(avx512::Avx512::<true>::detect().map(|isa| isa.run(work)));
    }
    outputs
}
