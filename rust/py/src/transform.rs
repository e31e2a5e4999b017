//! Norms and rotations of tokens.

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2, PyReadwriteArray3};
use prunus_cpu::transform;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

fn not_contiguous(name: &str) -> PyErr {
    PyValueError::new_err(format!("{name}: expected rows whose values are contiguous"))
}

/// `y = x / sqrt(mean(x²) + epsilon) * scale`, row by row.
#[pyfunction]
pub(crate) fn rms_norm(
    x: PyReadonlyArray2<'_, f32>,
    scale: PyReadonlyArray1<'_, f32>,
    epsilon: f32,
    mut y: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let (x, scale, mut y) = (x.as_array(), scale.as_slice()?, y.as_array_mut());
    if x.dim() != y.dim() || scale.len() != x.ncols() {
        return Err(PyValueError::new_err(format!(
            "rms_norm: expected x and y of one shape and {} values of scale, got {:?}, {:?} and {}",
            x.ncols(),
            x.dim(),
            y.dim(),
            scale.len()
        )));
    }
    for (x, mut y) in x.rows().into_iter().zip(y.rows_mut()) {
        let x = x.as_slice().ok_or_else(|| not_contiguous("x"))?;
        let y = y.as_slice_mut().ok_or_else(|| not_contiguous("y"))?;
        transform::rms_norm(x, scale, epsilon, y);
    }
    Ok(())
}

/// Turns `heads` (tokens, heads, size) in place by the angles of their tokens, (tokens, size / 2).
#[pyfunction]
pub(crate) fn rotate(
    mut heads: PyReadwriteArray3<'_, f32>,
    cos: PyReadonlyArray2<'_, f32>,
    sin: PyReadonlyArray2<'_, f32>,
) -> PyResult<()> {
    let (mut heads, cos, sin) = (heads.as_array_mut(), cos.as_array(), sin.as_array());
    let (tokens, _, size) = heads.dim();
    if !size.is_multiple_of(2) || cos.dim() != (tokens, size / 2) || sin.dim() != cos.dim() {
        return Err(PyValueError::new_err(format!(
            "rotate: expected angles of shape {:?} for heads of even size {size}, got {:?} and {:?}",
            (tokens, size / 2),
            cos.dim(),
            sin.dim()
        )));
    }
    for ((mut of_token, cos), sin) in heads.outer_iter_mut().zip(cos.rows()).zip(sin.rows()) {
        let cos = cos.as_slice().ok_or_else(|| not_contiguous("cos"))?;
        let sin = sin.as_slice().ok_or_else(|| not_contiguous("sin"))?;
        for mut head in of_token.outer_iter_mut() {
            transform::rotate(head.as_slice_mut().ok_or_else(|| not_contiguous("heads"))?, cos, sin);
        }
    }
    Ok(())
}
