//! Copies between storage types and the element types that kernels compute in.

use std::any::TypeId;

use half::{bf16, f16};
use prunus_core::DType;

use super::transpose;
use crate::level;
#[cfg(target_arch = "x86_64")]
use crate::level::Level;

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
    let level = level::current();
    let moves = size_of::<E>() == 4 && same::<S, E>();
    if moves && rect.row_stride == 4 && rect.col_stride != 4 && transpose::is_available(level) {
        // SAFETY: 4-byte values of one type are moved unchanged; the level is there.
        unsafe { transpose::transpose_32(rect, dst.cast(), dst_row) };
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 {
        // SAFETY: AVX2, FMA and F16C are there; the rest is the caller's promise.
        unsafe { convert_avx2::<S, E>(rect, dst, dst_row) };
        return;
    }
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
                    // As bytes: values may lie at any alignment.
                    std::ptr::copy_nonoverlapping(src, out.cast::<u8>(), rect.cols * size_of::<E>());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Converts with every level and layout; `want` gives each value's conversion.
    fn check<S: Copy + PartialEq, E: Element + std::fmt::Debug>(
        from: DType,
        values: &[S],
        same: impl Fn(E, S) -> bool,
    ) {
        let convert = E::convert(from).unwrap();
        let size = size_of::<S>() as isize;
        let (rows, cols) = (values.len() / 37, 37usize);
        let end = (rows * cols - 1) as isize;
        let (r, c) = (rows as isize, cols as isize);
        let layouts = [(c, 1, 0), (1, r, 0), (-c, -1, end), (-1, -r, end), (0, 1, 0), (1, 0, 0), (3, 2, 0)];
        level::each(|level| {
            for (row, col, first) in layouts {
                if row == 3 && (r - 1) * 3 + (c - 1) * 2 > end {
                    continue;
                }
                let rect = Rect {
                    src: values.as_ptr().wrapping_offset(first).cast(),
                    rows,
                    cols,
                    row_stride: row * size,
                    col_stride: col * size,
                };
                let mut dst = vec![E::default(); rows * (cols + 2)];
                // SAFETY: the layouts stay inside `values`, the rows inside `dst`.
                unsafe { convert(&rect, dst.as_mut_ptr(), cols + 2) };
                for i in 0..rows {
                    for j in 0..cols {
                        let value = values[(first + i as isize * row + j as isize * col) as usize];
                        let got = dst[i * (cols + 2) + j];
                        assert!(
                            same(got, value),
                            "{got:?} at ({i}, {j}), strides {row}, {col}, {}",
                            level.name()
                        );
                    }
                }
            }
        });
    }

    #[test]
    fn every_half_and_bfloat16_is_exact() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let same = |got: f32, v: f16| got.to_bits() == v.to_f32().to_bits() || got.is_nan() && v.is_nan();
        check::<f16, f32>(DType::F16, &halves, same);
        check::<f16, f64>(DType::F16, &halves, |got, v| got == v.to_f64() || got.is_nan() && v.is_nan());
        let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let same = |got: f32, v: bf16| got == v.to_f32() || got.is_nan() && v.is_nan();
        check::<bf16, f32>(DType::Bf16, &brains, same);
        check::<bf16, f64>(DType::Bf16, &brains, |got, v| got == v.to_f64() || got.is_nan() && v.is_nan());
        check::<bf16, bf16>(DType::Bf16, &brains, |got, v| got.to_bits() == v.to_bits());
    }

    #[test]
    fn other_types_are_exact() {
        let bytes: Vec<i8> = (0..37 * 30).map(|i| (i * 7) as i8).collect();
        check::<i8, i16>(DType::I8, &bytes, |got, v| got == i16::from(v));
        check::<i8, f32>(DType::I8, &bytes, |got, v| got == f32::from(v));
        check::<i8, f64>(DType::I8, &bytes, |got, v| got == f64::from(v));
        let bits = (0..37 * 30u32).map(|i| i.wrapping_mul(0x9E37_79B9));
        let singles: Vec<f32> = bits.map(f32::from_bits).collect();
        // Copies keep every bit, NaN payloads too.
        check::<f32, f32>(DType::F32, &singles, |got, v| got.to_bits() == v.to_bits());
        let same = |got: f64, v: f32| got == f64::from(v) || got.is_nan() && v.is_nan();
        check::<f32, f64>(DType::F32, &singles, same);
    }
}
