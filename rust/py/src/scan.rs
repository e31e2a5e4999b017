//! The selective scan, and the norms of its gates.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use prunus_core::{DType, MatMut, MatRef, VecRef};
use prunus_cpu::Scan;
use prunus_cpu::scan::{Gates, Live, Member};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::{LAST_PATH, enter};

/// Describes an array of `(*batch, rows, columns)`.
fn batched(name: &str, array: Nd, batch: &[usize], core: (usize, usize)) -> PyResult<Nd> {
    let n = batch.len();
    if array.shape.len() != n + 2
        || array.shape[..n] != *batch
        || (array.shape[n], array.shape[n + 1]) != core
    {
        return Err(PyValueError::new_err(format!(
            "{name}: expected shape {batch:?} x {core:?}, got {:?}",
            array.shape
        )));
    }
    Ok(array)
}

/// Member `i` of the batch as a matrix.
fn member<'a>(array: &'a Nd, batch: &[usize], i: usize) -> MatRef<'a> {
    let n = batch.len();
    let (shape, strides) = ((array.shape[n], array.shape[n + 1]), (array.strides[n], array.strides[n + 1]));
    // SAFETY: a member of an array that lives as long as the call.
    unsafe { MatRef::new(array.member(batch, i), array.dtype, shape, strides) }
}

/// Member `i` of the batch as a matrix to write.
fn member_mut<'a>(array: &'a Nd, batch: &[usize], i: usize) -> MatMut<'a> {
    let view = member(array, batch, i);
    let (shape, strides) = ((view.rows, view.cols), (view.row_stride, view.col_stride));
    // SAFETY: as above; the array is writeable, no two of its elements share memory, and Python's caller is
    // told not to read or write it meanwhile.
    unsafe { MatMut::new(view.ptr.cast_mut(), view.dtype, shape, strides) }
}

/// A vector with a value for each channel.
fn vector<'a>(name: &str, array: Option<&'a Nd>, channels: usize) -> PyResult<Option<VecRef<'a>>> {
    let Some(array) = array else { return Ok(None) };
    if array.shape != [channels] {
        return Err(PyValueError::new_err(format!(
            "{name}: expected shape ({channels},), got {:?}",
            array.shape
        )));
    }
    // SAFETY: the array lives as long as the call.
    Ok(Some(unsafe { VecRef::new(array.ptr, array.dtype, channels, array.strides[0]) }))
}

/// Bytes of a boolean array in C order.
fn booleans<'a>(array: &'a Bound<'_, PyUntypedArray>) -> PyResult<&'a [u8]> {
    let descr = array.dtype();
    if (descr.kind(), descr.itemsize()) != (b'b', 1) {
        return Err(PyTypeError::new_err(format!("live: expected dtype bool, got {descr}")));
    }
    if !array.is_c_contiguous() {
        return Err(PyValueError::new_err("live: expected C order"));
    }
    if array.is_empty() {
        return Ok(&[]);
    }
    // SAFETY: a live array of that many bytes in C order, which the caller is told not to write meanwhile.
    Ok(unsafe { std::slice::from_raw_parts((*array.as_array_ptr()).fields.data.cast(), array.len()) })
}

