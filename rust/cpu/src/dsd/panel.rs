//! The general driver: panels of x against block rows of W.
//!
//! Loop order: super-panel of columns → block row → part of the row's blocks → panel → burst of
//! blocks → tile. A burst's slice of x and the sums of a block row stay in the first cache while the
//! tiles of all row groups use them; W's part stays in the second while every panel sweeps it.

use std::ops::Range;
use std::ptr;

use prunus_core::{Error, Pattern};

use super::Dsd;
use super::blocks::{BlockLayout, copy_block};
use super::convert::{Convert, Element, Rect};
use super::pack::{self, Cut, View};
use super::parts::take_sums;
use super::plan::{self, Panel};
use super::store::{Finished, Store, Sum};
use super::tile::{Block, Tile};
use crate::memory::Workspace;
use crate::simd::Lanes;
use crate::threads::{Context, for_each};

/// What all tasks of one product share.
struct Job<'a, L: Lanes> {
    call: &'a Dsd<'a>,
    pattern: &'a Pattern,
    convert_w: Convert<L::Elem>,
    store: Store<L::Acc>,
    panels: &'a [Panel],
    views: &'a [View<L::Elem>],
    /// Whether the stored blocks are read as they are.
    native_w: bool,
}

// SAFETY: the pointers lead to operands shared for reading and to a packed x that is complete before
// the tasks that read it start; writes go to disjoint rows and columns of the result.
unsafe impl<L: Lanes> Sync for Job<'_, L> {}

/// Runs a product with the vector type `L`.
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
    let k = call.x.rows;
    // A word may not straddle two rows of a block or run into the padding past the last column.
    // Words of a grouped operand are single elements.
    let native_w = <L::Elem as Element>::NATIVE == Some(call.w.dtype)
        && (L::STEP == 1
            || (!call.w.transposed
                && call.w.group == 0
                && block_cols.is_multiple_of(L::STEP)
                && k.is_multiple_of(L::STEP)));
    if let Some(packed) = call.packed.filter(|packed| packed.fits::<L>((block_rows, block_cols))) {
        let (panels, views) = (packed.panels(), packed.views::<L>());
        let views = views.as_slice();
        let job = Job::<L> { call, pattern: &pattern, convert_w, store, panels, views, native_w };
        return job.run(call.x.cols, context);
    }
    let reuse = pattern.len() * block_rows / pattern.block_cols().max(1);
    let mut used = vec![false; pattern.block_cols()];
    pattern.indices().iter().for_each(|&column| used[column as usize] = true);
    let cut = Cut { grid: pattern.block_cols(), block_cols, reuse, used: &used };
    let turn = plan::columns_per_turn(k, size_of::<L::Elem>(), L::LANES);
    for first in (0..call.x.cols).step_by(turn) {
        let cols = turn.min(call.x.cols - first);
        let mut panels = plan::panels(cols, L::LANES, L::REGISTERS, block_rows);
        panels.iter_mut().for_each(|panel| panel.col += first);
        let x = pack::panels::<L>(&call.x, convert_x, cut, &panels, context)?;
        let job = Job::<L> {
            call,
            pattern: &pattern,
            convert_w,
            store,
            panels: &panels,
            views: x.views(),
            native_w,
        };
        job.run(cols, context)?;
    }
    Ok(())
}

