//! Loops over chunks, compiled for each level, and which of them an operation is.

use super::flags::{DEFER, OVER, UNDER};
use super::halves;
use super::ops::*;
use crate::level::Level;

/// A loop: where its operands lie (as many of them as it takes), where the result goes, and of how many values.
/// It returns the flags that the status of the floating-point unit does not tell.
pub(super) type Loop = unsafe fn(&[*const u8; 3], *mut u8, usize) -> u32;

/// What a loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Subtract,
    Multiply,
    Divide,
    Maximum,
    Minimum,
    FMax,
    FMin,
    And,
    Or,
    Xor,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Negative,
    Absolute,
    Square,
    Sqrt,
    Reciprocal,
    Floor,
    Ceil,
    Trunc,
    Rint,
    Sign,
    Invert,
    IsNan,
    IsInf,
    IsFinite,
    /// The second operand where the first is true, and the third elsewhere.
    Where,
    /// A copy.
    Copy,
    /// From the step's type to this one.
    Cast(Kind),
    /// A half to the float32 it is.
    Unpack,
    /// A float32 that is a half to that half.
    Pack,
    /// A float32 to the nearest half, as a float32.
    Round,
}

impl Op {
    /// Operations by NumPy's names; those whose operands are exchanged are marked.
    pub(super) const NAMED: [(&'static str, Self, bool); 32] = [
        ("add", Self::Add, false),
        ("subtract", Self::Subtract, false),
        ("multiply", Self::Multiply, false),
        ("divide", Self::Divide, false),
        ("maximum", Self::Maximum, false),
        ("minimum", Self::Minimum, false),
        ("fmax", Self::FMax, false),
        ("fmin", Self::FMin, false),
        ("bitwise_and", Self::And, false),
        ("bitwise_or", Self::Or, false),
        ("bitwise_xor", Self::Xor, false),
        ("equal", Self::Equal, false),
        ("not_equal", Self::NotEqual, false),
        ("less", Self::Less, false),
        ("less_equal", Self::LessEqual, false),
        ("greater", Self::Less, true),
        ("greater_equal", Self::LessEqual, true),
        ("negative", Self::Negative, false),
        ("absolute", Self::Absolute, false),
        ("square", Self::Square, false),
        ("sqrt", Self::Sqrt, false),
        ("reciprocal", Self::Reciprocal, false),
        ("floor", Self::Floor, false),
        ("ceil", Self::Ceil, false),
        ("trunc", Self::Trunc, false),
        ("rint", Self::Rint, false),
        ("sign", Self::Sign, false),
        ("invert", Self::Invert, false),
        ("isnan", Self::IsNan, false),
        ("isinf", Self::IsInf, false),
        ("isfinite", Self::IsFinite, false),
        ("where", Self::Where, false),
    ];

    /// Operands.
    pub(super) const fn takes(self) -> usize {
        match self {
            Self::Where => 3,
            Self::Add | Self::Subtract | Self::Multiply | Self::Divide => 2,
            Self::Maximum | Self::Minimum | Self::FMax | Self::FMin | Self::And | Self::Or | Self::Xor => 2,
            Self::Equal | Self::NotEqual | Self::Less | Self::LessEqual => 2,
            _ => 1,
        }
    }

    /// Whether the result is a bool.
    pub(super) const fn tells(self) -> bool {
        matches!(
            self,
            Self::Equal
                | Self::NotEqual
                | Self::Less
                | Self::LessEqual
                | Self::IsNan
                | Self::IsInf
                | Self::IsFinite
        )
    }

    /// Whether NumPy's loop looks at the status of the floating-point unit, and a half's result is rounded.
    pub(super) const fn computes(self) -> bool {
        matches!(
            self,
            Self::Add
                | Self::Subtract
                | Self::Multiply
                | Self::Divide
                | Self::Square
                | Self::Sqrt
                | Self::Reciprocal
                | Self::Cast(_)
        )
    }
}

/// # Safety
/// For all loops: `count` values of each operand can be read and as many results written, at any alignment,
/// and the results lie apart from the operands.
#[inline(always)]
unsafe fn unary_loop<F: Unary>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    let (a, to) = (from[0].cast::<F::In>(), to.cast::<F::Out>());
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe { to.add(i).write_unaligned(F::of(a.add(i).read_unaligned())) };
    }
    0
}

