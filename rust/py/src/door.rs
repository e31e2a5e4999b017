//! The door between Python and the engines: errors, the GIL, signals.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use prunus_core::{Error, Interrupt};
use prunus_cpu::Context;
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

/// The one map from the pager's errors to Python exceptions.
pub(crate) fn pager_to_python(py: Python<'_>, error: prunus_pager::Error) -> PyErr {
    use prunus_pager::Error;

    let text = error.to_string();
    match error {
        // With errno, Python makes the subclass: FileNotFoundError, PermissionError.
        Error::Io { path, what, source } => match source.raw_os_error() {
            Some(number) => PyOSError::new_err((number, format!("{what}: {source}"), path)),
            None => PyOSError::new_err(text),
        },
        Error::Short { .. } => PyOSError::new_err(text),
        Error::Changed { path, fault } => {
            let what = format!("the file has changed since it was opened: {fault}");
            PyOSError::new_err((libc::ESTALE, what, path))
        }
        Error::Format { .. } => {
            let class = py.import("prunus._errors").and_then(|errors| errors.getattr("FormatError"));
            match class.and_then(|class| class.call1((text,))) {
                Ok(raised) => PyErr::from_value(raised),
                Err(failed) => failed,
            }
        }
        Error::Budget { .. } | Error::Argument { .. } => PyValueError::new_err(text),
        Error::Memory(_) => PyMemoryError::new_err(text),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
    }
}

/// Looks for Python signals now and then.
struct Signals {
    state: RefCell<(Instant, Option<PyErr>)>,
}

impl Interrupt for Signals {
    fn interrupted(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.0.elapsed() < PATIENCE {
            return false;
        }
        if let Err(raised) = Python::attach(|py| py.check_signals()) {
            state.1 = Some(raised);
            return true;
        }
        state.0 = Instant::now();
        false
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
        let signals = Signals { state: RefCell::new((Instant::now(), None)) };
        let result = work(&Context { threads, interrupt: &signals });
        match (result, signals.state.into_inner().1) {
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
