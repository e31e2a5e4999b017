//! Files whose bytes are paged: the pager's classes for Python.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numpy::ndarray::ArrayView1;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2};
use prunus_pager as pager;
use prunus_pager::io::Engines;
use pyo3::exceptions::{PyOSError, PyStopIteration, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::door::{attend, engine_kind, file_error};

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking thread left behind is an option that is still whole.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A budget of memory, and the engines that fill it.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Pager {
    inner: Arc<pager::Pager>,
}

#[pymethods]
impl Pager {
    #[new]
    #[pyo3(signature = (budget, io=None, depth=64))]
    fn new(py: Python<'_>, budget: usize, io: Option<&str>, depth: usize) -> PyResult<Self> {
        let pin = io.map(engine_kind).transpose()?;
        let inner = py.detach(|| pager::Pager::new(budget, Engines::new(pin, depth)?)).map_err(file_error)?;
        Ok(Self { inner })
    }

    /// Bytes that pages and panels take at most.
    #[getter]
    fn budget(&self) -> usize {
        self.inner.budget()
    }

    /// Opens a file: "r", "r+", "w+" or "x+", the last two with a size.
    #[pyo3(signature = (path, mode, size=0))]
    fn open(&self, py: Python<'_>, path: PathBuf, mode: &str, size: u64) -> PyResult<DiskFile> {
        let mode = match mode {
            "r" => pager::Mode::Read,
            "r+" => pager::Mode::ReadWrite,
            "w+" => pager::Mode::Create { size },
            "x+" => pager::Mode::CreateNew { size },
            other => {
                return Err(PyValueError::new_err(format!("mode must be r, r+, w+ or x+, got {other:?}")));
            }
        };
        let inner = py.detach(|| self.inner.open(&path, mode)).map_err(file_error)?;
        Ok(DiskFile { inner, pager: Arc::clone(&self.inner), writable: mode.writable() })
    }

    /// Writes back what is dirty, and makes it durable.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        attend(py, |signals| self.inner.flush(signals))
    }

    /// What was done so far, and what is held.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.inner.stats();
        let dict = PyDict::new(py);
        dict.set_item("resident", stats.resident)?;
        dict.set_item("peak", stats.peak)?;
        dict.set_item("hits", stats.hits)?;
        dict.set_item("misses", stats.misses)?;
        dict.set_item("evictions", stats.evictions)?;
        dict.set_item("requests", stats.requests)?;
        dict.set_item("bytes_read", stats.bytes_read)?;
        dict.set_item("bytes_written", stats.bytes_written)?;
        dict.set_item("calls", stats.calls)?;
        dict.set_item("mean_depth", stats.mean_depth)?;
        dict.set_item("dirty", stats.dirty)?;
        dict.set_item("pinned", stats.pinned)?;
        Ok(dict)
    }
}

/// An open file.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct DiskFile {
    inner: Arc<pager::DiskFile>,
    pager: Arc<pager::Pager>,
    /// As it was asked for: the file itself may be open to write for somebody else.
    writable: bool,
}

/// Raises unless a file may be written.
fn check_writable(writable: bool) -> PyResult<()> {
    match writable {
        true => Ok(()),
        false => Err(PyOSError::new_err((libc::EBADF, "the file is open to read only"))),
    }
}

#[pymethods]
impl DiskFile {
    #[getter]
    fn path(&self) -> PathBuf {
        self.inner.path().to_path_buf()
    }

    #[getter]
    fn size(&self) -> u64 {
        self.inner.size()
    }

