//! Attention over live blocks of keys.

use numpy::PyUntypedArray;
use prunus_core::{DType, MatMut, MatRef};
use prunus_cpu::Attention;
use prunus_cpu::attention::Head;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::enter;
use crate::dsd::LAST_PATH;

/// `out = softmax(scale · q · kᵀ) · v` for every head.
///
/// `q` is `(*batch, H, n, d)`, `k` `(*batch, G, m, d)`, `v` `(*batch, G, m, dv)` and `out` `(*batch, H, n,
/// dv)`, where `G` divides `H`: neighbouring heads share keys and values. `live`, int8, is `(*batch, H,
/// ceil(n / blocksize), ceil(m / blocksize))`.
#[pyfunction]
pub(crate) fn attention(
    py: Python<'_>,
    q: &Bound<'_, PyUntypedArray>,
    k: &Bound<'_, PyUntypedArray>,
    v: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    live: Option<&Bound<'_, PyUntypedArray>>,
    scale: f64,
    causal: bool,
    blocksize: usize,
    threads: usize,
) -> PyResult<()> {
    let (q, k, v, out) = (Nd::read(q)?, Nd::read(k)?, Nd::read(v)?, Nd::write(out)?);
    let live = live.map(Nd::read).transpose()?;
    if live.as_ref().is_some_and(|live| live.dtype != DType::I8) {
        return Err(PyTypeError::new_err("live: expected dtype int8"));
    }
    // Everything but rows and columns numbers the heads; the engine compares those of each head.
    let batch = q.batch(2)?;
    let Some((&heads, outer)) = batch.split_last() else {
        return Err(PyValueError::new_err("q: expected at least 3 dimensions, got 2"));
    };
    let shared = k.batch(2)?;
    let groups = shared.last().copied().unwrap_or(0);
    let divides = groups > 0 && heads.is_multiple_of(groups);
    if shared.split_last().map(|(_, outer)| outer) != Some(outer) || !(divides || heads == 0) {
        return Err(PyValueError::new_err(format!(
            "heads {batch:?} of q need those of k to be the same, or to divide the last: got {shared:?}"
        )));
    }
    let others = [("v", &v, shared), ("out", &out, batch)];
    for (name, array, expected) in others.into_iter().chain(live.as_ref().map(|live| ("live", live, batch))) {
        if array.batch(2)? != expected {
            return Err(PyValueError::new_err(format!(
                "{name}: expected heads {expected:?}, got {:?}",
                array.batch(2)?
            )));
        }
    }
    if out.is_empty() {
        return Ok(());
    }
    let view = |m: &Nd, batch: &[usize], i: usize| {
        let n = batch.len();
        let (shape, strides) = ((m.shape[n], m.shape[n + 1]), (m.strides[n], m.strides[n + 1]));
        // SAFETY: a member of an array that lives as long as the call.
        unsafe { MatRef::new(m.member(batch, i), m.dtype, shape, strides) }
    };
    let n = batch.len();
    let share = heads / groups.max(1);
    let count = batch.iter().product::<usize>();
    let mut members = Vec::with_capacity(count);
    for i in 0..count {
        if i % 65_536 == 65_535 {
            py.check_signals()?;
        }
        let (shape, strides) = ((out.shape[n], out.shape[n + 1]), (out.strides[n], out.strides[n + 1]));
        members.push(Head {
            q: view(&q, batch, i),
            k: view(&k, shared, i / share),
            v: view(&v, shared, i / share),
            // SAFETY: as above; `out` is writeable and its elements apart, and Python's caller is told not to
            // read or write it meanwhile.
            out: unsafe { MatMut::new(out.member(batch, i), out.dtype, shape, strides) },
            live: live.as_ref().map(|live| view(live, batch, i)),
        });
    }
    let path = enter(py, threads, |context| {
        Attention { heads: &members, scale, causal, block: blocksize }.run(context)
    })?;
    LAST_PATH.set(path);
    Ok(())
}
