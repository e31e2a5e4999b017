//! The driver: one task for each tile of queries of each head.
//!
//! A tile's queries lie transposed, so that they fill the lanes: scores come out with one key a row, and
//! keys and values are read where they are, one element at a time, each spread over the queries. Only what
//! the kernels cannot read in place (half types, odd strides) is copied, a chunk of keys at a time.

use std::ops::Range;

use prunus_core::{DType, Epilogue, Error, MatRef};

use super::steps::{Rescale, Soften};
use super::{Attention, Head, no_kernel};
use crate::dsd::convert::{Convert, Element, Rect};
use crate::dsd::store::{Finished, Store, Sum};
use crate::dsd::tile::{Block, Tile};
use crate::memory::Workspace;
use crate::simd::Lanes;
use crate::simd::floats::{Floats, Real};
use crate::threads::{Context, for_each};

/// Queries of a task: with their scores and sums they fill the first cache.
const QUERIES: usize = 64;
/// Keys between two looks at the maxima. Keys are cut at its multiples from the start of a run of live blocks.
const KEYS: usize = 64;
/// Vectors of queries in a strip, which the product's tiles take at once.
const STRIP: usize = 3;

/// Runs attention with the vector type `L`.
pub(super) fn run<L>(call: &Attention<'_>, context: &Context<'_>) -> Result<(), Error>
where
    L: Floats,
    L::Elem: Real + Element + Sum,
{
    let Some(head) = call.heads.first() else { return Ok(()) };
    let fault = || no_kernel(head);
    let convert = |dtype| <L::Elem as Element>::convert(dtype).ok_or_else(fault);
    let work = Work::<L> {
        call,
        convert: [convert(head.q.dtype)?, convert(head.k.dtype)?, convert(head.v.dtype)?],
        store: <L::Acc as Sum>::store(head.out.view.dtype).ok_or_else(fault)?,
    };
    // A tile has one row of live blocks. Without any, blocks say nothing about how to cut.
    let n = head.q.rows;
    let block = if head.live.is_some() { call.block } else { n.max(1) };
    let tiles: Vec<Range<usize>> = (0..n)
        .step_by(block)
        .flat_map(|first| {
            let end = n.min(first + block);
            (first..end).step_by(QUERIES).map(move |row| row..end.min(row + QUERIES))
        })
        .collect();
    // Under causality the last tiles are the long ones: they come first, so that no thread ends on one.
    for_each(context, call.heads.len() * tiles.len(), |task| {
        let tile = &tiles[tiles.len() - 1 - task % tiles.len()];
        work.tile(&call.heads[task / tiles.len()], tile)
    })
}

/// What all tasks share.
struct Work<'a, L: Lanes> {
    call: &'a Attention<'a>,
    /// Copies of queries, keys and values.
    convert: [Convert<L::Elem>; 3],
    store: Store<L::Acc>,
}

/// Memory of one task.
struct Buffers<L: Lanes> {
    /// Queries, strip by strip: one feature a row.
    q: *mut L::Elem,
    /// Weighted sums of values, strip by strip: one feature a row.
    out: *mut L::Elem,
    /// Scores of one strip: one key a row.
    scores: *mut L::Elem,
    max: *mut L::Elem,
    sum: *mut L::Elem,
    /// Copies of a chunk of keys and of values.
    k: *mut L::Elem,
    v: *mut L::Elem,
    _workspace: Workspace,
}

/// Some vectors of a tile's queries.
#[derive(Clone, Copy)]
struct Strip {
    /// First query, counted in the tile.
    first: usize,
    vectors: usize,
}

/// Keys or values of a chunk as the product reads them: rows `row` elements apart, features adjacent.
struct Chunk<L: Lanes> {
    start: *const L::Elem,
    row: usize,
}

/// Left operand of a product: `rows × words`, elements `row` and `word` apart.
struct Left<L: Lanes> {
    start: *const L::Elem,
    rows: usize,
    row: usize,
    words: usize,
    word: usize,
}

