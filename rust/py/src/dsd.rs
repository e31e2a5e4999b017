//! Block-sparse times dense.

use std::cell::Cell;

use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use prunus_core::{
    Activation, BsrRef, DType, Epilogue, Error, MatMut, MatRef, MemoryBlocks, Pattern, VecRef,
};
use prunus_cpu::Dsd;
use prunus_cpu::memory::Buffer;
use prunus_cpu::threads::for_each;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Indices, Nd, member_pattern, pattern};
use crate::door::{enter, to_python};

thread_local! {
    /// What the last product on this thread ran as.
    pub(crate) static LAST_PATH: Cell<&'static str> = const { Cell::new("") };
}

/// Blocks of a call: `(*batch, blocks, rows, columns)`, the last three in C order.
pub(crate) fn blocks_of(data: &Bound<'_, PyUntypedArray>) -> PyResult<(Nd, (usize, usize))> {
    let nd = Nd::read(data)?;
    let n = nd.batch(3)?.len();
    let (shape, strides) = (&nd.shape[n..], &nd.strides[n..]);
    let size = nd.dtype.size();
    let expected = [shape[1] * shape[2] * size, shape[2] * size, size];
    let dense = shape.iter().zip(strides).zip(expected).all(|((&n, &s), e)| n <= 1 || s == e as isize);
    if !dense && nd.shape.iter().all(|&n| n > 0) {
        return Err(PyValueError::new_err("data: expected blocks in C order"));
    }
    let blocksize = (shape[1], shape[2]);
    Ok((nd, blocksize))
}

/// Shape and stride checks that every product shares; then one product a batch member.
struct Batched<'a> {
    batch: Vec<usize>,
    x: Nd,
    out: Nd,
    bias: Option<VecRef<'a>>,
    activation: Activation,
}

impl<'a> Batched<'a> {
    fn new(
        x: &'a Bound<'_, PyUntypedArray>,
        out: &'a Bound<'_, PyUntypedArray>,
        bias: Option<&'a Bound<'_, PyUntypedArray>>,
        activation: Option<&str>,
    ) -> PyResult<Self> {
        let (x, out) = (Nd::read(x)?, Nd::write(out)?);
        let batch = out.batch(2)?.to_vec();
        if x.batch(2)? != batch {
            return Err(PyValueError::new_err(format!(
                "batch dimensions of x and out must agree, got {:?} and {:?}",
                x.batch(2)?,
                batch
            )));
        }
        let bias = match bias {
            None => None,
            Some(bias) => {
                let nd = Nd::read(bias)?;
                if nd.shape.len() != 1 {
                    return Err(PyValueError::new_err(format!(
                        "bias: expected one dimension, got {}",
                        nd.shape.len()
                    )));
                }
                // SAFETY: the array lives as long as the call.
                Some(unsafe { VecRef::new(nd.ptr, nd.dtype, nd.shape[0], nd.strides[0]) })
            }
        };
        let activation = match activation {
            None => Activation::Identity,
            Some(name) => Activation::parse(name).map_err(to_python)?,
        };
        Ok(Self { batch, x, out, bias, activation })
    }

    fn members(&self) -> usize {
        self.batch.iter().product()
    }

    fn member<'b>(&'b self, i: usize, w: BsrRef<'b>) -> Dsd<'b> {
        let n = self.batch.len();
        let shape = |nd: &Nd| (nd.shape[n], nd.shape[n + 1]);
        let strides = |nd: &Nd| (nd.strides[n], nd.strides[n + 1]);
        let (x, out) = (&self.x, &self.out);
        // SAFETY: members of arrays that live as long as the call; `out` is writeable, and Python's
        // caller is told not to read or write it meanwhile.
        unsafe {
            Dsd {
                w,
                x: MatRef::new(x.member(&self.batch, i), x.dtype, shape(x), strides(x)),
                out: MatMut::new(out.member(&self.batch, i), out.dtype, shape(out), strides(out)),
                epilogue: Epilogue { bias: self.bias, activation: self.activation },
            }
        }
    }
}

