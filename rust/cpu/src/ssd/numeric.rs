//! Numeric phase: each block of the result as one sum over its pairs of blocks.
//!
//! Loop order: turn of columns → block row → block of the result → strip → burst of pairs → tile. The
//! pairs of a block row that meet in a block of the result are listed first, grouped by that block, so
//! that sums stay in registers over a burst. Blocks of B are read where they lie if the kernel can
//! (as one long panel of x: word `w` of stored block `s` is word `s · k + w`), else a turn of them
//! is packed.

use std::ops::Range;

use prunus_core::{BlocksMut, Error};

use super::Plan;
use crate::dsd::convert::{Convert, Element, Rect};
use crate::dsd::plan::{BURST_WORDS, row_ranges};
use crate::dsd::store::{Store, Sum};
use crate::dsd::tile::Block;
use crate::memory::Workspace;
use crate::product::{self, Product, Strip};
use crate::simd::Lanes;
use crate::threads::{Context, for_each};

/// The place of a block column that the row at hand does not want.
const ABSENT: u32 = u32::MAX;
/// Bytes of packed B kept at a time; a larger B is multiplied a range of block columns at a time.
const PACKED_BYTES: usize = 48 << 20;

/// Block columns that are done at a time.
struct Turn {
    columns: Range<usize>,
    /// For each block row of B, its entries in those columns.
    entries: Vec<Range<usize>>,
    /// Where B is packed, the slot of the first of them.
    slots: Option<Vec<usize>>,
}

/// What all tasks of a turn share.
struct Job<'a, L: Lanes> {
    plan: &'a Plan<'a>,
    out: &'a BlocksMut<'a>,
    turn: &'a Turn,
    x: *const L::Elem,
    strips: &'a [Strip],
    convert_a: Convert<L::Elem>,
    convert_b: Convert<L::Elem>,
    store: Store<L::Acc>,
    /// Whether blocks of A are read as they are.
    native_a: bool,
    /// Whether sums go straight into the result.
    direct: bool,
}

// SAFETY: the pointers lead to operands shared for reading and to a packed B that is complete before
// the tasks that read it start; tasks write disjoint blocks of the result.
unsafe impl<L: Lanes> Sync for Job<'_, L> {}

