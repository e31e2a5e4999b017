//! Products that come in parts: x packed once for all of them, and sums that go on.

use std::ptr;

use prunus_core::{DType, Error, MatMut, MatRef};

use super::convert::{Convert, Element, Rect};
use super::{Dsd, PackedX, compute_type, sums_type, thin, transpose};
use crate::dispatch::with_lanes;
use crate::level;
#[cfg(target_arch = "x86_64")]
use crate::level::Level;
use crate::memory::Workspace;
use crate::simd::Lanes;
use crate::threads::{Context, for_each};

/// Bytes of sums that are computed apart before they are added.
const APART_BYTES: usize = 8 << 20;
/// Rows of them that a task adds.
const APART_ROWS: usize = 256;

impl PackedX {
    /// Packs x for products with operands of type `w` in blocks of `block` (rows, columns, after
    /// transposition), whose result is of type `out`. `None` where they read x as it lies, or have a layout
    /// of their own: few columns, and tiles.
    ///
    /// # Errors
    /// [`Error::DTypes`] where there is no such product, [`Error::Shape`] for empty blocks, [`Error::Memory`]
    /// or [`Error::Interrupted`].
    pub fn pack(
        x: &MatRef<'_>,
        w: DType,
        out: DType,
        block: (usize, usize),
        context: &Context<'_>,
    ) -> Result<Option<Self>, Error> {
        if block.0 == 0 || block.1 == 0 {
            let (expected, got) = ("1 x 1".to_owned(), format!("{} x {}", block.0, block.1));
            return Err(Error::Shape { what: "block size", expected, got });
        }
        let compute = compute_type(w, x.dtype, out);
        #[cfg(target_arch = "x86_64")]
        if level::current() == Level::Amx && matches!(compute, Some(DType::Bf16 | DType::I32)) {
            return Ok(None);
        }
        if x.cols <= thin::MAX_COLS || x.rows == 0 {
            return Ok(None);
        }
        let fault = || Error::DTypes { what: "block-sparse product", a: w, b: x.dtype, out };
        let mut packed = None;
        with_lanes!("packed", compute, L => {
            pack::<L>(x, block, context).map(|made| packed = made)
        }, else Err(fault()))?;
        Ok(packed)
    }
}

fn pack<L>(x: &MatRef<'_>, block: (usize, usize), context: &Context<'_>) -> Result<Option<PackedX>, Error>
where
    L: Lanes,
    L::Elem: Element,
{
    let convert: Option<Convert<L::Elem>> = <L::Elem as Element>::convert(x.dtype);
    // Every lane type converts from what `compute_type` lets it compute; else products pack for themselves.
    convert.map_or(Ok(None), |convert| PackedX::new::<L>(x, convert, block, context))
}

impl Dsd<'_> {
    /// Adds the product to the result where the kernel cannot go on from sums: some columns at a time are
    /// computed apart, then added.
    pub(super) fn run_apart(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        let (x, out) = (&self.x, &self.out);
        let (rows, cols) = (out.view.rows, out.view.cols);
        let kind =
            sums_type(compute_type(self.w.dtype, x.dtype, out.view.dtype)).ok_or_else(|| self.no_kernel())?;
        let size = kind.size();
        let step = (APART_BYTES / (rows * size)).clamp(1, cols);
        let part = Workspace::of(&[rows, step, size])?;
        let mut path = "nothing to do";
        for first in (0..cols).step_by(step) {
            let count = step.min(cols - first);
            let strides = ((count * size) as isize, size as isize);
            // SAFETY: the workspace holds as many values and is this call's own; the columns of x are in it.
            let (sums, columns) = unsafe {
                let strides_x = (x.row_stride, x.col_stride);
                (
                    MatMut::new(part.as_ptr(), kind, (rows, count), strides),
                    MatRef::new(x.at(0, first), x.dtype, (x.rows, count), strides_x),
                )
            };
            path = Dsd { x: columns, out: sums, add: false, packed: None, ..*self }.run(context)?;
            for_each(context, rows.div_ceil(APART_ROWS), |task| {
                for row in task * APART_ROWS..rows.min((task + 1) * APART_ROWS) {
                    let target = out.at(row, first);
                    // SAFETY: both hold `count` values of this type there; tasks have rows of their own.
                    unsafe {
                        match kind {
                            DType::F64 => add::<f64>(sums.at(row, 0), target, out.view.col_stride, count),
                            DType::I32 => add::<i32>(sums.at(row, 0), target, out.view.col_stride, count),
                            _ => add::<f32>(sums.at(row, 0), target, out.view.col_stride, count),
                        }
                    }
                }
                Ok(())
            })?;
        }
        Ok(path)
    }
}

/// Copies sums out of a result of their own type to rows of `width`, zeros behind them.
///
/// # Safety
/// The rectangle must be readable, and `dst` writeable for `width` values a row.
pub(crate) unsafe fn take_sums<A: Copy + Default>(rect: &Rect, dst: *mut A, width: usize) {
    let size = size_of::<A>();
    let turned = rect.row_stride == 4 && size == 4 && transpose::is_available(level::current());
    let straight = rect.col_stride == size as isize;
    // SAFETY: the caller's promise; a 32-bit value is copied as it is.
    unsafe {
        if turned {
            transpose::transpose_32(rect, dst.cast(), width);
        }
        for row in 0..rect.rows {
            let (from, to) = (rect.src.wrapping_offset(row as isize * rect.row_stride), dst.add(row * width));
            if straight {
                ptr::copy_nonoverlapping(from, to.cast(), rect.cols * size);
            } else if !turned {
                for col in 0..rect.cols {
                    let from = from.wrapping_offset(col as isize * rect.col_stride);
                    to.add(col).write(from.cast::<A>().read_unaligned());
                }
            }
            for col in rect.cols..width {
                to.add(col).write(A::default());
            }
        }
    }
}

/// Adds a row of values to another one, whose values are `stride` bytes apart.
///
/// # Safety
/// `count` values must be readable at `from` and writeable at `to`.
unsafe fn add<T: super::store::Sum>(from: *const u8, to: *mut u8, stride: isize, count: usize) {
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.wrapping_offset(i as isize * stride).cast::<T>();
            let value = from.cast::<T>().add(i).read();
            to.write_unaligned(to.read_unaligned().add(value));
        }
    }
}
