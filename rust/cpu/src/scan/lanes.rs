//! What a scan asks of an instruction set: arithmetic on vectors of floats, and powers of two.

use std::ops::{Mul, Neg};

use prunus_core::DType;

use super::columns::Stored;
use super::kernel::Tile;
use crate::dsd::convert::Element;
use crate::dsd::store::Sum;

/// A float type that scans compute in.
pub(crate) trait Float:
    Element + Sum + Stored + PartialOrd + Neg<Output = Self> + Mul<Output = Self>
{
    /// Its name as a storage type.
    const DTYPE: DType;
    const ZERO: Self;
    const HALF: Self;
    const ONE: Self;
    const TWO: Self;
    /// The logarithm of e to base 2.
    const LOG2_E: Self;
    /// The natural logarithm of 1/2 in two parts; whole numbers times the first one are exact.
    const MINUS_LN_2: (Self, Self);
    /// `exp` is 0 below the negative of it, and infinite above it.
    const EXP_LIMIT: Self;
    /// `2^x` on [-0.5, 0.5], from the constant term on.
    const EXP2: &'static [Self];
    /// `2 atanh(s) / s` as a polynomial in `s²` on [0, 1/9], from the constant term on.
    const ATANH: &'static [Self];
    fn wide(self) -> f64;
}

// Coefficients are minimax in relative error by Remez's exchange, the constant term held: 2^0 is exactly 1,
// so that a state is kept as it is where nothing decays. Errors: 2.0e-9 and 3.4e-18 for EXP2, 4.5e-9 and
// 1.3e-18 for ATANH.
#[allow(clippy::excessive_precision)]
impl Float for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: Self = 0.0;
    const HALF: Self = 0.5;
    const ONE: Self = 1.0;
    const TWO: Self = 2.0;
    const LOG2_E: Self = std::f32::consts::LOG2_E;
    const MINUS_LN_2: (Self, Self) = (-0.693_359_375, 2.121_944_4e-4);
    const EXP_LIMIT: Self = 110.0;
    const EXP2: &'static [Self] = &[
        1.0,
        0.693_147_202_855_000_27,
        0.240_226_479_137_564_67,
        0.055_503_324_713_094_868,
        0.009_618_437_340_944_202,
        0.001_339_887_435_958_033,
        0.000_153_533_666_132_133,
    ];
    const ATANH: &'static [Self] = &[
        2.0,
        0.666_664_162_846_816_56,
        0.400_215_272_865_108_66,
        0.280_018_045_998_980_59,
        0.280_119_897_795_292_18,
    ];
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

#[allow(clippy::excessive_precision)]
impl Float for f64 {
    const DTYPE: DType = DType::F64;
    const ZERO: Self = 0.0;
    const HALF: Self = 0.5;
    const ONE: Self = 1.0;
    const TWO: Self = 2.0;
    const LOG2_E: Self = std::f64::consts::LOG2_E;
    const MINUS_LN_2: (Self, Self) = (-0.693_147_180_369_123_816_490, -1.908_214_929_270_587_700_02e-10);
    const EXP_LIMIT: Self = 760.0;
    const EXP2: &'static [Self] = &[
        1.0,
        std::f64::consts::LN_2,
        0.240_226_506_959_101_312_57,
        0.055_504_108_664_820_083_241,
        0.009_618_129_107_594_121_338,
        0.001_333_355_814_677_462_593_3,
        0.000_154_035_304_571_104_919_84,
        0.000_015_252_733_493_116_170_35,
        1.321_543_528_310_014_926_4e-6,
        1.017_819_957_841_343_839_8e-7,
        7.073_783_115_585_112_303_6e-9,
        4.434_770_107_127_650_737_6e-10,
    ];
    const ATANH: &'static [Self] = &[
        2.0,
        0.666_666_666_666_663_097_06,
        0.400_000_000_001_551_151_45,
        0.285_714_285_481_181_241_92,
        0.222_222_239_536_384_188_32,
        0.181_817_444_793_832_542_77,
        0.153_865_483_856_218_783_97,
        0.133_011_214_761_211_952_61,
        0.121_049_441_169_492_007_43,
        0.083_449_749_746_175_081_308,
        0.170_097_501_866_938_274_76,
    ];
    fn wide(self) -> f64 {
        self
    }
}

/// One vector type with float arithmetic, as one instruction set has it.
///
/// # Safety
/// Methods may only be called where the instruction set is present; pointers are to `LANES` elements, with no
/// alignment beyond the element's.
pub(crate) trait Real: Copy + 'static {
    type Elem: Float;
    type V: Copy;
    const LANES: usize;
    /// The kernels, compiled for the instruction set.
    const KERNELS: Kernels<Self::Elem>;

    unsafe fn splat(x: Self::Elem) -> Self::V;
    unsafe fn load(from: *const Self::Elem) -> Self::V;
    unsafe fn store(to: *mut Self::Elem, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole number `n`, and `x - n`, for `scale`; where `2^x` is 0 or infinite, an `n` that gives
    /// that and a rest of at most one half.
    unsafe fn split(x: Self::V) -> (Self::V, Self::V);
    /// `p · 2^n`, rounded once, where `n` came out of `split`.
    unsafe fn scale(p: Self::V, n: Self::V) -> Self::V;
}

