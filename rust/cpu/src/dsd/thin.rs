//! A few columns: bound by the rate at which W arrives, so W is read once, in order, line by line.
//!
//! Blocks stored row by row give dot products with slices of x; blocks of a transposed operand are
//! stored column by column and add multiples of their columns. Sums of a block row stay in the first
//! cache. A block in another type, or one that a vector does not divide, is widened there first.

use std::ops::Range;

use prunus_core::{DType, Error, Pattern};

use super::Dsd;
use super::blocks::copy_block;
use super::convert::{Convert, Element, Rect};
use super::plan;
use super::store::{Finished, Store, Sum};
use crate::level;
use crate::memory::Workspace;
use crate::simd::Lanes;
use crate::threads::{Context, for_each};

/// Most columns that this kernel takes.
pub(crate) const MAX_COLS: usize = 4;
/// Bytes by which W is asked for ahead of its use: across the page that hardware prefetch stops at.
const AHEAD: usize = 2048;

/// Whether a product computed in `compute` goes this way: few columns, floating point, and blocks at
/// least a vector long where they are summed.
pub(crate) fn applies(call: &Dsd<'_>, compute: Option<DType>) -> bool {
    let lanes = match compute {
        Some(DType::F32) => level::current().vector_bytes() / 4,
        Some(DType::F64) => level::current().vector_bytes() / 8,
        _ => return false,
    };
    call.x.cols <= MAX_COLS && call.w.op_blocksize().1 >= lanes
}

/// One block with its slice of x, as the kernels see it. `rows × words`, padded to whole vectors.
pub(crate) struct Piece<L: Lanes> {
    w: *const L::Elem,
    rows: usize,
    words: usize,
    /// x for these words, columns `x_col` elements apart.
    x: *const L::Elem,
    x_col: usize,
    /// Sums: vectors of partial sums, one a row and column (dot), or one a row (axpy).
    sums: *mut L::Acc,
}

/// A compiled kernel for some number of columns.
pub(crate) type ThinFn<L> = unsafe fn(&Piece<L>);

/// `sums[r, c] += w[r, :] · x[:, c]`, as vectors of partial sums.
///
/// # Safety
/// `words` must be a multiple of the vector, and every pointer must cover what the piece says.
#[inline(always)]
pub(crate) unsafe fn dot<L: Lanes, const N: usize>(piece: &Piece<L>) {
    // SAFETY: the caller vouches for the pointers and the instruction set.
    unsafe {
        for r in 0..piece.rows {
            let row = piece.w.add(r * piece.words);
            let sums = piece.sums.add(r * N * L::LANES);
            let mut acc = [L::zero(); N];
            for (c, sum) in acc.iter_mut().enumerate() {
                *sum = L::load(sums.add(c * L::LANES));
            }
            for word in (0..piece.words).step_by(L::LANES) {
                L::prefetch(row.add(word).wrapping_byte_add(AHEAD));
                let w = L::load_x(row.add(word));
                for (c, sum) in acc.iter_mut().enumerate() {
                    *sum = L::mul_add(w, L::load_x(piece.x.add(c * piece.x_col + word)), *sum);
                }
            }
            for (c, sum) in acc.iter().enumerate() {
                L::store(sums.add(c * L::LANES), *sum);
            }
        }
    }
}

/// `sums[c, :] += Σ_k w[k, :] · x[k, c]` for blocks stored with the summed dimension outermost.
///
/// # Safety
/// `rows` must be a multiple of the vector, and every pointer must cover what the piece says.
#[inline(always)]
pub(crate) unsafe fn axpy<L: Lanes, const N: usize>(piece: &Piece<L>) {
    // SAFETY: the caller vouches for the pointers and the instruction set.
    unsafe {
        for r in (0..piece.rows).step_by(L::LANES) {
            let mut acc = [L::zero(); N];
            for (c, sum) in acc.iter_mut().enumerate() {
                *sum = L::load(piece.sums.add(c * piece.rows + r));
            }
            for k in 0..piece.words {
                let at = piece.w.add(k * piece.rows + r);
                L::prefetch(at.wrapping_byte_add(AHEAD));
                let w = L::load_x(at);
                for (c, sum) in acc.iter_mut().enumerate() {
                    *sum = L::mul_add(w, L::splat(piece.x.add(c * piece.x_col + k)), *sum);
                }
            }
            for (c, sum) in acc.iter().enumerate() {
                L::store(piece.sums.add(c * piece.rows + r), *sum);
            }
        }
    }
}

struct Job<'a, L: Lanes> {
    call: &'a Dsd<'a>,
    pattern: &'a Pattern,
    convert_w: Convert<L::Elem>,
    store: Store<L::Acc>,
    x: *const L::Elem,
    /// Elements of one block's slice of x.
    slice_len: usize,
    /// Words of a block, padded to whole vectors.
    padded: usize,
    form: Form,
}

