//! AVX2 and FMA: sixteen 256-bit registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Lanes, TileFn, thin_table, tile_table};
use crate::rows::kernel::{Reads, Totals, reads_values, row_kernels, totals_by_halves};

/// Eight single-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F32x8;

impl Lanes for F32x8 {
    type Elem = f32;
    type Acc = f32;
    type X = __m256;
    type V = __m256;
    const LANES: usize = 8;
    const STEP: usize = 1;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const f32) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe { _mm256_set1_ps(from.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm256_fmadd_ps(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a hint; never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_f32(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_f32(cols, by_columns)
    }
}
thin_table!(thin_f32, F32x8, [target_feature(enable = "avx2,fma,f16c")]);
tile_table!(tile_f32, F32x8, [target_feature(enable = "avx2,fma,f16c")], {
    3: [4, 2, 1], 2: [4, 2, 1], 1: [8, 4, 2, 1], 6: [2, 1],
});

/// Four double-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F64x4;

impl Lanes for F64x4 {
    type Elem = f64;
    type Acc = f64;
    type X = __m256d;
    type V = __m256d;
    const LANES: usize = 4;
    const STEP: usize = 1;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm256_setzero_pd() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const f64) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm256_loadu_pd(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f64) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe { _mm256_set1_pd(from.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm256_fmadd_pd(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f64) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm256_loadu_pd(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f64, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm256_storeu_pd(to, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const f64) {
        // SAFETY: a hint; never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_f64(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_f64(cols, by_columns)
    }
}
thin_table!(thin_f64, F64x4, [target_feature(enable = "avx2,fma,f16c")]);
tile_table!(tile_f64, F64x4, [target_feature(enable = "avx2,fma,f16c")], {
    3: [4, 2, 1], 2: [4, 2, 1], 1: [8, 4, 2, 1], 6: [2, 1],
});

/// Eight 32-bit sums of products of int16 pairs.
#[derive(Clone, Copy)]
pub(crate) struct I16x16;

impl Lanes for I16x16 {
    type Elem = i16;
    type Acc = i32;
    type X = __m256i;
    type V = __m256i;
    const LANES: usize = 8;
    const STEP: usize = 2;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const i16) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i16) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm256_storeu_si256(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const i16) {
        // SAFETY: a hint; never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_i16(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_i16(cols, by_columns)
    }
}
thin_table!(thin_i16, I16x16, [target_feature(enable = "avx2,fma,f16c")]);
tile_table!(tile_i16, I16x16, [target_feature(enable = "avx2,fma,f16c")], {
    3: [4, 2, 1], 2: [4, 2, 1], 1: [8, 4, 2, 1], 6: [2, 1],
});

impl Reads<f32> for F32x8 {
    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm256_loadu_ps(from) }
    }
}
impl Reads<bf16> for F32x8 {
    #[inline(always)]
    unsafe fn read(from: *const bf16) -> Self::X {
        // SAFETY: the caller provides 8 readable values, the upper halves of as many floats.
        unsafe {
            let halves = _mm_loadu_si128(from.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }
}
impl Reads<f16> for F32x8 {
    #[inline(always)]
    unsafe fn read(from: *const f16) -> Self::X {
        // SAFETY: the caller provides 8 readable values.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}
/// Totals of four vectors, the upper half of the lanes added to the lower one until one is left.
///
/// # Safety
/// AVX must be present.
#[inline(always)]
pub(super) unsafe fn totals_of_four(vectors: [__m256; 4]) -> [f32; 4] {
    // SAFETY: register arithmetic; four floats are as large as the vector.
    unsafe {
        let [a, b, c, d] =
            vectors.map(|v| _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)));
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let totals =
            _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
        std::mem::transmute::<__m128, [f32; 4]>(totals)
    }
}

impl Totals for F32x8 {
    #[inline(always)]
    unsafe fn totals(vectors: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { totals_of_four(vectors) }
    }
}
totals_by_halves!(F64x4);
reads_values!(F64x4, f64, [f64, f32, bf16, f16]);
row_kernels!(F32x8, [target_feature(enable = "avx2,fma,f16c")], { F32 => f32, Bf16 => bf16, F16 => f16 });
row_kernels!(F64x4, [target_feature(enable = "avx2,fma,f16c")], { F64 => f64, F32 => f32, Bf16 => bf16, F16 => f16 });
