//! The driver of AMX tiles, for bfloat16 and int8.
//!
//! W's blocks are the left operand: 16 rows of up to 64 bytes of the summed dimension, read where they
//! lie as long as a block's rows divide into whole tiles. x is the right operand and is packed, in
//! panels of 32 columns. Loop order: super-panel of columns → block row → part of the row's blocks →
//! panel → blocks. The sums of up to 32 rows stay in tile registers over a whole part; a super-panel's
//! x stays in the second cache over all block rows. [`crate::amx::kernel`] has the arithmetic of it.

mod pack;

use std::marker::PhantomData;
use std::ops::Range;

use prunus_core::{Error, Pattern};

use super::Dsd;
use super::convert::Rect;
use super::plan;
use super::store::{Finished, Store, Sum};
use crate::amx::kernel::{self, AHEAD, Pass, Step};
use crate::amx::{COLS, Product, ROW_BYTES, ROWS, Shape, Tiles};
use crate::memory::Workspace;
use crate::threads::{Context, for_each};

/// Columns of a panel: two tiles.
const PANEL: usize = 2 * COLS;
/// Rows whose sums are held at a time: two tiles.
const PART: usize = 2 * ROWS;
/// Bytes of packed x that a super-panel may have: they share a second cache of 2 MiB with W.
const SUPER_BYTES: usize = 1280 << 10;
/// Panels of a super-panel, at least and at most. With fewer W would be read again too often; more
/// gain little, for by then W is read seldom.
const SUPER_PANELS: (usize, usize) = (2, 8);
/// Bytes of the sums of one pass: 32 × 32 or 16 × 64 words.
const SUMS_BYTES: usize = PART * PANEL * 4;
/// Fewer columns than this leave most of a tile's 16 unused: vectors do better.
const LEAST_COLUMNS: usize = 8;
/// Bytes of W in a tile below which vectors do better: a product of tiles takes as long as if they
/// were full, which is 1024 bytes.
const LEAST_TILE_BYTES: usize = 256;
/// Multiply-adds below which setting up tiles costs more than they save.
const LEAST_WORK: usize = 1 << 15;
/// Multiply-adds of tiles in the time of one of vectors: a task must have more of them.
const SPEED: usize = 8;
/// Rows of x that one packing task copies.
const PACK_ROWS: usize = 1024;

/// The constants above by name, for reports.
pub(crate) fn constants() -> [(&'static str, u64); 6] {
    [
        ("amx_super_bytes", SUPER_BYTES as u64),
        ("amx_super_panels", SUPER_PANELS.1 as u64),
        ("amx_least_columns", LEAST_COLUMNS as u64),
        ("amx_least_tile_bytes", LEAST_TILE_BYTES as u64),
        ("amx_least_work", LEAST_WORK as u64),
        ("amx_ahead", AHEAD as u64),
    ]
}

/// Whether tiles, rather than vectors, should do a product: by its shape alone. They need blocks in C
/// order.
pub(crate) fn pays<P: Product>(call: &Dsd<'_>) -> bool {
    let (rows, cols) = call.w.op_blocksize();
    let n = call.x.cols;
    let tile_bytes = rows.min(ROWS) * (cols * size_of::<P::Elem>()).min(ROW_BYTES);
    let work = call.w.pattern.len().saturating_mul(rows * cols).saturating_mul(n);
    call.w.group == 0 && n >= LEAST_COLUMNS && tile_bytes >= LEAST_TILE_BYTES && work >= LEAST_WORK
}

/// How the rows of a block are cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Tiles side by side.
    steps: usize,
    /// Bytes of a row in each: a multiple of four.
    depth_bytes: usize,
    /// Whether the tiles cover a row exactly, so that W can be read where it lies.
    exact: bool,
}

impl Cut {
    /// Cuts rows of `bytes`. Rows that lie `in_place` are cut into up to twice as many tiles as need
    /// be, if those cover them exactly; others are copied, into as few tiles as hold them.
    fn new(bytes: usize, in_place: bool) -> Self {
        let least = bytes.div_ceil(ROW_BYTES);
        let exact = (least..=2 * least).find(|steps| in_place && bytes.is_multiple_of(4 * steps));
        match exact {
            Some(steps) => Self { steps, depth_bytes: bytes / steps, exact: true },
            None => {
                let depth_bytes = bytes.div_ceil(least).next_multiple_of(4);
                Self { steps: least, depth_bytes, exact: false }
            }
        }
    }

