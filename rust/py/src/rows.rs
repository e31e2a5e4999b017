//! Products with live rows of a table.

use numpy::{
    PyArrayDescrMethods, PyReadonlyArray2, PyReadwriteArray2, PyUntypedArray, PyUntypedArrayMethods,
};
use prunus_core::{Activation, MatMut, MatRef, VecRef};
use prunus_cpu::rows::{Combine, Dots, FeedForward, Found, Live, Norm, Panels};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::Nd;
use crate::door::LAST_PATH;
use crate::door::{enter, to_python};

/// A matrix to read.
pub(crate) fn matrix(name: &str, array: &Bound<'_, PyUntypedArray>) -> PyResult<Nd> {
    let nd = Nd::read(array)?;
    match nd.shape.len() {
        2 => Ok(nd),
        n => Err(PyValueError::new_err(format!("{name}: expected two dimensions, got {n}"))),
    }
}

/// # Safety
/// The array behind it must live, and keep its memory, as long as the view is used.
pub(crate) unsafe fn view(nd: &Nd) -> MatRef<'_> {
    // SAFETY: the caller's promise.
    unsafe { MatRef::new(nd.ptr, nd.dtype, (nd.shape[0], nd.shape[1]), (nd.strides[0], nd.strides[1])) }
}

/// # Safety
/// As for [`view`], and nobody else may use the memory.
pub(crate) unsafe fn view_mut(nd: &Nd) -> MatMut<'_> {
    // SAFETY: the caller's promise.
    unsafe { MatMut::new(nd.ptr, nd.dtype, (nd.shape[0], nd.shape[1]), (nd.strides[0], nd.strides[1])) }
}

/// # Safety
/// As for [`view`].
unsafe fn vector(nd: &Nd) -> VecRef<'_> {
    // SAFETY: the caller's promise.
    unsafe { VecRef::new(nd.ptr, nd.dtype, nd.shape[0], nd.strides[0]) }
}

/// A vector to read, or nothing.
fn optional_vector(name: &str, array: Option<&Bound<'_, PyUntypedArray>>) -> PyResult<Option<Nd>> {
    let Some(array) = array else { return Ok(None) };
    let nd = Nd::read(array)?;
    match nd.shape.len() {
        1 => Ok(Some(nd)),
        n => Err(PyValueError::new_err(format!("{name}: expected one dimension, got {n}"))),
    }
}

/// Liveness, copied: Python code may write to the array while the GIL is released.
pub(crate) fn liveness(live: Option<&PyReadonlyArray2<'_, u8>>) -> Option<Vec<u8>> {
    live.map(|live| match live.as_slice() {
        Ok(bytes) => bytes.to_vec(),
        Err(_) => live.as_array().iter().copied().collect(),
    })
}

/// `out = activation(x @ w.T + bias) * scale` where `live`, 0 elsewhere; norms of the result's branches, and
/// whether they are above `tau`, go to `norms` and `found`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn dots(
    py: Python<'_>,
    x: &Bound<'_, PyUntypedArray>,
    w: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    live: Option<PyReadonlyArray2<'_, u8>>,
    branch: usize,
    bias: Option<&Bound<'_, PyUntypedArray>>,
    activation: Option<&str>,
    scale: Option<&Bound<'_, PyUntypedArray>>,
    found_branch: usize,
    found_norm: &str,
    norms: Option<&Bound<'_, PyUntypedArray>>,
    found: Option<PyReadwriteArray2<'_, u8>>,
    tau: f64,
    threads: usize,
) -> PyResult<()> {
    let (x, w) = (matrix("x", x)?, matrix("w", w)?);
    let out = Nd::write(out)?;
    if out.shape.len() != 2 {
        return Err(PyValueError::new_err(format!("out: expected two dimensions, got {}", out.shape.len())));
    }
    let bias = optional_vector("bias", bias)?;
    let scale = scale.map(|scale| matrix("scale", scale)).transpose()?;
    let activation = match activation {
        None => Activation::Identity,
        Some(name) => Activation::parse(name).map_err(to_python)?,
    };
    let norm = match found_norm {
        "max" => Norm::Max,
        "l2" => Norm::L2,
        other => {
            return Err(PyValueError::new_err(format!("norm: expected max or l2, got {other}")));
        }
    };
    let (rows, units) = (x.shape[0], w.shape[0]);
    let bytes = liveness(live.as_ref());
    let mut found = found;
    let branches = units.div_ceil(found_branch.max(1));
    let whole = |shape: &[usize], contiguous: bool, name: &str| match contiguous && shape == [rows, branches]
    {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!(
            "{name}: expected {rows} x {branches} values in C order, got shape {shape:?}"
        ))),
    };
    let found = match norms {
        None if found.is_some() => {
            return Err(PyValueError::new_err("liveness is found together with norms"));
        }
        None => None,
        Some(norms) => {
            let nd = Nd::write(norms)?;
            whole(&nd.shape, norms.is_c_contiguous(), "norms")?;
            let live = match &mut found {
                None => std::ptr::null_mut(),
                Some(found) => {
                    whole(found.shape(), found.is_c_contiguous(), "found")?;
                    found.as_array_mut().as_mut_ptr()
                }
            };
            Some(Found { branch: found_branch, norm, tau, norms: nd.ptr, dtype: nd.dtype, live })
        }
    };
    let path = enter(py, threads, |context| {
        // Taken whole: the views in it may cross to the engine's threads.
        let (x, w, out, bias, scale) = (&x, &w, &out, &bias, &scale);
        let live = bytes.as_deref().map(|bytes| Live::new(bytes, branch, rows, units)).transpose()?;
        // SAFETY: views of arrays that live as long as the call; `out`, and the arrays of liveness that are
        // borrowed above, are writeable, and Python's caller is told not to touch them meanwhile.
        let call = unsafe {
            Dots {
                x: view(x),
                w: view(w),
                live,
                bias: bias.as_ref().map(|nd| vector(nd)),
                activation,
                scale: scale.as_ref().map(|nd| view(nd)),
                out: view_mut(out),
                found,
            }
        };
        call.run(context)
    })?;
    LAST_PATH.set(path);
    Ok(())
}

