//! Dense times dense at the blocks of a pattern: `out[e] = (a · b)` in block `e`.
//!
//! [`plan`] holds the fixed rules by which work is cut up, [`run`] the driver.

mod plan;
mod run;

use prunus_core::{BlocksMut, Error, MatRef, Pattern};

use crate::dispatch::with_lanes;
use crate::dsd::compute_type;
use crate::threads::Context;

/// The fixed constants by which work is cut up, for reports.
pub fn constants() -> Vec<(&'static str, u64)> {
    plan::constants()
}

/// One dense product, sampled at blocks.
#[derive(Clone, Copy)]
pub struct Sdd<'a> {
    /// Left operand, `M × K`, any strides.
    pub a: MatRef<'a>,
    /// Right operand, `K × N`, any strides.
    pub b: MatRef<'a>,
    /// Which blocks to compute. Entries that name one place twice are both computed.
    pub pattern: &'a Pattern,
    /// The blocks, numbered as the pattern stores them. Padding beyond `M × N` becomes zero.
    pub out: BlocksMut<'a>,
}

impl Sdd<'_> {
    /// Runs the product and says which kernel did it.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, or [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        self.check()?;
        let compute = compute_type(self.a.dtype, self.b.dtype, self.out.dtype);
        with_lanes!("sdd", compute, L => run::run::<L>(self, context), else Err(self.no_kernel()))
    }

    fn no_kernel(&self) -> Error {
        Error::DTypes { what: "sampled dense product", a: self.a.dtype, b: self.b.dtype, out: self.out.dtype }
    }

    fn check(&self) -> Result<(), Error> {
        let fault = |what, expected, got| Err(Error::Shape { what, expected, got });
        if self.a.cols != self.b.rows {
            return fault("right operand", format!("{} rows", self.a.cols), format!("{}", self.b.rows));
        }
        let (rows, cols) = self.out.blocksize;
        if rows == 0 || cols == 0 {
            return fault("result", "blocks of at least 1 x 1".to_owned(), format!("{rows} x {cols}"));
        }
        let grid = (self.a.rows.div_ceil(rows), self.b.cols.div_ceil(cols));
        let pattern = (self.pattern.block_rows(), self.pattern.block_cols());
        if grid != pattern {
            let text = |(rows, cols)| format!("{rows} x {cols} blocks");
            return fault("block pattern", text(grid), text(pattern));
        }
        let named = self.pattern.indices().len();
        if self.out.count < named {
            return fault("result", format!("at least {named} blocks"), format!("{}", self.out.count));
        }
        Ok(())
    }
}