/// Entry points of the kernels for one vector type.
pub(crate) struct Kernels<E: 'static> {
    /// Runs some steps of a chunk of channels.
    pub run: unsafe fn(&Tile<E>),
    /// Replaces `n` values, a multiple of [`PAD`], by their `silu`.
    pub silu: unsafe fn(*mut E, usize),
}

impl<E> Clone for Kernels<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Kernels<E> {}

/// Channels are padded to a multiple of it: a multiple of every `LANES`.
pub(crate) const PAD: usize = 16;

/// Defines [`Real::KERNELS`] for one vector type, compiled with the given features.
macro_rules! kernels {
    ($lanes:ty, [$($feature:meta)?]) => {{
        $(#[$feature])?
        unsafe fn run(tile: &$crate::scan::kernel::Tile<<$lanes as $crate::scan::lanes::Real>::Elem>) {
            // SAFETY: the caller vouches for the pointers, and that the features are present.
            unsafe { $crate::scan::kernel::run::<$lanes>(tile) }
        }
        $(#[$feature])?
        unsafe fn silu(values: *mut <$lanes as $crate::scan::lanes::Real>::Elem, n: usize) {
            // SAFETY: as above.
            unsafe { $crate::scan::kernel::silu::<$lanes>(values, n) }
        }
        $crate::scan::lanes::Kernels { run, silu }
    }};
}
pub(crate) use kernels;

/// Defines methods that only compute in registers.
macro_rules! arithmetic {
    ($v:ty: $( $name:ident($($arg:ident),*) = $value:expr; )+) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $v),*) -> $v {
                // SAFETY: register arithmetic; the caller vouches for the instruction set.
                unsafe { $value }
            }
        )+
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use arithmetic;

const N: usize = 4;

/// Plain Rust: runs everywhere, and is the twin that other levels are tested against.
#[derive(Clone, Copy)]
pub(crate) struct Plain<E>(std::marker::PhantomData<E>);

macro_rules! plain {
    ($t:ty, $bits:ty, $whole:ty, $bias:literal, $shift:literal, $limit:literal) => {
        impl Real for Plain<$t> {
            type Elem = $t;
            type V = [$t; N];
            const LANES: usize = N;
            const KERNELS: Kernels<$t> = kernels!(Plain<$t>, []);

            #[inline(always)]
            unsafe fn splat(x: $t) -> Self::V {
                [x; N]
            }
            #[inline(always)]
            unsafe fn load(from: *const $t) -> Self::V {
                // SAFETY: the caller provides N readable elements.
                unsafe { from.cast::<[$t; N]>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(to: *mut $t, v: Self::V) {
                // SAFETY: the caller provides N writeable elements.
                unsafe { to.cast::<[$t; N]>().write_unaligned(v) }
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
            unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] / b[i])
            }
            #[inline(always)]
            unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i] + c[i])
            }
            #[inline(always)]
            unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn split(x: Self::V) -> (Self::V, Self::V) {
                let x = x.map(|x| {
                    let x = if x > $limit { $limit } else { x };
                    if x < -$limit { -$limit } else { x }
                });
                let n = x.map(<$t>::round_ties_even);
                (n, std::array::from_fn(|i| x[i] - n[i]))
            }
            #[inline(always)]
            unsafe fn scale(p: Self::V, n: Self::V) -> Self::V {
                std::array::from_fn(|i| {
                    // In two parts, each of which has a power of two: only the second product rounds.
                    let n = n[i] as $whole;
                    let power = |n: $whole| <$t>::from_bits(((n + $bias) as $bits) << $shift);
                    p[i] * power(n >> 1) * power(n - (n >> 1))
                })
            }
        }
    };
}
plain!(f32, u32, i32, 127, 23, 160.0);
plain!(f64, u64, i64, 1023, 52, 1100.0);

/// The kernels and their name for float32 at the level in use.
pub(crate) fn kernels_f32() -> (Kernels<f32>, &'static str) {
    use crate::level::Level;
    match crate::level::current() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Dot | Level::Amx => {
            (<super::x86::F32x16 as Real>::KERNELS, "scan f32 avx512")
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (<super::x86::F32x8 as Real>::KERNELS, "scan f32 avx2"),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => (<super::neon::F32x4 as Real>::KERNELS, "scan f32 neon"),
        _ => (<Plain<f32> as Real>::KERNELS, "scan f32 scalar"),
    }
}

/// The kernels and their name for float64 at the level in use.
pub(crate) fn kernels_f64() -> (Kernels<f64>, &'static str) {
    use crate::level::Level;
    match crate::level::current() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Dot | Level::Amx => {
            (<super::x86::F64x8 as Real>::KERNELS, "scan f64 avx512")
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (<super::x86::F64x4 as Real>::KERNELS, "scan f64 avx2"),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => (<super::neon::F64x2 as Real>::KERNELS, "scan f64 neon"),
        _ => (<Plain<f64> as Real>::KERNELS, "scan f64 scalar"),
    }
}
