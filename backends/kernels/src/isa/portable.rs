use half::{bf16, f16};

use super::Isa;
use crate::{PANEL, line::Line};

/// No particular instructions: arrays, and a compiler that makes of them what the target has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Isa for Portable {
    type Floats = [f32; PANEL];
    type Ints = [i32; PANEL];
    type Bytes = [u8; Line::BYTES];

    const ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; PANEL]
    }

    #[inline(always)]
    fn load(self, values: &[f32; PANEL]) -> Self::Floats {
        *values
    }

    #[inline(always)]
    fn store(self, values: Self::Floats) -> [f32; PANEL] {
        values
    }

    #[inline(always)]
    fn floats(self, line: &Line) -> Self::Floats {
        let values = line.0.as_chunks().0;
        std::array::from_fn(|at| f32::from_le_bytes(values[at]))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|at| a[at] * b[at])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|at| a[at] * b[at] + c[at])
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|at| a[at] + b[at])
    }

    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|at| if a[at] > b[at] { a[at] } else { b[at] })
    }

    #[inline(always)]
    fn scale(self, x: Self::Floats, n: Self::Floats) -> Self::Floats {
        std::array::from_fn(|at| x[at] * f32::from_bits(((n[at] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn largest(self, values: Self::Floats) -> f32 {
        values.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn sum(self, values: Self::Floats) -> f32 {
        values.iter().sum()
    }

    #[inline(always)]
    fn to_i8(self, values: Self::Floats) -> [i8; PANEL] {
        values.map(|value| value as i8)
    }

    #[inline(always)]
    fn of_u8(self, values: &[u8; PANEL]) -> Self::Floats {
        values.map(f32::from)
    }

    #[inline(always)]
    fn of_i8(self, values: &[u8; PANEL]) -> Self::Floats {
        values.map(|value| f32::from(value.cast_signed()))
    }

    #[inline(always)]
    fn of_f16(self, values: &[u8; 2 * PANEL]) -> Self::Floats {
        let values = values.as_chunks().0;
        std::array::from_fn(|at| f16::from_le_bytes(values[at]).to_f32())
    }

    #[inline(always)]
    fn of_bf16(self, values: &[u8; 2 * PANEL]) -> Self::Floats {
        let values = values.as_chunks().0;
        std::array::from_fn(|at| bf16::from_le_bytes(values[at]).to_f32())
    }

    #[inline(always)]
    fn prefetch(self, _: &Line) {}

    #[inline(always)]
    fn zero(self) -> Self::Ints {
        [0; PANEL]
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    fn bytes(self, line: &Line) -> Self::Bytes {
        line.0
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|byte| byte & 15)
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|byte| byte >> 4)
    }

    #[inline(always)]
    fn with_bit<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|at| nibbles[at] | ((bits[at] >> FROM) & 1) << 4)
    }

    #[inline(always)]
    fn with_two_bits<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|at| nibbles[at] | ((bits[at] >> FROM) & 3) << 4)
    }

    #[inline(always)]
    fn dot(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        self.dot_wide(sum, weights, x)
    }

    #[inline(always)]
    fn dot_wide(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        let weights = weights.as_chunks::<4>().0;
        std::array::from_fn(|at| {
            let products = weights[at].iter().zip(x).map(|(&weight, x)| i32::from(weight) * i32::from(x));
            sum[at] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Self::Floats, weights: &Line, x: u32) -> Self::Floats {
        let halves = |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & !0xffff)];
        let weights = weights.0.as_chunks::<4>().0;
        std::array::from_fn(|at| {
            let products = std::iter::zip(halves(u32::from_le_bytes(weights[at])), halves(x));
            products.fold(sum[at], |sum, (weight, x)| sum + weight * x)
        })
    }
}
