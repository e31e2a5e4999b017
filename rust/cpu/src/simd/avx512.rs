//! AVX-512: thirty-two 512-bit registers, with the dot products of VNNI and BF16.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Lanes, TileFn, thin_table, tile_table};
use crate::rows::kernel::{Reads, Totals, reads_values, row_kernels, totals_by_halves};

/// Sixteen single-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F32x16;

impl Lanes for F32x16 {
    type Elem = f32;
    type Acc = f32;
    type X = __m512;
    type V = __m512;
    const LANES: usize = 16;
    const STEP: usize = 1;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const f32) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe { _mm512_set1_ps(from.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm512_fmadd_ps(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm512_storeu_ps(to, v) }
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
thin_table!(thin_f32, F32x16, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
tile_table!(tile_f32, F32x16, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")], {
    3: [8, 4, 2, 1], 2: [8, 4, 2, 1], 1: [16, 8, 4, 2, 1], 6: [4, 2, 1],
});

/// Eight double-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F64x8;

impl Lanes for F64x8 {
    type Elem = f64;
    type Acc = f64;
    type X = __m512d;
    type V = __m512d;
    const LANES: usize = 8;
    const STEP: usize = 1;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm512_setzero_pd() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const f64) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_pd(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f64) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe { _mm512_set1_pd(from.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm512_fmadd_pd(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f64) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_pd(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f64, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm512_storeu_pd(to, v) }
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
thin_table!(thin_f64, F64x8, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
tile_table!(tile_f64, F64x8, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")], {
    3: [8, 4, 2, 1], 2: [8, 4, 2, 1], 1: [16, 8, 4, 2, 1], 6: [4, 2, 1],
});

/// Sixteen 32-bit sums of products of int16 pairs, multiplied and added apart.
#[derive(Clone, Copy)]
pub(crate) struct I16x32;

impl Lanes for I16x32 {
    type Elem = i16;
    type Acc = i32;
    type X = __m512i;
    type V = __m512i;
    const LANES: usize = 16;
    const STEP: usize = 2;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const i16) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i16) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm512_add_epi32(acc, _mm512_madd_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
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
thin_table!(thin_i16, I16x32, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
tile_table!(tile_i16, I16x32, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")], {
    3: [8, 4, 2, 1], 2: [8, 4, 2, 1], 1: [16, 8, 4, 2, 1], 6: [4, 2, 1],
});

/// Sixteen 32-bit sums of products of int16 pairs in one instruction (`vpdpwssd`).
#[derive(Clone, Copy)]
pub(crate) struct I16x32Vnni;

impl Lanes for I16x32Vnni {
    type Elem = i16;
    type Acc = i32;
    type X = __m512i;
    type V = __m512i;
    const LANES: usize = 16;
    const STEP: usize = 2;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const i16) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i16) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm512_dpwssd_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const i16) {
        // SAFETY: a hint; never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_i16_vnni(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_i16_vnni(cols, by_columns)
    }
}
thin_table!(
    thin_i16_vnni,
    I16x32Vnni,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni")]
);
tile_table!(tile_i16_vnni, I16x32Vnni, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni")], {
    3: [8, 4, 2, 1], 2: [8, 4, 2, 1], 1: [16, 8, 4, 2, 1], 6: [4, 2, 1],
});

/// Sixteen single-precision sums of products of bfloat16 pairs (`vdpbf16ps`).
#[derive(Clone, Copy)]
pub(crate) struct Bf16x32;

impl Lanes for Bf16x32 {
    type Elem = bf16;
    type Acc = f32;
    type X = __m512bh;
    type V = __m512;
    const LANES: usize = 16;
    const STEP: usize = 2;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const bf16) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const bf16) -> Self::X {
        // SAFETY: the caller provides a readable word.
        unsafe {
            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(from.cast::<i32>().read_unaligned()))
        }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { _mm512_dpbf16_ps(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const bf16) {
        // SAFETY: a hint; never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_bf16(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_bf16(cols, by_columns)
    }
}
thin_table!(
    thin_bf16,
    Bf16x32,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16")]
);
tile_table!(tile_bf16, Bf16x32, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16")], {
    3: [8, 4, 2, 1], 2: [8, 4, 2, 1], 1: [16, 8, 4, 2, 1], 6: [4, 2, 1],
});

impl Reads<f32> for F32x16 {
    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { _mm512_loadu_ps(from) }
    }
}
impl Reads<bf16> for F32x16 {
    #[inline(always)]
    unsafe fn read(from: *const bf16) -> Self::X {
        // SAFETY: the caller provides 16 readable values, the upper halves of as many floats.
        unsafe {
            let halves = _mm256_loadu_si256(from.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
}
impl Reads<f16> for F32x16 {
    #[inline(always)]
    unsafe fn read(from: *const f16) -> Self::X {
        // SAFETY: the caller provides 16 readable values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}
impl Totals for F32x16 {
    #[inline(always)]
    unsafe fn totals(vectors: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: register arithmetic; the caller vouches for the instruction set.
        unsafe {
            super::avx2::totals_of_four(
                vectors.map(|v| _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))),
            )
        }
    }
}
totals_by_halves!(F64x8);
reads_values!(F64x8, f64, [f64, f32, bf16, f16]);
row_kernels!(F32x16, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")], { F32 => f32, Bf16 => bf16, F16 => f16 });
row_kernels!(F64x8, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")], { F64 => f64, F32 => f32, Bf16 => bf16, F16 => f16 });
