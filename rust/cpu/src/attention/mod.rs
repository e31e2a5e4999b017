//! Attention over live blocks of keys: `softmax(scale · q · kᵀ) · v` in one pass, in memory that does not
//! grow with the number of keys.
//!
//! The online softmax is that of Milakov and Gimelshein (2018), the order of loops that of FlashAttention
//! (Dao et al., 2022): a tile of queries stays in the first cache while keys and values stream past.
//! [`run`] holds the driver, [`pool`] the scores of blocks, [`product`] the two products, [`steps`] what happens between them.

mod operand;
mod pool;
pub(crate) mod product;
mod run;
pub(crate) mod steps;

use prunus_core::{DType, Error, MatMut, MatRef};

pub use pool::Pooled;

use crate::dispatch::with_floats;
use crate::threads::Context;

/// The operands of one head. Heads that share keys and values name the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Queries, `n × d`, any strides.
    pub q: MatRef<'a>,
    /// Keys, `m × d`.
    pub k: MatRef<'a>,
    /// Values, `m × dv`.
    pub v: MatRef<'a>,
    /// The result, `n × dv`.
    pub out: MatMut<'a>,
    /// One byte (int8) for each block of queries and block of keys: not 0 where the block takes part. None: all do.
    pub live: Option<MatRef<'a>>,
}

/// Attention of many heads of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// The heads; those with the same keys next to each other.
    pub heads: &'a [Head<'a>],
    /// Factor of the scores.
    pub scale: f64,
    /// Query i sees keys j <= i + m - n only.
    pub causal: bool,
    /// Rows and columns of a block of `live`.
    pub block: usize,
}

impl Attention<'_> {
    /// Runs the operation and says which kernel did it.
    ///
    /// A query that sees no key gets zeros. Blocks that are not live are not read.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, [`Error::Choice`] for a factor that
    /// is not finite, or [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        let Some(first) = self.heads.first() else { return Ok("nothing to do") };
        self.check(first)?;
        with_floats!(
            "attention",
            compute_type(&kinds(first)),
            L => run::run::<L>(self, context),
            else Err(no_kernel(first))
        )
    }

    fn check(&self, first: &Head<'_>) -> Result<(), Error> {
        let fault = |what, expected, got| Err(Error::Shape { what, expected, got });
        let text = |(rows, cols): (usize, usize)| format!("{rows} x {cols}");
        if !self.scale.is_finite() {
            let expected = "a finite number".to_owned();
            return Err(Error::Choice { what: "scale", expected, got: self.scale.to_string() });
        }
        if self.block == 0 {
            return fault("blocksize", "at least 1".to_owned(), "0".to_owned());
        }
        let (n, d) = (first.q.rows, first.q.cols);
        let (m, features) = (first.v.rows, first.v.cols);
        let grid = (n.div_ceil(self.block), m.div_ceil(self.block));
        for head in self.heads {
            let shapes = [
                ("queries", (head.q.rows, head.q.cols), (n, d)),
                ("keys", (head.k.rows, head.k.cols), (m, d)),
                ("values", (head.v.rows, head.v.cols), (m, features)),
                ("result", (head.out.view.rows, head.out.view.cols), (n, features)),
                ("live blocks", head.live.map_or(grid, |live| (live.rows, live.cols)), grid),
            ];
            for (what, got, expected) in shapes {
                if got != expected {
                    return fault(what, text(expected), text(got));
                }
            }
            if kinds(head) != kinds(first) || head.live.is_some_and(|live| live.dtype != DType::I8) {
                return Err(no_kernel(head));
            }
        }
        Ok(())
    }
}

fn kinds(head: &Head<'_>) -> [DType; 4] {
    [head.q.dtype, head.k.dtype, head.v.dtype, head.out.view.dtype]
}

/// What the operands are computed in: float32, unless one is float64.
fn compute_type(kinds: &[DType]) -> Option<DType> {
    match kinds {
        kinds if kinds.iter().any(|kind| matches!(kind, DType::I8 | DType::I32)) => None,
        kinds if kinds.contains(&DType::F64) => Some(DType::F64),
        _ => Some(DType::F32),
    }
}

fn no_kernel(head: &Head<'_>) -> Error {
    Error::DTypes { what: "attention", a: head.q.dtype, b: head.k.dtype, out: head.out.view.dtype }
}
