//! How the values of a block lie in memory, and copies out of it.

use std::ops::Range;

use prunus_core::BsrRef;

use super::convert::{Convert, Rect};

/// Layout of a block's values for the tile kernel, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BlockLayout {
    /// Any strides: to the part's first row, from row to row, from word to word.
    Strided { offset: usize, row: usize, word: usize },
    /// Packed: groups of `group` rows, `group_size` elements each; a word of all rows lies together.
    Grouped { first_row: usize, group: usize, group_size: usize, step: usize },
}

/// Where a tile finds its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileRows {
    pub offset: usize,
    pub row: usize,
    pub word: usize,
    /// Rows with these strides.
    pub most: usize,
    /// All rows of a group: the kernel with constant strides may run.
    pub whole_group: bool,
}

impl BlockLayout {
    /// Rows from `row` (counted within the part) on.
    pub(crate) fn rows(&self, row: usize) -> TileRows {
        match *self {
            Self::Strided { offset, row: stride, word } => TileRows {
                offset: offset + row * stride,
                row: stride,
                word,
                most: usize::MAX,
                whole_group: false,
            },
            Self::Grouped { first_row, group, group_size, step } => {
                let (index, within) = ((first_row + row) / group, (first_row + row) % group);
                TileRows {
                    offset: index * group_size + within * step,
                    row: step,
                    word: group * step,
                    most: group - within,
                    whole_group: within == 0,
                }
            }
        }
    }

    /// Elements from one word to the next.
    pub(crate) fn word(&self) -> usize {
        match *self {
            Self::Strided { word, .. } => word,
            Self::Grouped { group, step, .. } => group * step,
        }
    }
}

/// Copies `rows × depth` values of a stored block of `op(W)`, converted, to rows `dst_row` apart.
///
/// # Safety
/// The block must be readable and `dst` writeable for as many rows.
pub(crate) unsafe fn copy_block<E: Copy>(
    w: &BsrRef<'_>,
    stored: *const u8,
    rows: Range<usize>,
    depth: usize,
    convert: Convert<E>,
    dst: *mut E,
    dst_row: usize,
) {
    let size = w.dtype.size() as isize;
    let cols = w.blocksize.1 as isize;
    if w.group == 0 {
        let (row_stride, col_stride) = if w.transposed { (size, cols * size) } else { (cols * size, size) };
        let src = stored.wrapping_offset(rows.start as isize * row_stride);
        let rect = Rect { src, rows: rows.len(), cols: depth, row_stride, col_stride };
        // SAFETY: the caller's promise.
        unsafe { convert(&rect, dst, dst_row) };
        return;
    }
    // Groups of stored rows: stored value (r, c) is at (r / g) g cols + c g + r % g.
    let g = w.group as isize;
    let at = |r: isize, c: isize| stored.wrapping_offset((r / g * g * cols + c * g + r % g) * size);
    let (stored_rows, across) = if w.transposed { (0..depth, rows) } else { (rows, 0..depth) };
    let mut r = stored_rows.start;
    while r < stored_rows.end {
        let count = (w.group - r % w.group).min(stored_rows.end - r);
        let src = at(r as isize, across.start as isize);
        let (start, along) = (r - stored_rows.start, across.len());
        // SAFETY: the caller's promise; the piece is `count` stored rows by `along` stored columns.
        unsafe {
            if w.transposed {
                let rect = Rect { src, rows: along, cols: count, row_stride: g * size, col_stride: size };
                convert(&rect, dst.add(start), dst_row);
            } else {
                let rect = Rect { src, rows: count, cols: along, row_stride: size, col_stride: g * size };
                convert(&rect, dst.add(start * dst_row), dst_row);
            }
        }
        r += count;
    }
}
