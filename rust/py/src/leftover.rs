//! A file that is gone when nobody holds it any more.

use std::path::PathBuf;
use std::{fs, process};

use pyo3::prelude::*;

/// Removes a file when it goes, however that comes about.
///
/// Code in Python can be interrupted between any two of its steps, the first of its `finally` included; what is
/// dropped here cannot.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Leftover {
    path: PathBuf,
    /// A forked process has a copy of this, and the file is its parent's.
    process: u32,
}

#[pymethods]
impl Leftover {
    #[new]
    fn new(path: PathBuf) -> Self {
        Self { path, process: process::id() }
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if process::id() == self.process {
            // Nearly always there is nothing under this name any more, and nobody to tell of another failure.
            drop(fs::remove_file(&self.path));
        }
    }
}