/// How stored blocks are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As they are, row by row.
    Rows,
    /// As they are, the summed dimension outermost.
    Columns,
    /// As they are, groups of rows together: a vector holds some words of a whole group.
    Groups(usize),
    /// Through a copy, row by row.
    Copied,
}

// SAFETY: as for the panel driver: operands are shared for reading, results are disjoint.
unsafe impl<L: Lanes> Sync for Job<'_, L> {}

/// Runs a product of at most [`MAX_COLS`] columns with the vector type `L`.
pub(crate) fn run<L>(call: &Dsd<'_>, context: &Context<'_>) -> Result<(), Error>
where
    L: Lanes,
    L::Elem: Element,
    L::Acc: Sum,
{
    let fault = || call.no_kernel();
    let convert_w = <L::Elem as Element>::convert(call.w.dtype).ok_or_else(fault)?;
    let convert_x = <L::Elem as Element>::convert(call.x.dtype).ok_or_else(fault)?;
    let store = <L::Acc as Sum>::store(call.out.view.dtype).ok_or_else(fault)?;
    let pattern = call.w.op_pattern();
    let (block_rows, block_cols) = call.w.op_blocksize();
    let native = <L::Elem as Element>::NATIVE == Some(call.w.dtype);
    let group = call.w.group;
    let form = match (native, call.w.transposed) {
        (true, false)
            if group > 0
                && L::LANES.is_multiple_of(group)
                && (block_cols * group).is_multiple_of(L::LANES) =>
        {
            Form::Groups(group)
        }
        (true, _) if group > 0 => Form::Copied,
        (true, false) if block_cols.is_multiple_of(L::LANES) => Form::Rows,
        (true, true) if block_rows.is_multiple_of(L::LANES) => Form::Columns,
        _ => Form::Copied,
    };
    let padded = block_cols.next_multiple_of(L::LANES);
    // Each word of x stands as often as a group has rows.
    let repeat = if let Form::Groups(group) = form { group } else { 1 };
    let slice_len = if repeat > 1 { block_cols * repeat } else { padded };
    let length = pattern.block_cols().saturating_mul(slice_len);
    let x = Workspace::of(&[pattern.block_cols(), slice_len, call.x.cols, size_of::<L::Elem>()])?;
    let to: *mut L::Elem = x.as_ptr().cast();
    // Slices with nothing between them are converted in one go.
    let (cut, end) = match slice_len == block_cols {
        true => (call.x.rows.max(1), length),
        false => (block_cols, slice_len / repeat),
    };
    for first in (0..call.x.rows).step_by(cut) {
        let depth = cut.min(call.x.rows - first);
        let rect = Rect {
            src: call.x.at(first, 0),
            rows: call.x.cols,
            cols: depth,
            row_stride: call.x.col_stride,
            col_stride: call.x.row_stride,
        };
        // SAFETY: x is readable there, and its slices have room.
        unsafe {
            let slice = to.add(first / block_cols * slice_len);
            convert_x(&rect, slice, length);
            for column in 0..call.x.cols {
                let slice = slice.add(column * length);
                for i in depth..end {
                    slice.add(i).write(L::Elem::default());
                }
                // Back to front, so that no word is overwritten before it is spread.
                for word in (0..end).rev().take_while(|_| repeat > 1) {
                    let value = *slice.add(word);
                    for i in 0..repeat {
                        slice.add(word * repeat + i).write(value);
                    }
                }
            }
        }
    }
    let job = Job::<L> { call, pattern: &pattern, convert_w, store, x: to, slice_len, padded, form };
    let work = (block_rows * block_cols * call.x.cols * plan::THIN_WEIGHT) as u64;
    let ranges = plan::row_ranges(pattern.indptr(), work, context.threads, 1);
    for_each(context, ranges.len(), |task| job.rows(&ranges[task]))
}

