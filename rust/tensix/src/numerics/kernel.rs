//! The inner loops of tile products, once in plain Rust and once for each set of vector instructions.

use super::flush_denormal;
use super::round::{NAN, round_bf16};
use super::tile::{TILE, Tile};

/// A tile of operands, row by row, aligned for vectors.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Rows(pub(super) [[f32; TILE]; TILE]);

impl Rows {
    pub(super) const ZERO: Self = Self([[0.0; TILE]; TILE]);
}

/// Operands of one phase: parts of SrcA and of SrcB. Products of their values are exact.
pub(super) type Pair<'a> = (&'a Rows, &'a Rows);

/// Products that the matrix unit sums before it adds them to Dst.
const STEP: usize = 16;

/// How a sum is added to a value of Dst.
pub(super) trait Sum {
    type Value: Copy;
    fn add(dst: Self::Value, sum: f32) -> Self::Value;
}

/// To float32.
pub(super) enum Float32Sum {}
/// To bfloat16.
pub(super) enum Bfloat16Sum {}
/// To int32, of which sums are exact: 16 products of int8 are below 2^19.
pub(super) enum Int32Sum {}

impl Sum for Float32Sum {
    type Value = f32;
    #[inline(always)]
    fn add(dst: f32, sum: f32) -> f32 {
        let sum = dst + sum;
        if sum.is_nan() { f32::from_bits(NAN) } else { flush_denormal(sum) }
    }
}

impl Sum for Bfloat16Sum {
    type Value = f32;
    #[inline(always)]
    fn add(dst: f32, sum: f32) -> f32 {
        let sum = dst + sum;
        if sum.is_nan() { f32::from_bits(NAN) } else { flush_denormal(round_bf16(sum)) }
    }
}

impl Sum for Int32Sum {
    type Value = i32;
    #[inline(always)]
    fn add(dst: i32, sum: f32) -> i32 {
        // Added to 1.5 * 2^23, an integer of less than 22 bits stands in the low ones; `as` does not vectorise well.
        const BASE: f32 = 12_582_912.0;
        let sum = (sum + BASE).to_bits() as i32 - BASE.to_bits() as i32;
        dst.saturating_add(sum).max(-i32::MAX)
    }
}

/// Adds a product of tiles to `dst`, phase by phase, step by step.
pub(super) fn add_product<S: Sum>(phases: &[Pair<'_>], dst: &mut Tile<S::Value>) {
    Level::best().add_product::<S>(phases, dst);
}

/// Instruction sets that the loops exist for. Each gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Whatever the target has; without a fused multiply-add among it, slow.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All levels, the best one last.
    pub(super) const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
    ];

    /// Whether this CPU has it.
    pub(super) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
        }
    }

    /// The best level of this CPU.
    fn best() -> Self {
        Self::ALL.iter().rev().copied().find(|level| level.is_available()).unwrap_or(Self::Portable)
    }

    /// As the function of that name.
    ///
    /// # Panics
    /// If this CPU does not have the level.
    pub(super) fn add_product<S: Sum>(self, phases: &[Pair<'_>], dst: &mut Tile<S::Value>) {
        assert!(self.is_available(), "{self:?} instructions are missing");
        match self {
            Self::Portable => portable::<S>(phases, dst),
            // SAFETY: the assertion has found the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::add_product::<S>(phases, dst) },
            // SAFETY: the assertion has found the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::add_product::<S>(phases, dst) },
        }
    }
}

/// The model itself: what the others compute, value by value.
fn portable<S: Sum>(phases: &[Pair<'_>], dst: &mut Tile<S::Value>) {
    for (a, b) in phases {
        for first in (0..TILE).step_by(STEP) {
            for (dst, left) in dst.chunks_exact_mut(TILE).zip(&b.0) {
                let mut sums = [0.0_f32; TILE];
                for (row, &x) in a.0[first..first + STEP].iter().zip(&left[first..]) {
                    sums.iter_mut().zip(row).for_each(|(sum, &y)| *sum = x.mul_add(y, *sum));
                }
                add_sums::<S>(&sums, dst);
            }
        }
    }
}

/// Adds sums to as many values of Dst.
#[inline(always)]
fn add_sums<S: Sum>(sums: &[f32], dst: &mut [S::Value]) {
    for (dst, &sum) in dst.iter_mut().zip(sums) {
        *dst = S::add(*dst, sum);
    }
}

/// The loops with the vectors of one instruction set: sums of `ROWS` rows and of all columns are in registers, `VECTORS`
/// vectors a row.
#[cfg(target_arch = "x86_64")]
macro_rules! vectors {
    ($name:ident, $feature:literal, $vector:ident, rows: $rows:literal, vectors: $vectors:literal,
     $zero:ident, $splat:ident, $fused:ident, $load:ident, $store:ident) => {
        mod $name {
            use core::arch::x86_64::{$fused, $load, $splat, $store, $vector, $zero};

            use super::{Pair, STEP, Sum, TILE, Tile, add_sums};

            const ROWS: usize = $rows;
            const VECTORS: usize = $vectors;
            const LANES: usize = TILE / VECTORS;
            const _: () = assert!(size_of::<[f32; LANES]>() == size_of::<$vector>());

            #[target_feature(enable = $feature)]
            pub(super) fn add_product<S: Sum>(phases: &[Pair<'_>], dst: &mut Tile<S::Value>) {
                for (strip, dst) in dst.as_chunks_mut::<{ ROWS * TILE }>().0.iter_mut().enumerate() {
                    for (a, b) in phases {
                        let left = &b.0.as_chunks::<ROWS>().0[strip];
                        for (step, a) in a.0.as_chunks::<STEP>().0.iter().enumerate() {
                            let left: [&[f32; STEP]; ROWS] =
                                core::array::from_fn(|row| &left[row].as_chunks().0[step]);
                            add_sums::<S>(sums(a, left).as_flattened(), dst);
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn sums(a: &[[f32; TILE]; STEP], left: [&[f32; STEP]; ROWS]) -> [[f32; TILE]; ROWS] {
                let mut sums = [[$zero(); VECTORS]; ROWS];
                for k in 0..STEP {
                    let mut row = [$zero(); VECTORS];
                    for (vector, from) in row.iter_mut().zip(a[k].as_chunks::<LANES>().0) {
                        // SAFETY: `from` has as many elements as the vector.
                        *vector = unsafe { $load(from.as_ptr()) };
                    }
                    for (sums, left) in sums.iter_mut().zip(left) {
                        let x = $splat(left[k]);
                        for (sum, &y) in sums.iter_mut().zip(&row) {
                            *sum = $fused(x, y, *sum);
                        }
                    }
                }
                let mut all = [[0.0; TILE]; ROWS];
                for (to, sums) in all.iter_mut().zip(sums) {
                    for (to, sum) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                        // SAFETY: `to` has as many elements as the vector.
                        unsafe { $store(to.as_mut_ptr(), sum) };
                    }
                }
                all
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
vectors!(
    avx2, "avx2,fma", __m256, rows: 2, vectors: 4,
    _mm256_setzero_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_storeu_ps
);
#[cfg(target_arch = "x86_64")]
vectors!(
    avx512, "avx512f,avx2,fma", __m512, rows: 8, vectors: 2,
    _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_storeu_ps
);
