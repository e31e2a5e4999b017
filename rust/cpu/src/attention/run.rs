//! The driver: one task for each tile of queries of each head.
//!
//! A tile's queries lie transposed, so that they fill the lanes: scores come out with one key a row, and
//! keys and values are read where they are, one element at a time, each spread over the queries. Only what
//! the kernels cannot read in place (half types, odd strides) is copied, a chunk of keys at a time.

use std::ops::Range;

use prunus_core::{Epilogue, Error, MatRef};

use super::operand::{Chunk, ahead, all_finite, chunk_of};
use super::product::{Ahead, Product, most_vectors};
use super::steps::{Rescale, Soften};
use super::{Attention, Head, no_kernel};
use crate::dsd::convert::{Convert, Element, Rect};
use crate::dsd::store::{Finished, Store, Sum};
use crate::memory::Workspace;
use crate::simd::Lanes;
use crate::simd::floats::{Floats, Real};
use crate::threads::{Context, for_each};

/// Queries of a task: with their scores and sums they fill the first cache.
const QUERIES: usize = 64;
/// Keys between two looks at the maxima. Keys are cut at its multiples from the start of a run of live blocks.
const KEYS: usize = 64;

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
    // Heads of one query that share keys lie in the lanes side by side, so that keys are read once for all.
    let together = |a: &Head<'_>, b: &Head<'_>| {
        let start = |m: &MatRef<'_>| (m.ptr, m.row_stride, m.col_stride);
        n == 1
            && a.live.is_none()
            && b.live.is_none()
            && start(&a.k) == start(&b.k)
            && start(&a.v) == start(&b.v)
    };
    let groups: Vec<&[Head<'_>]> =
        call.heads.chunk_by(together).flat_map(|same| same.chunks(QUERIES)).collect();
    // Under causality the last tiles are the long ones: they come first, so that no thread ends on one.
    for_each(context, groups.len() * tiles.len(), |task| {
        let tile = &tiles[tiles.len() - 1 - task % tiles.len()];
        work.tile(groups[task / tiles.len()], tile)
    })
}

/// Neighbouring queries of one head in a strip.
struct Part<'a> {
    head: &'a Head<'a>,
    row: usize,
    lane: usize,
    count: usize,
}

impl<'a, L: Lanes> Queries<'a, L> {
    /// What a strip is made of.
    fn parts(&self, strip: &Strip) -> impl Iterator<Item = Part<'a>> + use<'a, L> {
        let used = (strip.vectors * L::LANES).min(self.count - strip.first);
        let (heads, start, first) = (self.heads, self.rows.start, strip.first);
        let is_alone = heads.len() == 1;
        let parts = if is_alone { 1 } else { used };
        (0..parts).map(move |i| match is_alone {
            true => Part { head: &heads[0], row: start + first, lane: 0, count: used },
            false => Part { head: &heads[first + i], row: 0, lane: i, count: 1 },
        })
    }
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

/// Queries that a task computes: some of one head, all of one row of blocks; or the only one of each head of
/// several that share keys and values.
struct Queries<'a, L: Lanes> {
    heads: &'a [Head<'a>],
    /// The first head, for what all have in common.
    head: &'a Head<'a>,
    rows: Range<usize>,
    count: usize,
    strips: Vec<Strip>,
    buffers: Buffers<L>,
}

/// Some vectors of a tile's queries.
#[derive(Clone, Copy)]
struct Strip {
    /// First query, counted in the tile.
    first: usize,
    vectors: usize,
}

