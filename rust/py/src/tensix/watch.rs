//! Runs of built-in programs, without the GIL.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use prunus_core::Interrupt;
use prunus_tensix::Error;
use pyo3::prelude::*;

use super::errors::to_python;

/// How long a run may go on before a signal, or a request to stop, is seen.
const PATIENCE: Duration = Duration::from_millis(50);

/// Looks now and then for signals, which only the main thread sees, and at an event that others may have set.
struct Watch {
    stop: Option<Py<PyAny>>,
    looked: Cell<Instant>,
    raised: RefCell<Option<PyErr>>,
}

impl Interrupt for Watch {
    fn interrupted(&self) -> bool {
        if self.looked.get().elapsed() < PATIENCE {
            return false;
        }
        let asked = Python::attach(|py| {
            py.check_signals()?;
            match &self.stop {
                Some(event) => event.call_method0(py, "is_set")?.is_truthy(py),
                None => Ok(false),
            }
        });
        self.looked.set(Instant::now());
        asked.unwrap_or_else(|error| {
            *self.raised.borrow_mut() = Some(error);
            true
        })
    }
}

/// Runs a simulation without the GIL. `stop` is an object with `is_set`, as `threading.Event`: threads that never see a
/// signal themselves stop when it is set.
pub(super) fn enter<T: Send>(
    py: Python<'_>,
    stop: Option<Py<PyAny>>,
    work: impl FnOnce(&dyn Interrupt) -> Result<T, Error> + Send,
) -> PyResult<T> {
    py.detach(|| {
        let watch = Watch { stop, looked: Cell::new(Instant::now()), raised: RefCell::new(None) };
        let result = work(&watch);
        match (result, watch.raised.into_inner()) {
            (Ok(value), _) => Ok(value),
            (Err(Error::Interrupted), Some(raised)) => Err(raised),
            (Err(error), _) => Err(Python::attach(|py| to_python(py, &error))),
        }
    })
}
