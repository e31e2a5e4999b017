//! Operations on single values, each as NumPy's ufunc of that name has it.

use std::marker::PhantomData;

/// Element types of arrays that programs take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Kind {
    /// All of them, by NumPy's names.
    pub const NAMED: [(&'static str, Self); 13] = [
        ("bool", Self::Bool),
        ("int8", Self::I8),
        ("int16", Self::I16),
        ("int32", Self::I32),
        ("int64", Self::I64),
        ("uint8", Self::U8),
        ("uint16", Self::U16),
        ("uint32", Self::U32),
        ("uint64", Self::U64),
        ("float16", Self::F16),
        ("bfloat16", Self::Bf16),
        ("float32", Self::F32),
        ("float64", Self::F64),
    ];

    /// NumPy's name.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Bytes of a value.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    pub(super) const fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// What a register holds: halves are computed with as float32 and rounded after each step.
    pub(super) const fn held(self) -> Self {
        match self {
            Self::F16 | Self::Bf16 => Self::F32,
            other => other,
        }
    }
}

/// A function of one value.
pub(super) trait Unary {
    type In: Copy;
    type Out: Copy;
    fn of(a: Self::In) -> Self::Out;
}

/// A function of two values, and whether its result for them is NumPy's affair.
pub(super) trait Binary {
    type In: Copy;
    type Out: Copy;
    fn of(a: Self::In, b: Self::In) -> Self::Out;
    #[inline(always)]
    fn defers(_: Self::In, _: Self::In) -> bool {
        false
    }
}

/// A conversion, and whether its result for a value is NumPy's affair.
pub(super) trait To<T>: Copy {
    fn to(self) -> T;
    #[inline(always)]
    fn defers(self) -> bool {
        false
    }
}

macro_rules! declare {
    ($($name:ident)+) => { $(pub(super) struct $name<T>(PhantomData<T>);)+ };
}
declare!(Add Subtract Multiply Divide Maximum Minimum FMax FMin And Or Xor Equal NotEqual Less LessEqual);
declare!(Negative Absolute Square Sqrt Reciprocal Floor Ceil Trunc Rint Sign Invert IsNan IsInf IsFinite);

macro_rules! binary {
    ($($name:ident [$($t:ty)+] $out:tt |$a:ident, $b:ident| $e:expr;)+) => { $($(
        impl Binary for $name<$t> {
            type In = $t;
            type Out = binary!(@ $out $t);
            #[inline(always)]
            fn of($a: $t, $b: $t) -> Self::Out { $e }
        }
    )+)+ };
    (@ same $t:ty) => { $t };
    (@ truth $t:ty) => { u8 };
}
macro_rules! unary {
    ($($name:ident [$($t:ty)+] $out:tt |$a:ident| $e:expr;)+) => { $($(
        impl Unary for $name<$t> {
            type In = $t;
            type Out = binary!(@ $out $t);
            #[inline(always)]
            fn of($a: $t) -> Self::Out { $e }
        }
    )+)+ };
}