#[inline(always)]
unsafe fn binary_loop<F: Binary>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    let (a, b, to) = (from[0].cast::<F::In>(), from[1].cast::<F::In>(), to.cast::<F::Out>());
    let mut defers = false;
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (a.add(i).read_unaligned(), b.add(i).read_unaligned());
            to.add(i).write_unaligned(F::of(a, b));
            defers |= F::defers(a, b);
        }
    }
    if defers { DEFER } else { 0 }
}

#[inline(always)]
unsafe fn cast_loop<S: To<T>, T>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    let (a, to) = (from[0].cast::<S>(), to.cast::<T>());
    let mut defers = false;
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let a = a.add(i).read_unaligned();
            to.add(i).write_unaligned(a.to());
            defers |= a.defers();
        }
    }
    if defers { DEFER } else { 0 }
}

#[inline(always)]
unsafe fn where_loop<T: Copy>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    let (truth, a, b, to) = (from[0], from[1].cast::<T>(), from[2].cast::<T>(), to.cast::<T>());
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (a.add(i).read_unaligned(), b.add(i).read_unaligned());
            to.add(i).write_unaligned(if truth.add(i).read() != 0 { a } else { b });
        }
    }
    0
}

#[inline(always)]
unsafe fn copy_loop<T: Copy>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { to.copy_from_nonoverlapping(from[0], count * size_of::<T>()) };
    0
}

/// A float16 or a bfloat16.
trait Half {
    /// Whether NumPy tells of values that are lost; ml_dtypes does not.
    const TELLS: bool;
    fn narrow(value: f32) -> u16;
    fn widen(half: u16) -> f32;
}
struct F16;
struct Bf16;
impl Half for F16 {
    const TELLS: bool = true;
    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        halves::to_f16(value)
    }
    #[inline(always)]
    fn widen(half: u16) -> f32 {
        halves::from_f16(half)
    }
}
impl Half for Bf16 {
    const TELLS: bool = false;
    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        halves::to_bf16(value)
    }
    #[inline(always)]
    fn widen(half: u16) -> f32 {
        halves::from_bf16(half)
    }
}

#[inline(always)]
unsafe fn unpack_loop<H: Half>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    let (a, to) = (from[0].cast::<u16>(), to.cast::<f32>());
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe { to.add(i).write_unaligned(H::widen(a.add(i).read_unaligned())) };
    }
    0
}

#[inline(always)]
unsafe fn pack_loop<H: Half>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    let (a, to) = (from[0].cast::<f32>(), to.cast::<u16>());
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe { to.add(i).write_unaligned(H::narrow(a.add(i).read_unaligned())) };
    }
    0
}

#[inline(always)]
unsafe fn round_loop<H: Half>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
    let (a, to) = (from[0].cast::<f32>(), to.cast::<f32>());
    let (mut over, mut under) = (false, false);
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let a = a.add(i).read_unaligned();
            let rounded = H::widen(H::narrow(a));
            to.add(i).write_unaligned(rounded);
            if H::TELLS {
                let (more, less) = halves::lost(a, rounded);
                over |= more;
                under |= less;
            }
        }
    }
    u32::from(over) * OVER + u32::from(under) * UNDER
}

/// The loop of an operation among those given with the types it is for.
macro_rules! among {
    (@ floats $kind:expr, $shape:ident $name:ident) => {
        among!(# $kind, $shape $name [F32 f32, F64 f64])
    };
    (@ bits $kind:expr, $shape:ident $name:ident) => {
        among!(# $kind, $shape $name [
            Bool Truth, I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64
        ])
    };
    (@ numbers $kind:expr, $shape:ident $name:ident) => {
        among!(# $kind, $shape $name [
            I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64, F32 f32, F64 f64
        ])
    };
    (@ all $kind:expr, $shape:ident $name:ident) => {
        among!(# $kind, $shape $name [
            Bool Truth, I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64, F32 f32, F64 f64
        ])
    };
    (# $kind:expr, $shape:ident $name:ident [$($k:ident $t:ty),+]) => {
        match $kind {
            $(Kind::$k => Some($shape::<$name<$t>> as Loop),)+
            _ => None,
        }
    };
    ($op:expr, $kind:expr; $($shape:ident $name:ident $types:ident;)+) => {
        match $op {
            $(Op::$name => among!(@ $types $kind, $shape $name),)+
            _ => None,
        }
    };
}

