//! NumPy arrays as the engines' views.

use std::ops::Range;

use numpy::npyffi::{NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE, PyArrayObject};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use prunus_core::DType;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::packed::Packed;

/// `ml_dtypes` registers bfloat16 with NumPy under a number of its own.
pub(crate) fn bfloat16_num(py: Python<'_>) -> PyResult<i32> {
    static NUM: PyOnceLock<i32> = PyOnceLock::new();
    NUM.get_or_try_init(py, || {
        let scalar = py.import("ml_dtypes")?.getattr("bfloat16")?;
        Ok(PyArrayDescr::new(py, scalar)?.num())
    })
    .copied()
}

/// Element type of an array.
pub(crate) fn dtype_of(array: &Bound<'_, PyUntypedArray>) -> PyResult<DType> {
    let descr = array.dtype();
    dtype_of_descr(&descr)
}

/// The engine's name for a NumPy dtype.
pub(crate) fn dtype_of_descr(descr: &Bound<'_, PyArrayDescr>) -> PyResult<DType> {
    let native = descr.is_native_byteorder().unwrap_or(true);
    let found = match (descr.kind(), descr.itemsize()) {
        (b'f', 2) => Some(DType::F16),
        (b'f', 4) => Some(DType::F32),
        (b'f', 8) => Some(DType::F64),
        (b'i', 1) => Some(DType::I8),
        (b'i', 4) => Some(DType::I32),
        (_, 2) if descr.num() == bfloat16_num(descr.py())? => Some(DType::Bf16),
        _ => None,
    };
    found.filter(|_| native).ok_or_else(|| {
        PyTypeError::new_err(format!(
            "expected dtype float32, float64, float16, bfloat16, int8 or int32 in native byte order, got {descr}"
        ))
    })
}

/// An array's parts: where it starts, its shape and its strides in bytes.
///
/// Copied out of the array: Python code may replace an array's shape while the GIL is released.
pub(crate) struct Nd {
    pub ptr: *mut u8,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub strides: Vec<isize>,
}

// SAFETY: the array behind it is kept alive by the call that made it; see the engines' views.
unsafe impl Send for Nd {}
// SAFETY: as above.
unsafe impl Sync for Nd {}

impl Nd {
    /// Describes an array to read.
    pub(crate) fn read(array: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let dtype = dtype_of(array)?;
        Ok(Self {
            ptr: data_ptr(array),
            dtype,
            shape: array.shape().to_vec(),
            strides: array.strides().to_vec(),
        })
    }

    /// Describes an array to write.
    pub(crate) fn write(array: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        check_output(array)?;
        Self::read(array)
    }

    /// Dimensions that come before the last `core` ones.
    pub(crate) fn batch(&self, core: usize) -> PyResult<&[usize]> {
        match self.shape.len().checked_sub(core) {
            Some(n) => Ok(&self.shape[..n]),
            None => Err(PyValueError::new_err(format!(
                "expected at least {core} dimensions, got {}",
                self.shape.len()
            ))),
        }
    }

    /// Address of a batch member, `index` counting in C order over `batch`.
    pub(crate) fn member(&self, batch: &[usize], index: usize) -> *mut u8 {
        member_at(self.ptr, &self.strides, batch, index)
    }

    /// True where there is no element.
    pub(crate) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
}

/// Address of batch member `index`, counted in C order.
fn member_at(start: *mut u8, strides: &[isize], batch: &[usize], mut index: usize) -> *mut u8 {
    let mut offset = 0;
    for (size, stride) in batch.iter().zip(strides).rev() {
        offset += (index % size) as isize * stride;
        index /= size;
    }
    start.wrapping_offset(offset)
}

/// False where two elements may share memory: a stride does not step over what smaller ones reach.
fn elements_apart(array: &Bound<'_, PyUntypedArray>) -> bool {
    if array.is_contiguous() {
        return true;
    }
    let dims = array.shape().iter().zip(array.strides()).filter(|(n, _)| **n > 1);
    let mut dims: Vec<(usize, usize)> = dims.map(|(&n, &s)| (s.unsigned_abs(), n)).collect();
    dims.sort_unstable();
    let mut reach = array.dtype().itemsize();
    array.is_empty()
        || dims.iter().all(|&(stride, n)| {
            let steps_over = stride >= reach;
            reach = reach.saturating_add(stride.saturating_mul(n - 1));
            steps_over
        })
}

