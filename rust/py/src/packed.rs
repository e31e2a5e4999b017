//! Operands in the engine's own layout, for weights that stay.

use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use prunus_core::{BlockSource, BsrRef, DType, Error, MemoryBlocks, Pattern};
use prunus_cpu::memory::Buffer;
use prunus_cpu::threads::for_each;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::door::{enter, enter_each, to_python};
use crate::dsd::Batched;
use crate::operand::Operand;

/// A frozen block-sparse operand: checked patterns in both orders, values in aligned pages.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Packed {
    values: Buffer,
    descr: Py<PyArrayDescr>,
    dtype: DType,
    stored: usize,
    shape: (usize, usize),
    blocksize: (usize, usize),
    rows: Pattern,
    columns: Pattern,
    group: usize,
}

impl Packed {
    fn block_bytes(&self) -> usize {
        self.blocksize.0 * self.blocksize.1 * self.dtype.size()
    }

    fn source(&self) -> MemoryBlocks<'_> {
        // SAFETY: the buffer holds every block of the pattern.
        unsafe { MemoryBlocks::new(self.values.as_ptr(), self.block_bytes()) }
    }

    fn bsr<'a>(&'a self, source: &'a MemoryBlocks<'a>, transposed: bool) -> BsrRef<'a> {
        BsrRef {
            pattern: &self.rows,
            source,
            dtype: self.dtype,
            shape: self.shape,
            blocksize: self.blocksize,
            transposed,
            group: self.group,
            by_column: Some(&self.columns),
        }
    }
}

#[pymethods]
impl Packed {
    /// Shape of the values: blocks, and rows and columns of a block.
    #[getter]
    fn shape(&self) -> (usize, usize, usize) {
        (self.stored, self.blocksize.0, self.blocksize.1)
    }

    /// Dtype of the values.
    #[getter]
    fn dtype(&self, py: Python<'_>) -> Py<PyArrayDescr> {
        self.descr.clone_ref(py)
    }

    /// Number of values.
    #[getter]
    fn size(&self) -> usize {
        self.stored * self.blocksize.0 * self.blocksize.1
    }

    /// A new array of the values in C order, blocks in the order of the rows.
    fn copy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let py = slf.py();
        let numpy = py.import("numpy")?;
        let (rows, cols) = this.blocksize;
        // A bytes-like export of the pages keeps this object alive under the array.
        let raw = numpy.call_method1("frombuffer", (slf, "uint8"))?;
        let typed = raw.call_method1("view", (&this.descr,))?;
        let blocks = match this.group {
            0 => typed,
            g => typed
                .call_method1("reshape", ((this.stored, rows / g, cols, g),))?
                .call_method1("swapaxes", (-1, -2))?,
        };
        // In C order, so that the shape of the copy changes without another one.
        blocks.call_method0("copy")?.call_method1("reshape", ((this.stored, rows, cols),))
    }

    /// Bytes of values and patterns, as allocated.
    #[getter]
    fn nbytes(&self) -> usize {
        self.values.len() + self.rows.bytes() + self.columns.bytes()
    }

    /// # Safety
    /// Called by the interpreter with a buffer to fill.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut pyo3::ffi::Py_buffer,
        flags: std::ffi::c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        // SAFETY: the pages live as long as the object, which the filled view keeps alive.
        let status = unsafe {
            pyo3::ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                this.values.as_ptr().cast(),
                (this.stored * this.block_bytes()) as isize,
                1,
                flags,
            )
        };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Copies one block of values into its packed layout, with zeros past column `depth`.
///
/// # Safety
/// Both blocks must be whole, and zero bytes a value of `T`.
unsafe fn lay_down<T: Copy + Default>(
    from: *const u8,
    to: *mut u8,
    (rows, cols): (usize, usize),
    depth: usize,
    group: usize,
) {
    let (from, to) = (from.cast::<T>(), to.cast::<T>());
    // Blocks in C order are groups of one row.
    let group = group.max(1);
    for r in 0..rows {
        let (start, within) = (r / group * group * cols, r % group);
        for c in 0..cols {
            // SAFETY: both positions are inside the block; values may lie at any alignment.
            unsafe {
                let value = if c < depth { from.add(r * cols + c).read_unaligned() } else { T::default() };
                to.add(start + c * group + within).write_unaligned(value);
            }
        }
    }
}