impl<L> Work<'_, L>
where
    L: Floats,
    L::Elem: Real + Element + Sum,
{
    /// Computes some queries.
    fn tile(&self, heads: &[Head<'_>], rows: &Range<usize>) -> Result<(), Error> {
        let head = &heads[0];
        let count = rows.len().max(heads.len());
        let buffers = self.buffers(head, count)?;
        let strips = strips::<L>(count);
        let queries = Queries { heads, head, rows: rows.clone(), count, strips, buffers };
        let runs = self.runs(head, rows);
        for strip in &queries.strips {
            self.load(&queries, strip);
        }
        let mut chunks = runs
            .iter()
            .flat_map(|run| run.clone().step_by(KEYS).map(|first| first..run.end.min(first + KEYS)))
            .peekable();
        while let Some(keys) = chunks.next() {
            self.chunk(&queries, &keys, chunks.peek());
        }
        let first_key = runs.first().map(|run| run.start);
        for strip in &queries.strips {
            self.finish(&queries, strip, first_key);
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
            (KEYS, most_vectors(L::REGISTERS) * L::LANES),
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
    fn load(&self, queries: &Queries<'_, L>, strip: &Strip) {
        let d = queries.head.q.cols;
        let width = strip.vectors * L::LANES;
        let to = queries.buffers.q.wrapping_add(d * strip.first);
        let factor = L::Elem::narrow(self.call.scale * std::f64::consts::LOG2_E);
        let by = [factor; 16];
        assert!(L::LANES <= by.len());
        // SAFETY: the queries are readable; the strip is this task's and has room; the level has `L`.
        unsafe {
            for i in 0..d * width {
                to.add(i).write(L::Elem::default());
            }
            for part in queries.parts(strip) {
                let q = &part.head.q;
                let rect = Rect {
                    src: q.at(part.row, 0),
                    rows: d,
                    cols: part.count,
                    row_stride: q.col_stride,
                    col_stride: q.row_stride,
                };
                self.convert[0](&rect, to.add(part.lane), width);
            }
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

    /// Moves all strips on by a chunk of keys, and asks for the next one.
    fn chunk(&self, queries: &Queries<'_, L>, keys: &Range<usize>, next: Option<&Range<usize>>) {
        let Queries { head, strips, buffers, .. } = queries;
        let (d, features) = (head.q.cols, head.v.cols);
        let k = chunk_of::<L>(&head.k, keys, self.convert[1], buffers.k);
        let v = chunk_of::<L>(&head.v, keys, self.convert[2], buffers.v);
        let mut clean: Option<bool> = None;
        let mut next = next;
        for strip in strips {
            let width = strip.vectors * L::LANES;
            let used = width.min(queries.count - strip.first);
            let hidden = |j: usize| self.hidden(queries, strip, j);
            if hidden(keys.start) >= used {
                continue;
            }
            let is_cut = hidden(keys.end - 1) > 0;
            let ahead = |of: &MatRef<'_>, next| match next {
                Some(next) => ahead::<L>(of, next),
                None => Ahead::NONE,
            };
            let mut scores = Product {
                left: k.start,
                rows: keys.len(),
                words: d,
                step: k.row,
                x: buffers.q.wrapping_add(d * strip.first),
                vectors: strip.vectors,
                out: buffers.scores,
                adds: false,
                ahead: ahead(&head.k, next),
            };
            let out = buffers.out.wrapping_add(features * strip.first);
            // SAFETY: chunks, strips and scores have room for what the shapes say, and are this task's; the
            // level has `L`.
            unsafe {
                L::product(false)(&scores);
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
                // A weight of 0 times infinity would be seen by queries that do not see the key.
                if is_cut && !*clean.get_or_insert_with(|| all_finite(&v, keys.len(), features)) {
                    self.add_visible(queries, &v, keys, strip);
                } else {
                    scores = Product {
                        left: v.start,
                        rows: features,
                        words: keys.len(),
                        step: v.row,
                        x: buffers.scores,
                        out,
                        adds: true,
                        ahead: ahead(&head.v, next),
                        ..scores
                    };
                    L::product(true)(&scores);
                }
            }
            // Asked for once is enough.
            next = None;
        }
    }

    /// How many queries of a strip, its first ones, do not see key `j`.
    fn hidden(&self, queries: &Queries<'_, L>, strip: &Strip, j: usize) -> usize {
        if !self.call.causal {
            return 0;
        }
        let (n, m) = (queries.head.q.rows, queries.head.k.rows);
        (j + n).saturating_sub(m + queries.rows.start + strip.first).min(strip.vectors * L::LANES)
    }

    /// Adds weighted values one by one, each to the queries that see its key.
    ///
    /// # Safety
    /// As [`super::product::run`].
    unsafe fn add_visible(&self, queries: &Queries<'_, L>, v: &Chunk<L>, keys: &Range<usize>, strip: &Strip) {
        let (features, buffers) = (queries.head.v.cols, &queries.buffers);
        let width = strip.vectors * L::LANES;
        let out = buffers.out.wrapping_add(features * strip.first);
        // SAFETY: the caller's promise.
        unsafe {
            for (i, j) in keys.clone().enumerate() {
                for feature in 0..features {
                    let value = v.start.add(i * v.row + feature).read_unaligned();
                    for query in self.hidden(queries, strip, j)..width {
                        let to = out.add(feature * width + query);
                        to.write(*to + *buffers.scores.add(i * width + query) * value);
                    }
                }
            }
        }
    }

    /// Divides by the sums of weights and writes the strip's rows of the result.
    fn finish(&self, queries: &Queries<'_, L>, strip: &Strip, first_key: Option<usize>) {
        let Queries { head, rows, buffers, .. } = queries;
        let features = head.v.cols;
        let width = strip.vectors * L::LANES;
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
            for part in queries.parts(strip) {
                let out = &part.head.out;
                let finished = Finished {
                    sums: data.add(part.lane).cast_const(),
                    sums_row: width,
                    rows: features,
                    cols: part.count,
                    first_row: 0,
                    out: out.at(part.row, 0),
                    row_stride: out.view.col_stride,
                    col_stride: out.view.row_stride,
                };
                (self.store)(&finished, &Epilogue::default());
            }
        }
    }
}

/// Cuts queries into strips of nearly equal width, at most [`most_vectors`].
fn strips<L: Lanes>(queries: usize) -> Vec<Strip> {
    let vectors = queries.div_ceil(L::LANES);
    let count = vectors.div_ceil(most_vectors(L::REGISTERS)).max(1);
    let cut = |i: usize| vectors * i / count;
    (0..count).map(|i| Strip { first: cut(i) * L::LANES, vectors: cut(i + 1) - cut(i) }).collect()
}