impl<L> Job<'_, L>
where
    L: Lanes,
    L::Elem: Element,
    L::Acc: Sum,
{
    fn rows(&self, rows: &Range<usize>) -> Result<(), Error> {
        let w = &self.call.w;
        let (block_rows, block_cols) = w.op_blocksize();
        let n = self.call.x.cols;
        let lanes = if self.form == Form::Columns { 1 } else { L::LANES };
        // Sums, totals and a copied block, one after another.
        let sizes = [
            block_rows.saturating_mul(n * lanes * size_of::<L::Acc>()),
            block_rows.saturating_mul(n * size_of::<L::Acc>()),
            block_rows.saturating_mul(self.padded.saturating_mul(size_of::<L::Elem>())),
        ]
        .map(|bytes: usize| bytes.checked_next_multiple_of(64).unwrap_or(usize::MAX));
        let workspace =
            Workspace::take(sizes.iter().fold(0, |sum: usize, &bytes| sum.saturating_add(bytes)))?;
        let sums = workspace.as_ptr().cast::<L::Acc>();
        let totals = workspace.as_ptr().wrapping_add(sizes[0]).cast::<L::Acc>();
        let copy = workspace.as_ptr().wrapping_add(sizes[0] + sizes[1]).cast::<L::Elem>();
        let kernel = L::thin(n, self.form == Form::Columns);
        let dot = L::thin(n, false);
        let base = w.source.contiguous();
        let block_bytes = block_rows * block_cols * w.dtype.size();
        let length = self.pattern.block_cols() * self.slice_len;
        let (indptr, indices) = (self.pattern.indptr(), self.pattern.indices());
        let entries = indptr[rows.start]..indptr[rows.end];
        w.source.announce(&mut entries.map(|e| self.pattern.block(e)));
        for row in rows.clone() {
            let first = row * block_rows;
            let count = block_rows.min(self.call.out.view.rows - first);
            // SAFETY: the sums have room for a block row.
            unsafe { clear(sums, block_rows * n * lanes) };
            let entries = indptr[row]..indptr[row + 1];
            for (e, &column) in entries.clone().zip(&indices[entries]) {
                let block = self.pattern.block(e);
                let stored = match base {
                    Some(base) => base.wrapping_add(block * block_bytes),
                    None => w.source.block(block)?,
                };
                let column = column as usize;
                let depth = block_cols.min(self.call.x.rows - column * block_cols);
                let x = self.x.wrapping_add(column * self.slice_len);
                let piece = |w: *const L::Elem, rows: usize, words: usize| Piece::<L> {
                    w,
                    rows,
                    words,
                    x,
                    x_col: length,
                    sums,
                };
                // Padding past the last column may hold anything: such a block is copied without it.
                // (Columns of a transposed operand are outermost: they are simply left off.)
                match self.form {
                    // SAFETY: sizes are multiples of the vector; the block and its slice are whole.
                    Form::Rows if depth == block_cols => unsafe {
                        kernel(&piece(stored.cast(), block_rows, block_cols))
                    },
                    // SAFETY: as above.
                    Form::Columns => unsafe { kernel(&piece(stored.cast(), block_rows, depth)) },
                    // Packing zeroed what lies past the last column.
                    // SAFETY: as above.
                    Form::Groups(g) => unsafe {
                        dot(&piece(stored.cast(), block_rows / g, block_cols * g));
                    },
                    // SAFETY: the copy has room for a padded block.
                    _ => unsafe {
                        self.copy(stored, depth, copy);
                        dot(&piece(copy, block_rows, self.padded));
                    },
                }
            }
            // SAFETY: both hold a block row.
            unsafe {
                for r in 0..count {
                    for c in 0..n {
                        let total = match self.form {
                            Form::Columns => *sums.add(c * block_rows + r),
                            Form::Groups(g) => {
                                add_lanes(sums.add((r / g * n + c) * lanes + r % g), lanes / g, g)
                            }
                            _ => add_lanes(sums.add((r * n + c) * lanes), lanes, 1),
                        };
                        totals.add(r * n + c).write(total);
                    }
                }
            }
            self.finish(totals, first, count);
        }
        Ok(())
    }

    /// Copies a block row by row, converted, rows padded with zeros from `depth` on.
    unsafe fn copy(&self, stored: *const u8, depth: usize, to: *mut L::Elem) {
        let w = &self.call.w;
        let (block_rows, _) = w.op_blocksize();
        // SAFETY: the caller provides a block and room for `block_rows × padded`.
        unsafe {
            copy_block(w, stored, 0..block_rows, depth, self.convert_w, to, self.padded);
            for r in 0..block_rows {
                for c in depth..self.padded {
                    to.add(r * self.padded + c).write(L::Elem::default());
                }
            }
        }
    }

    fn finish(&self, totals: *const L::Acc, first: usize, count: usize) {
        let out = &self.call.out;
        let finished = Finished {
            sums: totals,
            sums_row: self.call.x.cols,
            rows: count,
            cols: self.call.x.cols,
            first_row: first,
            out: out.at(first, 0),
            row_stride: out.view.row_stride,
            col_stride: out.view.col_stride,
        };
        // SAFETY: the totals are complete, and these rows of the result are this task's.
        unsafe { (self.store)(&finished, &self.call.epilogue) };
    }
}

unsafe fn clear<A: Default>(at: *mut A, count: usize) {
    for i in 0..count {
        // SAFETY: the caller provides `count` elements.
        unsafe { at.add(i).write(A::default()) };
    }
}

/// Adds up partial sums `stride` apart, pairwise, in an order that depends on nothing but their number.
unsafe fn add_lanes<A: Sum>(at: *mut A, lanes: usize, stride: usize) -> A {
    let mut left = lanes;
    while left > 1 {
        left /= 2;
        for i in 0..left {
            // SAFETY: the caller provides `lanes` sums, a power of two.
            unsafe {
                let sum = (*at.add(i * stride)).add(*at.add((i + left) * stride));
                at.add(i * stride).write(sum);
            }
        }
    }
    // SAFETY: as above.
    unsafe { *at }
}