/// `out (+)= left · x` for one strip.
///
/// # Safety
/// Every pointer covers what the shapes say, in whole vectors; the level in use has `L`'s instructions.
unsafe fn product<L: Lanes<Acc = <L as Lanes>::Elem>>(
    left: &Left<L>,
    x: *const L::Elem,
    vectors: usize,
    out: *mut L::Elem,
    adds: bool,
) {
    let width = vectors * L::LANES;
    let block = Block { w: left.start, k: 0, words: left.words };
    let mut row = 0;
    while row < left.rows {
        let (kernel, height) = L::tile(left.rows - row, vectors, false);
        let to = out.wrapping_add(row * width);
        let tile = Tile::<L> {
            blocks: &block,
            count: 1,
            w_offset: row * left.row,
            w_row: left.row,
            w_word: left.word,
            x,
            x_word: width,
            init: if adds { to } else { std::ptr::null() },
            init_row: width,
            out: to,
            out_row: width,
            next: std::ptr::null(),
            next_count: 0,
            next_line: 0,
            fetch_w: false,
        };
        // SAFETY: the caller's promise.
        unsafe { kernel(&tile) };
        row += height;
    }
}

impl<L> Work<'_, L>
where
    L: Floats,
    L::Elem: Real + Element + Sum,
{
    /// Computes some queries of one head, all of one row of blocks.
    fn tile(&self, head: &Head<'_>, rows: &Range<usize>) -> Result<(), Error> {
        let strips = strips::<L>(rows.len());
        let buffers = self.buffers(head, rows.len())?;
        let runs = self.runs(head, rows);
        for strip in &strips {
            self.load_queries(head, rows, strip, &buffers);
        }
        for run in &runs {
            for first in run.clone().step_by(KEYS) {
                let keys = first..run.end.min(first + KEYS);
                self.chunk(head, rows, &keys, &strips, &buffers);
            }
        }
        let first_key = runs.first().map(|run| run.start);
        for strip in &strips {
            self.finish(head, rows, strip, &buffers, first_key);
        }
        Ok(())
    }

    /// Takes the memory of a task, sums and maxima as they are before the first key.
    fn buffers(&self, head: &Head<'_>, queries: usize) -> Result<Buffers<L>, Error> {
        let (d, features) = (head.q.cols, head.v.cols);
        let width = queries.next_multiple_of(L::LANES);
        let line = 64 / size_of::<L::Elem>();
        // Each part starts on a cache line; the copies have `KEYS` rows.
        let parts = [
            (d, width),
            (features, width),
            (KEYS, STRIP * L::LANES),
            (1, width),
            (1, width),
            (KEYS, d),
            (KEYS, features),
        ];
        let mut starts = [0; 7];
        let mut end = 0usize;
        for (start, (rows, cols)) in starts.iter_mut().zip(parts) {
            *start = end;
            end = end.saturating_add(rows.saturating_mul(cols).saturating_add(line) / line * line);
        }
        let workspace = Workspace::of(&[end, size_of::<L::Elem>()])?;
        let base: *mut L::Elem = workspace.as_ptr().cast();
        let at = |part: usize| base.wrapping_add(starts[part]);
        // SAFETY: inside the workspace, which is this task's.
        unsafe {
            for i in 0..features * width {
                at(1).add(i).write(L::Elem::default());
            }
            for i in 0..width {
                at(3).add(i).write(L::Elem::LOWEST);
                at(4).add(i).write(L::Elem::default());
            }
        }
        Ok(Buffers {
            q: at(0),
            out: at(1),
            scores: at(2),
            max: at(3),
            sum: at(4),
            k: at(5),
            v: at(6),
            _workspace: workspace,
        })
    }

    /// Keys that some query of the tile sees, as runs of live blocks.
    fn runs(&self, head: &Head<'_>, rows: &Range<usize>) -> Vec<Range<usize>> {
        let m = head.k.rows;
        let limit = if self.call.causal { (rows.end + m).saturating_sub(head.q.rows).min(m) } else { m };
        let Some(live) = head.live else {
            return std::iter::once(0..limit).filter(|run| !run.is_empty()).collect();
        };
        let block = self.call.block;
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (i, start) in (0..limit).step_by(block).enumerate() {
            // SAFETY: a byte of the grid of blocks, whose shape was checked.
            if unsafe { *live.at(rows.start / block, i) } == 0 {
                continue;
            }
            let end = limit.min(start + block);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }

    /// Copies the queries of a strip, transposed and times the scale in base 2; zeros past the last one.
    fn load_queries(&self, head: &Head<'_>, rows: &Range<usize>, strip: &Strip, buffers: &Buffers<L>) {
        let d = head.q.cols;
        let width = strip.vectors * L::LANES;
        let to = buffers.q.wrapping_add(d * strip.first);
        let count = width.min(rows.len() - strip.first);
        let rect = Rect {
            src: head.q.at(rows.start + strip.first, 0),
            rows: d,
            cols: count,
            row_stride: head.q.col_stride,
            col_stride: head.q.row_stride,
        };
        let factor = L::Elem::narrow(self.call.scale * std::f64::consts::LOG2_E);
        let by = [factor; 16];
        debug_assert!(L::LANES <= by.len());
        // SAFETY: the queries are readable; the strip is this task's and has room; the level has `L`.
        unsafe {
            if count < width {
                for i in 0..d * width {
                    to.add(i).write(L::Elem::default());
                }
            }
            self.convert[0](&rect, to, width);
            let scale = Rescale {
                data: to,
                row: width,
                rows: d,
                vectors: strip.vectors,
                by: by.as_ptr(),
                by_step: 0,
            };
            L::rescale()(&scale);
        }
    }

    /// Moves all strips on by a chunk of keys.
    fn chunk(
        &self,
        head: &Head<'_>,
        rows: &Range<usize>,
        keys: &Range<usize>,
        strips: &[Strip],
        buffers: &Buffers<L>,
    ) {
        let (d, features) = (head.q.cols, head.v.cols);
        let k = chunk_of::<L>(&head.k, keys, self.convert[1], buffers.k);
        let v = chunk_of::<L>(&head.v, keys, self.convert[2], buffers.v);
        // The first query, counted in the tile, that sees key `j`.
        let sees = |j: usize| {
            if self.call.causal { (j + head.q.rows).saturating_sub(head.k.rows + rows.start) } else { 0 }
        };
        let mut clean: Option<bool> = None;
        for strip in strips {
            let width = strip.vectors * L::LANES;
            let used = width.min(rows.len() - strip.first);
            if sees(keys.start) >= strip.first + used {
                continue;
            }
            let hidden = |j: usize| sees(j).saturating_sub(strip.first).min(width);
            let is_cut = hidden(keys.end - 1) > 0;
            let out = buffers.out.wrapping_add(features * strip.first);
            // SAFETY: chunks, strips and scores have room for what the shapes say, and are this task's; the
            // level has `L`.
            unsafe {
                let left = Left { start: k.start, rows: keys.len(), row: k.row, words: d, word: 1 };
                let q = buffers.q.wrapping_add(d * strip.first);
                product::<L>(&left, q, strip.vectors, buffers.scores, false);
                if is_cut {
                    for (i, j) in keys.clone().enumerate() {
                        for query in 0..hidden(j) {
                            buffers.scores.add(i * width + query).write(L::Elem::MINUS_INFINITY);
                        }
                    }
                }
                L::soften()(&Soften {
                    scores: buffers.scores,
                    row: width,
                    keys: keys.len(),
                    vectors: strip.vectors,
                    max: buffers.max.add(strip.first),
                    sum: buffers.sum.add(strip.first),
                    out,
                    out_row: width,
                    features,
                });
                let left = Left { start: v.start, rows: features, row: 1, words: keys.len(), word: v.row };
                // A weight of 0 times infinity would be seen by queries that do not see the key.
                if is_cut && !*clean.get_or_insert_with(|| all_finite(&v, keys.len(), features)) {
                    self.add_visible(&v, keys, features, strip, buffers, &hidden);
                } else {
                    product::<L>(&left, buffers.scores, strip.vectors, out, true);
                }
            }
        }
    }

    /// Adds weighted values one by one, each to the queries that see its key.
    ///
    /// # Safety
    /// As [`product`].
    unsafe fn add_visible(
        &self,
        v: &Chunk<L>,
        keys: &Range<usize>,
        features: usize,
        strip: &Strip,
        buffers: &Buffers<L>,
        hidden: &dyn Fn(usize) -> usize,
    ) {
        let width = strip.vectors * L::LANES;
        let out = buffers.out.wrapping_add(features * strip.first);
        // SAFETY: the caller's promise.
        unsafe {
            for (i, j) in keys.clone().enumerate() {
                for feature in 0..features {
                    let value = v.start.add(i * v.row + feature).read_unaligned();
                    for query in hidden(j)..width {
                        let to = out.add(feature * width + query);
                        to.write(*to + *buffers.scores.add(i * width + query) * value);
                    }
                }
            }
        }
    }

    /// Divides by the sums of weights and writes the strip's rows of the result.
    fn finish(
        &self,
        head: &Head<'_>,
        rows: &Range<usize>,
        strip: &Strip,
        buffers: &Buffers<L>,
        first_key: Option<usize>,
    ) {
        let features = head.v.cols;
        let width = strip.vectors * L::LANES;
        let used = width.min(rows.len() - strip.first);
        let data = buffers.out.wrapping_add(features * strip.first);
        let by = buffers.sum.wrapping_add(strip.first);
        let zero = L::Elem::default();
        for query in 0..width {
            let row = rows.start + strip.first + query;
            let sees =
                first_key.is_some_and(|key| !self.call.causal || key + head.q.rows <= row + head.k.rows);
            // SAFETY: one sum a query, this task's.
            unsafe {
                let sum = *by.add(query);
                // All scores of minus infinity have no softmax; no scores at all give zeros.
                let none = if sees { L::Elem::NAN } else { zero };
                by.add(query).write(if sum == zero { none } else { L::Elem::ONE / sum });
            }
        }
        let out = &head.out;
        let finished = Finished {
            sums: data.cast_const(),
            sums_row: width,
            rows: features,
            cols: used,
            first_row: 0,
            out: out.at(rows.start + strip.first, 0),
            row_stride: out.view.col_stride,
            col_stride: out.view.row_stride,
        };
        // SAFETY: the sums are complete and this task's, as these rows of the result are; the level has `L`.
        unsafe {
            L::rescale()(&Rescale {
                data,
                row: width,
                rows: features,
                vectors: strip.vectors,
                by,
                by_step: L::LANES,
            });
            (self.store)(&finished, &Epilogue::default());
        }
    }
}

/// Cuts queries into strips of nearly equal width, at most [`STRIP`] vectors.
fn strips<L: Lanes>(queries: usize) -> Vec<Strip> {
    let vectors = queries.div_ceil(L::LANES);
    let count = vectors.div_ceil(STRIP).max(1);
    let cut = |i: usize| vectors * i / count;
    (0..count).map(|i| Strip { first: cut(i) * L::LANES, vectors: cut(i + 1) - cut(i) }).collect()
}

/// Rows `keys` of an operand, in place where the kernels can read it there.
fn chunk_of<L>(
    from: &MatRef<'_>,
    keys: &Range<usize>,
    convert: Convert<L::Elem>,
    copy: *mut L::Elem,
) -> Chunk<L>
where
    L: Lanes,
    L::Elem: Element,
{
    let size = size_of::<L::Elem>() as isize;
    let native: Option<DType> = <L::Elem as Element>::NATIVE;
    let adjacent = from.col_stride == size || from.cols <= 1;
    if native == Some(from.dtype) && adjacent && from.row_stride >= 0 && from.row_stride % size == 0 {
        return Chunk { start: from.at(keys.start, 0).cast(), row: (from.row_stride / size) as usize };
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
fn all_finite<L: Lanes>(v: &Chunk<L>, keys: usize, features: usize) -> bool
where
    L::Elem: Real,
{
    // SAFETY: inside the chunk.
    (0..keys)
        .all(|i| (0..features).all(|j| unsafe { v.start.add(i * v.row + j).read_unaligned() }.is_finite()))
}