/// `out = (C · h + D u) silu(z)` with `h = exp(delta A) h + delta B u`, step by step.
///
/// `u`, `delta`, `z` and `out` are `(*batch, length, channels)`, `b` and `c` `(*batch, length, states)`, `a` is
/// `(channels, states)`, `d` and `bias` `(channels,)`; `state`, `(*batch, channels, states)`, is read and
/// written. `live` has a boolean for each step of each member and each `branch` of channels.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn scan(
    py: Python<'_>,
    u: &Bound<'_, PyUntypedArray>,
    delta: &Bound<'_, PyUntypedArray>,
    a: &Bound<'_, PyUntypedArray>,
    b: &Bound<'_, PyUntypedArray>,
    c: &Bound<'_, PyUntypedArray>,
    d: Option<&Bound<'_, PyUntypedArray>>,
    z: Option<&Bound<'_, PyUntypedArray>>,
    bias: Option<&Bound<'_, PyUntypedArray>>,
    softplus: bool,
    state: Option<&Bound<'_, PyUntypedArray>>,
    out: &Bound<'_, PyUntypedArray>,
    live: Option<&Bound<'_, PyUntypedArray>>,
    branch: usize,
    threads: usize,
) -> PyResult<()> {
    let out = Nd::write(out)?;
    let batch = out.batch(2)?;
    let (length, channels) = (out.shape[batch.len()], out.shape[batch.len() + 1]);
    let a = Nd::read(a)?;
    if a.shape.len() != 2 || a.shape[0] != channels {
        return Err(PyValueError::new_err(format!(
            "a: expected shape ({channels}, states), got {:?}",
            a.shape
        )));
    }
    let (wide, narrow) = ((length, channels), (length, a.shape[1]));
    let u = batched("u", Nd::read(u)?, batch, wide)?;
    let delta = batched("delta", Nd::read(delta)?, batch, wide)?;
    let b = batched("b", Nd::read(b)?, batch, narrow)?;
    let c = batched("c", Nd::read(c)?, batch, narrow)?;
    let z = z.map(|z| batched("z", Nd::read(z)?, batch, wide)).transpose()?;
    let state = state.map(|s| batched("state", Nd::write(s)?, batch, (channels, a.shape[1]))).transpose()?;
    let (d, bias) = (d.map(Nd::read).transpose()?, bias.map(Nd::read).transpose()?);
    let (skip, bias) = (vector("d", d.as_ref(), channels)?, vector("bias", bias.as_ref(), channels)?);
    let live = live.map(|live| Ok::<_, PyErr>(Live { bytes: booleans(live)?, branch })).transpose()?;
    if out.is_empty() {
        return Ok(());
    }
    let members: Vec<Member<'_>> = (0..batch.iter().product())
        .map(|i| Member {
            u: member(&u, batch, i),
            delta: member(&delta, batch, i),
            b: member(&b, batch, i),
            c: member(&c, batch, i),
            z: z.as_ref().map(|z| member(z, batch, i)),
            out: member_mut(&out, batch, i),
            state: state.as_ref().map(|state| member_mut(state, batch, i)),
        })
        .collect();
    // SAFETY: an array that lives as long as the call.
    let a = unsafe { MatRef::new(a.ptr, a.dtype, (channels, a.shape[1]), (a.strides[0], a.strides[1])) };
    let call = Scan { members: &members, a, skip, bias, softplus, live };
    let path = enter(py, threads, |context| call.run(context))?;
    LAST_PATH.set(path);
    Ok(())
}

/// `norms = norm(silu(z))` over each `branch` of neighbouring channels.
///
/// `z` is `(*batch, length, channels)`, `norms` float32 `(rows, branches)` with a row for each step of each
/// member.
#[pyfunction]
pub(crate) fn gates(
    py: Python<'_>,
    z: &Bound<'_, PyUntypedArray>,
    branch: usize,
    l2: bool,
    norms: &Bound<'_, PyUntypedArray>,
    threads: usize,
) -> PyResult<()> {
    let (z, norms) = (Nd::read(z)?, Nd::write(norms)?);
    let batch = z.batch(2)?;
    let (length, channels) = (z.shape[batch.len()], z.shape[batch.len() + 1]);
    let members: Vec<MatRef<'_>> = (0..batch.iter().product()).map(|i| member(&z, batch, i)).collect();
    let expected = (members.len() * length, channels.div_ceil(branch.max(1)));
    if branch == 0 || norms.dtype != DType::F32 {
        return Err(PyValueError::new_err("expected a branch of at least one channel, and float32 norms"));
    }
    let norms = batched("norms", norms, &[], expected)?;
    if norms.is_empty() {
        return Ok(());
    }
    let call = Gates { z: &members, branch, l2, norms: member_mut(&norms, &[], 0) };
    let path = enter(py, threads, |context| call.run(context))?;
    LAST_PATH.set(path);
    Ok(())
}
