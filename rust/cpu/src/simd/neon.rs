//! NEON: the thirty-two 128-bit registers that every AArch64 has.
//!
//! A factor of W is loaded alone into lane 0 and spread from there: the compiler folds the spreading
//! into `fmla … .s[0]`. A load that spreads (`ld1r`) would take a slot of the multiplying pipes.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::{Lanes, TileFn, thin_table, tile_table};
use crate::rows::kernel::{reads_values, row_kernels, totals_by_halves};

/// Asks for the cache line at `at`.
#[inline(always)]
pub(crate) unsafe fn prefetch_line<E>(at: *const E) {
    // SAFETY: a hint; never faults, and touches no register or flag.
    unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
}

/// Four single-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F32x4;

impl Lanes for F32x4 {
    type Elem = f32;
    type Acc = f32;
    type X = float32x4_t;
    type V = float32x4_t;
    const LANES: usize = 4;
    const STEP: usize = 1;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const f32) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self::X {
        let lane: float32x4_t;
        // SAFETY: the caller provides a readable word; `ldr s` clears the lanes above it.
        unsafe {
            asm!("ldr {:s}, [{}]", lateout(vreg) lane, in(reg) from, options(pure, readonly, nostack, preserves_flags));
            vdupq_laneq_f32::<0>(lane)
        }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { vfmaq_f32(acc, x, w) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { vst1q_f32(to, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a hint; never faults.
        unsafe { prefetch_line(at) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_f32(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_f32(cols, by_columns)
    }
}
thin_table!(thin_f32, F32x4, [target_feature(enable = "neon")]);
tile_table!(tile_f32, F32x4, [target_feature(enable = "neon")], {
    3: [8, 4, 2, 1], 2: [8, 4, 2, 1], 1: [16, 8, 4, 2, 1], 6: [4, 2, 1],
});

/// Two double-precision lanes.
#[derive(Clone, Copy)]
pub(crate) struct F64x2;

impl Lanes for F64x2 {
    type Elem = f64;
    type Acc = f64;
    type X = float64x2_t;
    type V = float64x2_t;
    const LANES: usize = 2;
    const STEP: usize = 1;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { vdupq_n_f64(0.0) }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const f64) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { vld1q_f64(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f64) -> Self::X {
        let lane: float64x2_t;
        // SAFETY: the caller provides a readable word; `ldr d` clears the lane above it.
        unsafe {
            asm!("ldr {:d}, [{}]", lateout(vreg) lane, in(reg) from, options(pure, readonly, nostack, preserves_flags));
            vdupq_laneq_f64::<0>(lane)
        }
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { vfmaq_f64(acc, x, w) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f64) -> Self::V {
        // SAFETY: the caller provides a readable vector.
        unsafe { vld1q_f64(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f64, v: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { vst1q_f64(to, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const f64) {
        // SAFETY: a hint; never faults.
        unsafe { prefetch_line(at) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_f64(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_f64(cols, by_columns)
    }
}
thin_table!(thin_f64, F64x2, [target_feature(enable = "neon")]);
tile_table!(tile_f64, F64x2, [target_feature(enable = "neon")], {
    3: [8, 4, 2, 1], 2: [8, 4, 2, 1], 1: [16, 8, 4, 2, 1], 6: [4, 2, 1],
});

/// Four 32-bit sums of products of int16 pairs.
///
/// The two products of a pair go to sums of their own (`smlal`, `smlal2`), which meet only in the
/// store: two instructions a vector where adding pairs each time would take four. 32-bit sums wrap,
/// so the order of additions does not show. A vector of sums takes two registers: hence 16.
#[derive(Clone, Copy)]
pub(crate) struct I16x8;

impl Lanes for I16x8 {
    type Elem = i16;
    type Acc = i32;
    type X = int16x8_t;
    type V = [int32x4_t; 2];
    const LANES: usize = 4;
    const STEP: usize = 2;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller vouches for the instruction set, here and below.
        unsafe { [vdupq_n_s32(0); 2] }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const i16) -> Self::X {
        // SAFETY: the caller provides a readable vector.
        unsafe { vld1q_s16(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i16) -> Self::X {
        let word: int16x8_t;
        // SAFETY: the caller provides a readable word; it may be aligned as int16 only. Told that both
        // halves are the same, the compiler would take `x` apart to do without `smlal2`.
        unsafe {
            asm!("ld1r {{{:v}.4s}}, [{}]", lateout(vreg) word, in(reg) from, options(pure, readonly, nostack, preserves_flags));
        }
        word
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, [low, high]: Self::V) -> Self::V {
        // SAFETY: register arithmetic.
        unsafe { [vmlal_s16(low, vget_low_s16(w), vget_low_s16(x)), vmlal_high_s16(high, w, x)] }
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::V {
        // SAFETY: the caller provides a readable vector. Each sum goes to the first of its pair.
        unsafe {
            let (sums, zero) = (vld1q_s32(from), vdupq_n_s32(0));
            [vzip1q_s32(sums, zero), vzip2q_s32(sums, zero)]
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, [low, high]: Self::V) {
        // SAFETY: the caller provides a writeable vector.
        unsafe { vst1q_s32(to, vpaddq_s32(low, high)) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const i16) {
        // SAFETY: a hint; never faults.
        unsafe { prefetch_line(at) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_i16(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_i16(cols, by_columns)
    }
}
thin_table!(thin_i16, I16x8, [target_feature(enable = "neon")]);
tile_table!(tile_i16, I16x8, [target_feature(enable = "neon")], {
    3: [4, 2, 1], 2: [4, 2, 1], 1: [8, 4, 2, 1], 6: [2, 1],
});

totals_by_halves!(F32x4);
totals_by_halves!(F64x2);
reads_values!(F32x4, f32, [f32, bf16, f16]);
reads_values!(F64x2, f64, [f64, f32, bf16, f16]);
row_kernels!(F32x4, [], { F32 => f32, Bf16 => bf16, F16 => f16 });
row_kernels!(F64x2, [], { F64 => f64, F32 => f32, Bf16 => bf16, F16 => f16 });