    /// Which engine moves its bytes.
    #[getter]
    fn engine(&self) -> &'static str {
        self.inner.kind().name()
    }

    /// Why this one.
    #[getter]
    fn why(&self) -> String {
        self.inner.why().to_owned()
    }

    #[getter]
    fn writable(&self) -> bool {
        self.writable
    }

    /// Writes back what is dirty and drops the file's pages; it can be used again, and is closed with its last user.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        attend(py, |signals| self.pager.release(&self.inner, signals))
    }

    fn resize(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        check_writable(self.writable)?;
        self.pager.check_process().map_err(file_error)?;
        py.detach(|| self.inner.resize(size)).map_err(file_error)
    }

    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        self.pager.check_process().map_err(file_error)?;
        py.detach(|| self.inner.sync()).map_err(file_error)
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.check_unchanged()).map_err(file_error)
    }

    /// Reads some bytes, such as a header.
    fn read<'py>(&self, py: Python<'py>, offset: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.pager.check_process().map_err(file_error)?;
        let mut bytes = Vec::new();
        // More than the file has is refused before there is memory for it.
        if offset.checked_add(size as u64).is_none_or(|end| end > self.inner.size()) {
            let (path, got) = (self.inner.path().to_owned(), self.inner.size().saturating_sub(offset));
            return Err(file_error(pager::Error::Short { path, offset, expected: size as u64, got }));
        }
        if bytes.try_reserve_exact(size).is_err() {
            return Err(file_error(pager::Error::Memory(size)));
        }
        bytes.resize(size, 0);
        py.detach(|| self.inner.read_exact(offset, &mut bytes)).map_err(file_error)?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn write(&self, py: Python<'_>, offset: u64, data: &[u8]) -> PyResult<()> {
        check_writable(self.writable)?;
        self.pager.check_process().map_err(file_error)?;
        py.detach(|| self.inner.write_all(offset, data)).map_err(file_error)
    }

    /// Bytes of the file that are cached in pages of `page` bytes.
    fn segment(&self, start: u64, length: u64, page: usize) -> PyResult<Segment> {
        let inner = pager::Segment::new(&self.pager, &self.inner, start, length, page).map_err(file_error)?;
        Ok(Segment { inner: Arc::new(inner), writable: self.writable })
    }
}

/// A range of a file's bytes.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Segment {
    inner: Arc<pager::Segment>,
    writable: bool,
}

fn places(array: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<u64>> {
    array
        .as_array()
        .iter()
        .map(|&offset| {
            u64::try_from(offset)
                .map_err(|_| PyValueError::new_err(format!("offsets must not be negative, got {offset}")))
        })
        .collect()
}

#[pymethods]
impl Segment {
    #[getter]
    fn start(&self) -> u64 {
        self.inner.start()
    }

    #[getter]
    fn length(&self) -> u64 {
        self.inner.len()
    }

    #[getter]
    fn page(&self) -> usize {
        self.inner.page()
    }

    /// Reads `size` bytes at each of some offsets into the rows of `out`.
    fn gather(
        &self,
        py: Python<'_>,
        offsets: PyReadonlyArray1<'_, i64>,
        size: usize,
        mut out: PyReadwriteArray2<'_, u8>,
    ) -> PyResult<()> {
        let places = places(&offsets)?;
        let mut out = out.as_array_mut();
        let shape = out.shape().to_vec();
        let Some(out) = out.as_slice_mut().filter(|_| shape == [places.len(), size]) else {
            return Err(PyValueError::new_err(format!(
                "out: expected {} x {size} bytes in C order, got shape {shape:?}",
                places.len()
            )));
        };
        attend(py, |signals| self.inner.gather(&places, size, out, signals))
    }

    /// Writes the rows of `values`, `size` bytes each, at some offsets.
    fn scatter(
        &self,
        py: Python<'_>,
        offsets: PyReadonlyArray1<'_, i64>,
        size: usize,
        values: PyReadonlyArray2<'_, u8>,
    ) -> PyResult<()> {
        check_writable(self.writable)?;
        let places = places(&offsets)?;
        let values = values.as_array();
        let shape = values.shape();
        let Some(values) = values.as_slice().filter(|_| shape == [places.len(), size]) else {
            return Err(PyValueError::new_err(format!(
                "values: expected {} x {size} bytes in C order, got shape {shape:?}",
                places.len()
            )));
        };
        attend(py, |signals| self.inner.scatter(&places, size, values, signals))
    }

    /// Asks for bytes that will be gathered soon, and returns at once.
    fn prefetch(&self, py: Python<'_>, offsets: PyReadonlyArray1<'_, i64>, size: usize) -> PyResult<()> {
        let places = places(&offsets)?;
        py.detach(|| self.inner.prefetch(&places, size)).map_err(file_error)
    }

    /// Reads a range in panels, in order.
    fn reader(&self, py: Python<'_>, begin: u64, end: u64, panel: usize) -> PyResult<Reader> {
        let inner = py.detach(|| self.inner.reader(begin, end, panel, 0)).map_err(file_error)?;
        Ok(Reader { inner: Mutex::new(Some(inner)) })
    }

    /// Writes a range in panels, in order.
    fn writer(&self, py: Python<'_>, begin: u64, end: u64, panel: usize) -> PyResult<Writer> {
        check_writable(self.writable)?;
        let inner = py.detach(|| self.inner.writer(begin, end, panel, 0)).map_err(file_error)?;
        Ok(Writer { inner: Mutex::new(Some(inner)), shown: Mutex::new(None) })
    }

    /// Writes back what is dirty, and makes it durable.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        attend(py, |signals| self.inner.flush(signals))
    }
}

