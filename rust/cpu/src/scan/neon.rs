//! NEON: 128-bit vectors of AArch64.

use std::arch::aarch64::*;

use super::lanes::{Kernels, Real, arithmetic, kernels};

/// One vector type: its names of the same operations, and its exponent's bias and place.
macro_rules! neon {
    ($name:ident, $e:ty, $v:ty, $lanes:literal, $limit:literal, $bias:literal, $shift:literal,
     $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident, $fma:ident,
     $greater:ident, $less:ident, $select:ident, $round:ident, $whole:ident, $half:ident, $int_splat:ident, $int_add:ident,
     $int_sub:ident, $int_shift:ident, $float:ident) => {
        impl Real for $name {
            type Elem = $e;
            type V = $v;
            const LANES: usize = $lanes;
            const KERNELS: Kernels<$e> = kernels!($name, [target_feature(enable = "neon")]);
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
            arithmetic!($v:
                add(a, b) = $add(a, b);
                sub(a, b) = $sub(a, b);
                mul(a, b) = $mul(a, b);
                div(a, b) = $div(a, b);
                mul_add(a, b, c) = $fma(c, a, b);
                max(a, b) = $select($greater(a, b), a, b);
                min(a, b) = $select($less(a, b), a, b);
            );
            #[inline(always)]
            unsafe fn split(x: $v) -> ($v, $v) {
                // SAFETY: register arithmetic.
                unsafe {
                    let x = Self::max($splat(-$limit), Self::min($splat($limit), x));
                    let n = $round(x);
                    (n, $sub(x, n))
                }
            }
            #[inline(always)]
            unsafe fn scale(p: $v, n: $v) -> $v {
                // SAFETY: register arithmetic. In two parts, each of which has a power of two: only the
                // second product rounds.
                unsafe {
                    let n = $whole(n);
                    let half = $half::<1>(n);
                    let power = |n| $float($int_shift::<$shift>($int_add(n, $int_splat($bias))));
                    $mul($mul(p, power(half)), power($int_sub(n, half)))
                }
            }
        }
    };
}

/// Four single-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F32x4;
neon!(
    F32x4,
    f32,
    float32x4_t,
    4,
    160.0,
    127,
    23,
    vdupq_n_f32,
    vld1q_f32,
    vst1q_f32,
    vaddq_f32,
    vsubq_f32,
    vmulq_f32,
    vdivq_f32,
    vfmaq_f32,
    vcgtq_f32,
    vcltq_f32,
    vbslq_f32,
    vrndnq_f32,
    vcvtq_s32_f32,
    vshrq_n_s32,
    vdupq_n_s32,
    vaddq_s32,
    vsubq_s32,
    vshlq_n_s32,
    vreinterpretq_f32_s32
);

/// Two double-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F64x2;
neon!(
    F64x2,
    f64,
    float64x2_t,
    2,
    1100.0,
    1023,
    52,
    vdupq_n_f64,
    vld1q_f64,
    vst1q_f64,
    vaddq_f64,
    vsubq_f64,
    vmulq_f64,
    vdivq_f64,
    vfmaq_f64,
    vcgtq_f64,
    vcltq_f64,
    vbslq_f64,
    vrndnq_f64,
    vcvtq_s64_f64,
    vshrq_n_s64,
    vdupq_n_s64,
    vaddq_s64,
    vsubq_s64,
    vshlq_n_s64,
    vreinterpretq_f64_s64
);
