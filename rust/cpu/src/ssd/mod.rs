//! Block-sparse times block-sparse: `op(A) · op(B)`, with a block-sparse result.
//!
//! Gustavson's row-wise product in two phases. [`symbolic`] finds the result's pattern, so that the
//! caller can allocate it; [`numeric`] fills it in. Where the caller wants some blocks only, the pattern is
//! theirs (a mask of the output: Buluç, Gilbert, *Parallel sparse matrix-matrix multiplication and indexing*,
//! 2012; Milaković et al., *Parallel algorithms for masked sparse matrix-matrix products*, 2022): pairs that
//! meet in other blocks are looked at, by their columns alone, and not multiplied.

mod numeric;
mod symbolic;

use std::borrow::Cow;

use prunus_core::{BlocksMut, BsrRef, DType, Error, Pattern};

use crate::dispatch::with_lanes;
use crate::dsd::compute_type;
use crate::threads::Context;

/// One product of two block-sparse matrices, `M × K` and `K × N` after transposition.
///
/// Blocks of `(r, k)` times blocks of `(k, c)` give blocks of `(r, c)`.
#[derive(Clone, Copy)]
pub struct Ssd<'a> {
    /// Left operand.
    pub a: BsrRef<'a>,
    /// Right operand.
    pub b: BsrRef<'a>,
}

/// A product whose pattern is known.
pub struct Plan<'a> {
    call: Ssd<'a>,
    /// The operands' patterns, after transposition, sorted.
    a: Cow<'a, Pattern>,
    b: Cow<'a, Pattern>,
    /// The result's, sorted; it may name blocks in which nothing meets, and one place twice.
    result: Cow<'a, Pattern>,
    /// Block products to compute before each block row.
    products: Vec<usize>,
    /// The work before each block row by which rows are shared out, and its unit in multiply-adds.
    costs: Option<Vec<usize>>,
}

impl<'a> Ssd<'a> {
    /// Symbolic phase: which blocks the result has.
    ///
    /// # Errors
    /// [`Error::Shape`] for operands that do not fit, or [`Error::Interrupted`].
    pub fn plan(&self, context: &Context<'_>) -> Result<Plan<'a>, Error> {
        self.check()?;
        let (a, b) = (self.a.op_pattern(), self.b.op_pattern());
        let products = symbolic::products(&a, &b);
        let result = Cow::Owned(symbolic::pattern(&a, &b, &products, context)?);
        Ok(Plan { call: *self, a, b, result, products, costs: None })
    }

    /// A product at chosen blocks only: which pairs meet in them. Blocks in which none do are zero, and
    /// entries of the pattern that name one place twice are both computed. Its rows may be in any order.
    ///
    /// # Errors
    /// [`Error::Shape`] for operands or a pattern that do not fit, or [`Error::Interrupted`].
    pub fn plan_at(&self, pattern: &'a Pattern, context: &Context<'_>) -> Result<Plan<'a>, Error> {
        self.check()?;
        let (a, b) = (self.a.op_pattern(), self.b.op_pattern());
        let expected = (a.block_rows(), b.block_cols());
        let got = (pattern.block_rows(), pattern.block_cols());
        if got != expected {
            let text = |(rows, cols)| format!("{rows} x {cols} blocks");
            return Err(Error::Shape { what: "block pattern", expected: text(expected), got: text(got) });
        }
        let result = match pattern.is_sorted() {
            true => Cow::Borrowed(pattern),
            false => Cow::Owned(pattern.clone().into_sorted()),
        };
        let all = symbolic::products(&a, &b);
        let products = symbolic::products_at(&a, &b, &result, &all, context)?;
        let mut plan = Plan { call: *self, a, b, result, products, costs: None };
        let block = usize::try_from(plan.block_work()).unwrap_or(usize::MAX);
        plan.costs = Some(symbolic::costs(&plan.result, &all, &plan.products, block));
        Ok(plan)
    }

