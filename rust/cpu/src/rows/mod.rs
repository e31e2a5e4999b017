//! Products with chosen rows of a table: what dynamic pruning multiplies.
//!
//! A feed-forward layer keeps each hidden unit's weights as a row. [`Dots`] computes units from an input,
//! [`Combine`] sums what they contribute; both touch the rows of live units only. Which units are live is a
//! boolean for each row of the input and each *branch*, some neighbouring units. [`FeedForward`] is both in one
//! call.

mod combine;
mod counts;
mod dots;
mod feed_forward;
mod finish;
pub(crate) mod kernel;
#[cfg(test)]
mod tests;

use std::ops::Range;

use prunus_core::{DType, Error, MatRef};

pub use combine::{Combine, Panels};
pub use counts::Counts;
pub use dots::{Dots, Found, Norm};
pub use feed_forward::FeedForward;

/// Which branches of a row are live.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// One byte each, rows × branches: 0 is dead.
    pub bytes: &'a [u8],
    /// Units in a branch.
    pub branch: usize,
    /// Branches in a row.
    pub branches: usize,
}

impl<'a> Live<'a> {
    /// Describes the liveness of `rows` rows of `units` units.
    ///
    /// # Errors
    /// [`Error::Shape`] where the sizes do not fit.
    pub fn new(bytes: &'a [u8], branch: usize, rows: usize, units: usize) -> Result<Self, Error> {
        let branches = units.div_ceil(branch.max(1));
        if branch == 0 || bytes.len() != rows * branches {
            return Err(Error::Shape {
                what: "liveness",
                expected: format!("{rows} x {branches} for branches of {branch}"),
                got: format!("{} values", bytes.len()),
            });
        }
        Ok(Self { bytes, branch, branches })
    }

    /// The units of a range that any of some rows needs, ascending.
    pub(crate) fn needed(&self, rows: Range<usize>, units: Range<usize>) -> Vec<usize> {
        let first = units.start / self.branch;
        let mut any = vec![0; units.end.div_ceil(self.branch).saturating_sub(first)];
        for row in rows {
            let row = &self.bytes[row * self.branches + first..(row + 1) * self.branches];
            any.iter_mut().zip(row).for_each(|(any, &live)| *any |= live);
        }
        let mut list = Vec::new();
        for (branch, &live) in (first..).zip(&any) {
            if live != 0 {
                list.extend(units.start.max(branch * self.branch)..units.end.min((branch + 1) * self.branch));
            }
        }
        list
    }
}

/// The type that products with a table are computed in.
fn compute_type(x: DType, w: DType, out: DType) -> Option<DType> {
    match (x, w, out) {
        (DType::I8 | DType::I32, ..) | (_, DType::I8 | DType::I32, _) | (.., DType::I8 | DType::I32) => None,
        (DType::F64, ..) | (_, DType::F64, _) | (.., DType::F64) => Some(DType::F64),
        _ => Some(DType::F32),
    }
}

/// Checks that rows of a matrix are contiguous.
fn check_rows(what: &'static str, m: &MatRef<'_>) -> Result<(), Error> {
    if m.rows > 0 && m.cols > 1 && m.col_stride != m.dtype.size() as isize {
        return Err(Error::Shape {
            what,
            expected: "rows whose values are contiguous".to_owned(),
            got: format!("values {} bytes apart", m.col_stride),
        });
    }
    Ok(())
}