    /// Bytes from one row of W to the next.
    fn pitch(self) -> usize {
        self.steps * self.depth_bytes
    }

    /// Bytes of a tile of x.
    fn x_tile(self) -> usize {
        self.depth_bytes / 4 * ROW_BYTES
    }
}

/// Some columns of x, packed.
#[derive(Clone, Copy)]
struct Panel {
    col: usize,
    cols: usize,
    /// Tiles side by side: 2, or 1 in the last panel.
    tiles: usize,
    x: *mut u8,
    /// Bytes from one step's tiles to the next.
    pitch: usize,
}

/// Some rows of one block row.
#[derive(Clone, Copy)]
struct Part {
    /// First row in the result.
    first: usize,
    /// First row in the block.
    offset: usize,
    rows: usize,
    /// Whether the block row ends here.
    is_last: bool,
}

/// What all tasks of one product share.
struct Job<'a, P: Product> {
    call: &'a Dsd<'a>,
    pattern: &'a Pattern,
    store: Store<P::Acc>,
    cut: Cut,
    panels: &'a [Panel],
    product: PhantomData<P>,
}

// SAFETY: the pointers lead to operands shared for reading and to a packed x whose parts are written
// by one task each, before the tasks that read it start; results are written to disjoint places.
unsafe impl<P: Product> Sync for Job<'_, P> {}

/// A task's own memory.
struct Scratch {
    tiles: Tiles,
    steps: Vec<Step>,
    /// Room for the sums of every pass over a super-panel.
    sums: Workspace,
    w: Option<Workspace>,
    w_bytes: usize,
}

/// Runs a product with tiles.
pub(crate) fn run<P: Product>(call: &Dsd<'_>, context: &Context<'_>) -> Result<&'static str, Error> {
    let store = P::Acc::store(call.out.view.dtype).ok_or_else(|| call.no_kernel())?;
    let pattern = call.w.op_pattern();
    let (block_rows, block_cols) = call.w.op_blocksize();
    let cut = Cut::new(block_cols * size_of::<P::Elem>(), !call.w.transposed);
    let panel_bytes = pattern.block_cols().saturating_mul(cut.steps * 2 * cut.x_tile());
    let per_super = super_panel(panel_bytes, call.x.cols.div_ceil(PANEL));
    let turn = (plan::PACKED_BYTES / panel_bytes.max(1)).max(1).next_multiple_of(per_super) * PANEL;
    for first in (0..call.x.cols).step_by(turn) {
        let end = call.x.cols.min(first + turn);
        let packed = Workspace::of(&[(end - first).div_ceil(PANEL), panel_bytes])?;
        let panels: Vec<Panel> = (first..end)
            .step_by(PANEL)
            .enumerate()
            .map(|(p, col)| {
                let cols = PANEL.min(end - col);
                let tiles = cols.div_ceil(COLS);
                let x = packed.as_ptr().wrapping_add(p * panel_bytes);
                Panel { col, cols, tiles, x, pitch: tiles * cut.x_tile() }
            })
            .collect();
        let job = Job::<P> { call, pattern: &pattern, store, cut, panels: &panels, product: PhantomData };
        let grid = pattern.block_cols();
        let step = (PACK_ROWS / block_cols).max(1);
        let slices = grid.div_ceil(step);
        let count = panels.len();
        let supers = count.div_ceil(per_super);
        let group = |number: usize| number * per_super..count.min((number + 1) * per_super);
        for_each(context, supers * slices, |task| {
            let first = task % slices * step;
            job.pack(group(task / slices), first..grid.min(first + step));
            Ok(())
        })?;
        let work = (block_rows * block_cols * PANEL * per_super.min(count)).div_ceil(SPEED);
        let ranges = plan::row_ranges(pattern.indptr(), work as u64, context.threads, supers);
        for_each(context, supers * ranges.len(), |task| {
            job.rows(group(task / ranges.len()), &ranges[task % ranges.len()])
        })?;
    }
    Ok(P::NAME)
}

