//! NumPy arrays as tiles, and back.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2};
use prunus_tensix::Error;
use prunus_tensix::numerics::{self, Element, Format, Matrix, MatrixMut};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::to_python;

/// The format of Tenstorrent's name.
pub(super) fn format_of(name: &str) -> PyResult<Format> {
    Format::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        PyValueError::new_err(format!("no format {name:?}: tiles have {}", known.join(", ")))
    })
}

/// The format of operands and result of a product that sums in floats. Integers have sums of another format than theirs,
/// so they are no such product, with values or without.
pub(super) fn product_format(py: Python<'_>, name: &str) -> PyResult<Format> {
    let format = format_of(name)?;
    if format.is_float() {
        return Ok(format);
    }
    let error = Error::Unsupported(format!("a product of tiles of {name} in the format of its operands"));
    Err(to_python(py, &error))
}

fn wrong(error: numerics::Error) -> PyErr {
    match error {
        numerics::Error::Values { .. } => PyTypeError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

fn from_array<T: Element + numpy::Element>(
    format: Format,
    array: &PyReadonlyArray2<'_, T>,
) -> PyResult<Vec<u8>> {
    let view = array.as_array();
    let copied;
    let data = match view.as_slice() {
        Some(data) => data,
        None => {
            copied = view.iter().copied().collect::<Vec<_>>();
            &copied
        }
    };
    let matrix = Matrix::new(data, view.nrows(), view.ncols()).map_err(wrong)?;
    numerics::tilize(format, &matrix).map_err(wrong)
}

/// Bytes of the tiles of a matrix of float32 (for floating-point formats) or int32 (for integers).
#[pyfunction]
pub(crate) fn tilize<'py>(
    py: Python<'py>,
    format: &str,
    array: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let format = format_of(format)?;
    let bytes = if format.is_float() {
        from_array::<f32>(format, &array.extract()?)?
    } else {
        from_array::<i32>(format, &array.extract()?)?
    };
    Ok(PyBytes::new(py, &bytes))
}

fn to_array<T: Element + numpy::Element>(
    py: Python<'_>,
    format: Format,
    bytes: &[u8],
    (rows, columns): (usize, usize),
) -> PyResult<Py<PyAny>> {
    // What the tiles hold limits what is allocated.
    let (down, across) = numerics::tile_grid(rows, columns);
    let expected = down.saturating_mul(across).saturating_mul(format.tile_bytes());
    if bytes.len() != expected {
        let got = bytes.len();
        return Err(wrong(numerics::Error::Bytes { format, expected, got }));
    }
    let mut values = vec![T::default(); rows * columns];
    let mut matrix = MatrixMut::new(&mut values, rows, columns).map_err(wrong)?;
    numerics::untilize(format, bytes, &mut matrix).map_err(wrong)?;
    let flat: Bound<'_, PyArray1<T>> = values.into_pyarray(py);
    Ok(flat.into_any().unbind())
}

/// The values of a matrix's tiles, row by row: float32, or int32 for integers.
#[pyfunction]
pub(crate) fn untilize(
    py: Python<'_>,
    format: &str,
    data: &[u8],
    rows: usize,
    columns: usize,
) -> PyResult<Py<PyAny>> {
    let format = format_of(format)?;
    if format.is_float() {
        to_array::<f32>(py, format, data, (rows, columns))
    } else {
        to_array::<i32>(py, format, data, (rows, columns))
    }
}
