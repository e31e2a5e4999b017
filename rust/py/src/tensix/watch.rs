//! Runs of built-in programs, without the GIL.

use prunus_core::Interrupt;
use prunus_tensix::Error;
use pyo3::prelude::*;

use super::errors::to_python;
use crate::door::Signals;

/// Runs a simulation without the GIL. `stop` is an object with `is_set`, as `threading.Event`: threads that never see a
/// signal themselves stop when it is set.
pub(super) fn enter<T: Send>(
    py: Python<'_>,
    stop: Option<Py<PyAny>>,
    work: impl FnOnce(&dyn Interrupt) -> Result<T, Error> + Send,
) -> PyResult<T> {
    py.detach(|| {
        let signals = Signals::until(stop);
        let result = work(&signals);
        match (result, signals.raised()) {
            (Ok(value), _) => Ok(value),
            (Err(Error::Interrupted), Some(raised)) => Err(raised),
            (Err(error), _) => Err(Python::attach(|py| to_python(py, &error))),
        }
    })
}