binary! {
    Add [f32 f64] same |a, b| a + b;
    Subtract [f32 f64] same |a, b| a - b;
    Multiply [f32 f64] same |a, b| a * b;
    Divide [f32 f64] same |a, b| a / b;
    Add [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| a.wrapping_add(b);
    Subtract [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| a.wrapping_sub(b);
    Multiply [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| a.wrapping_mul(b);
    // Of two zeros NumPy takes the second.
    Maximum [f32 f64] same |a, b| if (a > b) | a.is_nan() { a } else { b };
    Minimum [f32 f64] same |a, b| if (a < b) | a.is_nan() { a } else { b };
    Maximum [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| if a > b { a } else { b };
    Minimum [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| if a < b { a } else { b };
    And [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| a & b;
    Or [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| a | b;
    Xor [i8 i16 i32 i64 u8 u16 u32 u64] same |a, b| a ^ b;
    Equal [f32 f64 i8 i16 i32 i64 u8 u16 u32 u64] truth |a, b| u8::from(a == b);
    NotEqual [f32 f64 i8 i16 i32 i64 u8 u16 u32 u64] truth |a, b| u8::from(a != b);
    Less [f32 f64 i8 i16 i32 i64 u8 u16 u32 u64] truth |a, b| u8::from(a < b);
    LessEqual [f32 f64 i8 i16 i32 i64 u8 u16 u32 u64] truth |a, b| u8::from(a <= b);
}

macro_rules! fmost {
    ($($name:ident [$($t:ty)+] $cmp:tt;)+) => { $($(
        impl Binary for $name<$t> {
            type In = $t;
            type Out = $t;
            #[inline(always)]
            fn of(a: $t, b: $t) -> $t { if (a $cmp b) | b.is_nan() { a } else { b } }
            // NumPy takes one zero in vectors and another in what is left over.
            #[inline(always)]
            fn defers(a: $t, b: $t) -> bool { (a == b) & (a.to_bits() != b.to_bits()) }
        }
    )+)+ };
}
fmost! { FMax [f32 f64] >; FMin [f32 f64] <; }

unary! {
    Negative [f32 f64] same |a| -a;
    Absolute [f32 f64] same |a| a.abs();
    Square [f32 f64] same |a| a * a;
    Sqrt [f32 f64] same |a| a.sqrt();
    Reciprocal [f32 f64] same |a| 1.0 / a;
    Floor [f32 f64] same |a| a.floor();
    Ceil [f32 f64] same |a| a.ceil();
    Trunc [f32 f64] same |a| a.trunc();
    Rint [f32 f64] same |a| a.round_ties_even();
    Sign [f32 f64] same |a| {
        let size = if a < 0.0 { -1.0 } else if a > 0.0 { 1.0 } else { 0.0 };
        if a.is_nan() { a } else { size }
    };
    IsNan [f32 f64] truth |a| u8::from(a.is_nan());
    IsInf [f32 f64] truth |a| u8::from(a.is_infinite());
    IsFinite [f32 f64] truth |a| u8::from(a.is_finite());
    Negative [i8 i16 i32 i64 u8 u16 u32 u64] same |a| a.wrapping_neg();
    Absolute [i8 i16 i32 i64] same |a| a.wrapping_abs();
    Absolute [u8 u16 u32 u64] same |a| a;
    Square [i8 i16 i32 i64 u8 u16 u32 u64] same |a| a.wrapping_mul(a);
    Sign [i8 i16 i32 i64] same |a| a.signum();
    Sign [u8 u16 u32 u64] same |a| a.min(1);
    Invert [i8 i16 i32 i64 u8 u16 u32 u64] same |a| !a;
}

/// A bool as it is stored: what is not zero is true, whatever wrote it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Truth(u8);

impl Truth {
    #[inline(always)]
    fn bit(self) -> u8 {
        u8::from(self.0 != 0)
    }
}

macro_rules! logical {
    ($($name:ident |$a:ident, $b:ident| $e:expr;)+) => { $(
        impl Binary for $name<Truth> {
            type In = Truth;
            type Out = u8;
            #[inline(always)]
            fn of(a: Truth, b: Truth) -> u8 { let ($a, $b) = (a.bit(), b.bit()); $e }
        }
    )+ };
}
logical! {
    And |a, b| a & b;
    Or |a, b| a | b;
    Xor |a, b| a ^ b;
    Equal |a, b| u8::from(a == b);
    NotEqual |a, b| u8::from(a != b);
    Less |a, b| u8::from(a < b);
    LessEqual |a, b| u8::from(a <= b);
}

impl Unary for Invert<Truth> {
    type In = Truth;
    type Out = u8;
    #[inline(always)]
    fn of(a: Truth) -> u8 {
        a.bit() ^ 1
    }
}

macro_rules! plain {
    ($($from:ty => [$($to:ty)+];)+) => { $($(
        impl To<$to> for $from {
            #[inline(always)]
            fn to(self) -> $to { self as $to }
        }
    )+)+ };
}
plain! {
    i8 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    i16 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    i32 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    i64 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    u8 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    u16 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    u32 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    u64 => [i8 i16 i32 i64 u8 u16 u32 u64 f32 f64];
    f32 => [f32 f64];
    f64 => [f32 f64];
}

macro_rules! from_truth {
    ($($to:ty)+) => { $(
        impl To<$to> for Truth {
            #[inline(always)]
            fn to(self) -> $to { self.bit() as $to }
        }
    )+ };
}
from_truth!(i8 i16 i32 i64 u8 u16 u32 u64 f32 f64);

macro_rules! to_truth {
    ($($from:ty)+) => { $(
        impl To<Truth> for $from {
            #[inline(always)]
            fn to(self) -> Truth { Truth(u8::from(self != 0 as $from)) }
        }
    )+ };
}
to_truth!(i8 i16 i32 i64 u8 u16 u32 u64 f32 f64);

impl To<Truth> for Truth {
    #[inline(always)]
    fn to(self) -> Truth {
        Truth(self.bit())
    }
}

macro_rules! to_integer {
    ($from:ty => [$($to:ty)+]) => { $(
        impl To<$to> for $from {
            #[inline(always)]
            fn to(self) -> $to {
                let inside = if To::<$to>::defers(self) { 0.0 } else { self };
                // SAFETY: what `defers` leaves is at least the least value and below twice the middle one.
                unsafe { inside.to_int_unchecked() }
            }
            #[inline(always)]
            fn defers(self) -> bool {
                // Both limits are powers of two (or zero), and so floats.
                const LIMIT: $from = ((<$to>::MAX / 2 + 1) as $from) * 2.0;
                !((self >= <$to>::MIN as $from) & (self < LIMIT))
            }
        }
    )+ };
}
to_integer!(f32 => [i8 i16 i32 i64 u8 u16 u32 u64]);
to_integer!(f64 => [i8 i16 i32 i64 u8 u16 u32 u64]);