/// `out = h @ w + bias`, summed over the units of each row of `h` that are live; with `add`, sums go on from
/// what `out` holds. `w` is units × n, or panels of its columns.
#[pyfunction]
#[pyo3(signature = (h, w, out, live, branch, bias, threads, add=false))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn combine(
    py: Python<'_>,
    h: &Bound<'_, PyUntypedArray>,
    w: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    live: Option<PyReadonlyArray2<'_, u8>>,
    branch: usize,
    bias: Option<&Bound<'_, PyUntypedArray>>,
    threads: usize,
    add: bool,
) -> PyResult<()> {
    let h = matrix("h", h)?;
    let (w, out) = (Nd::read(w)?, Nd::write(out)?);
    let cols = check_panels(&w, &out)?;
    let bias = optional_vector("bias", bias)?;
    let bytes = liveness(live.as_ref());
    let path = enter(py, threads, |context| {
        let (h, w, out, bias) = (&h, &w, &out, &bias);
        let (rows, units) = (h.shape[0], h.shape[1]);
        let live = bytes.as_deref().map(|bytes| Live::new(bytes, branch, rows, units)).transpose()?;
        // SAFETY: as in `dots`.
        let call = unsafe {
            let (w, panels) = panelled(w, cols);
            let bias = bias.as_ref().map(|nd| vector(nd));
            Combine { h: view(h), w, panels, live, bias, out: view_mut(out), add }
        };
        call.run(context)
    })?;
    LAST_PATH.set(path);
    Ok(())
}

/// Checks a table of columns against the result, and returns how many columns there are.
fn check_panels(table: &Nd, out: &Nd) -> PyResult<usize> {
    let [_, cols] = out.shape[..] else {
        return Err(PyValueError::new_err(format!("out: expected two dimensions, got {}", out.shape.len())));
    };
    let fits = match table.shape[..] {
        [_, _] => true,
        [panels, _, width] => width > 0 && cols.div_ceil(width) == panels,
        _ => false,
    };
    match fits {
        true => Ok(cols),
        false => Err(PyValueError::new_err(format!(
            "table: expected units x {cols} values, or panels of so many columns, got shape {:?}",
            table.shape
        ))),
    }
}

/// A table of columns: units × n, or panels × units × columns of a panel, of which `cols` are meant.
///
/// # Safety
/// As for [`view`]; panels have passed [`check_panels`].
unsafe fn panelled(nd: &Nd, cols: usize) -> (MatRef<'_>, Option<Panels>) {
    let (shape, strides) = (&nd.shape, &nd.strides);
    match shape.len() {
        // SAFETY: the caller's promise.
        2 => (unsafe { view(nd) }, None),
        _ => {
            let (size, steps) = ((shape[1], shape[2]), (strides[1], strides[2]));
            // SAFETY: as above; there are as many panels as the columns take, `strides[0]` bytes apart.
            unsafe { (MatRef::new(nd.ptr, nd.dtype, size, steps), Some(Panels::new(cols, strides[0]))) }
        }
    }
}