/// Panels of a super-panel where there are `panels` of `panel_bytes`: about as many in each, and an
/// even number, because passes over few rows take two.
fn super_panel(panel_bytes: usize, panels: usize) -> usize {
    let most = (SUPER_BYTES / panel_bytes.max(1)).clamp(SUPER_PANELS.0, SUPER_PANELS.1);
    let supers = panels.div_ceil(most).max(1);
    panels.div_ceil(supers).next_multiple_of(2).max(2)
}

impl<P: Product> Job<'_, P> {
    /// Packs the rows of x that block columns `columns` multiply, for the panels of one super-panel:
    /// along x's rows where those are contiguous, else along its columns, so that what memory sends is
    /// used while it is near.
    fn pack(&self, group: Range<usize>, columns: Range<usize>) {
        let x = &self.call.x;
        if x.col_stride.abs() < x.row_stride.abs() {
            for column in columns {
                for step in 0..self.cut.steps {
                    self.panels[group.clone()].iter().for_each(|panel| self.pack_step(panel, column, step));
                }
            }
        } else {
            for panel in &self.panels[group] {
                for column in columns.clone() {
                    (0..self.cut.steps).for_each(|step| self.pack_step(panel, column, step));
                }
            }
        }
    }

    /// Packs the tiles of one step of a block column.
    fn pack_step(&self, panel: &Panel, column: usize, step: usize) {
        let (x, cut) = (&self.call.x, self.cut);
        let (_, block_cols) = self.call.w.op_blocksize();
        let depth = cut.depth_bytes / size_of::<P::Elem>();
        let end = x.rows.min((column + 1) * block_cols);
        let first = end.min(column * block_cols + step * depth);
        let tile = panel.x.wrapping_add((column * cut.steps + step) * panel.pitch);
        for t in 0..panel.tiles {
            let col = t * COLS;
            let rect = Rect {
                src: x.at(first, panel.col + col),
                rows: depth.min(end - first),
                cols: COLS.min(panel.cols - col),
                row_stride: x.row_stride,
                col_stride: x.col_stride,
            };
            let dst = tile.wrapping_add(t * cut.x_tile()).cast();
            // SAFETY: the level in use implies AVX-512; the rectangle is a part of x, and the packed
            // panel has this tile, which no other task writes.
            unsafe { pack::x_tile::<P>(&rect, dst, cut.depth_bytes / 4) };
        }
    }

    /// Computes block rows `rows` for the columns of one super-panel.
    fn rows(&self, group: Range<usize>, rows: &Range<usize>) -> Result<(), Error> {
        let (block_rows, _) = self.call.w.op_blocksize();
        let mut scratch = Scratch {
            // SAFETY: the level in use has AMX, and a task runs to its end on one thread.
            tiles: unsafe { Tiles::new() },
            steps: Vec::new(),
            sums: Workspace::of(&[group.len(), SUMS_BYTES])?,
            w: None,
            w_bytes: 0,
        };
        let indptr = self.pattern.indptr();
        let entries = indptr[rows.start]..indptr[rows.end];
        self.call.w.source.announce(&mut entries.map(|e| self.pattern.block(e)));
        for row in rows.clone() {
            let first = row * block_rows;
            let count = block_rows.min(self.call.out.view.rows - first);
            for offset in (0..count).step_by(PART) {
                let rows = PART.min(count - offset);
                let is_last = offset + rows == count;
                let part = Part { first: first + offset, offset, rows, is_last };
                self.part(&group, indptr[row]..indptr[row + 1], part, &mut scratch)?;
            }
        }
        Ok(())
    }

    /// Computes up to 32 rows for one super-panel.
    fn part(
        &self,
        group: &Range<usize>,
        entries: Range<usize>,
        part: Part,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let row_tiles = part.rows.div_ceil(ROWS);
        // Fewer rows leave tiles for more columns.
        let panels = if row_tiles == 2 { 1 } else { 2 };
        if entries.is_empty() {
            let sums = scratch.sums.as_ptr();
            // SAFETY: the sums of one pass.
            unsafe { sums.write_bytes(0, SUMS_BYTES) };
            for p in group.clone().step_by(panels) {
                let (near, far) = self.pair(group, p, panels);
                self.finish(&near, far.as_ref(), part, sums);
            }
            return Ok(());
        }
        let upper = part.rows.min(ROWS);
        let depth_bytes = self.cut.depth_bytes;
        scratch.tiles.set(Shape { rows: [upper, part.rows - upper], depth_bytes });
        let sweep = (plan::SWEEP_BYTES / (PART * self.cut.pitch())).max(1);
        let mut start = entries.start;
        while start < entries.end {
            let end = entries.end.min(start + sweep);
            let (is_first, is_last) = (start == entries.start, end == entries.end);
            let (count, fetch) = self.steps(&entries, start..end, part, scratch)?;
            let mut sums = scratch.sums.as_ptr();
            for p in group.clone().step_by(panels) {
                let (near, far) = self.pair(group, p, panels);
                let far_x = far.as_ref().map_or((near.x, 0), |far| (far.x, far.pitch));
                let col_tiles = near.tiles + far.as_ref().map_or(0, |far| far.tiles);
                let sums_pitch = (panels * PANEL * 4) as isize;
                let direct = self.direct(&near, far.as_ref(), part).filter(|_| is_last);
                let (out, out_pitch) = direct.unwrap_or((sums, sums_pitch));
                let pass = Pass {
                    steps: scratch.steps.as_ptr(),
                    count,
                    w_pitch: self.cut.pitch() as isize,
                    w_bytes: depth_bytes,
                    w_rows: part.rows,
                    x: [near.x, far_x.0],
                    x_pitch: [near.pitch, far_x.1],
                    x_tile: self.cut.x_tile(),
                    init: if is_first { std::ptr::null() } else { sums },
                    out,
                    init_pitch: sums_pitch,
                    out_pitch,
                    fetch: fetch && p == group.start,
                };
                // SAFETY: the tiles were set for these rows; steps name blocks with `part.rows` rows
                // and tiles of the packed panels; sums and result have room for the tiles stored.
                unsafe { kernel::run::<P>((row_tiles, col_tiles), &pass) };
                if is_last && direct.is_none() {
                    self.finish(&near, far.as_ref(), part, sums);
                }
                // With a single sweep nothing needs to stay: the same sums, still in the first cache.
                if !(is_first && is_last) {
                    sums = sums.wrapping_add(SUMS_BYTES);
                }
            }
            start = end;
        }
        Ok(())
    }

    /// The panels of the pass that starts at panel `p`.
    fn pair(&self, group: &Range<usize>, p: usize, panels: usize) -> (Panel, Option<Panel>) {
        let far = (panels == 2 && p + 1 < group.end).then(|| self.panels[p + 1]);
        (self.panels[p], far)
    }

    /// Lists the steps of entries `now` of the block row `entries`, copying blocks that tiles cannot
    /// be loaded from as they are. Gives their number, and whether [`AHEAD`] steps to ask for follow.
    fn steps(
        &self,
        entries: &Range<usize>,
        now: Range<usize>,
        part: Part,
        scratch: &mut Scratch,
    ) -> Result<(usize, bool), Error> {
        let (w, cut, k) = (&self.call.w, self.cut, self.call.x.rows);
        let (_, block_cols) = w.op_blocksize();
        let size = size_of::<P::Elem>();
        let block_bytes = w.blocksize.0 * w.blocksize.1 * size;
        let (indices, base) = (self.pattern.indices(), w.source.contiguous());
        let (row_stride, col_stride) = {
            let (row, one) = ((w.blocksize.1 * size) as isize, size as isize);
            if w.transposed { (one, row) } else { (row, one) }
        };
        // Blocks that run past the last column hold padding there, which may be anything.
        let copied = |column: usize| !cut.exact || column + block_cols > k;
        let slot = part.rows * cut.pitch();
        let copies = now.clone().filter(|&e| copied(indices[e] as usize * block_cols)).count();
        let mut copy = scratch.w_of(copies * slot)?;
        scratch.steps.clear();
        for e in now.clone() {
            let block = self.pattern.block(e);
            let stored = match base {
                Some(base) => base.wrapping_add(block * block_bytes),
                None => w.source.block(block)?,
            };
            let stored = stored.wrapping_offset(part.offset as isize * row_stride);
            let column = indices[e] as usize * block_cols;
            let values = if copied(column) {
                let cols = block_cols.min(k - column);
                let rect = Rect { src: stored, rows: part.rows, cols, row_stride, col_stride };
                // SAFETY: the level in use implies AVX-512; the block is readable; its copy has room.
                unsafe { pack::w_rows::<P>(&rect, copy, cut.pitch()) };
                let at = copy;
                copy = copy.wrapping_add(slot);
                at.cast_const()
            } else {
                stored
            };
            for step in 0..cut.steps {
                scratch.steps.push(Step {
                    w: values.wrapping_add(step * cut.depth_bytes),
                    x: indices[e] as usize * cut.steps + step,
                });
            }
        }
        let count = scratch.steps.len();
        let Some(base) = base.filter(|_| cut.exact) else { return Ok((count, false)) };
        // What comes next: more of this row, its next part, or the next row.
        let (next, offset) = if now.end < entries.end {
            (now.end, part.offset)
        } else if part.is_last {
            (entries.end, 0)
        } else {
            (entries.start, part.offset + PART)
        };
        let known = self.pattern.indptr()[self.pattern.block_rows()];
        for ahead in 0..AHEAD {
            let e = (next + ahead / cut.steps).min(known - 1);
            let block = base.wrapping_add(self.pattern.block(e) * block_bytes);
            let row = block.wrapping_offset(offset as isize * row_stride);
            let at = row.wrapping_add(ahead % cut.steps * cut.depth_bytes);
            scratch.steps.push(Step { w: at, x: 0 });
        }
        Ok((count, true))
    }

    /// The result's own memory, where tiles may be stored straight into it.
    fn direct(&self, near: &Panel, far: Option<&Panel>, part: Part) -> Option<(*mut u8, isize)> {
        let out = &self.call.out.view;
        let full = |panel: &Panel| panel.cols == panel.tiles * COLS;
        let fits = self.call.epilogue.is_identity()
            && out.dtype == <P::Acc as Sum>::NATIVE
            && out.col_stride == size_of::<P::Acc>() as isize
            && full(near)
            && far.is_none_or(full);
        fits.then(|| (self.call.out.at(part.first, near.col), out.row_stride))
    }

    /// Stores the sums of one pass.
    fn finish(&self, near: &Panel, far: Option<&Panel>, part: Part, sums: *const u8) {
        let out = &self.call.out;
        let panels = if part.rows > ROWS { 1 } else { 2 };
        let finished = Finished {
            sums: sums.cast(),
            sums_row: panels * PANEL,
            rows: part.rows,
            cols: near.cols + far.map_or(0, |far| far.cols),
            first_row: part.first,
            out: out.at(part.first, near.col),
            row_stride: out.view.row_stride,
            col_stride: out.view.col_stride,
        };
        // SAFETY: the sums are complete, and these rows and columns of the result are this task's.
        unsafe { (self.store)(&finished, &self.call.epilogue) };
    }
}

