//! What a drive gives.

use std::path::PathBuf;
use std::time::Duration;

use prunus_pager::probe::{Access, Options, measure};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::door::{attend, engine_kind};

/// One row of a measurement: engine, access, bytes of a block, depth, bytes a second, mean depth, microseconds of
/// processor time a request, system calls a request.
type Row = (&'static str, &'static str, usize, usize, f64, f64, f64, f64);

/// Measures how fast blocks of a file are read, and of a scratch file beside it are written.
#[pyfunction]
pub(crate) fn measure_io(
    py: Python<'_>,
    path: PathBuf,
    io: Option<&str>,
    accesses: Vec<String>,
    blocks: Vec<usize>,
    depths: Vec<usize>,
    seconds: f64,
) -> PyResult<Vec<Row>> {
    let known = [Access::RandomRead, Access::SequentialRead, Access::SequentialWrite, Access::Mixed];
    let accesses = accesses
        .iter()
        .map(|name| {
            known.into_iter().find(|access| access.name() == name).ok_or_else(|| {
                let names: Vec<_> = known.iter().map(|access| access.name()).collect();
                PyValueError::new_err(format!("access must be one of {}, got {name:?}", names.join("; ")))
            })
        })
        .collect::<PyResult<_>>()?;
    let time = Duration::try_from_secs_f64(seconds)
        .map_err(|fault| PyValueError::new_err(format!("seconds: {fault}, got {seconds}")))?;
    let kind = io.map(engine_kind).transpose()?;
    let options = Options { kind, accesses, blocks, depths, time, ..Options::default() };
    let rows = attend(py, |signals| measure(&path, &options, signals))?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let (kind, access) = (row.kind.name(), row.access.name());
            (kind, access, row.block, row.depth, row.rate, row.mean_depth, row.cpu, row.calls)
        })
        .collect())
}
