//! Headers of files, and checksums of pages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use prunus_pager::format::safetensors::{self, Spec, TensorInfo};
use prunus_pager::format::{DType, checksums, npy};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::door::pager_to_python;

/// A tensor as Python sees it: name, NumPy's name of the dtype, shape, first byte, one past the last.
type Tensor<'py> = (String, &'static str, Bound<'py, PyTuple>, u64, u64);

fn tensors<'py>(py: Python<'py>, all: Vec<TensorInfo>) -> PyResult<Vec<Tensor<'py>>> {
    (all.into_iter())
        .map(|t| Ok((t.name, t.dtype.name(), PyTuple::new(py, t.shape)?, t.begin, t.end)))
        .collect()
}

fn dtype_of(name: &str) -> PyResult<DType> {
    DType::from_name(name)
        .ok_or_else(|| PyTypeError::new_err(format!("files hold no values of dtype {name}")))
}

/// Bytes of a safetensors header, from the first eight of the file.
#[pyfunction]
pub(crate) fn safetensors_header_size(
    py: Python<'_>,
    head: &[u8],
    file_size: u64,
    path: PathBuf,
) -> PyResult<u64> {
    safetensors::header_size(head, file_size, &path).map_err(|error| pager_to_python(py, error))
}

/// Tensors in the file's order, and the metadata.
#[pyfunction]
pub(crate) fn parse_safetensors<'py>(
    py: Python<'py>,
    header: &[u8],
    file_size: u64,
    path: PathBuf,
) -> PyResult<(Vec<Tensor<'py>>, BTreeMap<String, String>)> {
    let found = py.detach(|| safetensors::parse(header, file_size, &path));
    let found = found.map_err(|error| pager_to_python(py, error))?;
    Ok((tensors(py, found.tensors)?, found.metadata))
}

/// A header for tensors (name, dtype, shape), where it puts them, and the size of the file.
#[pyfunction]
#[pyo3(signature = (specs, metadata, align, last, path))]
pub(crate) fn write_safetensors_header<'py>(
    py: Python<'py>,
    specs: Vec<(String, String, Vec<u64>)>,
    metadata: BTreeMap<String, String>,
    align: u64,
    last: Option<&str>,
    path: PathBuf,
) -> PyResult<(Bound<'py, PyBytes>, Vec<Tensor<'py>>, u64)> {
    let specs = (specs.into_iter())
        .map(|(name, dtype, shape)| Ok(Spec { name, dtype: dtype_of(&dtype)?, shape }))
        .collect::<PyResult<Vec<_>>>()?;
    let laid = safetensors::layout(&specs, &metadata, align, last, &path)
        .map_err(|error| pager_to_python(py, error))?;
    Ok((PyBytes::new(py, &laid.header), tensors(py, laid.tensors)?, laid.file_size))
}

/// Bytes of an npy header, from the first twelve of the file.
#[pyfunction]
pub(crate) fn npy_header_size(py: Python<'_>, head: &[u8], file_size: u64, path: PathBuf) -> PyResult<u64> {
    npy::header_size(head, file_size, &path).map_err(|error| pager_to_python(py, error))
}

/// NumPy's name of the dtype, shape, whether Fortran order, first byte of the values, one past the last.
#[pyfunction]
pub(crate) fn parse_npy<'py>(
    py: Python<'py>,
    header: &[u8],
    file_size: u64,
    path: PathBuf,
) -> PyResult<(&'static str, Bound<'py, PyTuple>, bool, u64, u64)> {
    let found = npy::parse(header, file_size, &path).map_err(|error| pager_to_python(py, error))?;
    Ok((found.dtype.name(), PyTuple::new(py, found.shape)?, found.fortran, found.begin, found.end))
}

/// A header after which the values begin at a multiple of `align` bytes.
#[pyfunction]
pub(crate) fn npy_header<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: Vec<u64>,
    fortran: bool,
    align: u64,
    path: PathBuf,
) -> PyResult<Bound<'py, PyBytes>> {
    let header = npy::header(dtype_of(dtype)?, &shape, fortran, align, &path)
        .map_err(|error| pager_to_python(py, error))?;
    Ok(PyBytes::new(py, &header))
}

/// CRC-32C of pages of `page` bytes, the last of which may be shorter.
#[pyfunction]
pub(crate) fn crc32c_pages<'py>(
    py: Python<'py>,
    data: PyReadonlyArray1<'py, u8>,
    page: usize,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    if page == 0 {
        return Err(PyValueError::new_err("page: expected at least 1 byte, got 0"));
    }
    let bytes = data.as_slice().map_err(|_| PyValueError::new_err("data: expected contiguous bytes"))?;
    // With the GIL held: Python code may write to the array once it is released, and a megabyte takes 0.1 ms.
    Ok(checksums::pages(bytes, page).into_pyarray(py))
}
