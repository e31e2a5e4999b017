//! Block-sparse times block-sparse.

use numpy::{PyArray1, PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use prunus_core::BlocksMut;
use prunus_cpu::Ssd;
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::{LAST_PATH, enter};
use crate::operand::{Operand, Target};

/// Values, block columns and offsets of a block-sparse result.
type Triple<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

/// `op(A) @ op(B)`: the result's `(data, indices, indptr)`, block columns ascending in each row.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn ssd<'py>(
    py: Python<'py>,
    a_data: &Bound<'py, PyUntypedArray>,
    a_indices: &Bound<'py, PyUntypedArray>,
    a_indptr: &Bound<'py, PyUntypedArray>,
    a_shape: (usize, usize),
    a_transposed: bool,
    b_data: &Bound<'py, PyUntypedArray>,
    b_indices: &Bound<'py, PyUntypedArray>,
    b_indptr: &Bound<'py, PyUntypedArray>,
    b_shape: (usize, usize),
    b_transposed: bool,
    out_dtype: &Bound<'py, PyArrayDescr>,
    threads: usize,
) -> PyResult<Triple<'py>> {
    let a = Operand::read(a_data, a_indices, a_indptr, a_shape, a_transposed, &[])?;
    let b = Operand::read(b_data, b_indices, b_indptr, b_shape, b_transposed, &[])?;
    let (a, b) = (a.member(0), b.member(0));
    let call = Ssd { a: a.bsr(), b: b.bsr() };
    let (plan, indices, indptr) = enter(py, threads, |context| {
        let plan = call.plan(context)?;
        let indices: Vec<i64> = plan.indices().iter().map(|&column| i64::from(column)).collect();
        let indptr: Vec<i64> = plan.indptr().iter().map(|&offset| offset as i64).collect();
        Ok((plan, indices, indptr))
    })?;
    let (count, (rows, cols)) = (indices.len(), plan.blocksize());
    let data = py.import("numpy")?.call_method1("empty", ((count, rows, cols), out_dtype))?;
    let array = data.cast::<PyUntypedArray>()?;
    let nd = Nd::write(array)?;
    debug_assert!(array.is_c_contiguous());
    // SAFETY: a new array of that many blocks in C order, which nobody else has seen.
    let out = unsafe { BlocksMut::new(nd.ptr, nd.dtype, (rows, cols), count) };
    let path = enter(py, threads, |context| plan.run(&out, context))?;
    LAST_PATH.set(path);
    Ok((data, PyArray1::from_vec(py, indices), PyArray1::from_vec(py, indptr)))
}

/// `out_data[e] = (op(A) @ op(B))` in block `e` of the pattern, zeros where no pair of blocks meets.
///
/// `out_data` is `(blocks, rows, columns)`; blocks that the pattern's offsets do not tell of are left alone.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn ssd_at(
    py: Python<'_>,
    a_data: &Bound<'_, PyUntypedArray>,
    a_indices: &Bound<'_, PyUntypedArray>,
    a_indptr: &Bound<'_, PyUntypedArray>,
    a_shape: (usize, usize),
    a_transposed: bool,
    b_data: &Bound<'_, PyUntypedArray>,
    b_indices: &Bound<'_, PyUntypedArray>,
    b_indptr: &Bound<'_, PyUntypedArray>,
    b_shape: (usize, usize),
    b_transposed: bool,
    indices: &Bound<'_, PyUntypedArray>,
    indptr: &Bound<'_, PyUntypedArray>,
    out_data: &Bound<'_, PyUntypedArray>,
    threads: usize,
) -> PyResult<()> {
    let a = Operand::read(a_data, a_indices, a_indptr, a_shape, a_transposed, &[])?;
    let b = Operand::read(b_data, b_indices, b_indptr, b_shape, b_transposed, &[])?;
    let columns = if b_transposed { b_shape.0 } else { b_shape.1 };
    let mut out = Target::write(out_data, indices, indptr, columns, &[])?;
    let (a, b, (pattern, out)) = (a.member(0), b.member(0), out.member(0));
    let call = Ssd { a: a.bsr(), b: b.bsr() };
    let path = enter(py, threads, |context| call.plan_at(pattern, context)?.run(&out, context))?;
    LAST_PATH.set(path);
    Ok(())
}
