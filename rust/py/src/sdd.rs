//! Dense times dense at the blocks of a pattern.

use numpy::PyUntypedArray;
use prunus_core::{BlocksMut, Error, MatRef, Pattern};
use prunus_cpu::Sdd;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Indices, Nd, member_pattern};
use crate::door::enter;
use crate::dsd::{LAST_PATH, blocks_of};

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
    let out = Nd::write(out_data)?;
    let (_, blocksize) = blocks_of(out_data)?;
    let batch = a.batch(2)?;
    if b.batch(2)? != batch {
        return Err(PyValueError::new_err(format!(
            "batch dimensions of a and b must agree, got {batch:?} and {:?}",
            b.batch(2)?
        )));
    }
    let (indices, indptr) = (Indices::new("indices", indices)?, Indices::new("indptr", indptr)?);
    if indices.shape.len() != 1 {
        return Err(PyValueError::new_err("indices: expected one dimension"));
    }
    let (out_batch, ptr_batch) = (out.batch(3)?, &indptr.shape[..indptr.shape.len() - 1]);
    let expected = if ptr_batch.is_empty() { batch } else { &[] };
    if out_batch != expected || !(ptr_batch.is_empty() || ptr_batch == batch) {
        return Err(PyValueError::new_err(format!(
            "batch dimensions {batch:?} of a and b need those of out_data and indptr to be either the same and \
             none, or none and the same; got {out_batch:?} and {ptr_batch:?}"
        )));
    }
    if blocksize.0 == 0 || blocksize.1 == 0 {
        return Err(PyValueError::new_err("blocks of zero size"));
    }
    let n = batch.len();
    let stored = out.shape[out_batch.len()];
    let block_cols = b.shape[n + 1].div_ceil(blocksize.1);
    // One pattern for all is checked once; patterns of their own, one by one.
    let members: usize = batch.iter().product();
    let count = if ptr_batch.is_empty() { 1 } else { members };
    let patterns = (0..count)
        .map(|i| {
            if i % 1024 == 1023 {
                py.check_signals()?;
            }
            member_pattern(&indptr, &indices, ptr_batch, i, block_cols)
        })
        .collect::<PyResult<Vec<(Pattern, usize)>>>()?;
    if out.is_empty() {
        return Ok(());
    }
    let block_bytes = blocksize.0 * blocksize.1 * out.dtype.size();
    let path = enter(py, threads, |context| {
        // Taken whole: the views in it may cross to the engine's threads.
        let (a, b, out) = (&a, &b, &out);
        let mut path = "nothing to do";
        for i in 0..members {
            if context.interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
            let view = |m: &Nd| {
                let (shape, strides) = ((m.shape[n], m.shape[n + 1]), (m.strides[n], m.strides[n + 1]));
                // SAFETY: a member of an array that lives as long as the call.
                unsafe { MatRef::new(m.member(batch, i), m.dtype, shape, strides) }
            };
            let (pattern, first) = &patterns[i.min(count - 1)];
            let start = out.member(out_batch, i).wrapping_add(first * block_bytes);
            // SAFETY: checked above: the member's blocks lie in C order; `out_data` is writeable, and
            // Python's caller is told not to read or write it meanwhile.
            let blocks =
                unsafe { BlocksMut::new(start, out.dtype, blocksize, stored.saturating_sub(*first)) };
            let call = Sdd { a: view(a), b: view(b), pattern, out: blocks };
            path = call.run(context)?;
        }
        Ok(path)
    })?;
    LAST_PATH.set(path);
    Ok(())
}
