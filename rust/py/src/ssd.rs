//! Block-sparse times block-sparse.

use numpy::{PyArray1, PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use prunus_core::{BlocksMut, BsrRef, MemoryBlocks, Pattern};
use prunus_cpu::Ssd;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Indices, Nd, pattern};
use crate::door::enter;
use crate::dsd::{LAST_PATH, blocks_of};

/// One operand, checked: its blocks in C order, one for each index.
struct Operand {
    data: Nd,
    pattern: Pattern,
    shape: (usize, usize),
    blocksize: (usize, usize),
    transposed: bool,
}

impl Operand {
    fn new(
        data: &Bound<'_, PyUntypedArray>,
        indices: &Bound<'_, PyUntypedArray>,
        indptr: &Bound<'_, PyUntypedArray>,
        shape: (usize, usize),
        transposed: bool,
    ) -> PyResult<Self> {
        let (data, blocksize) = blocks_of(data)?;
        if data.shape.len() != 3 {
            return Err(PyValueError::new_err("data: expected three dimensions"));
        }
        if blocksize.0 == 0 || blocksize.1 == 0 {
            return Err(PyValueError::new_err("blocks of zero size"));
        }
        let (indices, indptr) = (Indices::new("indices", indices)?, Indices::new("indptr", indptr)?);
        if indices.shape.len() != 1 || indptr.shape.len() != 1 {
            return Err(PyValueError::new_err("indices and indptr: expected one dimension"));
        }
        if data.shape[0] < indices.shape[0] {
            return Err(PyValueError::new_err(format!(
                "data holds {} blocks, indices name {}",
                data.shape[0], indices.shape[0]
            )));
        }
        let pattern = pattern(&indptr, &indices, &[], 0, shape.1.div_ceil(blocksize.1))?;
        Ok(Self { data, pattern, shape, blocksize, transposed })
    }

    fn source(&self) -> MemoryBlocks<'_> {
        let block_bytes = self.blocksize.0 * self.blocksize.1 * self.data.dtype.size();
        // SAFETY: checked above; the array lives as long as the call.
        unsafe { MemoryBlocks::new(self.data.ptr, block_bytes) }
    }

    fn as_ref<'b>(&'b self, source: &'b MemoryBlocks<'_>) -> BsrRef<'b> {
        BsrRef {
            pattern: &self.pattern,
            source,
            dtype: self.data.dtype,
            shape: self.shape,
            blocksize: self.blocksize,
            transposed: self.transposed,
            group: 0,
            by_column: None,
        }
    }
}

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
    let a = Operand::new(a_data, a_indices, a_indptr, a_shape, a_transposed)?;
    let b = Operand::new(b_data, b_indices, b_indptr, b_shape, b_transposed)?;
    let (a_source, b_source) = (a.source(), b.source());
    let call = Ssd { a: a.as_ref(&a_source), b: b.as_ref(&b_source) };
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
