//! Moments of panels of values.

use numpy::{PyArray2, PyArrayMethods, PyUntypedArray};
use prunus_core::MatRef;
use prunus_cpu::moments::Measure;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::enter;

/// Count, NaN, sum, squares about the mean, least and largest of each column of `values`, or of all of them:
/// a row of six numbers each.
#[pyfunction]
pub(crate) fn moments<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyUntypedArray>,
    by_column: bool,
    skip_nan: bool,
    squares: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let nd = Nd::read(values)?;
    let &[rows, cols] = nd.shape.as_slice() else {
        let count = nd.shape.len();
        return Err(PyValueError::new_err(format!("values: expected two dimensions, got {count}")));
    };
    let found = enter(py, threads, |context| {
        let nd = &nd;
        // SAFETY: the array lives as long as the call.
        let values = unsafe { MatRef::new(nd.ptr, nd.dtype, (rows, cols), (nd.strides[0], nd.strides[1])) };
        Measure { values, by_column, skip_nan, squares }.run(context)
    })?;
    let numbers: Vec<f64> =
        found.iter().flat_map(|m| [m.count as f64, m.nans as f64, m.sum, m.squares, m.min, m.max]).collect();
    let array = numpy::PyArray1::from_vec(py, numbers);
    array.reshape([found.len(), 6])
}
