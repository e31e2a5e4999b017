//! Files whose bytes are paged: the pager's classes for Python.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use numpy::ndarray::ArrayView1;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2};
use prunus_core::Interrupt;
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

/// A stream, and which thread is at work with it. While that thread waits it runs handlers of signals, and these may
/// come back here: so no lock is held meanwhile.
struct Stream<T> {
    inner: Mutex<(Option<T>, Option<ThreadId>)>,
    free: Condvar,
}

impl<T: Send> Stream<T> {
    fn new(stream: T) -> Self {
        Self { inner: Mutex::new((Some(stream), None)), free: Condvar::new() }
    }

    /// Works with the stream, after the threads that do already; `None` where it is closed. `close`: it is gone
    /// afterwards.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        close: bool,
        work: impl FnOnce(&mut T, &dyn Interrupt) -> Result<R, pager::Error> + Send,
    ) -> PyResult<Option<R>> {
        attend(py, |signals| {
            let me = std::thread::current().id();
            let mut inner = held(&self.inner);
            while inner.1.is_some_and(|other| other != me) {
                inner = self.free.wait_timeout(inner, POLL).unwrap_or_else(PoisonError::into_inner).0;
                drop(inner);
                if signals.interrupted() {
                    return Err(pager::Error::Interrupted);
                }
                inner = held(&self.inner);
            }
            if inner.1.is_some() {
                let (expected, got) = ("a call after the one under way", "one from a handler of a signal");
                let (expected, got) = (expected.to_owned(), got.to_owned());
                return Err(pager::Error::Argument { what: "reader or writer", expected, got });
            }
            let Some(stream) = inner.0.take() else { return Ok(None) };
            inner.1 = Some(me);
            drop(inner);
            let mut lent = Lent { of: self, stream: Some(stream) };
            let result = lent.stream.as_mut().map(|stream| work(stream, signals)).transpose();
            if close && result.is_ok() {
                lent.stream = None;
            }
            result
        })
    }
}

/// Puts a stream back, whatever happens.
struct Lent<'a, T> {
    of: &'a Stream<T>,
    stream: Option<T>,
}

impl<T> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        *held(&self.of.inner) = (self.stream.take(), None);
        self.of.free.notify_all();
    }
}

/// Longest wait between two looks at whether the caller was interrupted.
const POLL: Duration = Duration::from_millis(50);

/// Whether a file was closed, for its segments too.
#[derive(Clone, Default)]
struct Closed(Arc<AtomicBool>);

impl Closed {
    fn check(&self) -> PyResult<()> {
        match self.0.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(PyValueError::new_err("the file is closed")),
        }
    }
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
        let (pager, closed) = (Arc::clone(&self.inner), Closed::default());
        Ok(DiskFile { inner, pager, writable: mode.writable(), closed })
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
    closed: Closed,
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

    /// Writes back what is dirty and drops the file's pages. Neither it nor its segments can be used afterwards, where
    /// that did not fail; the system closes the file with its last user.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        attend(py, |signals| self.pager.release(&self.inner, signals))?;
        self.closed.0.store(true, Ordering::Release);
        Ok(())
    }

    fn resize(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        self.closed.check()?;
        check_writable(self.writable)?;
        attend(py, |signals| self.pager.resize(&self.inner, size, signals))
    }

    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        self.closed.check()?;
        self.pager.check_process().map_err(file_error)?;
        py.detach(|| self.inner.sync()).map_err(file_error)
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.closed.check()?;
        py.detach(|| self.inner.check_unchanged()).map_err(file_error)
    }

    /// Reads some bytes, such as a header.
    fn read<'py>(&self, py: Python<'py>, offset: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.closed.check()?;
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
        self.closed.check()?;
        check_writable(self.writable)?;
        self.pager.check_process().map_err(file_error)?;
        py.detach(|| self.inner.write_all(offset, data)).map_err(file_error)
    }

    /// Bytes of the file that are cached in pages of `page` bytes.
    fn segment(&self, start: u64, length: u64, page: usize) -> PyResult<Segment> {
        self.closed.check()?;
        let inner = pager::Segment::new(&self.pager, &self.inner, start, length, page).map_err(file_error)?;
        Ok(Segment { inner: Arc::new(inner), writable: self.writable, closed: self.closed.clone() })
    }
}