impl Scratch {
    /// Room for copies of blocks; null where there are none.
    fn w_of(&mut self, bytes: usize) -> Result<*mut u8, Error> {
        if bytes > self.w_bytes {
            self.w = Some(Workspace::take(bytes)?);
            self.w_bytes = bytes;
        }
        Ok(self.w.as_ref().map_or(std::ptr::null_mut(), Workspace::as_ptr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_hold_every_byte_and_are_exact_where_they_may_be() {
        for bytes in 1..2000 {
            for in_place in [false, true] {
                let cut = Cut::new(bytes, in_place);
                assert!(cut.pitch() >= bytes && cut.depth_bytes <= ROW_BYTES, "{bytes}: {cut:?}");
                assert!(cut.depth_bytes.is_multiple_of(4) && cut.depth_bytes > 0, "{bytes}: {cut:?}");
                assert!(cut.steps <= 2 * bytes.div_ceil(ROW_BYTES));
                assert!(!cut.exact || (in_place && cut.pitch() == bytes), "{bytes}: {cut:?}");
            }
        }
        for (bytes, steps, depth_bytes) in [(64, 1, 64), (32, 1, 32), (96, 2, 48), (256, 4, 64), (160, 4, 40)]
        {
            assert_eq!(Cut::new(bytes, true), Cut { steps, depth_bytes, exact: true });
        }
    }

    #[test]
    fn super_panels_fit_the_cache_and_are_alike() {
        for (k, n, expected) in [(4096, 128, 4), (4096, 512, 4), (1024, 512, 8), (11008, 512, 2), (64, 8, 2)]
        {
            assert_eq!(super_panel(k * 2 * PANEL, usize::div_ceil(n, PANEL)), expected, "{k} x {n}");
        }
    }
}
