//! What a softmax asks of an instruction set beyond [`Lanes`]: maxima, products and powers of two.

use std::ops::{Add, Div, Mul};

use super::Lanes;
use super::scalar::Plain;
use crate::attention::product::Product;
use crate::attention::steps::{Rescale, Soften};

/// Constants and arithmetic of one floating-point type.
pub(crate) trait Real:
    Copy
    + Default
    + PartialEq
    + Add<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Send
    + Sync
    + 'static
{
    const ONE: Self;
    const MINUS_INFINITY: Self;
    const NAN: Self;
    /// Most negative finite value.
    const LOWEST: Self;
    /// `1.5 · 2^mantissa + bias`: added to a number, it leaves the exponent of the power of two nearest to
    /// that number in the low bits of the sum. The lowest argument that [`exp2`] tells from minus infinity.
    const SHIFT: Self;
    const FLOOR: Self;
    /// Coefficients of `2^f` for |f| <= 1/2, the highest power first: the polynomial with the smallest
    /// largest relative error (Remez exchange), 1.9e-9 for float32 and 3.1e-18 for float64.
    const EXP2: &'static [Self];
    fn narrow(v: f64) -> Self;
    fn is_finite(self) -> bool;
}

impl Real for f32 {
    const ONE: Self = 1.0;
    const MINUS_INFINITY: Self = f32::NEG_INFINITY;
    const NAN: Self = f32::NAN;
    const LOWEST: Self = f32::MIN;
    const SHIFT: Self = 12_582_912.0 + 127.0;
    const FLOOR: Self = -127.0;
    const EXP2: &'static [Self] = &[
        0.000_153_458_12,
        0.001_339_993_1,
        0.009_618_489,
        0.055_503_29,
        0.240_226_46,
        std::f32::consts::LN_2,
        1.0,
    ];
    fn narrow(v: f64) -> Self {
        v as f32
    }
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
}

impl Real for f64 {
    const ONE: Self = 1.0;
    const MINUS_INFINITY: Self = f64::NEG_INFINITY;
    const NAN: Self = f64::NAN;
    const LOWEST: Self = f64::MIN;
    const SHIFT: Self = 6_755_399_441_055_744.0 + 1023.0;
    const FLOOR: Self = -1023.0;
    const EXP2: &'static [Self] = &[
        4.435_240_944_610_336e-10,
        7.074_105_626_245_659e-9,
        1.017_819_803_332_852_8e-7,
        1.321_543_308_959_463e-6,
        1.525_273_348_996_08e-5,
        1.540_353_046_246_251_3e-4,
        1.333_355_814_678_995e-3,
        9.618_129_107_588_335e-3,
        5.550_410_866_481_992e-2,
        2.402_265_069_591_015_6e-1,
        std::f64::consts::LN_2,
        1.0,
    ];
    fn narrow(v: f64) -> Self {
        v
    }
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
}

/// Lanes of floating-point numbers, whose operands and sums are vectors of one type.
///
/// # Safety
/// As [`Lanes`].
pub(crate) trait Floats: Lanes<Acc = <Self as Lanes>::Elem, X = <Self as Lanes>::V>
where
    <Self as Lanes>::Elem: Real,
{
    /// One value in every lane.
    unsafe fn spread(v: Self::Elem) -> Self::V;
    /// The larger of each pair; `b` where `b` is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Each lane's lowest bits as an exponent: shifts the bits past the mantissa.
    unsafe fn to_exponent(v: Self::V) -> Self::V;
    /// Whether all lanes are equal; false where one is NaN.
    unsafe fn all_equal(a: Self::V, b: Self::V) -> bool;
    /// Asks the second cache for a line that will be read later.
    unsafe fn prefetch_far(_at: *const Self::Elem) {}
    /// Entry point of [`crate::attention::product::run`].
    fn product(across: bool) -> unsafe fn(&Product<Self>);
    /// Entry point of [`crate::attention::steps::soften`].
    fn soften() -> unsafe fn(&Soften<Self>);
    /// Entry point of [`crate::attention::steps::rescale`].
    fn rescale() -> unsafe fn(&Rescale<Self>);
}

