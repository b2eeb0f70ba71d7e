use std::{arch::x86_64::*, mem::transmute};

use super::{Isa, Work};
use crate::{PANEL, line::Line};

/// A processor with AVX-512 and its 8-bit inner products (VNNI), and those of BF16 too where `BRAIN` says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const BRAIN: bool>(());

impl<const BRAIN: bool> Avx512<BRAIN> {
    pub(crate) fn detect() -> Option<Self> {
        let has_all = (!BRAIN || is_x86_feature_detected!("avx512bf16"))
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }

    /// Runs `work` where the compiler may use these instructions.
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,avx2,fma,f16c")]
        fn run_with_bf16<W: Work>(work: W) -> W::Output {
            work.run(Avx512::<true>(()))
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
        fn run_without<W: Work>(work: W) -> W::Output {
            work.run(Avx512::<false>(()))
        }
        // SAFETY: `self` is the proof that the processor has these features.
        unsafe { if BRAIN { run_with_bf16(work) } else { run_without(work) } }
    }
}

impl<const BRAIN: bool> Isa for Avx512<BRAIN> {
    type Floats = __m512;
    type Ints = __m512i;
    type Bytes = __m512i;

    const ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        // SAFETY: `self` is the proof that the processor has the instruction.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, values: &[f32; PANEL]) -> Self::Floats {
        // SAFETY: as above; the pointer is to as many values as are read.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, values: Self::Floats) -> [f32; PANEL] {
        let mut stored = [0.0; PANEL];
        // SAFETY: as above; the pointer is to as many values as are written.
        unsafe { _mm512_storeu_ps(stored.as_mut_ptr(), values) };
        stored
    }

    #[inline(always)]
    fn floats(self, line: &Line) -> Self::Floats {
        // SAFETY: as above; a line is as long as what is read, and aligned to its length.
        unsafe { _mm512_load_ps(line.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: `self` is the proof that the processor has the instruction.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn scale(self, x: Self::Floats, n: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_scalef_ps(x, n) }
    }

    #[inline(always)]
    fn largest(self, values: Self::Floats) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_max_ps(values) }
    }

    #[inline(always)]
    fn sum(self, values: Self::Floats) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(values) }
    }

    #[inline(always)]
    fn to_i8(self, values: Self::Floats) -> [i8; PANEL] {
        let mut bytes = [0; PANEL];
        // SAFETY: as above; the pointer is to as many bytes as are written.
        unsafe {
            let narrow = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), narrow);
        }
        bytes
    }

    #[inline(always)]
    fn of_u8(self, values: &[u8; PANEL]) -> Self::Floats {
        // SAFETY: as above; the pointer is to as many bytes as are read.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(values.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn of_i8(self, values: &[u8; PANEL]) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(values.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn of_f16(self, values: &[u8; 2 * PANEL]) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn of_bf16(self, values: &[u8; 2 * PANEL]) -> Self::Floats {
        // SAFETY: as above. A BF16 is the upper half of an F32.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
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
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn bytes(self, line: &Line) -> Self::Bytes {
        // SAFETY: as above; a line is as long as what is read, and aligned to its length.
        unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: `self` is the proof that the processor has the instruction.
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn with_bit<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe { merge(nibbles, to_bit_4::<FROM>(bits), _mm512_set1_epi8(0x10)) }
    }

    #[inline(always)]
    fn with_two_bits<const FROM: u32>(self, nibbles: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe { merge(nibbles, to_bit_4::<FROM>(bits), _mm512_set1_epi8(0x30)) }
    }

    #[inline(always)]
    fn dot(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        self.dot_wide(sum, weights, x)
    }

    #[inline(always)]
    fn dot_wide(self, sum: Self::Ints, weights: Self::Bytes, x: [i8; 4]) -> Self::Ints {
        let x = i32::from_ne_bytes(x.map(i8::cast_unsigned));
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Self::Floats, weights: &Line, x: u32) -> Self::Floats {
        // SAFETY: as above, with a line as long as what is read; the types of BF16 and of integers are the same 64 bytes.
        unsafe {
            let weights = _mm512_load_si512(weights.0.as_ptr().cast());
            let x = _mm512_set1_epi32(x.cast_signed());
            if BRAIN {
                return _mm512_dpbf16_ps(
                    sum,
                    transmute::<__m512i, __m512bh>(weights),
                    transmute::<__m512i, __m512bh>(x),
                );
            }
            let upper = _mm512_set1_epi32(!0xffff);
            let first = _mm512_fmadd_ps(
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights)),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)),
                sum,
            );
            _mm512_fmadd_ps(
                _mm512_castsi512_ps(_mm512_and_si512(weights, upper)),
                _mm512_castsi512_ps(_mm512_and_si512(x, upper)),
                first,
            )
        }
    }
}

/// Moves bit `FROM` of each byte to bit 4. What else is in the byte then, and in its neighbours, is for the caller to mask.
#[inline(always)]
unsafe fn to_bit_4<const FROM: u32>(bits: __m512i) -> __m512i {
    // SAFETY: called where the processor has the instructions.
    unsafe {
        match FROM {
            0 => _mm512_slli_epi16::<4>(bits),
            1 => _mm512_slli_epi16::<3>(bits),
            2 => _mm512_slli_epi16::<2>(bits),
            3 => _mm512_slli_epi16::<1>(bits),
            5 => _mm512_srli_epi16::<1>(bits),
            6 => _mm512_srli_epi16::<2>(bits),
            7 => _mm512_srli_epi16::<3>(bits),
            _ => bits,
        }
    }
}

/// `nibbles | (bits & mask)`, in one instruction.
#[inline(always)]
unsafe fn merge(nibbles: __m512i, bits: __m512i, mask: __m512i) -> __m512i {
    // By the bits of the three operands, nibbles first: 1 where the first is, or both others are.
    const OR_AND: i32 = 0b1111_1000;
    // SAFETY: called where the processor has the instruction.
    unsafe { _mm512_ternarylogic_epi32::<OR_AND>(nibbles, bits, mask) }
}