/// A panel that an array shows: the array keeps it.
#[pyclass(frozen, module = "prunus._core")]
struct PanelMemory {
    panel: pager::Panel,
}

/// The memory of a writer's panel: the array that shows it keeps it.
#[pyclass(frozen, module = "prunus._core")]
struct WriterMemory {
    _kept: Option<pager::Kept>,
}

/// Panels of a range of bytes, in order.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Reader {
    inner: Mutex<Option<pager::Reader>>,
}

#[pymethods]
impl Reader {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<(u64, Bound<'py, PyArray1<u8>>)> {
        let next = attend(py, |signals| match held(&self.inner).as_mut() {
            Some(reader) => reader.next(signals),
            None => Ok(None),
        })?;
        let Some(panel) = next else { return Err(PyStopIteration::new_err(())) };
        let offset = panel.offset();
        let memory = Bound::new(py, PanelMemory { panel })?;
        let view = ArrayView1::from(&memory.get().panel[..]);
        // SAFETY: the panel's bytes stay where they are, and unchanged, while the object lives that the array
        // keeps.
        let array = unsafe { PyArray1::borrow_from_array(&view, memory.clone().into_any()) };
        array.try_readwrite()?.make_nonwriteable();
        Ok((offset, array))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(held(&self.inner).take()));
    }
}

/// Takes panels of a range of bytes, in order.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Writer {
    inner: Mutex<Option<pager::Writer>>,
    /// The array that shows the panel at hand.
    shown: Mutex<Option<Py<PyArray1<u8>>>>,
}

/// Where the panel at hand is.
struct Place(*mut u8, usize);

// SAFETY: an address; whoever uses it says why it may.
unsafe impl Send for Place {}

fn closed() -> PyErr {
    PyValueError::new_err("this writer is closed")
}

#[pymethods]
impl Writer {
    /// Memory for the next panel, to be filled; the same array until it is put. Empty after the last one.
    fn panel<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u8>>> {
        if let Some(array) = &*held(&self.shown) {
            return Ok(array.bind(py).clone());
        }
        let (place, kept) = attend(py, |signals| match held(&self.inner).as_mut() {
            Some(writer) => {
                let panel = writer.panel(signals)?;
                let place = Place(panel.as_mut_ptr(), panel.len());
                Ok(Some((place, writer.keep())))
            }
            None => Ok(None),
        })?
        .ok_or_else(closed)?;
        let memory = Bound::new(py, WriterMemory { _kept: kept })?;
        // SAFETY: the array, and so all views of it, keep the panel's memory from other uses, also where they
        // are written to after the panel was put. The empty one has no memory.
        let array = unsafe {
            let view = ArrayView1::from_shape_ptr(place.1, place.0.cast_const());
            PyArray1::borrow_from_array(&view, memory.into_any())
        };
        *held(&self.shown) = Some(array.clone().unbind());
        Ok(array)
    }

    /// Sends the panel at hand off.
    fn put(&self, py: Python<'_>) -> PyResult<()> {
        self.let_go(py);
        attend(py, |signals| match held(&self.inner).as_mut() {
            Some(writer) => writer.put(signals).map(Some),
            None => Ok(None),
        })?
        .ok_or_else(closed)
    }

    /// Waits until all is written.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.let_go(py);
        attend(py, |signals| match held(&self.inner).as_mut() {
            Some(writer) => writer.close(signals),
            None => Ok(()),
        })
    }
}

impl Writer {
    /// The array of the last panel can no longer be written.
    fn let_go(&self, py: Python<'_>) {
        if let Some(array) = held(&self.shown).take()
            && let Ok(array) = array.bind(py).try_readwrite()
        {
            array.make_nonwriteable();
        }
    }
}
