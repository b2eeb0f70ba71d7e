use std::arch::x86_64::*;

use super::{Isa, Work};
use crate::{PANEL, line::Line};

/// A processor with AVX2, FMA and F16C: two registers for each panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let has_all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }

    /// Runs `work` where the compiler may use these instructions.
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn run<W: Work>(isa: Avx2, work: W) -> W::Output {
            work.run(isa)
        }
        // SAFETY: `self` is the proof that the processor has these features.
        unsafe { run(self, work) }
    }
}

impl Isa for Avx2 {
    type Floats = [__m256; 2];
    type Ints = [__m256i; 2];
    type Bytes = [__m256i; 2];

    const ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        // SAFETY: `self` is the proof that the processor has the instruction.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, values: &[f32; PANEL]) -> Self::Floats {
        // SAFETY: as above; the pointers are to as many values as are read.
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values[8..].as_ptr())] }
    }

    #[inline(always)]
    fn store(self, values: Self::Floats) -> [f32; PANEL] {
        let mut stored = [0.0; PANEL];
        // SAFETY: as above; the pointers are to as many values as are written.
        unsafe {
            _mm256_storeu_ps(stored.as_mut_ptr(), values[0]);
            _mm256_storeu_ps(stored[8..].as_mut_ptr(), values[1]);
        }
        stored
    }

    #[inline(always)]
    fn floats(self, line: &Line) -> Self::Floats {
        // SAFETY: as above; a line is as long as what is read, and aligned to its length.
        unsafe { [_mm256_load_ps(line.0.as_ptr().cast()), _mm256_load_ps(line.0[32..].as_ptr().cast())] }
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: `self` is the proof that the processor has the instruction.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn scale(self, x: Self::Floats, n: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { [scale_half(x[0], n[0]), scale_half(x[1], n[1])] }
    }

    #[inline(always)]
    fn largest(self, values: Self::Floats) -> f32 {
        // SAFETY: as above. The second operand is given where one is NaN.
        unsafe {
            let four = _mm256_max_ps(values[0], _mm256_max_ps(values[1], _mm256_set1_ps(f32::NEG_INFINITY)));
            let four = _mm_max_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps::<1>(four));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sum(self, values: Self::Floats) -> f32 {
        // SAFETY: as above.
        unsafe {
            let eight = _mm256_add_ps(values[0], values[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn to_i8(self, values: Self::Floats) -> [i8; PANEL] {
        let mut bytes = [0; PANEL];
        // SAFETY: as above; the pointer is to as many bytes as are written. Packing works within halves of a register, so the quarters of
        // the 16-bit numbers are put in order first.
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(values[0]), _mm256_cvtps_epi32(values[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let narrow = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), narrow);
        }
        bytes
    }

    #[inline(always)]
    fn of_u8(self, values: &[u8; PANEL]) -> Self::Floats {
        let [low, high] = halves::<_, 8>(values);
        // SAFETY: as above; the pointers are to as many bytes as are read.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(low.as_ptr().cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(high.as_ptr().cast()))),
            ]
        }
    }

    #[inline(always)]
    fn of_i8(self, values: &[u8; PANEL]) -> Self::Floats {
        let [low, high] = halves::<_, 8>(values);
        // SAFETY: as above.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(low.as_ptr().cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(high.as_ptr().cast()))),
            ]
        }
    }

    #[inline(always)]
    fn of_f16(self, values: &[u8; 2 * PANEL]) -> Self::Floats {
        let [low, high] = halves::<_, 16>(values);
        // SAFETY: as above.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn of_bf16(self, values: &[u8; 2 * PANEL]) -> Self::Floats {
        let [low, high] = halves::<_, 16>(values);
        // SAFETY: as above. A BF16 is the upper half of an F32.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(low.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(high.as_ptr().cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }

    #[inline(always)]
    fn prefetch(self, line: &Line) {
        // SAFETY: every processor of this kind has the instruction, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.0.as_ptr().cast()) };
    }

    #[inline(always)]
    fn zero(self) -> Self::Ints {
        // SAFETY: `self` is the proof that the processor has the instruction.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        // SAFETY: as above.
        unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] }
    }

    #[inline(always)]
    fn bytes(self, line: &Line) -> Self::Bytes {
        // SAFETY: as above; a line is as long as what is read, and aligned to its length.
        unsafe { [_mm256_load_si256(line.0.as_ptr().cast()), _mm256_load_si256(line.0[32..].as_ptr().cast())] }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: `self` is the proof that the processor has the instruction.
        unsafe { [_mm256_and_si256(bytes[0], _mm256_set1_epi8(15)), _mm256_and_si256(bytes[1], _mm256_set1_epi8(15))] }
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe { self.low_nibbles([_mm256_srli_epi16::<4>(bytes[0]), _mm256_srli_epi16::<4>(bytes[1])]) }
    }

    #[inline(always)]
    fn with_bit<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe { [merge::<FROM>(nibbles[0], bits[0], 0x10), merge::<FROM>(nibbles[1], bits[1], 0x10)] }
    }

    #[inline(always)]
    fn with_two_bits<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe { [merge::<FROM>(nibbles[0], bits[0], 0x30), merge::<FROM>(nibbles[1], bits[1], 0x30)] }
    }

    #[inline(always)]
    fn dot(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)));
            [dot_half(sum[0], weights[0], x), dot_half(sum[1], weights[1], x)]
        }
    }

    #[inline(always)]
    fn dot_wide(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        let [a, b, c, d] = x.map(i16::from);
        // SAFETY: as above.
        unsafe {
            let x = _mm256_setr_epi16(a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d);
            [dot_wide_half(sum[0], weights[0], x), dot_wide_half(sum[1], weights[1], x)]
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Self::Floats, weights: &Line, x: u32) -> Self::Floats {
        let weights = self.bytes(weights);
        // SAFETY: as above.
        unsafe {
            let x = _mm256_set1_epi32(x.cast_signed());
            [dot_bf16_half(sum[0], weights[0], x), dot_bf16_half(sum[1], weights[1], x)]
        }
    }
}

