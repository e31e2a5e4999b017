//! The door between Python and the engines: errors, the GIL, signals.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use prunus_core::{Error, Interrupt};
use prunus_cpu::Context;
use prunus_pager as pager;
use prunus_pager::io::Kind;
use pyo3::exceptions::{
    PyKeyboardInterrupt, PyMemoryError, PyOSError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;

/// How long work may go on before a signal is seen.
const PATIENCE: Duration = Duration::from_millis(50);

thread_local! {
    /// What the last product on this thread ran as.
    pub(crate) static LAST_PATH: Cell<&'static str> = const { Cell::new("") };
}

/// The one map from engine errors to Python exceptions.
pub(crate) fn to_python(error: Error) -> PyErr {
    match error {
        Error::DTypes { .. } => PyTypeError::new_err(error.to_string()),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::Memory(_) => PyMemoryError::new_err(error.to_string()),
        Error::Threads(_) | Error::Bug(_) => PyRuntimeError::new_err(error.to_string()),
        Error::Shape { .. } | Error::Pattern(_) | Error::Choice { .. } => {
            PyValueError::new_err(error.to_string())
        }
    }
}

/// The system's number of an error, also of one that was found without asking the system.
fn number(error: &std::io::Error) -> i32 {
    use std::io::ErrorKind;
    error.raw_os_error().unwrap_or(match error.kind() {
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::AlreadyExists => libc::EEXIST,
        ErrorKind::PermissionDenied => libc::EPERM,
        ErrorKind::InvalidInput => libc::EINVAL,
        ErrorKind::FileTooLarge => libc::EFBIG,
        ErrorKind::Unsupported => libc::ENOSYS,
        ErrorKind::OutOfMemory => libc::ENOMEM,
        _ => libc::EIO,
    })
}

/// An error that a file met, as the exception of its number (`FileNotFoundError`, `PermissionError`) with the file's
/// name; `None` for other errors.
fn os_error(error: &pager::Error) -> Option<PyErr> {
    use pager::Error as Fault;
    let (number, text, path) = match error {
        Fault::Io { path, what, source } => (number(source), format!("{what}: {source}"), path),
        Fault::Short { path, offset, expected, got } => {
            let text = format!("expected {expected} bytes at {offset}, the file has {got}");
            (libc::EIO, text, path)
        }
        Fault::Changed { path, fault } => {
            (libc::ESTALE, format!("the file has changed since it was opened: {fault}"), path)
        }
        _ => return None,
    };
    Some(PyOSError::new_err((number, text, path.clone())))
}

/// As [`file_error`], where a file may turn out not to be of its format.
pub(crate) fn pager_to_python(py: Python<'_>, error: pager::Error) -> PyErr {
    if !matches!(error, pager::Error::Format { .. }) {
        return file_error(error);
    }
    let class = py.import("prunus._errors").and_then(|errors| errors.getattr("FormatError"));
    match class.and_then(|class| class.call1((error.to_string(),))) {
        Ok(raised) => PyErr::from_value(raised),
        Err(failed) => failed,
    }
}

/// Looks now and then for Python signals, which only the main thread sees, and at an event that others may have set.
pub(crate) struct Signals {
    state: RefCell<(Instant, Option<PyErr>)>,
    stop: Option<Py<PyAny>>,
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self::until(None)
    }

    /// `stop` is an object with `is_set`, as `threading.Event`: work ends when it is set.
    pub(crate) fn until(stop: Option<Py<PyAny>>) -> Self {
        Self { state: RefCell::new((Instant::now(), None)), stop }
    }

    /// What a signal handler raised.
    pub(crate) fn raised(self) -> Option<PyErr> {
        self.state.into_inner().1
    }
}

impl Interrupt for Signals {
    fn interrupted(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.0.elapsed() < PATIENCE {
            return false;
        }
        let asked = Python::attach(|py| {
            py.check_signals()?;
            self.stop.as_ref().map_or(Ok(false), |stop| stop.call_method0(py, "is_set")?.is_truthy(py))
        });
        state.0 = Instant::now();
        asked.unwrap_or_else(|raised| {
            state.1 = Some(raised);
            true
        })
    }
}

/// Runs engine work without the GIL, on `threads` threads (0: as many as configured). An exception
/// raised by a signal handler stops the work and is what the caller sees.
pub(crate) fn enter<T: Send>(
    py: Python<'_>,
    threads: usize,
    work: impl FnOnce(&Context<'_>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let threads = match threads {
        0 => prunus_cpu::threads::default_threads().map_err(to_python)?,
        n => n,
    };
    py.detach(|| {
        let signals = Signals::new();
        let result = work(&Context { threads, interrupt: &signals });
        match (result, signals.raised()) {
            (Ok(value), _) => Ok(value),
            (Err(Error::Interrupted), Some(raised)) => Err(raised),
            (Err(error), _) => Err(to_python(error)),
        }
    })
}

/// Runs one product for each of `members` batch members and remembers what the last of them ran as.
pub(crate) fn enter_each(
    py: Python<'_>,
    threads: usize,
    members: usize,
    mut product: impl FnMut(usize, &Context<'_>) -> Result<&'static str, Error> + Send,
) -> PyResult<()> {
    let path = enter(py, threads, |context| {
        let mut path = "nothing to do";
        for i in 0..members {
            if context.interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
            path = product(i, context)?;
        }
        Ok(path)
    })?;
    LAST_PATH.set(path);
    Ok(())
}

/// The one map from the pager's errors to Python exceptions.
pub(crate) fn file_error(error: pager::Error) -> PyErr {
    use pager::Error as Fault;
    os_error(&error).unwrap_or_else(|| match error {
        Fault::Memory(_) => PyMemoryError::new_err(error.to_string()),
        Fault::Interrupted => PyKeyboardInterrupt::new_err(()),
        _ => PyValueError::new_err(error.to_string()),
    })
}

/// Runs work of the pager without the GIL. An exception raised by a signal handler stops the work and is what
/// the caller sees.
pub(crate) fn attend<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&dyn Interrupt) -> Result<T, pager::Error> + Send,
) -> PyResult<T> {
    py.detach(|| {
        let signals = Signals::new();
        let result = work(&signals);
        match (result, signals.raised()) {
            (Ok(value), _) => Ok(value),
            (Err(pager::Error::Interrupted), Some(raised)) => Err(raised),
            (Err(error), _) => Err(file_error(error)),
        }
    })
}

/// The I/O engine of a name.
pub(crate) fn engine_kind(name: &str) -> PyResult<Kind> {
    [Kind::Uring, Kind::Direct, Kind::Buffered].into_iter().find(|kind| kind.name() == name).ok_or_else(
        || PyValueError::new_err(format!("io must be io_uring, direct or buffered, got {name:?}")),
    )
}
