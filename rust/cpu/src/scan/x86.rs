//! AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::lanes::{Kernels, Real, arithmetic, kernels};

/// Loads, stores and constants of one vector type.
macro_rules! moves {
    ($e:ty, $v:ty, $splat:ident, $load:ident, $store:ident) => {
        #[inline(always)]
        unsafe fn splat(x: $e) -> $v {
            // SAFETY: register arithmetic; the caller vouches for the instruction set.
            unsafe { $splat(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const $e) -> $v {
            // SAFETY: the caller provides a readable vector.
            unsafe { $load(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut $e, v: $v) {
            // SAFETY: the caller provides a writeable vector.
            unsafe { $store(to, v) }
        }
    };
}

/// Rounding control of AVX-512: to nearest, ties to even, without exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Sixteen single-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F32x16;

impl Real for F32x16 {
    type Elem = f32;
    type V = __m512;
    const LANES: usize = 16;
    const KERNELS: Kernels<f32> =
        kernels!(F32x16, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
    moves!(f32, __m512, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps);
    arithmetic!(__m512:
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        scale(p, n) = _mm512_scalef_ps(p, n);
    );
    #[inline(always)]
    unsafe fn split(x: __m512) -> (__m512, __m512) {
        // SAFETY: register arithmetic. The rest of an infinity is 0, so its whole part is the infinity.
        unsafe {
            let rest = _mm512_reduce_ps::<NEAREST>(x);
            (_mm512_sub_ps(x, rest), rest)
        }
    }
}

/// Eight double-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F64x8;

impl Real for F64x8 {
    type Elem = f64;
    type V = __m512d;
    const LANES: usize = 8;
    const KERNELS: Kernels<f64> =
        kernels!(F64x8, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
    moves!(f64, __m512d, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd);
    arithmetic!(__m512d:
        add(a, b) = _mm512_add_pd(a, b);
        sub(a, b) = _mm512_sub_pd(a, b);
        mul(a, b) = _mm512_mul_pd(a, b);
        div(a, b) = _mm512_div_pd(a, b);
        mul_add(a, b, c) = _mm512_fmadd_pd(a, b, c);
        max(a, b) = _mm512_max_pd(a, b);
        min(a, b) = _mm512_min_pd(a, b);
        scale(p, n) = _mm512_scalef_pd(p, n);
    );
    #[inline(always)]
    unsafe fn split(x: __m512d) -> (__m512d, __m512d) {
        // SAFETY: as for single precision.
        unsafe {
            let rest = _mm512_reduce_pd::<NEAREST>(x);
            (_mm512_sub_pd(x, rest), rest)
        }
    }
}

/// Eight single-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F32x8;

impl Real for F32x8 {
    type Elem = f32;
    type V = __m256;
    const LANES: usize = 8;
    const KERNELS: Kernels<f32> = kernels!(F32x8, [target_feature(enable = "avx2,fma,f16c")]);
    moves!(f32, __m256, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps);
    arithmetic!(__m256:
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
    );
    #[inline(always)]
    unsafe fn split(x: __m256) -> (__m256, __m256) {
        // SAFETY: register arithmetic.
        unsafe {
            let limit = _mm256_set1_ps(160.0);
            let x = _mm256_max_ps(_mm256_set1_ps(-160.0), _mm256_min_ps(limit, x));
            let n = _mm256_round_ps::<NEAREST>(x);
            (n, _mm256_sub_ps(x, n))
        }
    }
    #[inline(always)]
    unsafe fn scale(p: __m256, n: __m256) -> __m256 {
        // SAFETY: register arithmetic. In two parts, each of which has a power of two: only the second product
        // rounds.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |n| {
                let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(n, half)))
        }
    }
}

/// Four double-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F64x4;

impl Real for F64x4 {
    type Elem = f64;
    type V = __m256d;
    const LANES: usize = 4;
    const KERNELS: Kernels<f64> = kernels!(F64x4, [target_feature(enable = "avx2,fma,f16c")]);
    moves!(f64, __m256d, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd);
    arithmetic!(__m256d:
        add(a, b) = _mm256_add_pd(a, b);
        sub(a, b) = _mm256_sub_pd(a, b);
        mul(a, b) = _mm256_mul_pd(a, b);
        div(a, b) = _mm256_div_pd(a, b);
        mul_add(a, b, c) = _mm256_fmadd_pd(a, b, c);
        max(a, b) = _mm256_max_pd(a, b);
        min(a, b) = _mm256_min_pd(a, b);
    );
    #[inline(always)]
    unsafe fn split(x: __m256d) -> (__m256d, __m256d) {
        // SAFETY: register arithmetic.
        unsafe {
            let limit = _mm256_set1_pd(1100.0);
            let x = _mm256_max_pd(_mm256_set1_pd(-1100.0), _mm256_min_pd(limit, x));
            let n = _mm256_round_pd::<NEAREST>(x);
            (n, _mm256_sub_pd(x, n))
        }
    }
    #[inline(always)]
    unsafe fn scale(p: __m256d, n: __m256d) -> __m256d {
        // SAFETY: as for single precision.
        unsafe {
            let n = _mm256_cvtpd_epi32(n);
            let half = _mm_srai_epi32::<1>(n);
            let power = |n| {
                let biased = _mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
                _mm256_castsi256_pd(_mm256_slli_epi64::<52>(biased))
            };
            _mm256_mul_pd(_mm256_mul_pd(p, power(half)), power(_mm_sub_epi32(n, half)))
        }
    }
}
