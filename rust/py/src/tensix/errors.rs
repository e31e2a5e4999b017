//! The simulator's errors as Python exceptions.

use prunus_tensix::Error;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

/// An exception of `prunus.tensix.errors`.
pub(super) fn raise(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let found = py.import("prunus.tensix.errors").and_then(|errors| errors.getattr(class));
    match found.and_then(|class| class.call1((message,))) {
        Ok(raised) => PyErr::from_value(raised),
        Err(failed) => failed,
    }
}

pub(super) fn misused(py: Python<'_>, message: &str) -> PyErr {
    raise(py, "MisusedError", message)
}

/// The one map from the simulator's errors to Python exceptions.
pub(super) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error {
        Error::Spec(_) => "SpecError",
        Error::Misused(_) => "MisusedError",
        Error::Undefined(_) => "UndefinedError",
        Error::Unsupported(_) => "UnsupportedError",
        Error::Deadlock(_) => "DeadlockError",
        Error::Endless(_) => "EndlessError",
        Error::Kernel(_) => "TensixError",
        Error::Interrupted => return PyKeyboardInterrupt::new_err(()),
    };
    raise(py, class, &error.to_string())
}