/// `2^x` for x up to the largest exponent, minus infinity included; NaN stays NaN.
///
/// x = n + f with n whole and |f| <= 1/2, which is exact; then a polynomial in f, and n as an exponent. The
/// error is below 2 units in the last place (1 or so with fused multiply-adds). Results under the smallest
/// normal number lose digits or become 0.
///
/// # Safety
/// The instruction set must be present.
#[inline(always)]
pub(crate) unsafe fn exp2<L: Floats>(x: L::V) -> L::V
where
    L::Elem: Real,
{
    // SAFETY: register arithmetic of an instruction set that the caller vouches for.
    unsafe {
        let x = L::max(L::spread(L::Elem::FLOOR), x);
        let shift = L::spread(L::Elem::SHIFT);
        let shifted = L::add(x, shift);
        let f = L::sub(x, L::sub(shifted, shift));
        let mut p = L::spread(L::Elem::EXP2[0]);
        for &c in &L::Elem::EXP2[1..] {
            p = L::mul_add(p, f, L::spread(c));
        }
        L::mul(p, L::to_exponent(shifted))
    }
}

/// Defines the entry points of one vector type, compiled with the given features.
macro_rules! entry_points {
    ([$($feature:meta)?]) => {
        fn product(across: bool) -> unsafe fn(&Product<Self>) {
            $(#[$feature])?
            unsafe fn run<const ACROSS: bool>(args: &Product<Entry>) {
                // SAFETY: the caller vouches for the pointers, and that the features are present.
                unsafe { crate::attention::product::run::<Entry, ACROSS>(args) }
            }
            if across { run::<true> } else { run::<false> }
        }
        fn soften() -> unsafe fn(&Soften<Self>) {
            $(#[$feature])?
            unsafe fn run(args: &Soften<Entry>) {
                // SAFETY: the caller vouches for the pointers, and that the features are present.
                unsafe { crate::attention::steps::soften(args) }
            }
            run
        }
        fn rescale() -> unsafe fn(&Rescale<Self>) {
            $(#[$feature])?
            unsafe fn run(args: &Rescale<Entry>) {
                // SAFETY: as above.
                unsafe { crate::attention::steps::rescale(args) }
            }
            run
        }
    };
}

macro_rules! plain {
    ($t:ty, $bits:literal) => {
        const _: () = {
            type Entry = Plain<$t>;
            impl Floats for Entry {
                #[inline(always)]
                unsafe fn spread(v: $t) -> Self::V {
                    [v; Self::LANES]
                }
                #[inline(always)]
                unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                    std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
                }
                #[inline(always)]
                unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                    std::array::from_fn(|i| a[i] + b[i])
                }
                #[inline(always)]
                unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                    std::array::from_fn(|i| a[i] - b[i])
                }
                #[inline(always)]
                unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                    std::array::from_fn(|i| a[i] * b[i])
                }
                #[inline(always)]
                unsafe fn to_exponent(v: Self::V) -> Self::V {
                    v.map(|v| <$t>::from_bits(v.to_bits() << $bits))
                }
                #[inline(always)]
                unsafe fn all_equal(a: Self::V, b: Self::V) -> bool {
                    a == b
                }
                entry_points!([]);
            }
        };
    };
}
plain!(f32, 23);
plain!(f64, 52);