    fn check(&self) -> Result<(), Error> {
        let fault = |what, expected: String, got: String| Err(Error::Shape { what, expected, got });
        for (what, m) in [("left operand", &self.a), ("right operand", &self.b)] {
            let (shape, block) = (m.shape, m.blocksize);
            if block.0 == 0 || block.1 == 0 {
                return fault(
                    what,
                    "blocks of at least 1 x 1".to_owned(),
                    format!("{} x {}", block.0, block.1),
                );
            }
            let grid = (shape.0.div_ceil(block.0), shape.1.div_ceil(block.1));
            let pattern = (m.pattern.block_rows(), m.pattern.block_cols());
            if grid != pattern {
                let text = |(rows, cols)| format!("a pattern of {rows} x {cols} blocks");
                return fault(what, text(grid), text(pattern));
            }
        }
        let inner = (self.a.op_shape().1, self.b.op_shape().0);
        if inner.0 != inner.1 {
            return fault("right operand", format!("{} rows", inner.0), format!("{}", inner.1));
        }
        let depth = (self.a.op_blocksize().1, self.b.op_blocksize().0);
        if depth.0 != depth.1 {
            return fault("right operand", format!("blocks of {} rows", depth.0), format!("{}", depth.1));
        }
        Ok(())
    }
}

impl Plan<'_> {
    /// Offsets of the result's block rows: one more than there are rows.
    pub fn indptr(&self) -> &[usize] {
        self.result.indptr()
    }

    /// Block columns of the result, ascending in each block row.
    pub fn indices(&self) -> &[u32] {
        self.result.indices()
    }

    /// Rows and columns of a block of the result.
    pub fn blocksize(&self) -> (usize, usize) {
        (self.call.a.op_blocksize().0, self.call.b.op_blocksize().1)
    }

    /// Block products of the numeric phase.
    pub fn products(&self) -> usize {
        self.products.last().copied().unwrap_or(0)
    }

    /// Multiply-adds of the numeric phase, padding included.
    pub fn work(&self) -> u64 {
        (self.products() as u64).saturating_mul(self.block_work())
    }

    /// Multiply-adds of one block product.
    fn block_work(&self) -> u64 {
        let (rows, cols) = self.blocksize();
        let area = (rows as u64).saturating_mul(cols as u64);
        area.saturating_mul(self.call.a.op_blocksize().1 as u64)
    }

    /// The work before each block row, and its unit in multiply-adds.
    fn shares(&self) -> (&[usize], u64) {
        match &self.costs {
            Some(costs) => (costs, 1),
            None => (&self.products, self.block_work()),
        }
    }

    /// Numeric phase: writes every block that the result's pattern names, each summed in ascending order of
    /// the inner block index whatever the number of threads. Padding is zero. Says which kernel did it.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for a result that does not fit, [`Error::Interrupted`],
    /// or what kept a block from arriving.
    pub fn run(&self, out: &BlocksMut<'_>, context: &Context<'_>) -> Result<&'static str, Error> {
        // The pattern's entries are below the number of its indices, however they are sorted.
        let named = self.indices().len();
        if out.blocksize != self.blocksize() || out.count < named {
            let text = |n: usize, (rows, cols): (usize, usize)| format!("{n} blocks of {rows} x {cols}");
            return Err(Error::Shape {
                what: "result",
                expected: text(named, self.blocksize()),
                got: text(out.count, out.blocksize),
            });
        }
        let compute = compute_type(self.call.a.dtype, self.call.b.dtype, out.dtype);
        with_lanes!("ssd", compute, L => numeric::run::<L>(self, out, context), else Err(self.no_kernel(out.dtype)))
    }

    fn no_kernel(&self, out: DType) -> Error {
        Error::DTypes {
            what: "product of block-sparse matrices",
            a: self.call.a.dtype,
            b: self.call.b.dtype,
            out,
        }
    }
}
