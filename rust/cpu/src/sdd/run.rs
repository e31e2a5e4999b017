//! The driver: packed chunks of b against packed chunks of a.
//!
//! Loop order: group of block rows → chunk of the inner dimension → group of block columns → block
//! column → its blocks → strip → burst → tile. A chunk of a's rows stays in the last cache while every
//! block column sweeps it; a group of b's columns is packed into the second cache as it is reached,
//! and serves every block of those columns. Sums wait in the result between chunks, or in a buffer
//! where the result rounds them.

use std::ops::Range;

use prunus_core::Error;

use super::Sdd;
use super::plan::{self, Entry};
use crate::dsd::convert::{Convert, Element, Rect};
use crate::dsd::plan::{BURST_WORDS, row_ranges};
use crate::dsd::store::{Store, Sum};
use crate::dsd::tile::Block;
use crate::memory::Workspace;
use crate::product::{self, Product};
use crate::simd::Lanes;
use crate::threads::{Context, for_each};

/// Rows that are copied before the next stretch of columns: enough for a transposing copy, and the
/// copy still runs along memory.
const PACK_ROWS: usize = 16;
/// Marks a block row without blocks.
const NONE: u32 = u32::MAX;

/// Runs a product with the vector type `L`.
pub(super) fn run<L>(call: &Sdd<'_>, context: &Context<'_>) -> Result<(), Error>
where
    L: Lanes,
    L::Elem: Element,
    L::Acc: Sum,
{
    let fault = || call.no_kernel();
    let (block_rows, block_cols) = call.out.blocksize;
    let size = size_of::<L::Elem>();
    let direct = call.out.dtype == <L::Acc as Sum>::NATIVE
        && block_cols.is_multiple_of(L::LANES)
        && call.out.at(0).cast::<L::Acc>().is_aligned();
    let chunks = plan::chunks(call.a.cols, L::STEP, size);
    let longest = chunks.first().map_or(0, ExactSizeIterator::len);
    let together = plan::rows_together(block_rows, longest, size);
    let (entries, ends) = plan::entries(call.pattern, together);
    let sums_row = if direct { block_cols } else { product::padded::<L>(block_cols) };
    let most =
        if direct { usize::MAX } else { plan::blocks_together(block_rows * sums_row * size_of::<L::Acc>()) };
    let mut job = Job::<L> {
        call,
        convert_a: <L::Elem as Element>::convert(call.a.dtype).ok_or_else(fault)?,
        convert_b: <L::Elem as Element>::convert(call.b.dtype).ok_or_else(fault)?,
        store: <L::Acc as Sum>::store(call.out.dtype).ok_or_else(fault)?,
        entries: &[],
        slots: Vec::new(),
        chunk: 0..0,
        ends: (false, false),
        a: std::ptr::null_mut(),
        sums: std::ptr::null_mut(),
        sums_row,
    };
    let mut start = 0;
    for group in ends {
        for first in (start..group).step_by(most) {
            let last = group.min(first.saturating_add(most));
            job.turn(&entries[first..last], &chunks, direct, context)?;
        }
        start = group;
    }
    Ok(())
}

/// What all tasks of one chunk share.
struct Job<'a, L: Lanes> {
    call: &'a Sdd<'a>,
    convert_a: Convert<L::Elem>,
    convert_b: Convert<L::Elem>,
    store: Store<L::Acc>,
    entries: &'a [Entry],
    /// Where a block row of a is packed, counted from the first row of `entries`' group.
    slots: Vec<u32>,
    chunk: Range<usize>,
    /// Whether the chunk is the first, and the last.
    ends: (bool, bool),
    a: *mut L::Elem,
    /// Sums of `entries`, or null where the result holds them itself.
    sums: *mut L::Acc,
    sums_row: usize,
}

// SAFETY: the pointers lead to operands shared for reading, to a packed chunk of a that is complete
// before the tasks that read it start, and to sums of which each task writes its own.
unsafe impl<L: Lanes> Sync for Job<'_, L> {}