/// Copies an operand into its frozen form.
#[pyfunction]
pub(crate) fn pack(
    py: Python<'_>,
    data: &Bound<'_, PyUntypedArray>,
    indices: &Bound<'_, PyUntypedArray>,
    indptr: &Bound<'_, PyUntypedArray>,
    shape: (usize, usize),
    transposed: bool,
) -> PyResult<Packed> {
    if transposed {
        return Err(PyValueError::new_err("pack the stored matrix, then transpose it"));
    }
    let descr = data.dtype().unbind();
    let operand = Operand::read(data, indices, indptr, shape, false, &[])?;
    let (dtype, blocksize) = (operand.dtype(), operand.blocksize());
    let (stored_rows, source) = operand.into_single();
    let block_rows = shape.0.div_ceil(blocksize.0);
    if stored_rows.block_rows() != block_rows {
        return Err(PyValueError::new_err(format!(
            "{} rows in blocks of {} need an indptr of {}, got {}",
            shape.0,
            blocksize.0,
            block_rows + 1,
            stored_rows.block_rows() + 1
        )));
    }
    let rows = stored_rows.into_sorted();
    let block_bytes = blocksize.0 * blocksize.1 * dtype.size();
    let stored = rows.len();
    let values = stored
        .checked_mul(block_bytes)
        .ok_or(Error::Memory(stored as u128 * block_bytes as u128))
        .and_then(Buffer::new)
        .map_err(to_python)?;
    // Blocks are laid down in the order in which rows are computed.
    let group = prunus_cpu::dsd::group_rows(dtype, blocksize.0);
    // Pieces of about a mebibyte: signals are seen between them.
    let piece = ((1 << 20) / block_bytes.max(1)).max(1);
    enter(py, 0, |context| {
        // Taken whole: the pages may cross to the engine's threads, their address alone may not.
        let values = &values;
        for_each(context, stored.div_ceil(piece), |task| {
            for i in task * piece..stored.min((task + 1) * piece) {
                let column = rows.indices()[i] as usize;
                let depth = blocksize.1.min(shape.1 - column * blocksize.1);
                let from = source.block(rows.block(i))?;
                // SAFETY: the source has every block of the pattern; `values` has room, and each task has
                // blocks of its own.
                unsafe {
                    let to = values.as_ptr().add(i * block_bytes);
                    match dtype.size() {
                        1 => lay_down::<u8>(from, to, blocksize, depth, group),
                        2 => lay_down::<u16>(from, to, blocksize, depth, group),
                        4 => lay_down::<u32>(from, to, blocksize, depth, group),
                        _ => lay_down::<u64>(from, to, blocksize, depth, group),
                    }
                }
            }
            Ok(())
        })
    })?;
    let offsets = rows.indptr().iter().map(|&offset| offset as i64);
    let columns = rows.indices().iter().map(|&column| i64::from(column));
    let rows = Pattern::new(offsets, columns, rows.block_cols()).map_err(to_python)?;
    let columns = rows.transposed();
    Ok(Packed { values, descr, dtype, stored, shape, blocksize, rows, columns, group })
}

/// As `dsd`, with a packed operand.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn dsd_packed(
    py: Python<'_>,
    w: &Bound<'_, Packed>,
    transposed: bool,
    x: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    bias: Option<&Bound<'_, PyUntypedArray>>,
    activation: Option<&str>,
    threads: usize,
) -> PyResult<()> {
    let call = Batched::new(x, out, bias, activation)?;
    let packed = w.get();
    if call.is_empty() {
        return Ok(());
    }
    let source = packed.source();
    enter_each(py, threads, call.members(), |i, context| {
        call.member(i, packed.bsr(&source, transposed)).run(context)
    })
}
