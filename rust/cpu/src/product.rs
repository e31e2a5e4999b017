//! What the operations with block-sparse results share: summing a list of block products into one
//! block of the result, packing words of the right operand, and finishing a block.

use std::mem::MaybeUninit;

use prunus_core::{BlocksMut, Epilogue};

use crate::dsd::convert::{Convert, Rect};
use crate::dsd::plan::{self, BURST_WORDS, SEGMENT_ROWS};
use crate::dsd::store::{Finished, Store};
use crate::dsd::tile::{Block, Tile};
use crate::simd::Lanes;

/// Most vectors in a strip (see [`plan::panels`]) times most lanes in a vector.
const WIDEST: usize = 6 * 16;

/// Columns of a result block that one set of accumulators holds, and where the right operand keeps
/// what multiplies into them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip {
    /// First column of the block.
    pub col: usize,
    /// Columns that exist; the rest of the vectors is padding.
    pub cols: usize,
    /// Vectors.
    pub vectors: usize,
    /// Elements from the right operand's start to the strip's word 0.
    pub offset: usize,
    /// Elements from one word to the next.
    pub word: usize,
}

/// Columns of a block with the padding of its last vector.
pub(crate) fn padded<L: Lanes>(cols: usize) -> usize {
    cols.next_multiple_of(L::LANES)
}

/// Strips of a block of which each word holds all columns.
pub(crate) fn strips_of_rows<L: Lanes>(rows: usize, cols: usize) -> Vec<Strip> {
    let word = padded::<L>(cols) * L::STEP;
    let panels = plan::panels(cols, L::LANES, L::REGISTERS, rows);
    let strip = |p: &plan::Panel| Strip {
        col: p.col,
        cols: p.cols,
        vectors: p.vectors,
        offset: p.col * L::STEP,
        word,
    };
    panels.iter().map(strip).collect()
}

/// Strips that lie one after another, `words` words each.
pub(crate) fn strips_stacked<L: Lanes>(rows: usize, cols: usize, words: usize) -> Vec<Strip> {
    let mut strips = strips_of_rows::<L>(rows, cols);
    for strip in &mut strips {
        strip.offset *= words;
        strip.word = strip.vectors * L::LANES * L::STEP;
    }
    strips
}

/// One block of the result as a sum of block products: `out (+)= Σ_blocks W · x`.
pub(crate) struct Product<'a, L: Lanes> {
    /// Pieces of the left operand in the order of the sum, none longer than [`BURST_WORDS`].
    pub blocks: &'a [Block<L::Elem>],
    /// What the next product will begin with, to be asked for now; may be empty.
    pub next: &'a [Block<L::Elem>],
    /// Cache lines that are worth asking for in each piece of x.
    pub next_lines: usize,
    /// Ask for the left operand's next pieces too.
    pub fetch_w: bool,
    /// Rows to compute.
    pub rows: usize,
    /// Elements from one row of a piece to the next, and from one word to the next.
    pub w_row: usize,
    pub w_word: usize,
    /// The right operand, and how its strips lie.
    pub x: *const L::Elem,
    pub strips: &'a [Strip],
    /// Where the sums go, and elements from one row to the next.
    pub out: *mut L::Acc,
    pub out_row: usize,
    /// Begin with zeros; else with what `out` holds.
    pub starts: bool,
}

impl<L: Lanes> Product<'_, L> {
    /// Computes the sums.
    ///
    /// # Safety
    /// The level in use has `L`'s instruction set; the pieces cover `rows` rows of their words, x every
    /// word that they name, and `out` the rows and all vectors of each strip.
    pub(crate) unsafe fn sum(&self) {
        for strip in self.strips {
            for first in (0..self.rows).step_by(SEGMENT_ROWS) {
                let rows = SEGMENT_ROWS.min(self.rows - first);
                // SAFETY: the caller's promise.
                unsafe { self.segment(strip, first, rows) };
            }
        }
    }

    /// Computes some rows of one strip, burst by burst: a burst's part of x, and the sums, stay in
    /// the first cache while every group of rows uses them.
    ///
    /// # Safety
    /// As [`Product::sum`].
    unsafe fn segment(&self, strip: &Strip, first: usize, rows: usize) {
        let Some(longest) = self.blocks.first().map(|block| block.words.max(1)) else { return };
        let burst = (BURST_WORDS / longest).max(1);
        for (b, now) in self.blocks.chunks(burst).enumerate() {
            let next = match self.blocks.get((b + 1) * burst..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => self.next,
            };
            let mut row = first;
            let mut line = 0;
            while row < first + rows {
                let left = first + rows - row;
                let (tile, count) = L::tile(left, strip.vectors, false);
                let tiles = left / count;
                let out = self.out.wrapping_add(row * self.out_row + strip.col);
                let args = Tile::<L> {
                    blocks: now.as_ptr(),
                    count: now.len(),
                    tiles,
                    w_offset: row * self.w_row,
                    w_tile: count * self.w_row,
                    w_row: self.w_row,
                    w_word: self.w_word,
                    x: self.x.wrapping_add(strip.offset),
                    x_word: strip.word,
                    init: if self.starts && b == 0 { std::ptr::null() } else { out },
                    init_row: self.out_row,
                    out,
                    out_row: self.out_row,
                    next: next.as_ptr(),
                    next_count: next.len().min(now.len()),
                    next_line: line,
                    next_step: longest,
                    next_end: self.next_lines,
                    fetch_w: self.fetch_w,
                };
                // SAFETY: the caller's promise.
                unsafe { tile(&args) };
                row += tiles * count;
                line += tiles * longest;
            }
        }
    }
}