/// An implementation by one intrinsic for each word.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! intrinsics {
    ($lane:ty, $elem:ty, [$($feature:meta)?], $spread:ident, $max:ident, $add:ident, $sub:ident, $mul:ident,
     |$v:ident| $exponent:expr, |$a:ident, $b:ident| $equal:expr, |$at:ident| $prefetch:expr) => {
        const _: () = {
            type Entry = $lane;
            impl Floats for Entry {
                #[inline(always)]
                unsafe fn spread(v: $elem) -> Self::V {
                    // SAFETY: register arithmetic; the caller vouches for the instruction set, here and below.
                    unsafe { $spread(v) }
                }
                #[inline(always)]
                unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                    // SAFETY: as above.
                    unsafe { $max(a, b) }
                }
                #[inline(always)]
                unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                    // SAFETY: as above.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                    // SAFETY: as above.
                    unsafe { $sub(a, b) }
                }
                #[inline(always)]
                unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                    // SAFETY: as above.
                    unsafe { $mul(a, b) }
                }
                #[inline(always)]
                unsafe fn to_exponent($v: Self::V) -> Self::V {
                    // SAFETY: as above.
                    unsafe { $exponent }
                }
                #[inline(always)]
                unsafe fn all_equal($a: Self::V, $b: Self::V) -> bool {
                    // SAFETY: as above.
                    unsafe { $equal }
                }
                #[inline(always)]
                unsafe fn prefetch_far($at: *const $elem) {
                    // SAFETY: a hint; never faults.
                    unsafe { $prefetch }
                }
                entry_points!([$($feature)?]);
            }
        };
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::avx2::{F32x8, F64x4};
    use super::super::avx512::{F32x16, F64x8};
    use super::{Floats, Product, Rescale, Soften};

    intrinsics!(
        F32x16,
        f32,
        [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")],
        _mm512_set1_ps,
        _mm512_max_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        |v| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v))),
        |a, b| _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) == u16::MAX,
        |at| _mm_prefetch::<_MM_HINT_T1>(at.cast())
    );
    intrinsics!(
        F64x8,
        f64,
        [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")],
        _mm512_set1_pd,
        _mm512_max_pd,
        _mm512_add_pd,
        _mm512_sub_pd,
        _mm512_mul_pd,
        |v| _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(v))),
        |a, b| _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(a, b) == u8::MAX,
        |at| _mm_prefetch::<_MM_HINT_T1>(at.cast())
    );
    intrinsics!(
        F32x8,
        f32,
        [target_feature(enable = "avx2,fma,f16c")],
        _mm256_set1_ps,
        _mm256_max_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        |v| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v))),
        |a, b| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)) == 0xFF,
        |at| _mm_prefetch::<_MM_HINT_T1>(at.cast())
    );
    intrinsics!(
        F64x4,
        f64,
        [target_feature(enable = "avx2,fma,f16c")],
        _mm256_set1_pd,
        _mm256_max_pd,
        _mm256_add_pd,
        _mm256_sub_pd,
        _mm256_mul_pd,
        |v| _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(v))),
        |a, b| _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_EQ_OQ>(a, b)) == 0xF,
        |at| _mm_prefetch::<_MM_HINT_T1>(at.cast())
    );
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::super::neon::{F32x4, F64x2, prefetch_line};
    use super::{Floats, Product, Rescale, Soften};

    // `fmax` gives NaN where either is NaN, which is more than what is asked for.
    intrinsics!(
        F32x4,
        f32,
        [target_feature(enable = "neon")],
        vdupq_n_f32,
        vmaxq_f32,
        vaddq_f32,
        vsubq_f32,
        vmulq_f32,
        |v| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vreinterpretq_s32_f32(v))),
        |a, b| vminvq_u32(vceqq_f32(a, b)) == u32::MAX,
        |at| prefetch_line(at)
    );
    intrinsics!(
        F64x2,
        f64,
        [target_feature(enable = "neon")],
        vdupq_n_f64,
        vmaxq_f64,
        vaddq_f64,
        vsubq_f64,
        vmulq_f64,
        |v| vreinterpretq_f64_s64(vshlq_n_s64::<52>(vreinterpretq_s64_f64(v))),
        |a, b| {
            let same = vceqq_f64(a, b);
            vgetq_lane_u64::<0>(same) & vgetq_lane_u64::<1>(same) == u64::MAX
        },
        |at| prefetch_line(at)
    );
}
