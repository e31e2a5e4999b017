//! Sums, spreads and extremes of many values: what reductions of streamed panels are made of.
//!
//! Values are summed in double precision in chunks of a fixed size, whose means and sums of squares are
//! merged in order (Chan, Golub and LeVeque, *Updating formulae and a pairwise algorithm for computing sample
//! variances*, 1979), so that nothing depends on the number of threads.

mod kernel;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use prunus_core::{DType, Error, MatRef};

use crate::memory::Workspace;
use crate::threads::{Context, for_each};
use kernel::{Kernels, Value};

/// Values of a chunk: it stays in the first cache while it is read twice.
const CHUNK: usize = 4096;
/// Rows of a panel that are merged into the columns' moments at a time, and columns that are done together.
const ROWS: usize = 64;
const COLUMNS: usize = 1024;
/// Values of a task.
const TASK: usize = 16 * CHUNK;

/// Moments of some values. Of none, the extremes are infinite, the wrong way round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Values counted.
    pub count: u64,
    /// NaN among them, or left out.
    pub nans: u64,
    /// Their sum.
    pub sum: f64,
    /// Sum of squared distances from their mean.
    pub squares: f64,
    /// The smallest, NaN left out.
    pub min: f64,
    /// The largest, NaN left out.
    pub max: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self { count: 0, nans: 0, sum: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Moments {
    /// Takes in the moments of further values.
    pub fn merge(&mut self, other: &Self) {
        if other.count > 0 {
            let (n, m) = (self.count as f64, other.count as f64);
            let squares = match self.count {
                0 => 0.0,
                _ => {
                    let distance = other.sum / m - self.sum / n;
                    distance * distance * (n * m / (n + m))
                }
            };
            self.squares += other.squares + squares;
            self.sum += other.sum;
            self.count += other.count;
        }
        self.nans += other.nans;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Measure<'a> {
    /// Float values, rows contiguous.
    pub values: MatRef<'a>,
    /// Of each column, or of all values.
    pub by_column: bool,
    /// Leave NaN out, instead of letting it into sums.
    pub skip_nan: bool,
    /// Whether squares are wanted: a second look at each value.
    pub squares: bool,
}

impl Measure<'_> {
    /// Returns the moments, one for each column or one for all values.
    ///
    /// # Errors
    /// [`Error::DTypes`] or [`Error::Shape`] for values that are no floats in contiguous rows,
    /// [`Error::Memory`], or [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<Vec<Moments>, Error> {
        let values = &self.values;
        if values.rows > 0 && values.cols > 1 && values.col_stride != values.dtype.size() as isize {
            return Err(Error::Shape {
                what: "values",
                expected: "contiguous rows".to_owned(),
                got: format!("values {} bytes apart", values.col_stride),
            });
        }
        match values.dtype {
            DType::F32 => self.of::<f32>(context),
            DType::F64 => self.of::<f64>(context),
            DType::F16 => self.of::<f16>(context),
            DType::Bf16 => self.of::<bf16>(context),
            a => Err(Error::DTypes { what: "moments", a, b: a, out: DType::F64 }),
        }
    }

    fn of<S: Value>(&self, context: &Context<'_>) -> Result<Vec<Moments>, Error> {
        match self.by_column {
            true => self.columns::<S>(context),
            false => self.whole::<S>(context),
        }
    }

    /// Runs of values that lie together: the whole matrix as one row, if it does.
    fn runs(&self) -> (usize, usize) {
        let values = &self.values;
        match values.row_stride == (values.cols * values.dtype.size()) as isize || values.rows <= 1 {
            true => (1, values.rows * values.cols),
            false => (values.rows, values.cols),
        }
    }

    fn whole<S: Value>(&self, context: &Context<'_>) -> Result<Vec<Moments>, Error> {
        let kernels = Kernels::<S>::current();
        let (rows, cols) = self.runs();
        let tasks_of_row = cols.div_ceil(TASK);
        let found: Vec<Mutex<Moments>> =
            (0..rows * tasks_of_row).map(|_| Mutex::new(Moments::default())).collect();
        for_each(context, found.len(), |task| {
            let (row, first) = (task / tasks_of_row.max(1), task % tasks_of_row.max(1) * TASK);
            let mut moments = Moments::default();
            for from in (first..cols.min(first + TASK)).step_by(CHUNK) {
                let count = CHUNK.min(cols - from);
                let at = self.values.at(row, 0).cast::<S>().wrapping_add(from);
                // SAFETY: values of the matrix, in a contiguous run; the level in use has the kernel's
                // instruction set.
                moments.merge(&unsafe { (kernels.chunk)(at, count, self.skip_nan, self.squares) });
            }
            *found[task].lock().unwrap_or_else(PoisonError::into_inner) = moments;
            Ok(())
        })?;
        let mut total = Moments::default();
        for moments in found {
            total.merge(&moments.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(vec![total])
    }

    fn columns<S: Value>(&self, context: &Context<'_>) -> Result<Vec<Moments>, Error> {
        let kernels = Kernels::<S>::current();
        let (rows, cols) = (self.values.rows, self.values.cols);
        let (bands, tiles) = (rows.div_ceil(TASK / COLUMNS * 4), cols.div_ceil(COLUMNS));
        let band = TASK / COLUMNS * 4;
        let found: Vec<Mutex<Vec<Moments>>> = (0..bands * tiles).map(|_| Mutex::default()).collect();
        for_each(context, found.len(), |task| {
            let (first, column) = (task / tiles * band, task % tiles * COLUMNS);
            let width = COLUMNS.min(cols - column);
            let mut moments = vec![Moments::default(); width];
            let scratch = Workspace::of(&[kernel::COLUMN_SUMS, width, size_of::<f64>()])?;
            for row in (first..rows.min(first + band)).step_by(ROWS) {
                let part = kernel::Part {
                    first: self.values.at(row, column).cast::<S>(),
                    rows: ROWS.min(rows - row).min(first + band - row),
                    row_stride: self.values.row_stride,
                    skip_nan: self.skip_nan,
                    squares: self.squares,
                };
                // SAFETY: values of the matrix; the workspace holds as many sums for each column.
                unsafe { (kernels.columns)(&part, &mut moments, scratch.as_ptr().cast()) };
            }
            *found[task].lock().unwrap_or_else(PoisonError::into_inner) = moments;
            Ok(())
        })?;
        let mut total = vec![Moments::default(); cols];
        for (task, moments) in found.into_iter().enumerate() {
            let moments = moments.into_inner().unwrap_or_else(PoisonError::into_inner);
            let column = task % tiles * COLUMNS;
            for (total, moments) in total[column..].iter_mut().zip(&moments) {
                total.merge(moments);
            }
        }
        Ok(total)
    }
}