/// `out = activation(op(W) @ x + bias)`, one product for each batch member.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn dsd(
    py: Python<'_>,
    data: &Bound<'_, PyUntypedArray>,
    indices: &Bound<'_, PyUntypedArray>,
    indptr: &Bound<'_, PyUntypedArray>,
    shape: (usize, usize),
    transposed: bool,
    x: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    bias: Option<&Bound<'_, PyUntypedArray>>,
    activation: Option<&str>,
    threads: usize,
) -> PyResult<()> {
    let call = Batched::new(x, out, bias, activation)?;
    let (data, blocksize) = blocks_of(data)?;
    let (indices, indptr) = (Indices::new("indices", indices)?, Indices::new("indptr", indptr)?);
    if indices.shape.len() != 1 {
        return Err(PyValueError::new_err("indices: expected one dimension"));
    }
    let own = |dims: &[usize], core: usize| dims.len() > core;
    let (data_batch, ptr_batch) = (data.batch(3)?, &indptr.shape[..indptr.shape.len() - 1]);
    for (name, dims) in [("data", data_batch), ("indptr", ptr_batch)] {
        if own(dims, 0) && dims != call.batch {
            return Err(PyValueError::new_err(format!(
                "batch dimensions of {name} and out must agree, got {dims:?} and {:?}",
                call.batch
            )));
        }
    }
    if blocksize.0 == 0 || blocksize.1 == 0 {
        return Err(PyValueError::new_err("blocks of zero size"));
    }
    let stored = data.shape[data_batch.len()];
    if stored < indices.shape[0] {
        return Err(PyValueError::new_err(format!(
            "data holds {stored} blocks, indices name {}",
            indices.shape[0]
        )));
    }
    let block_cols = shape.1.div_ceil(blocksize.1);
    // One pattern for all is checked once; patterns of their own, one by one.
    let count = if ptr_batch.is_empty() { 1 } else { call.members() };
    let patterns = (0..count)
        .map(|i| {
            if i % 1024 == 1023 {
                py.check_signals()?;
            }
            member_pattern(&indptr, &indices, ptr_batch, i, block_cols)
        })
        .collect::<PyResult<Vec<(Pattern, usize)>>>()?;
    if call.out.is_empty() {
        return Ok(());
    }
    let block_bytes = blocksize.0 * blocksize.1 * data.dtype.size();
    let path = enter(py, threads, |context| {
        // Taken whole: the views in it may cross to the engine's threads.
        let (call, data) = (&call, &data);
        let mut path = "nothing to do";
        for i in 0..call.members() {
            if context.interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
            let (pattern, first) = &patterns[i.min(count - 1)];
            let start = data.member(data_batch, i).wrapping_add(first * block_bytes);
            // SAFETY: checked above: the member's blocks lie in C order, one for each index.
            let source = unsafe { MemoryBlocks::new(start, block_bytes) };
            let w = BsrRef {
                pattern,
                source: &source,
                dtype: data.dtype,
                shape,
                blocksize,
                transposed,
                group: 0,
                by_column: None,
            };
            path = call.member(i, w).run(context)?;
        }
        Ok(path)
    })?;
    LAST_PATH.set(path);
    Ok(())
}

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
    let descr = data.dtype().unbind();
    let (data, blocksize) = blocks_of(data)?;
    if data.shape.len() != 3 {
        return Err(PyValueError::new_err("data: expected three dimensions"));
    }
    if blocksize.0 == 0 || blocksize.1 == 0 {
        return Err(PyValueError::new_err("blocks of zero size"));
    }
    let (indices, indptr) = (Indices::new("indices", indices)?, Indices::new("indptr", indptr)?);
    if indices.shape.len() != 1 || indptr.shape.len() != 1 {
        return Err(PyValueError::new_err("indices and indptr: expected one dimension"));
    }
    let stored_rows = pattern(&indptr, &indices, &[], 0, shape.1.div_ceil(blocksize.1))?;
    if stored_rows.block_rows() != shape.0.div_ceil(blocksize.0) {
        return Err(PyValueError::new_err(format!(
            "{} rows in blocks of {} need an indptr of {}, got {}",
            shape.0,
            blocksize.0,
            shape.0.div_ceil(blocksize.0) + 1,
            stored_rows.block_rows() + 1
        )));
    }
    if data.shape[0] < indices.shape[0] {
        return Err(PyValueError::new_err(format!(
            "data holds {} blocks, indices name {}",
            data.shape[0], indices.shape[0]
        )));
    }
    if transposed {
        return Err(PyValueError::new_err("pack the stored matrix, then transpose it"));
    }
    let rows = stored_rows.into_sorted();
    let block_bytes = blocksize.0 * blocksize.1 * data.dtype.size();
    let stored = rows.len();
    let values = stored
        .checked_mul(block_bytes)
        .ok_or(Error::Memory(stored as u128 * block_bytes as u128))
        .and_then(Buffer::new)
        .map_err(to_python)?;
    // Blocks are laid down in the order in which rows are computed.
    let first = rows.indptr()[0];
    let group = prunus_cpu::dsd::group_rows(data.dtype, blocksize.0);
    // Pieces of about a mebibyte: signals are seen between them.
    let piece = ((1 << 20) / block_bytes.max(1)).max(1);
    enter(py, 0, |context| {
        let (rows, data, values) = (&rows, &data, &values);
        for_each(context, stored.div_ceil(piece), |task| {
            for i in task * piece..stored.min((task + 1) * piece) {
                let column = rows.indices()[first + i] as usize;
                let depth = blocksize.1.min(shape.1 - column * blocksize.1);
                // SAFETY: block(e) is below the number of blocks that `data` holds; `values` has room,
                // and each task has blocks of its own.
                unsafe {
                    let from = data.start().add(rows.block(first + i) * block_bytes);
                    let to = values.as_ptr().add(i * block_bytes);
                    match data.dtype.size() {
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
    let offsets = rows.indptr().iter().map(|&p| (p - first) as i64);
    let block_cols = rows.block_cols();
    let columns = rows.indices()[first..first + stored].iter().map(|&c| i64::from(c));
    let rows = Pattern::new(
        offsets.collect::<Vec<_>>().into_iter(),
        columns.collect::<Vec<_>>().into_iter(),
        block_cols,
    )
    .map_err(to_python)?;
    let columns = rows.transposed();
    Ok(Packed { values, descr, dtype: data.dtype, stored, shape, blocksize, rows, columns, group })
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
    if call.out.is_empty() {
        return Ok(());
    }
    let path = enter(py, threads, |context| {
        let call = &call;
        let mut path = "nothing to do";
        // SAFETY: the buffer holds `stored` blocks.
        let source = unsafe { MemoryBlocks::new(packed.values.as_ptr(), packed.block_bytes()) };
        for i in 0..call.members() {
            if context.interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
            let w = BsrRef {
                pattern: &packed.rows,
                source: &source,
                dtype: packed.dtype,
                shape: packed.shape,
                blocksize: packed.blocksize,
                transposed,
                group: packed.group,
                by_column: Some(&packed.columns),
            };
            path = call.member(i, w).run(context)?;
        }
        Ok(path)
    })?;
    LAST_PATH.set(path);
    Ok(())
}