/// Fills the result with the vector type `L`.
pub(super) fn run<L>(plan: &Plan<'_>, out: &BlocksMut<'_>, context: &Context<'_>) -> Result<(), Error>
where
    L: Lanes,
    L::Elem: Element,
    L::Acc: Sum,
{
    let fault = || plan.no_kernel(out.dtype);
    let (a, b) = (&plan.call.a, &plan.call.b);
    let convert_a = <L::Elem as Element>::convert(a.dtype).ok_or_else(fault)?;
    let convert_b = <L::Elem as Element>::convert(b.dtype).ok_or_else(fault)?;
    let store = <L::Acc as Sum>::store(out.dtype).ok_or_else(fault)?;
    let ((block_rows, block_cols), depth) = (plan.blocksize(), a.op_blocksize().1);
    let (aligned_a, aligned_b) =
        (aligned::<L::Elem>(a.source.contiguous()), aligned::<L::Elem>(b.source.contiguous()));
    // A word may not straddle two rows of a block or run into the padding past the last column.
    let native = <L::Elem as Element>::NATIVE;
    let inner = a.op_shape().1;
    let whole_words =
        L::STEP == 1 || (!a.transposed && depth.is_multiple_of(L::STEP) && inner.is_multiple_of(L::STEP));
    let native_a = native == Some(a.dtype) && aligned_a && whole_words;
    let whole_vectors = block_cols.is_multiple_of(L::LANES);
    let in_place = native == Some(b.dtype) && aligned_b && L::STEP == 1 && !b.transposed && whole_vectors;
    let direct = out.dtype == <L::Acc as Sum>::NATIVE && whole_vectors && aligned::<L::Acc>(Some(out.at(0)));

    let strips = product::strips_of_rows::<L>(block_rows, block_cols);
    let words = depth.div_ceil(L::STEP);
    let slot_bytes =
        words.saturating_mul(product::padded::<L>(block_cols)).saturating_mul(L::STEP * size_of::<L::Elem>());
    let budget = if in_place { usize::MAX } else { (PACKED_BYTES / slot_bytes.max(1)).max(1) };
    for turn in turns(plan, budget, !in_place) {
        let count: usize = turn.entries.iter().map(ExactSizeIterator::len).sum();
        let packed = turn.slots.as_ref().map(|_| Workspace::of(&[count, slot_bytes])).transpose()?;
        let x = match (&packed, b.source.contiguous()) {
            (None, Some(base)) => base.cast::<L::Elem>(),
            (Some(packed), _) => packed.as_ptr().cast::<L::Elem>().cast_const(),
            (None, None) => return Err(fault()),
        };
        let job = Job::<L> {
            plan,
            out,
            turn: &turn,
            x,
            strips: &strips,
            convert_a,
            convert_b,
            store,
            native_a,
            direct,
        };
        if let Some(slots) = &turn.slots {
            let ranges = row_ranges(slots, (slot_bytes / size_of::<L::Elem>()) as u64, context.threads, 1);
            for_each(context, ranges.len(), |i| job.pack(slots, &ranges[i]))?;
        }
        let (offsets, unit) = plan.shares();
        let ranges = row_ranges(offsets, unit, context.threads, 1);
        for_each(context, ranges.len(), |i| job.rows(&ranges[i]))?;
    }
    Ok(())
}

/// Whether elements at `at` may be read as they are; a source without one address is asked block by
/// block, and promises nothing.
fn aligned<E>(at: Option<*const u8>) -> bool {
    at.is_some_and(|at| at.cast::<E>().is_aligned())
}

/// Cuts the block columns of B into turns of at most `budget` entries (or one column).
fn turns(plan: &Plan<'_>, budget: usize, packs: bool) -> Vec<Turn> {
    let b = &plan.b;
    let (first, last) = (b.indptr()[0], b.indptr()[b.block_rows()]);
    let mut cuts = vec![0];
    if last - first > budget {
        let mut counts = vec![0usize; b.block_cols()];
        b.indices()[first..last].iter().for_each(|&column| counts[column as usize] += 1);
        let mut held = 0;
        for (column, count) in counts.into_iter().enumerate() {
            if held > 0 && held + count > budget {
                cuts.push(column);
                held = 0;
            }
            held += count;
        }
    }
    cuts.push(b.block_cols());
    let turn = |cut: &[usize]| {
        let columns = cut[0]..cut[1];
        let part = |row: &[usize]| within(&b.indices()[row[0]..row[1]], &columns, row[0]);
        let entries: Vec<_> = b.indptr().windows(2).map(part).collect();
        let slots = packs.then(|| {
            let mut next = 0;
            let mut slots = vec![0];
            slots.extend(entries.iter().map(|range| {
                next += range.len();
                next
            }));
            slots
        });
        Turn { columns, entries, slots }
    };
    cuts.windows(2).map(turn).collect()
}

/// Which of some ascending indices, numbered from `first`, lie in `columns`.
fn within(indices: &[u32], columns: &Range<usize>, first: usize) -> Range<usize> {
    let before = |end: usize| first + indices.partition_point(|&column| (column as usize) < end);
    before(columns.start)..before(columns.end)
}

/// A task's own memory, kept from row to row.
struct Scratch<L: Lanes> {
    /// Values of A's blocks in the row at hand.
    a: Vec<*const L::Elem>,
    converted: Option<Workspace>,
    converted_bytes: usize,
    sums: Workspace,
    /// Which sum of the row at hand a block column has, or [`ABSENT`].
    place: Vec<u32>,
    /// Which of A's blocks in the row have a pair.
    used: Vec<bool>,
    ends: Vec<usize>,
    pieces: Vec<Block<L::Elem>>,
}

impl<L> Job<'_, L>
where
    L: Lanes,
    L::Elem: Element,
    L::Acc: Sum,
{
    /// Rows of op(A)'s and op(B)'s blocks that lie inside the inner dimension, in block `k`.
    fn depth(&self, k: usize) -> usize {
        let (inner, depth) = (self.plan.call.a.op_shape().1, self.plan.call.a.op_blocksize().1);
        depth.min(inner - k * depth)
    }

    /// Words between two slots of B.
    fn block_words(&self) -> usize {
        self.plan.call.a.op_blocksize().1.div_ceil(L::STEP)
    }

    /// Copies this turn's part of block rows `rows` of B into its slots.
    fn pack(&self, slots: &[usize], rows: &Range<usize>) -> Result<(), Error> {
        let b = &self.plan.call.b;
        let size = b.dtype.size() as isize;
        let stored_row = b.blocksize.1 as isize * size;
        let (row_stride, col_stride) = if b.transposed { (size, stored_row) } else { (stored_row, size) };
        let cols = b.op_shape().1;
        let block_cols = b.op_blocksize().1;
        let slot = self.block_words() * product::padded::<L>(block_cols) * L::STEP;
        let entries = rows.clone().flat_map(|k| self.turn.entries[k].clone());
        b.source.announce(&mut entries.map(|e| self.plan.b.block(e)));
        for k in rows.clone() {
            for (i, e) in self.turn.entries[k].clone().enumerate() {
                let stored = b.source.block(self.plan.b.block(e))?;
                let inside = block_cols.min(cols - self.plan.b.indices()[e] as usize * block_cols);
                let dst = self.x.cast_mut().wrapping_add((slots[k] + i) * slot);
                for strip in self.strips {
                    let rect = Rect {
                        src: stored.wrapping_offset(strip.col as isize * col_stride),
                        rows: self.depth(k),
                        cols: strip.cols.min(inside.saturating_sub(strip.col)),
                        row_stride,
                        col_stride,
                    };
                    // SAFETY: the block is readable, its slot holds all words; tasks have disjoint slots.
                    unsafe {
                        product::pack_words::<L>(
                            self.convert_b,
                            &rect,
                            strip,
                            dst.wrapping_add(strip.offset),
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// Computes the blocks of block rows `rows` that lie in this turn's columns.
    fn rows(&self, rows: &Range<usize>) -> Result<(), Error> {
        let (block_rows, block_cols) = self.plan.blocksize();
        let sums = if self.direct { 0 } else { block_rows.saturating_mul(product::padded::<L>(block_cols)) };
        let mut scratch = Scratch::<L> {
            a: Vec::new(),
            converted: None,
            converted_bytes: 0,
            sums: Workspace::of(&[sums, size_of::<L::Acc>()])?,
            place: vec![ABSENT; self.plan.b.block_cols()],
            used: Vec::new(),
            ends: Vec::new(),
            pieces: Vec::new(),
        };
        let entries = self.plan.a.indptr()[rows.start]..self.plan.a.indptr()[rows.end];
        self.plan.call.a.source.announce(&mut entries.map(|e| self.plan.a.block(e)));
        for row in rows.clone() {
            self.row(row, &mut scratch)?;
        }
        Ok(())
    }

    fn row(&self, row: usize, scratch: &mut Scratch<L>) -> Result<(), Error> {
        let (plan, result) = (self.plan, &self.plan.result);
        let (first, last) = (result.indptr()[row], result.indptr()[row + 1]);
        let entries = within(&result.indices()[first..last], &self.turn.columns, first);
        if entries.is_empty() {
            return Ok(());
        }
        let columns = &result.indices()[entries.clone()];
        match plan.costs {
            Some(_) => self.list::<true>(row, columns, scratch)?,
            None => self.list::<false>(row, columns, scratch)?,
        }
        let (block_rows, block_cols) = plan.blocksize();
        let (rows, cols) = (plan.call.a.op_shape().0, plan.call.b.op_shape().1);
        let (w_row, w_word) = self.layout_a();
        let lines = (self.block_words() * self.strips[0].word * size_of::<L::Elem>()).div_ceil(64);
        let inside_rows = block_rows.min(rows - row * block_rows);
        let (mut sum, mut start) = (0, 0);
        for (i, entry) in entries.enumerate() {
            // Entries that name one place have one list of pairs.
            if i > 0 && columns[i] != columns[i - 1] {
                start = scratch.ends[sum];
                sum += 1;
            }
            let block = result.block(entry);
            let inside = (inside_rows, block_cols.min(cols - columns[i] as usize * block_cols));
            let end = scratch.ends[sum];
            let next = scratch.ends.get(sum + 1).copied().unwrap_or(end);
            if start == end {
                // SAFETY: this block of the result is this task's.
                unsafe { product::zero_padding(self.out, block, (0, 0)) };
                continue;
            }
            let (out, out_row) = if self.direct {
                (self.out.at(block).cast(), block_cols)
            } else {
                (scratch.sums.as_ptr().cast::<L::Acc>(), product::padded::<L>(block_cols))
            };
            let product = Product::<L> {
                blocks: &scratch.pieces[start..end],
                next: &scratch.pieces[end..next],
                next_lines: lines,
                fetch_w: false,
                rows: inside_rows,
                w_row,
                w_word,
                x: self.x,
                strips: self.strips,
                out,
                out_row,
                starts: true,
            };
            // SAFETY: the level in use has the instruction set; pieces name words of A's and B's blocks
            // within their depth; the block, or the scratch, has room for every row and vector, and
            // this block of the result is this task's.
            unsafe {
                product.sum();
                if !self.direct {
                    product::finish(self.store, (out.cast_const(), out_row), self.out, block, inside);
                } else if inside != (block_rows, block_cols) {
                    product::zero_padding(self.out, block, inside);
                }
            }
        }
        Ok(())
    }

    /// Elements from one row of A's blocks, as the kernel sees them, to the next, and from word to word.
    fn layout_a(&self) -> (usize, usize) {
        let a = &self.plan.call.a;
        match (self.native_a, a.transposed) {
            (true, false) => (a.blocksize.1, L::STEP),
            (true, true) => (1, a.blocksize.1),
            (false, _) => (a.op_blocksize().1.next_multiple_of(L::STEP), L::STEP),
        }
    }

    /// Lists the pairs of block row `row` that meet in a column of `columns`, which ascend, grouped by column
    /// and ascending in the inner index: `ends[i]` is where the pieces of the `i`-th distinct one end. Without
    /// `SOME`, all pairs meet in one.
    fn list<const SOME: bool>(
        &self,
        row: usize,
        columns: &[u32],
        scratch: &mut Scratch<L>,
    ) -> Result<(), Error> {
        let (a, b) = (&self.plan.a, &self.plan.b);
        let entries = a.indptr()[row]..a.indptr()[row + 1];
        // Long blocks are summed piece by piece: a piece of x must fit the first cache.
        let words = |k: usize| self.depth(k).div_ceil(L::STEP);
        let pairs = |e: usize| {
            let k = a.indices()[e] as usize;
            (k, self.turn.entries[k].clone())
        };
        // Small blocks take little longer than such a look.
        let absent = |at: u32| SOME && at == ABSENT;
        let Scratch { place, used, ends, .. } = scratch;
        ends.clear();
        for (i, &column) in columns.iter().enumerate() {
            if i == 0 || column != columns[i - 1] {
                place[column as usize] = ends.len() as u32;
                ends.push(0);
            }
        }
        used.clear();
        for e in entries.clone() {
            let (k, with) = pairs(e);
            let count = words(k).div_ceil(BURST_WORDS);
            let mut meets = !SOME;
            for &column in &b.indices()[with] {
                let at = place[column as usize];
                if !absent(at) {
                    ends[at as usize] += count;
                    meets = true;
                }
            }
            used.push(meets);
        }
        let mut total = 0;
        for end in ends.iter_mut() {
            // Holds the start for now; filling moves it to the end.
            total += std::mem::replace(end, total);
        }
        self.values_of_a(row, entries.clone(), scratch)?;
        let Scratch { a: values, place, used, ends, pieces, .. } = scratch;
        pieces.clear();
        pieces.resize(total, Block { w: std::ptr::null(), k: 0, words: 0 });
        let (_, w_word) = self.layout_a();
        let block_words = self.block_words();
        for ((value, e), &meets) in values.iter().zip(entries).zip(used.iter()) {
            if !meets {
                continue;
            }
            let (k, with) = pairs(e);
            let words = words(k);
            let start = with.start;
            for f in with {
                let at = place[b.indices()[f] as usize];
                if absent(at) {
                    continue;
                }
                let slot = match &self.turn.slots {
                    Some(slots) => slots[k] + f - start,
                    None => b.block(f),
                };
                let next = &mut ends[at as usize];
                for word in (0..words).step_by(BURST_WORDS) {
                    pieces[*next] = Block {
                        w: value.wrapping_add(word * w_word),
                        k: slot * block_words + word,
                        words: BURST_WORDS.min(words - word),
                    };
                    *next += 1;
                }
            }
        }
        if SOME {
            // As the next row expects them.
            columns.iter().for_each(|&column| place[column as usize] = ABSENT);
        }
        Ok(())
    }

    /// Finds the values of A's blocks that have a pair, converted where need be.
    fn values_of_a(&self, row: usize, entries: Range<usize>, scratch: &mut Scratch<L>) -> Result<(), Error> {
        let a = &self.plan.call.a;
        let (block_rows, depth) = a.op_blocksize();
        let size = a.dtype.size() as isize;
        let stored_row = a.blocksize.1 as isize * size;
        let (row_stride, col_stride) = if a.transposed { (size, stored_row) } else { (stored_row, size) };
        let padded = depth.next_multiple_of(L::STEP);
        let bytes = entries.len() * block_rows * padded * size_of::<L::Elem>();
        if !self.native_a && (scratch.converted.is_none() || scratch.converted_bytes < bytes) {
            scratch.converted = Some(Workspace::take(bytes)?);
            scratch.converted_bytes = bytes;
        }
        let rows = block_rows.min(a.op_shape().0 - row * block_rows);
        scratch.a.clear();
        for (i, e) in entries.enumerate() {
            if !scratch.used[i] {
                scratch.a.push(std::ptr::null());
                continue;
            }
            let stored = a.source.block(self.plan.a.block(e))?;
            let Some(converted) = &scratch.converted else {
                scratch.a.push(stored.cast());
                continue;
            };
            let cols = self.depth(self.plan.a.indices()[e] as usize);
            let dst = converted.as_ptr().cast::<L::Elem>().wrapping_add(i * block_rows * padded);
            let rect = Rect { src: stored, rows, cols, row_stride, col_stride };
            // SAFETY: the block is readable inside the shape, and its slot holds its rows.
            unsafe { product::pack_rows::<L>(self.convert_a, &rect, dst, padded) };
            scratch.a.push(dst.cast_const());
        }
        Ok(())
    }
}
