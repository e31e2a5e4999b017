//! Attention over live blocks of keys.

use numpy::PyUntypedArray;
use prunus_core::{DType, MatMut, MatRef};
use prunus_cpu::Attention;
use prunus_cpu::attention::{Head, Pooled};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::{LAST_PATH, enter};

/// `out = softmax(scale · q · kᵀ) · v` for every head.
///
/// `q` is `(*batch, H, n, d)`, `k` `(*batch, G, m, d)`, `v` `(*batch, G, m, dv)` and `out` `(*batch, H, n,
/// dv)`, where `G` divides `H`: neighbouring heads share keys and values. `live`, int8, is `(*batch, H,
/// ceil(n / blocksize), ceil(m / blocksize))`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
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
    let (batch, shared, share) = grouped(&q, &k)?;
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
    let count = batch.iter().product::<usize>();
    let mut members = Vec::with_capacity(count);
    for i in 0..count {
        if i % 65_536 == 65_535 {
            py.check_signals()?;
        }
        members.push(Head {
            q: view(&q, batch, i),
            k: view(&k, shared, i / share),
            v: view(&v, shared, i / share),
            out: target(&out, batch, i),
            live: live.as_ref().map(|live| view(live, batch, i)),
        });
    }
    let path = enter(py, threads, |context| {
        Attention { heads: &members, scale, causal, block: blocksize }.run(context)
    })?;
    LAST_PATH.set(path);
    Ok(())
}

/// `out = scale · means of blocks of q · (means of blocks of k)ᵀ` for every head.
///
/// `q` is `(*batch, H, n, d)`, `k` `(*batch, G, m, d)` and `out` `(*batch, H, ceil(n / blocksize), ceil(m /
/// blocksize))`.
#[pyfunction]
pub(crate) fn pooled_scores(
    py: Python<'_>,
    q: &Bound<'_, PyUntypedArray>,
    k: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    scale: f64,
    blocksize: usize,
    threads: usize,
) -> PyResult<()> {
    let (q, k, out) = (Nd::read(q)?, Nd::read(k)?, Nd::write(out)?);
    let (batch, shared, share) = grouped(&q, &k)?;
    if out.batch(2)? != batch {
        let got = out.batch(2)?;
        return Err(PyValueError::new_err(format!("out: expected heads {batch:?}, got {got:?}")));
    }
    if out.is_empty() {
        return Ok(());
    }
    let heads: Vec<_> = (0..batch.iter().product::<usize>())
        .map(|i| (view(&q, batch, i), view(&k, shared, i / share), target(&out, batch, i)))
        .collect();
    enter(py, threads, |context| Pooled { heads: &heads, scale, block: blocksize }.run(context))?;
    Ok(())
}

/// Everything but rows and columns numbers the heads: those of q, those of k, and how many of q share one of
/// k. The engine compares rows and columns of each head.
fn grouped<'a>(q: &'a Nd, k: &'a Nd) -> PyResult<(&'a [usize], &'a [usize], usize)> {
    let (batch, shared) = (q.batch(2)?, k.batch(2)?);
    if let (Some((&heads, outer)), Some((&groups, others))) = (batch.split_last(), shared.split_last())
        && outer == others
        && (heads == 0 || (groups > 0 && heads.is_multiple_of(groups)))
    {
        return Ok((batch, shared, (heads / groups.max(1)).max(1)));
    }
    Err(PyValueError::new_err(format!(
        "heads of q need those of k to be the same, or to divide the last: got {batch:?} and {shared:?}"
    )))
}

/// Rows and columns of one head.
fn view<'a>(m: &Nd, batch: &[usize], i: usize) -> MatRef<'a> {
    let n = batch.len();
    let (shape, strides) = ((m.shape[n], m.shape[n + 1]), (m.strides[n], m.strides[n + 1]));
    // SAFETY: a member of an array that lives as long as the call.
    unsafe { MatRef::new(m.member(batch, i), m.dtype, shape, strides) }
}

/// Rows and columns of one head of a result.
fn target<'a>(m: &Nd, batch: &[usize], i: usize) -> MatMut<'a> {
    let n = batch.len();
    let (shape, strides) = ((m.shape[n], m.shape[n + 1]), (m.strides[n], m.strides[n + 1]));
    // SAFETY: as above; the array is writeable and its elements apart, and Python's caller is told not to read
    // or write it meanwhile.
    unsafe { MatMut::new(m.member(batch, i), m.dtype, shape, strides) }
}