/// Copies a rectangle of the right operand into words of one strip: converted, `STEP` rows to a word,
/// zeros up to the strip's full width and the word's last row.
///
/// # Safety
/// The rectangle must be readable, with at most the strip's columns, and `dst` writeable for its words.
pub(crate) unsafe fn pack_words<L: Lanes>(
    convert: Convert<L::Elem>,
    rect: &Rect,
    strip: &Strip,
    dst: *mut L::Elem,
) {
    let width = strip.vectors * L::LANES;
    let zero = L::Elem::default();
    if L::STEP == 1 {
        // SAFETY: each row is a word of `width` elements.
        unsafe {
            convert(rect, dst, strip.word);
            for row in 0..rect.rows {
                for col in rect.cols..width {
                    dst.add(row * strip.word + col).write(zero);
                }
            }
        }
        return;
    }
    // A few rows are converted, then interleaved.
    const ROWS: usize = 8;
    let mut held = [const { MaybeUninit::<L::Elem>::uninit() }; ROWS * WIDEST];
    let held = held.as_mut_ptr().cast::<L::Elem>();
    assert!(width <= WIDEST && ROWS.is_multiple_of(L::STEP));
    for first in (0..rect.rows).step_by(ROWS) {
        let rows = ROWS.min(rect.rows - first);
        let part = Rect { src: rect.src.wrapping_offset(first as isize * rect.row_stride), rows, ..*rect };
        // SAFETY: `held` has ROWS rows of WIDEST elements, and `dst` the words of every row.
        unsafe {
            convert(&part, held, width);
            for row in 0..rows.next_multiple_of(L::STEP) {
                let to = dst.add((first + row) / L::STEP * strip.word + row % L::STEP);
                for col in 0..width {
                    let inside = row < rows && col < rect.cols;
                    to.add(col * L::STEP).write(if inside { *held.add(row * width + col) } else { zero });
                }
            }
        }
    }
}

/// Copies a piece of the left operand: converted, its rows `dst_row` elements apart, zeros up to a whole word.
///
/// # Safety
/// The rectangle must be readable, and `dst` writeable for its rows, each with its last word whole.
pub(crate) unsafe fn pack_rows<L: Lanes>(
    convert: Convert<L::Elem>,
    rect: &Rect,
    dst: *mut L::Elem,
    dst_row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        convert(rect, dst, dst_row);
        for row in 0..rect.rows {
            for col in rect.cols..rect.cols.next_multiple_of(L::STEP) {
                dst.add(row * dst_row + col).write(L::Elem::default());
            }
        }
    }
}

/// Rounds a block's sums into the result, where only `rows × cols` of it lie inside the shape.
///
/// # Safety
/// The sums must cover `rows × cols`, rows `sums_row` apart; the block must be the caller's to write.
pub(crate) unsafe fn finish<A>(
    store: Store<A>,
    (sums, sums_row): (*const A, usize),
    out: &BlocksMut<'_>,
    block: usize,
    (rows, cols): (usize, usize),
) {
    let size = out.dtype.size();
    let finished = Finished {
        sums,
        sums_row,
        rows,
        cols,
        first_row: 0,
        out: out.at(block),
        row_stride: (out.blocksize.1 * size) as isize,
        col_stride: size as isize,
    };
    // SAFETY: the caller's promise.
    unsafe {
        store(&finished, &Epilogue::default());
        zero_padding(out, block, (rows, cols));
    }
}

/// Zeros what a block of the result holds beyond its first `rows × cols` values.
///
/// # Safety
/// The block must be the caller's to write.
pub(crate) unsafe fn zero_padding(out: &BlocksMut<'_>, block: usize, (rows, cols): (usize, usize)) {
    let size = out.dtype.size();
    let (block_rows, block_cols) = out.blocksize;
    let at = |row: usize, col: usize| out.at(block).wrapping_add((row * block_cols + col) * size);
    // SAFETY: inside the block; zero is all bytes zero in every dtype.
    unsafe {
        if cols < block_cols {
            for row in 0..rows {
                at(row, cols).write_bytes(0, (block_cols - cols) * size);
            }
        }
        at(rows, 0).write_bytes(0, (block_rows - rows) * block_cols * size);
    }
}
