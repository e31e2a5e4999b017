//! Copies between storage types and the element types that kernels compute in.

use std::any::TypeId;

use half::{bf16, f16};
use prunus_core::DType;

use crate::level::{self, Level};

/// Conversion of one value from its storage type, exact in every case used.
pub(crate) trait Cast<E>: Copy + 'static {
    fn cast(self) -> E;
}

macro_rules! casts {
    ($($from:ty => $to:ty : |$v:ident| $e:expr),+ $(,)?) => {
        $(impl Cast<$to> for $from {
            #[inline(always)]
            fn cast(self) -> $to { let $v = self; $e }
        })+
    };
}

casts! {
    f32 => f32: |v| v,
    f64 => f64: |v| v,
    bf16 => bf16: |v| v,
    i8 => i16: |v| i16::from(v),
    i8 => f32: |v| f32::from(v),
    i8 => f64: |v| f64::from(v),
    f32 => f64: |v| f64::from(v),
    bf16 => f32: |v| f32::from_bits(u32::from(v.to_bits()) << 16),
    bf16 => f64: |v| f64::from(v.to_f32()),
    f16 => f32: |v| v.to_f32(),
    f16 => f64: |v| v.to_f64(),
}

/// Whether two types are one.
fn same<S: 'static, E: 'static>() -> bool {
    TypeId::of::<S>() == TypeId::of::<E>()
}

/// A rectangle to copy: `rows × cols` values at any strides, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rect {
    pub src: *const u8,
    pub rows: usize,
    pub cols: usize,
    pub row_stride: isize,
    pub col_stride: isize,
}

/// Copies a rectangle to `dst`, rows `dst_row` elements apart, columns adjacent.
pub(crate) type Convert<E> = unsafe fn(rect: &Rect, dst: *mut E, dst_row: usize);

/// Elements that a kernel computes in, and the storage types that it takes.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// The storage type that needs no conversion.
    const NATIVE: Option<DType>;
    /// The copy from storage type `from`; None where no kernel computes so.
    fn convert(from: DType) -> Option<Convert<Self>>;
}

macro_rules! element {
    ($e:ty, $native:expr, { $($dtype:ident => $s:ty),+ }) => {
        impl Element for $e {
            const NATIVE: Option<DType> = $native;
            fn convert(from: DType) -> Option<Convert<Self>> {
                match from {
                    $(DType::$dtype => Some(convert_as::<$s, $e>),)+
                    _ => None,
                }
            }
        }
    };
}
element!(f32, Some(DType::F32), { F32 => f32, Bf16 => bf16, F16 => f16, I8 => i8 });
element!(f64, Some(DType::F64), { F64 => f64, F32 => f32, Bf16 => bf16, F16 => f16, I8 => i8 });
element!(bf16, Some(DType::Bf16), { Bf16 => bf16 });
// No storage type is int16: int8 is widened.
element!(i16, None, { I8 => i8 });

/// Copies one rectangle, converting each value.
///
/// # Safety
/// The rectangle must be readable, and `dst` writeable for `rows` rows.
unsafe fn convert_as<S: Cast<E>, E: Copy + 'static>(rect: &Rect, dst: *mut E, dst_row: usize) {
    #[cfg(target_arch = "x86_64")]
    if size_of::<E>() == 4 && same::<S, E>() && rect.row_stride == 4 && rect.col_stride != 4 {
        if level::current() >= Level::Avx2 {
            // SAFETY: 4-byte values of one type are moved unchanged; AVX2 is there.
            unsafe { super::transpose::transpose_32(rect, dst.cast(), dst_row) };
            return;
        }
    }
    #[cfg(target_arch = "x86_64")]
    if level::current() >= Level::Avx2 {
        // SAFETY: AVX2, FMA and F16C are there; the rest is the caller's promise.
        unsafe { convert_avx2::<S, E>(rect, dst, dst_row) };
        return;
    }
    let _ = (level::current(), Level::Avx2);
    // SAFETY: the caller's promise.
    unsafe { convert_loop::<S, E>(rect, dst, dst_row) }
}

/// The same loop, compiled for wider vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn convert_avx2<S: Cast<E>, E: Copy + 'static>(rect: &Rect, dst: *mut E, dst_row: usize) {
    // SAFETY: the caller's promise.
    unsafe { convert_loop::<S, E>(rect, dst, dst_row) }
}

#[inline(always)]
unsafe fn convert_loop<S: Cast<E>, E: Copy + 'static>(rect: &Rect, dst: *mut E, dst_row: usize) {
    let size = size_of::<S>() as isize;
    // SAFETY: the caller's promise; values may lie at any alignment.
    unsafe {
        if rect.col_stride == size || rect.row_stride.abs() > rect.col_stride.abs() {
            for i in 0..rect.rows {
                let src = rect.src.offset(i as isize * rect.row_stride);
                let out = dst.add(i * dst_row);
                if rect.col_stride == size && same::<S, E>() {
                    std::ptr::copy_nonoverlapping(src.cast::<E>(), out, rect.cols);
                } else if rect.col_stride == size {
                    let src = src.cast::<S>();
                    for j in 0..rect.cols {
                        *out.add(j) = src.add(j).read_unaligned().cast();
                    }
                } else {
                    for j in 0..rect.cols {
                        let value = src.offset(j as isize * rect.col_stride).cast::<S>();
                        *out.add(j) = value.read_unaligned().cast();
                    }
                }
            }
            return;
        }
        // Rows are adjacent in memory: walk along them, a few columns at a time so that both sides
        // stay in the cache.
        const COLS: usize = 16;
        for j0 in (0..rect.cols).step_by(COLS) {
            let width = COLS.min(rect.cols - j0);
            for i in 0..rect.rows {
                for j in j0..j0 + width {
                    let at = i as isize * rect.row_stride + j as isize * rect.col_stride;
                    let value = rect.src.offset(at).cast::<S>();
                    *dst.add(i * dst_row + j) = value.read_unaligned().cast();
                }
            }
        }
    }
}