impl<L> Job<'_, L>
where
    L: Lanes,
    L::Elem: Element,
    L::Acc: Sum,
{
    /// Computes all rows of the panels' `cols` columns.
    fn run(&self, cols: usize, context: &Context<'_>) -> Result<(), Error> {
        let (block_rows, block_cols) = self.call.w.op_blocksize();
        let groups = plan::super_panels(self.panels);
        let columns = cols.div_ceil(groups.len().max(1)).next_multiple_of(L::LANES);
        let work = (block_rows * block_cols * columns) as u64;
        let ranges = plan::row_ranges(self.pattern.indptr(), work, context.threads, groups.len());
        for_each(context, groups.len() * ranges.len(), |task| {
            self.rows(&groups[task / ranges.len()], &ranges[task % ranges.len()])
        })
    }

    /// Computes block rows `rows` for the columns of one super-panel.
    fn rows(&self, group: &Range<usize>, rows: &Range<usize>) -> Result<(), Error> {
        let (block_rows, _) = self.call.w.op_blocksize();
        let segment = block_rows.min(plan::SEGMENT_ROWS);
        let width: usize = self.panels[group.clone()].iter().map(|p| p.vectors * L::LANES).sum();
        let sums = Workspace::of(&[segment, width, size_of::<L::Acc>()])?;
        let mut scratch = Scratch { sums: sums.as_ptr().cast(), w: None, blocks: Vec::new() };
        let indptr = self.pattern.indptr();
        let entries = indptr[rows.start]..indptr[rows.end];
        self.call.w.source.announce(&mut entries.map(|e| self.pattern.block(e)));
        for row in rows.clone() {
            let first = row * block_rows;
            let count = block_rows.min(self.call.out.view.rows - first);
            for start in (0..count).step_by(segment) {
                let part = RowPart { first: first + start, offset: start, rows: segment.min(count - start) };
                self.row_part(group, indptr[row]..indptr[row + 1], part, &mut scratch)?;
            }
        }
        Ok(())
    }

    /// Computes some rows of one block row for one super-panel.
    fn row_part(
        &self,
        group: &Range<usize>,
        entries: Range<usize>,
        part: RowPart,
        scratch: &mut Scratch<L>,
    ) -> Result<(), Error> {
        if entries.is_empty() {
            for p in group.clone().filter(|_| !self.call.add) {
                self.finish_zeros(p, part, scratch);
            }
            return Ok(());
        }
        if self.call.add {
            let mut sums = scratch.sums;
            for panel in &self.panels[group.clone()] {
                self.held(panel, part, sums);
                sums = sums.wrapping_add(part.rows * panel.vectors * L::LANES);
            }
        }
        let (block_rows, block_cols) = self.call.w.op_blocksize();
        let block_bytes = block_rows * block_cols * size_of::<L::Elem>();
        let sweep = (plan::SWEEP_BYTES / block_bytes).max(1);
        let mut start = entries.start;
        while start < entries.end {
            let end = entries.end.min(start + sweep);
            let layout = self.blocks(start..end, part, scratch)?;
            let mut sums = scratch.sums;
            for p in group.clone() {
                let ends = (start == entries.start && !self.call.add, end == entries.end);
                self.panel(p, part, sums, &scratch.blocks, layout, p == group.start, ends);
                sums = sums.wrapping_add(part.rows * self.panels[p].vectors * L::LANES);
            }
            start = end;
        }
        Ok(())
    }

    /// Lists the blocks of `entries` as the tile kernel wants them, converted where need be.
    fn blocks(
        &self,
        entries: Range<usize>,
        part: RowPart,
        scratch: &mut Scratch<L>,
    ) -> Result<BlockLayout, Error> {
        let w = &self.call.w;
        let (_, block_cols) = w.op_blocksize();
        let stored_cols = w.blocksize.1;
        let k = self.call.x.rows;
        let size = w.dtype.size();
        let base = w.source.contiguous();
        let block_bytes = w.blocksize.0 * stored_cols * size;
        let padded = block_cols.next_multiple_of(L::STEP);
        let grouped = w.group > 0;
        let layout = match (self.native_w, w.transposed) {
            (false, _) => BlockLayout::Strided { offset: 0, row: padded, word: L::STEP },
            (true, false) if grouped => BlockLayout::Grouped {
                first_row: part.offset,
                group: w.group,
                group_size: w.group * stored_cols,
                step: L::STEP,
            },
            (true, true) if grouped => {
                BlockLayout::Strided { offset: part.offset * w.group, row: w.group, word: 1 }
            }
            (true, false) => {
                BlockLayout::Strided { offset: part.offset * stored_cols, row: stored_cols, word: L::STEP }
            }
            (true, true) => BlockLayout::Strided { offset: part.offset, row: 1, word: stored_cols },
        };
        let converted = if self.native_w {
            ptr::null_mut()
        } else {
            let bytes = entries.len() * part.rows * padded * size_of::<L::Elem>();
            scratch.w_of(bytes)?
        };
        scratch.blocks.clear();
        let indices = self.pattern.indices();
        for (i, e) in entries.enumerate() {
            let block = self.pattern.block(e);
            let stored = match base {
                Some(base) => base.wrapping_add(block * block_bytes),
                None => w.source.block(block)?,
            };
            let column = indices[e] as usize * block_cols;
            let depth = block_cols.min(k - column);
            let values = if self.native_w {
                stored.cast::<L::Elem>()
            } else {
                let dst = converted.wrapping_add(i * part.rows * padded);
                // SAFETY: the block is readable, and its slot holds `rows` rows of `padded` elements.
                unsafe {
                    let rows = part.offset..part.offset + part.rows;
                    copy_block(w, stored, rows, depth, self.convert_w, dst, padded);
                    for r in 0..part.rows {
                        for c in depth..depth.next_multiple_of(L::STEP) {
                            dst.add(r * padded + c).write(L::Elem::default());
                        }
                    }
                }
                dst.cast_const()
            };
            if self.native_w && w.transposed && grouped {
                // The summed dimension runs through one row group after another.
                for first in (0..depth).step_by(w.group) {
                    scratch.blocks.push(Block {
                        w: values.wrapping_add(first * stored_cols),
                        k: column + first,
                        words: w.group.min(depth - first),
                    });
                }
                continue;
            }
            // Long blocks are summed piece by piece: a piece of x must fit the first cache.
            let words = depth.div_ceil(L::STEP);
            for word in (0..words).step_by(plan::BURST_WORDS) {
                scratch.blocks.push(Block {
                    w: values.wrapping_add(word * layout.word()),
                    k: indices[e] as usize * padded / L::STEP + word,
                    words: plan::BURST_WORDS.min(words - word),
                });
            }
        }
        Ok(layout)
    }

    /// Sums the listed blocks into one panel and, after the last, stores the result.
    #[allow(clippy::too_many_arguments)]
    fn panel(
        &self,
        p: usize,
        part: RowPart,
        sums: *mut L::Acc,
        blocks: &[Block<L::Elem>],
        layout: BlockLayout,
        fetch_w: bool,
        (is_first, is_last): (bool, bool),
    ) {
        let (panel, view) = (self.panels[p], self.views[p]);
        let width = panel.vectors * L::LANES;
        let (out, out_row) = match self.direct(&panel, part.first) {
            Some(direct) if is_last => direct,
            _ => (sums, width),
        };
        let longest = blocks[0].words.max(1);
        let burst = (plan::burst_words(view.word * size_of::<L::Elem>()) / longest).max(1);
        let bursts = blocks.len().div_ceil(burst);
        for (b, now) in blocks.chunks(burst).enumerate() {
            let next = blocks.get((b + 1) * burst..).unwrap_or(&[]);
            let (starts, ends) = (is_first && b == 0, is_last && b + 1 == bursts);
            let mut row = 0;
            let mut line = 0;
            while row < part.rows {
                let at = layout.rows(row);
                let left = part.rows - row;
                let wanted = at.most.min(left);
                let (mut tile, rows) = L::tile(wanted, panel.vectors, false);
                let whole = at.whole_group && rows == at.most;
                if whole {
                    tile = L::tile(rows, panel.vectors, true).0;
                }
                // One call for all that lie at equal distances: a group each, or rows whose strides hold to the end.
                let tiles = if whole || wanted == left { left / rows } else { 1 };
                // Sums wait in the scratch and move to the result with the last burst.
                let (to, to_row) = if ends { (out, out_row) } else { (sums, width) };
                let so_far = sums.wrapping_add(row * width).cast_const();
                let args = Tile::<L> {
                    blocks: now.as_ptr(),
                    count: now.len(),
                    tiles,
                    w_offset: at.offset,
                    w_tile: layout.rows(row + rows).offset - at.offset,
                    w_row: at.row,
                    w_word: at.word,
                    x: view.x,
                    x_word: view.word,
                    init: if starts { ptr::null() } else { so_far },
                    init_row: width,
                    out: to.wrapping_add(row * to_row),
                    out_row: to_row,
                    next: next.as_ptr(),
                    next_count: next.len().min(now.len()),
                    next_line: line,
                    next_step: longest,
                    next_end: usize::MAX,
                    fetch_w,
                };
                // SAFETY: the level in use has the instruction set; blocks and panels cover every
                // word listed, and `to` has room for the tiles' rows and vectors.
                unsafe { tile(&args) };
                row += tiles * rows;
                line += tiles * longest;
            }
        }
        if is_last && out == sums {
            self.finish(panel, part, sums);
        }
    }

    /// The result's own memory, where the kernel may write sums straight into it.
    fn direct(&self, panel: &Panel, first_row: usize) -> Option<(*mut L::Acc, usize)> {
        let out = &self.call.out.view;
        let size = size_of::<L::Acc>() as isize;
        let fits = self.call.epilogue.is_identity()
            && out.dtype == <L::Acc as Sum>::NATIVE
            && out.col_stride == size
            && out.row_stride > 0
            && out.row_stride % size == 0
            && panel.cols == panel.vectors * L::LANES;
        let at = self.call.out.at(first_row, panel.col).cast();
        fits.then_some((at, (out.row_stride / size) as usize))
    }

    /// Takes the sums that the result holds.
    fn held(&self, panel: &Panel, part: RowPart, sums: *mut L::Acc) {
        let (out, width) = (&self.call.out, panel.vectors * L::LANES);
        let rect = Rect {
            src: out.at(part.first, panel.col),
            rows: part.rows,
            cols: panel.cols,
            row_stride: out.view.row_stride,
            col_stride: out.view.col_stride,
        };
        // SAFETY: the result's elements are of the sums' type, which `Dsd::check` saw to, and these are the
        // task's own; the scratch holds `width` sums for each row of the part.
        unsafe { take_sums(&rect, sums, width) };
    }

    fn finish_zeros(&self, p: usize, part: RowPart, scratch: &Scratch<L>) {
        let panel = self.panels[p];
        let count = part.rows * panel.vectors * L::LANES;
        for i in 0..count {
            // SAFETY: the scratch holds a segment of every panel of the super-panel.
            unsafe { scratch.sums.add(i).write(L::Acc::default()) };
        }
        self.finish(panel, part, scratch.sums);
    }

    fn finish(&self, panel: Panel, part: RowPart, sums: *const L::Acc) {
        let out = &self.call.out;
        let finished = Finished {
            sums,
            sums_row: panel.vectors * L::LANES,
            rows: part.rows,
            cols: panel.cols,
            first_row: part.first,
            out: out.at(part.first, panel.col),
            row_stride: out.view.row_stride,
            col_stride: out.view.col_stride,
        };
        // SAFETY: the sums are complete, and these rows and columns of the result are this task's.
        unsafe { (self.store)(&finished, &self.call.epilogue) };
    }
}

/// Some rows of a block row.
#[derive(Clone, Copy)]
struct RowPart {
    /// First row in the result.
    first: usize,
    /// First row in the block.
    offset: usize,
    rows: usize,
}

/// A task's own memory.
struct Scratch<L: Lanes> {
    sums: *mut L::Acc,
    w: Option<(Workspace, usize)>,
    blocks: Vec<Block<L::Elem>>,
}

impl<L: Lanes> Scratch<L> {
    fn w_of(&mut self, bytes: usize) -> Result<*mut L::Elem, Error> {
        match &self.w {
            Some((workspace, held)) if *held >= bytes => Ok(workspace.as_ptr().cast()),
            _ => {
                let workspace = Workspace::take(bytes)?;
                let at = workspace.as_ptr().cast();
                self.w = Some((workspace, bytes));
                Ok(at)
            }
        }
    }
}