impl<'a, L> Job<'a, L>
where
    L: Lanes,
    L::Elem: Element,
    L::Acc: Sum,
{
    /// Computes some blocks, all of one group of block rows.
    fn turn(
        &mut self,
        entries: &'a [Entry],
        chunks: &[Range<usize>],
        direct: bool,
        context: &Context<'_>,
    ) -> Result<(), Error> {
        let (block_rows, block_cols) = self.call.out.blocksize;
        self.entries = entries;
        let Some(longest) = chunks.first().map(ExactSizeIterator::len) else {
            return self.zeros();
        };
        let live = self.find_rows();
        let a = Workspace::of(&[live.len(), self.slot(longest), size_of::<L::Elem>()])?;
        self.a = a.as_ptr().cast();
        let sums = (!direct)
            .then(|| Workspace::of(&[entries.len(), block_rows, self.sums_row, size_of::<L::Acc>()]))
            .transpose()?;
        self.sums = sums.as_ref().map_or(std::ptr::null_mut(), |sums| sums.as_ptr().cast());
        let offsets: Vec<usize> = (0..=entries.len()).collect();
        for (i, chunk) in chunks.iter().enumerate() {
            self.chunk = chunk.clone();
            self.ends = (i == 0, i + 1 == chunks.len());
            let job = &*self;
            for_each(context, live.len(), |i| {
                job.pack_a(live[i], i);
                Ok(())
            })?;
            let work = (block_rows * block_cols * chunk.len()) as u64;
            let ranges = row_ranges(&offsets, work, context.threads, 1);
            for_each(context, ranges.len(), |i| job.blocks(&ranges[i]))?;
        }
        Ok(())
    }

    /// The result of an empty sum.
    fn zeros(&self) -> Result<(), Error> {
        for entry in self.entries {
            // SAFETY: a block of the result, which is the call's.
            unsafe { product::zero_padding(&self.call.out, entry.block as usize, (0, 0)) };
        }
        Ok(())
    }

    /// Numbers the block rows that have blocks among the entries.
    fn find_rows(&mut self) -> Vec<u32> {
        self.slots.clear();
        self.slots.resize(self.call.pattern.block_rows(), NONE);
        let mut live = Vec::new();
        for entry in self.entries {
            let slot = &mut self.slots[entry.row as usize];
            if *slot == NONE {
                *slot = live.len() as u32;
                live.push(entry.row);
            }
        }
        live
    }

    /// Elements that one block row of a takes when `length` of its columns are packed.
    fn slot(&self, length: usize) -> usize {
        self.call.out.blocksize.0 * length.next_multiple_of(L::STEP)
    }

    /// Words of the inner dimension in the chunk.
    fn words(&self) -> usize {
        self.chunk.len().div_ceil(L::STEP)
    }

    /// Elements from one row of a packed piece of a to the next.
    fn piece(&self) -> usize {
        BURST_WORDS.min(self.words()) * L::STEP
    }

    /// Copies the chunk's columns of block row `row` of a: pieces of a burst's length one after another, the
    /// rows of a piece adjacent.
    fn pack_a(&self, row: u32, slot: usize) {
        let a = &self.call.a;
        let block_rows = self.call.out.blocksize.0;
        let first = row as usize * block_rows;
        let count = block_rows.min(a.rows - first);
        let dst = self.a.wrapping_add(slot * self.slot(self.chunk.len()));
        let piece = self.piece();
        for r in (0..count).step_by(PACK_ROWS) {
            for (i, k) in self.chunk.clone().step_by(piece).enumerate() {
                let cols = piece.min(self.chunk.end - k);
                // The last piece may be shorter, and so are its rows.
                let dst_row = cols.next_multiple_of(L::STEP);
                let rect = Rect {
                    src: a.at(first + r, k),
                    rows: PACK_ROWS.min(count - r),
                    cols,
                    row_stride: a.row_stride,
                    col_stride: a.col_stride,
                };
                let dst = dst.wrapping_add(i * block_rows * piece + r * dst_row);
                // SAFETY: inside a; the slot holds the rows of every piece, and is this task's.
                unsafe { product::pack_rows::<L>(self.convert_a, &rect, dst, dst_row) };
            }
        }
    }

    /// Adds the chunk's products to the blocks of `range`.
    fn blocks(&self, range: &Range<usize>) -> Result<(), Error> {
        let (block_rows, block_cols) = self.call.out.blocksize;
        let strips = product::strips_stacked::<L>(block_rows, block_cols, self.words());
        let column_words = self.words() * product::padded::<L>(block_cols) * L::STEP;
        let most = (plan::COLUMNS_BYTES / (column_words * size_of::<L::Elem>()).max(1)).max(1);
        let entries = &self.entries[range.clone()];
        let packed = Workspace::of(&[most, column_words, size_of::<L::Elem>()])?;
        let packed = packed.as_ptr().cast::<L::Elem>();
        let columns: Vec<&[Entry]> = entries.chunk_by(|a, b| a.column == b.column).collect();
        let mut pieces = Vec::new();
        let mut number = range.start;
        for group in columns.chunks(most) {
            for r in (0..self.chunk.len()).step_by(PACK_ROWS) {
                for (i, column) in group.iter().enumerate() {
                    let dst = packed.wrapping_add(i * column_words);
                    self.pack_b(&strips, column[0].column, r, dst);
                }
            }
            for (i, column) in group.iter().enumerate() {
                let x = packed.wrapping_add(i * column_words);
                self.column(column, number, x, &strips, &mut pieces);
                number += column.len();
            }
        }
        Ok(())
    }

    /// Copies some rows of the chunk, from its row `r` on, of a block column of b.
    fn pack_b(&self, strips: &[product::Strip], column: u32, r: usize, dst: *mut L::Elem) {
        let b = &self.call.b;
        let first = column as usize * self.call.out.blocksize.1;
        for strip in strips {
            let col = first + strip.col;
            let rect = Rect {
                src: b.at(self.chunk.start + r, col),
                rows: PACK_ROWS.min(self.chunk.len() - r),
                cols: strip.cols.min(b.cols.saturating_sub(col)),
                row_stride: b.row_stride,
                col_stride: b.col_stride,
            };
            let dst = dst.wrapping_add(strip.offset + r / L::STEP * strip.word);
            // SAFETY: inside b; the buffer holds every word of the strip, and is this task's.
            unsafe { product::pack_words::<L>(self.convert_b, &rect, strip, dst) };
        }
    }

    /// Adds the chunk's products to blocks of one block column, the first of them entry `number`.
    fn column(
        &self,
        entries: &[Entry],
        number: usize,
        x: *const L::Elem,
        strips: &[product::Strip],
        pieces: &mut Vec<Block<L::Elem>>,
    ) {
        let block_rows = self.call.out.blocksize.0;
        let (words, piece) = (self.words(), self.piece() / L::STEP);
        let slot = self.slot(self.chunk.len());
        pieces.clear();
        for entry in entries {
            let a = self.a.wrapping_add(self.slots[entry.row as usize] as usize * slot).cast_const();
            for word in (0..words).step_by(piece) {
                pieces.push(Block {
                    w: a.wrapping_add(word * block_rows * L::STEP),
                    k: word,
                    words: piece.min(words - word),
                });
            }
        }
        let each = words.div_ceil(piece);
        for (i, entry) in entries.iter().enumerate() {
            self.block(entry, number + i, x, strips, &pieces[i * each..], each);
        }
    }

    /// Adds the chunk's product to one block; its pieces are the first `each` of `pieces`.
    fn block(
        &self,
        entry: &Entry,
        number: usize,
        x: *const L::Elem,
        strips: &[product::Strip],
        pieces: &[Block<L::Elem>],
        each: usize,
    ) {
        let (call, block) = (self.call, entry.block as usize);
        let (block_rows, block_cols) = call.out.blocksize;
        let inside = (
            block_rows.min(call.a.rows - entry.row as usize * block_rows),
            block_cols.min(call.b.cols - entry.column as usize * block_cols),
        );
        let (sums, is_direct) = if self.sums.is_null() {
            (call.out.at(block).cast::<L::Acc>(), true)
        } else {
            (self.sums.wrapping_add(number * block_rows * self.sums_row), false)
        };
        let (whole, short) = (self.piece(), self.words() * L::STEP % self.piece());
        let product = |pieces, next, w_row: usize, starts| Product::<L> {
            blocks: pieces,
            next,
            next_lines: usize::MAX,
            fetch_w: true,
            rows: inside.0,
            w_row,
            w_word: L::STEP,
            x,
            strips,
            out: sums,
            out_row: self.sums_row,
            starts,
        };
        let full = if short == 0 { each } else { each - 1 };
        let next = &pieces[each..];
        // SAFETY: the level in use has the instruction set; pieces and x cover the chunk's words, and the
        // block, or its slot among the sums, has room for every row and vector and is this task's.
        unsafe {
            product(&pieces[..full], if short == 0 { next } else { &pieces[full..] }, whole, self.ends.0)
                .sum();
            if short > 0 {
                product(&pieces[full..each], next, short, self.ends.0 && full == 0).sum();
            }
            if self.ends.1 {
                if !is_direct {
                    product::finish(self.store, (sums.cast_const(), self.sums_row), &call.out, block, inside);
                } else if inside != (block_rows, block_cols) {
                    product::zero_padding(&call.out, block, inside);
                }
            }
        }
    }
}
