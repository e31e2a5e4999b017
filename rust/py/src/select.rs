//! The largest values of each row.

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArray};
use prunus_cpu::Largest;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::enter;
use crate::rows::{liveness, matrix, view, view_mut};

/// Writes 1 to `out` where a row of `values` has its `wanted` largest among those that are `visible`, of
/// equal ones the first and NaN before all; 0 elsewhere.
#[pyfunction]
pub(crate) fn largest(
    py: Python<'_>,
    values: &Bound<'_, PyUntypedArray>,
    wanted: PyReadonlyArray1<'_, i64>,
    visible: Option<PyReadonlyArray2<'_, u8>>,
    out: &Bound<'_, PyUntypedArray>,
    threads: usize,
) -> PyResult<()> {
    let values = matrix("values", values)?;
    let out = Nd::write(out)?;
    let shape = |shape: &[usize]| match shape == values.shape {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!("expected shape {:?}, got {shape:?}", values.shape))),
    };
    shape(&out.shape)?;
    if let Some(visible) = &visible {
        shape(visible.as_array().shape())?;
    }
    // Copies: Python code may write to the arrays while the GIL is released.
    let wanted = wanted.as_array().to_vec();
    let visible = liveness(visible.as_ref());
    enter(py, threads, |context| {
        // Taken whole: the views in it may cross to the engine's threads.
        let (values, out) = (&values, &out);
        // SAFETY: views of arrays that live as long as the call; `out` is writeable, its elements are apart,
        // and Python's caller is told not to touch it meanwhile.
        let call = unsafe {
            Largest { values: view(values), wanted: &wanted, visible: visible.as_deref(), out: view_mut(out) }
        };
        call.run(context)
    })
}
