//! Keys and values as the products read them: in place where they can, through a copy of a chunk otherwise.

use std::ops::Range;

use prunus_core::{DType, MatRef};

use super::product::Ahead;
use crate::dsd::convert::{Convert, Element, Rect};
use crate::simd::Lanes;
use crate::simd::floats::Real;

/// Keys or values of a chunk as the product reads them: rows `row` elements apart, features adjacent.
pub(super) struct Chunk<L: Lanes> {
    pub start: *const L::Elem,
    pub row: usize,
}

/// The operand's row stride in elements, if the kernels can read it in place.
fn in_place<L: Lanes>(from: &MatRef<'_>) -> Option<usize>
where
    L::Elem: Element,
{
    let size = size_of::<L::Elem>() as isize;
    let native: Option<DType> = <L::Elem as Element>::NATIVE;
    let adjacent = from.col_stride == size || from.cols <= 1;
    let fits = native == Some(from.dtype) && adjacent && from.row_stride >= 0 && from.row_stride % size == 0;
    fits.then_some((from.row_stride / size) as usize)
}

/// What to ask for before rows `keys` of an operand are read.
pub(super) fn ahead<L: Lanes>(from: &MatRef<'_>, keys: &Range<usize>) -> Ahead<L>
where
    L::Elem: Element,
{
    match in_place::<L>(from) {
        Some(row) => Ahead { start: from.at(keys.start, 0).cast(), row, rows: keys.len(), cols: from.cols },
        None => Ahead::NONE,
    }
}

/// Rows `keys` of an operand, in place where the kernels can read it there.
pub(super) fn chunk_of<L>(
    from: &MatRef<'_>,
    keys: &Range<usize>,
    convert: Convert<L::Elem>,
    copy: *mut L::Elem,
) -> Chunk<L>
where
    L: Lanes,
    L::Elem: Element,
{
    if let Some(row) = in_place::<L>(from) {
        return Chunk { start: from.at(keys.start, 0).cast(), row };
    }
    let rect = Rect {
        src: from.at(keys.start, 0),
        rows: keys.len(),
        cols: from.cols,
        row_stride: from.row_stride,
        col_stride: from.col_stride,
    };
    // SAFETY: the operand is readable; the copy has room for a chunk and is this task's.
    unsafe { convert(&rect, copy, from.cols) };
    Chunk { start: copy, row: from.cols }
}

/// Whether all values of a chunk are finite.
pub(super) fn all_finite<L: Lanes>(v: &Chunk<L>, keys: usize, features: usize) -> bool
where
    L::Elem: Real,
{
    // SAFETY: inside the chunk.
    (0..keys)
        .all(|i| (0..features).all(|j| unsafe { v.start.add(i * v.row + j).read_unaligned() }.is_finite()))
}