/// `out = h @ down + b_down` with `h` the live units of `x` with `up`, and `gate` if there is one; `down` is
/// units × n, or panels of its columns.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn feed_forward(
    py: Python<'_>,
    x: &Bound<'_, PyUntypedArray>,
    up: &Bound<'_, PyUntypedArray>,
    gate: Option<&Bound<'_, PyUntypedArray>>,
    down: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    live: Option<PyReadonlyArray2<'_, u8>>,
    branch: usize,
    b_up: Option<&Bound<'_, PyUntypedArray>>,
    b_down: Option<&Bound<'_, PyUntypedArray>>,
    activation: Option<&str>,
    threads: usize,
) -> PyResult<()> {
    let (x, up) = (matrix("x", x)?, matrix("up", up)?);
    let gate = gate.map(|gate| matrix("gate", gate)).transpose()?;
    let (down, out) = (Nd::read(down)?, Nd::write(out)?);
    let cols = check_panels(&down, &out)?;
    let (b_up, b_down) = (optional_vector("b_up", b_up)?, optional_vector("b_down", b_down)?);
    let activation = match activation {
        None => Activation::Identity,
        Some(name) => Activation::parse(name).map_err(to_python)?,
    };
    let bytes = liveness(live.as_ref());
    let path = enter(py, threads, |context| {
        let (x, up, gate, down, out, b_up, b_down) = (&x, &up, &gate, &down, &out, &b_up, &b_down);
        let (rows, units) = (x.shape[0], up.shape[0]);
        let live = bytes.as_deref().map(|bytes| Live::new(bytes, branch, rows, units)).transpose()?;
        // SAFETY: as in `dots`.
        let call = unsafe {
            let (down, panels) = panelled(down, cols);
            FeedForward {
                x: view(x),
                up: view(up),
                gate: gate.as_ref().map(|nd| view(nd)),
                down,
                panels,
                live,
                b_up: b_up.as_ref().map(|nd| vector(nd)),
                b_down: b_down.as_ref().map(|nd| vector(nd)),
                activation,
                out: view_mut(out),
            }
        };
        call.run(context)
    })?;
    LAST_PATH.set(path);
    Ok(())
}

/// What `rows` rows of an input did with tables of one row a unit, of which the branches that are `live` were
/// needed, or all of a table if it says so; reading is shared by `tile` neighbouring rows.
///
/// Operations done and left out, bytes read and left alone; live branches and all there were, and the same
/// for tiles.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub(crate) fn count_rows(
    live: Option<PyReadonlyArray2<'_, u8>>,
    branch: usize,
    rows: usize,
    units: usize,
    tile: usize,
    tables: Vec<(Bound<'_, PyUntypedArray>, bool)>,
) -> PyResult<(usize, usize, usize, usize, usize, usize, usize, usize)> {
    let tiles = rows.div_ceil(tile.max(1));
    let (pairs, touches) = (rows.saturating_mul(units), tiles.saturating_mul(units));
    let (mut counts, mut branches) = (None, 0);
    if let Some(live) = &live {
        // The GIL is held: nobody writes to the array meanwhile.
        let copy;
        let bytes = match live.as_slice() {
            Ok(bytes) => bytes,
            Err(_) => {
                copy = liveness(Some(live)).unwrap_or_default();
                &copy
            }
        };
        let live = Live::new(bytes, branch, rows, units).map_err(to_python)?;
        branches = live.branches;
        counts = Some(live.counts(units, tile));
    }
    let (mut flops, mut skipped, mut loaded, mut left) = (0usize, 0usize, 0usize, 0usize);
    for (table, whole) in &tables {
        let &[_, width] = table.shape() else {
            return Err(PyValueError::new_err(format!(
                "table: expected two dimensions, got {}",
                table.ndim()
            )));
        };
        let (done, read) = match &counts {
            Some(counts) if !whole => (counts.units, counts.union_units),
            _ => (pairs, touches),
        };
        let bytes = width.saturating_mul(table.dtype().itemsize());
        let add = |sum: &mut usize, each: usize, times: usize| {
            *sum = sum.saturating_add(each.saturating_mul(times));
        };
        add(&mut flops, width.saturating_mul(2), done);
        add(&mut skipped, width.saturating_mul(2), pairs - done);
        add(&mut loaded, bytes, read);
        add(&mut left, bytes, touches - read);
    }
    let found = counts.unwrap_or_default();
    let (of_rows, of_tiles) = (rows * branches, tiles * branches);
    Ok((flops, skipped, loaded, left, found.live, of_rows, found.union_live, of_tiles))
}
