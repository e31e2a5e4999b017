//! Scores of blocks: what a policy sees of attention before anything is multiplied in full.

use prunus_core::{Epilogue, Error, MatMut, MatRef};

use super::product::{Ahead, Product, most_vectors};
use crate::dispatch::with_floats;
use crate::dsd::convert::{Element, Rect};
use crate::dsd::store::{Finished, Sum};
use crate::memory::Workspace;
use crate::simd::floats::{Floats, Real};
use crate::threads::{Context, for_each};

/// Rows that are copied or multiplied at a time.
const ROWS: usize = 64;

/// `out[i, j] = scale · mean of block i of q · mean of block j of k`, for heads of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Pooled<'a> {
    /// Queries, keys and scores of each head: `n × d`, `m × d`, and `ceil(n / block) × ceil(m / block)`.
    pub heads: &'a [(MatRef<'a>, MatRef<'a>, MatMut<'a>)],
    /// Factor of the scores.
    pub scale: f64,
    /// Rows of a block.
    pub block: usize,
}

impl Pooled<'_> {
    /// Computes the scores. Each depends on its own two blocks only.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, or [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        let Some((q, k, out)) = self.heads.first() else { return Ok("nothing to do") };
        let fault =
            || Error::DTypes { what: "scores of blocks", a: q.dtype, b: k.dtype, out: out.view.dtype };
        for (one, keys, scores) in self.heads {
            let blocks = |rows: usize| rows.div_ceil(self.block.max(1));
            let expected = (blocks(one.rows), blocks(keys.rows), one.cols);
            let got = (scores.view.rows, scores.view.cols, keys.cols);
            if got != expected || self.block == 0 {
                let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
                return Err(Error::Shape { what: "blocks of queries, of keys, and features", expected, got });
            }
            if (one.dtype, keys.dtype, scores.view.dtype) != (q.dtype, k.dtype, out.view.dtype) {
                return Err(fault());
            }
        }
        let compute = super::compute_type(&[q.dtype, k.dtype, out.view.dtype]);
        with_floats!("scores", compute, L => run::<L>(self, context, &fault), else Err(fault()))
    }
}

fn run<L>(call: &Pooled<'_>, context: &Context<'_>, fault: &dyn Fn() -> Error) -> Result<(), Error>
where
    L: Floats,
    L::Elem: Real + Element + Sum,
{
    let Some((_, _, first)) = call.heads.first() else { return Ok(()) };
    let store = <L::Acc as Sum>::store(first.view.dtype).ok_or_else(fault)?;
    let native = <L::Elem as Element>::NATIVE.and_then(<L::Elem as Element>::convert).ok_or_else(fault)?;
    for_each(context, call.heads.len(), |head| {
        let (q, k, out) = &call.heads[head];
        let (rows, cols, d) = (out.view.rows, out.view.cols, q.cols);
        let size = size_of::<L::Elem>();
        let width = most_vectors(L::REGISTERS) * L::LANES;
        let (queries, keys) = (means::<L>(q, call.block, call.scale)?, means::<L>(k, call.block, 1.0)?);
        let strip = Workspace::of(&[d.max(1), width, size])?;
        let sums = Workspace::of(&[ROWS, width, size])?;
        let (strip, sums): (*mut L::Elem, *mut L::Elem) = (strip.as_ptr().cast(), sums.as_ptr().cast());
        for col in (0..cols).step_by(width) {
            let count = width.min(cols - col);
            let rect = Rect {
                src: keys.as_ptr().wrapping_add(col * d * size),
                rows: d,
                cols: count,
                row_stride: size as isize,
                col_stride: (d * size) as isize,
            };
            // SAFETY: both hold whole strips; what the last one has too much is set to zero.
            unsafe {
                for i in 0..d * width {
                    strip.add(i).write(L::Elem::default());
                }
                native(&rect, strip, width);
            }
            for row in (0..rows).step_by(ROWS) {
                let height = ROWS.min(rows - row);
                let product = Product::<L> {
                    left: queries.as_ptr().cast::<L::Elem>().wrapping_add(row * d),
                    rows: height,
                    words: d,
                    step: d,
                    x: strip,
                    vectors: width / L::LANES,
                    out: sums,
                    adds: false,
                    ahead: Ahead::NONE,
                };
                let finished = Finished {
                    sums: sums.cast_const(),
                    sums_row: width,
                    rows: height,
                    cols: count,
                    first_row: 0,
                    out: out.at(row, col),
                    row_stride: out.view.row_stride,
                    col_stride: out.view.col_stride,
                };
                // SAFETY: means, strip and sums hold what the shapes say; these scores are this task's; the
                // level has `L`.
                unsafe {
                    L::product(false)(&product);
                    store(&finished, &Epilogue::default());
                }
            }
        }
        Ok(())
    })
}

/// Means of blocks of rows, times `scale`: one row a block.
fn means<L>(x: &MatRef<'_>, block: usize, scale: f64) -> Result<Workspace, Error>
where
    L: Floats,
    L::Elem: Real + Element,
{
    let d = x.cols;
    let convert = <L::Elem as Element>::convert(x.dtype).ok_or(Error::DTypes {
        what: "means of blocks",
        a: x.dtype,
        b: x.dtype,
        out: x.dtype,
    })?;
    let size = size_of::<L::Elem>();
    let result = Workspace::of(&[x.rows.div_ceil(block).max(1), d.max(1), size])?;
    let copy = Workspace::of(&[ROWS, d.max(1), size])?;
    let (to, copy): (*mut L::Elem, *mut L::Elem) = (result.as_ptr().cast(), copy.as_ptr().cast());
    for (i, first) in (0..x.rows).step_by(block).enumerate() {
        let end = x.rows.min(first.saturating_add(block));
        // SAFETY: a row of the result, initialised here; no other reference to it.
        let mean = unsafe {
            for j in 0..d {
                to.add(i * d + j).write(L::Elem::default());
            }
            std::slice::from_raw_parts_mut(to.add(i * d), d)
        };
        for row in (first..end).step_by(ROWS) {
            let rows = ROWS.min(end - row);
            let (row_stride, col_stride) = (x.row_stride, x.col_stride);
            let rect = Rect { src: x.at(row, 0), rows, cols: d, row_stride, col_stride };
            // SAFETY: the rows are readable, and the copy has room for them and is initialised by it.
            let copied = unsafe {
                convert(&rect, copy, d);
                std::slice::from_raw_parts(copy.cast_const(), rows * d)
            };
            for one in copied.chunks_exact(d.max(1)) {
                for (sum, &value) in mean.iter_mut().zip(one) {
                    *sum = *sum + value;
                }
            }
        }
        let factor = L::Elem::narrow(scale / (end - first) as f64);
        for sum in mean {
            *sum = *sum * factor;
        }
    }
    Ok(result)
}