macro_rules! casts {
    (@ $from:expr, $to:expr; [$($k:ident $t:ty),+]; $all:tt) => {
        match $from { $(Kind::$k => casts!(# $t, $to; $all),)+ _ => None }
    };
    (# $s:ty, $to:expr; [$($k:ident $t:ty),+]) => {
        match $to { $(Kind::$k => Some(cast::<$s, $t> as Loop),)+ _ => None }
    };
    ($from:expr, $to:expr; [$($k:ident $t:ty),+]) => { casts!(@ $from, $to; [$($k $t),+]; [$($k $t),+]) };
}

macro_rules! compiled {
    ($level:ident, [$($feature:meta)?]) => {
        mod $level {
            use super::*;

            macro_rules! shape {
                ($outer:ident, $inner:ident, $bound:path) => {
                    $(#[$feature])?
                    unsafe fn $outer<F: $bound>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
                        // SAFETY: the caller vouches for the values, and that the features are present.
                        unsafe { $inner::<F>(from, to, count) }
                    }
                };
            }
            shape!(unary, unary_loop, Unary);
            shape!(binary, binary_loop, Binary);
            shape!(choose, where_loop, Copy);
            shape!(copy, copy_loop, Copy);
            shape!(unpack, unpack_loop, Half);
            shape!(pack, pack_loop, Half);
            shape!(round, round_loop, Half);

            $(#[$feature])?
            unsafe fn cast<S: To<T>, T>(from: &[*const u8; 3], to: *mut u8, count: usize) -> u32 {
                // SAFETY: as above.
                unsafe { cast_loop::<S, T>(from, to, count) }
            }

            pub(super) fn find(op: Op, kind: Kind) -> Option<Loop> {
                let half = match kind {
                    Kind::F16 => Some([unpack::<super::F16> as Loop, pack::<super::F16>, round::<super::F16>]),
                    Kind::Bf16 => Some([unpack::<super::Bf16>, pack::<super::Bf16>, round::<super::Bf16>]),
                    _ => None,
                };
                match op {
                    Op::Unpack => return half.map(|of| of[0]),
                    Op::Pack => return half.map(|of| of[1]),
                    Op::Round => return half.map(|of| of[2]),
                    Op::Copy => return Some(match kind.size() {
                        1 => copy::<u8>,
                        2 => copy::<u16>,
                        4 => copy::<u32>,
                        _ => copy::<u64>,
                    }),
                    Op::Where => return Some(match kind.size() {
                        1 => choose::<u8>,
                        2 => choose::<u16>,
                        4 => choose::<u32>,
                        _ => choose::<u64>,
                    }),
                    Op::Cast(to) => return casts!(kind, to; [
                        Bool Truth, I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64,
                        F32 f32, F64 f64
                    ]),
                    _ => {}
                }
                among!(op, kind;
                    binary Add numbers;
                    binary Subtract numbers;
                    binary Multiply numbers;
                    binary Divide floats;
                    binary Maximum numbers;
                    binary Minimum numbers;
                    binary FMax floats;
                    binary FMin floats;
                    binary And bits;
                    binary Or bits;
                    binary Xor bits;
                    binary Equal all;
                    binary NotEqual all;
                    binary Less all;
                    binary LessEqual all;
                    unary Negative numbers;
                    unary Absolute numbers;
                    unary Square numbers;
                    unary Sign numbers;
                    unary Invert bits;
                    unary Sqrt floats;
                    unary Reciprocal floats;
                    unary Floor floats;
                    unary Ceil floats;
                    unary Trunc floats;
                    unary Rint floats;
                    unary IsNan floats;
                    unary IsInf floats;
                    unary IsFinite floats;
                )
            }
        }
    };
}
compiled!(plain, []);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, [target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
compiled!(avx512, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);

/// The loop of `op` in `kind`, as `level` has it; None where there is none.
pub(super) fn find(level: Level, op: Op, kind: Kind) -> Option<Loop> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Dot | Level::Amx => avx512::find(op, kind),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::find(op, kind),
        _ => plain::find(op, kind),
    }
}