/// A range of a file's bytes.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Segment {
    inner: Arc<pager::Segment>,
    writable: bool,
    closed: Closed,
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
        self.closed.check()?;
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
        self.closed.check()?;
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
        self.closed.check()?;
        let places = places(&offsets)?;
        py.detach(|| self.inner.prefetch(&places, size)).map_err(file_error)
    }

    /// Reads a range in panels, in order.
    fn reader(&self, py: Python<'_>, begin: u64, end: u64, panel: usize) -> PyResult<Reader> {
        self.closed.check()?;
        let inner = py.detach(|| self.inner.reader(begin, end, panel, 0)).map_err(file_error)?;
        Ok(Reader { inner: Stream::new(inner), closed: self.closed.clone() })
    }

    /// Writes a range in panels, in order.
    fn writer(&self, py: Python<'_>, begin: u64, end: u64, panel: usize) -> PyResult<Writer> {
        self.closed.check()?;
        check_writable(self.writable)?;
        let inner = py.detach(|| self.inner.writer(begin, end, panel, 0)).map_err(file_error)?;
        Ok(Writer { inner: Stream::new(inner), shown: Mutex::new(None) })
    }

    /// Writes back what is dirty, and makes it durable.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.closed.check()?;
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
    inner: Stream<pager::Reader>,
    closed: Closed,
}

#[pymethods]
impl Reader {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<(u64, Bound<'py, PyArray1<u8>>)> {
        self.closed.check()?;
        let next = self.inner.with(py, false, |reader, signals| reader.next(signals))?;
        let Some(panel) = next.flatten() else { return Err(PyStopIteration::new_err(())) };
        let offset = panel.offset();
        let memory = Bound::new(py, PanelMemory { panel })?;
        let view = ArrayView1::from(&memory.get().panel[..]);
        // SAFETY: the panel's bytes stay where they are, and unchanged, while the object lives that the array
        // keeps.
        let array = unsafe { PyArray1::borrow_from_array(&view, memory.clone().into_any()) };
        array.try_readwrite()?.make_nonwriteable();
        Ok((offset, array))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.with(py, true, |_, _| Ok(())).map(drop)
    }
}

/// Takes panels of a range of bytes, in order.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Writer {
    inner: Stream<pager::Writer>,
    /// The array that shows the panel at hand.
    shown: Mutex<Option<Py<PyArray1<u8>>>>,
}

/// Where the panel at hand is.
struct Place(*mut u8, usize);

// SAFETY: an address; whoever uses it says why it may.
unsafe impl Send for Place {}

#[pymethods]
impl Writer {
    /// Memory for the next panel, to be filled; the same array until it is put. Empty after the last one.
    fn panel<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u8>>> {
        if let Some(array) = &*held(&self.shown) {
            return Ok(array.bind(py).clone());
        }
        let found = self.inner.with(py, false, |writer, signals| {
            let panel = writer.panel(signals)?;
            let place = Place(panel.as_mut_ptr(), panel.len());
            Ok((place, writer.keep()))
        })?;
        let Some((place, kept)) = found else { return Err(Self::gone()) };
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
        self.inner.with(py, false, |writer, signals| writer.put(signals))?.ok_or_else(Self::gone)
    }

    /// Waits until all is written.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.let_go(py);
        self.inner.with(py, false, |writer, signals| writer.close(signals)).map(drop)
    }
}

impl Writer {
    fn gone() -> PyErr {
        PyValueError::new_err("this writer is closed")
    }

    /// The array of the last panel can no longer be written.
    fn let_go(&self, py: Python<'_>) {
        if let Some(array) = held(&self.shown).take()
            && let Ok(array) = array.bind(py).try_readwrite()
        {
            array.make_nonwriteable();
        }
    }
}
