//! Dense times dense at the blocks of a pattern.

use numpy::PyUntypedArray;
use prunus_core::MatRef;
use prunus_cpu::Sdd;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::enter_each;
use crate::operand::Target;

/// `out_data[e] = (a @ b)` in block `e` of the pattern, one product for each batch member.
///
/// `a` is `(*batch, M, K)`, `b` is `(*batch, K, N)`. With one pattern for all, `out_data` is `(*batch,
/// blocks, rows, columns)`; with one each, `indptr` is `(*batch, block rows + 1)` and holds
/// offsets into one flat `out_data`.
#[pyfunction]
pub(crate) fn sdd(
    py: Python<'_>,
    a: &Bound<'_, PyUntypedArray>,
    b: &Bound<'_, PyUntypedArray>,
    indices: &Bound<'_, PyUntypedArray>,
    indptr: &Bound<'_, PyUntypedArray>,
    out_data: &Bound<'_, PyUntypedArray>,
    threads: usize,
) -> PyResult<()> {
    let (a, b) = (Nd::read(a)?, Nd::read(b)?);
    let batch = a.batch(2)?;
    if b.batch(2)? != batch {
        return Err(PyValueError::new_err(format!(
            "batch dimensions of a and b must agree, got {batch:?} and {:?}",
            b.batch(2)?
        )));
    }
    let n = batch.len();
    let mut out = Target::write(out_data, indices, indptr, b.shape[n + 1], batch)?;
    if out.is_empty() {
        return Ok(());
    }
    enter_each(py, threads, batch.iter().product(), |i, context| {
        let view = |m: &Nd| {
            let (shape, strides) = ((m.shape[n], m.shape[n + 1]), (m.strides[n], m.strides[n + 1]));
            // SAFETY: a member of an array that lives as long as the call.
            unsafe { MatRef::new(m.member(batch, i), m.dtype, shape, strides) }
        };
        let (pattern, out) = out.member(i);
        Sdd { a: view(&a), b: view(&b), pattern, out }.run(context)
    })
}