/// Refuses an array that must not be written, or of which two elements share memory.
pub(crate) fn check_output(array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let object: *mut PyArrayObject = array.as_array_ptr();
    // SAFETY: a live array object.
    let flags = unsafe { (*object).fields.flags };
    if flags & NPY_ARRAY_WRITEABLE == 0 {
        return Err(PyValueError::new_err("output array is read-only"));
    }
    if !elements_apart(array) {
        return Err(PyValueError::new_err("output array overlaps itself"));
    }
    Ok(())
}

/// Addresses of an array's first byte and of the one past its last; nothing where it has no elements.
pub(crate) fn extent(array: &Bound<'_, PyUntypedArray>) -> Option<(usize, usize)> {
    let (mut first, mut last) = (data_ptr(array).addr(), data_ptr(array).addr());
    for (&n, &stride) in array.shape().iter().zip(array.strides()) {
        let reach = stride.wrapping_mul(n.checked_sub(1)? as isize);
        first = first.wrapping_add_signed(reach.min(0));
        last = last.wrapping_add_signed(reach.max(0));
    }
    Some((first, last + array.dtype().itemsize()))
}

/// Whether a kernel may write to `out` while it reads `inputs`: its elements are aligned, no two of them
/// share memory, and their range of addresses is apart from those of the inputs.
#[pyfunction]
#[pyo3(signature = (out, *inputs))]
pub(crate) fn writes_apart(out: &Bound<'_, PyUntypedArray>, inputs: &Bound<'_, PyTuple>) -> PyResult<bool> {
    // SAFETY: a live array object.
    let flags = unsafe { (*out.as_array_ptr()).fields.flags };
    if flags & NPY_ARRAY_ALIGNED == 0 || !elements_apart(out) {
        return Ok(false);
    }
    let Some((first, last)) = extent(out) else { return Ok(true) };
    // Nothing that can be written shares a packed operand's pages.
    for input in inputs.iter().filter(|input| !input.is_none() && !input.is_instance_of::<Packed>()) {
        if extent(input.cast()?).is_some_and(|(from, to)| from < last && first < to) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(crate) fn data_ptr(array: &Bound<'_, PyUntypedArray>) -> *mut u8 {
    // SAFETY: a live array object.
    unsafe { (*array.as_array_ptr()).fields.data.cast() }
}

/// An index array, int32 or int64, any strides.
#[derive(Clone, Copy)]
pub(crate) struct Indices<'a> {
    ptr: *const u8,
    wide: bool,
    pub shape: &'a [usize],
    strides: &'a [isize],
}

impl<'a> Indices<'a> {
    pub(crate) fn new(name: &str, array: &'a Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let descr = array.dtype();
        let wide = match (descr.kind(), descr.itemsize()) {
            (b'i', 4) => false,
            (b'i', 8) => true,
            _ => {
                return Err(PyTypeError::new_err(format!(
                    "{name}: expected dtype int32 or int64, got {descr}"
                )));
            }
        };
        if array.ndim() == 0 {
            return Err(PyValueError::new_err(format!("{name}: expected an array, got a scalar")));
        }
        Ok(Self { ptr: data_ptr(array), wide, shape: array.shape(), strides: array.strides() })
    }

    /// Values along the last axis of batch member `index`.
    pub(crate) fn values(&self, batch: &[usize], index: usize) -> impl ExactSizeIterator<Item = i64> + use<> {
        self.along(batch, index, 0..self.shape[self.shape.len() - 1])
    }

    /// The values at `range` of an array of one dimension.
    pub(crate) fn part(&self, range: Range<usize>) -> impl ExactSizeIterator<Item = i64> + use<> {
        self.along(&[], 0, range)
    }

    /// The values at `range` along the last axis of batch member `index`.
    fn along(
        &self,
        batch: &[usize],
        index: usize,
        range: Range<usize>,
    ) -> impl ExactSizeIterator<Item = i64> + use<> {
        let start = member_at(self.ptr.cast_mut(), self.strides, batch, index).cast_const();
        let last = self.shape.len() - 1;
        let (stride, wide) = (self.strides[last], self.wide);
        range.map(move |i| {
            let at = start.wrapping_offset(i as isize * stride);
            // SAFETY: element i of a live array.
            unsafe {
                if wide {
                    at.cast::<i64>().read_unaligned()
                } else {
                    i64::from(at.cast::<i32>().read_unaligned())
                }
            }
        })
    }
}