#[inline(always)]
fn halves<const N: usize, const HALF: usize>(values: &[u8; N]) -> [&[u8; HALF]; 2] {
    let (halves, _) = values.as_chunks();
    [&halves[0], &halves[1]]
}

/// Puts the power of two together as the exponent of a float.
#[inline(always)]
unsafe fn scale_half(x: __m256, n: __m256) -> __m256 {
    // SAFETY: called where the processor has the instructions.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}

/// A BF16 is the upper half of an F32.
#[inline(always)]
unsafe fn dot_bf16_half(sum: __m256, weights: __m256i, x: __m256i) -> __m256 {
    // SAFETY: called where the processor has the instructions.
    unsafe {
        let first = |pair| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
        let second = |pair| _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(!0xffff)));
        _mm256_fmadd_ps(second(weights), second(x), _mm256_fmadd_ps(first(weights), first(x), sum))
    }
}

/// Two products of weights below 64 have room in 16 bits: 2 * 63 * 128 < 2^15.
#[inline(always)]
unsafe fn dot_half(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    // SAFETY: called where the processor has the instructions.
    unsafe {
        let pairs = _mm256_maddubs_epi16(weights, x);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// Takes the activations widened to 16 bits.
#[inline(always)]
unsafe fn dot_wide_half(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    // SAFETY: called where the processor has the instructions.
    unsafe {
        let low = _mm256_madd_epi16(_mm256_unpacklo_epi8(weights, _mm256_setzero_si256()), x);
        let high = _mm256_madd_epi16(_mm256_unpackhi_epi8(weights, _mm256_setzero_si256()), x);
        _mm256_add_epi32(sum, _mm256_hadd_epi32(low, high))
    }
}

/// `nibbles`, with bit `FROM` of each byte of `bits` and what follows it moved to bit 4, as far as `mask` lets them through.
#[inline(always)]
unsafe fn merge<const FROM: u32>(nibbles: __m256i, bits: __m256i, mask: i8) -> __m256i {
    // SAFETY: called where the processor has the instructions.
    unsafe {
        let moved = match FROM {
            0 => _mm256_slli_epi16::<4>(bits),
            1 => _mm256_slli_epi16::<3>(bits),
            2 => _mm256_slli_epi16::<2>(bits),
            3 => _mm256_slli_epi16::<1>(bits),
            5 => _mm256_srli_epi16::<1>(bits),
            6 => _mm256_srli_epi16::<2>(bits),
            7 => _mm256_srli_epi16::<3>(bits),
            _ => bits,
        };
        _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8(mask)))
    }
}
