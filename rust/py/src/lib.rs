//! `prunus._core`: the only crate that knows Python.
use pyo3::prelude::*;

/// Compiled part of prunus.
#[pymodule]
mod _core {}
