//! What the engine runs on.

use prunus_cpu::level::{self as levels, Level};
use prunus_cpu::{machine, threads};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::door::{LAST_PATH, enter, to_python};

/// SIMD levels that this machine can run, best last.
#[pyfunction]
pub(crate) fn available_levels() -> Vec<&'static str> {
    levels::available().into_iter().map(Level::name).collect()
}

/// The SIMD level in use.
#[pyfunction]
pub(crate) fn level() -> &'static str {
    levels::current().name()
}

/// Uses another SIMD level from now on.
#[pyfunction]
pub(crate) fn set_level(name: &str) -> PyResult<()> {
    levels::set(levels::parse(name).map_err(to_python)?);
    Ok(())
}

/// Threads that a call uses unless told otherwise.
#[pyfunction]
pub(crate) fn default_threads() -> PyResult<usize> {
    threads::default_threads().map_err(to_python)
}

/// Takes the threads of an OpenMP runtime from now on: the address of its `GOMP_parallel`; 0 for our own again.
///
/// The caller answers for the address: see `prunus.torch.teams`.
#[pyfunction]
pub(crate) fn lend_threads(address: usize) {
    // SAFETY: zero is none; else it is that function of a loaded library, by what is asked of the caller.
    unsafe {
        prunus_cpu::team::lend(std::mem::transmute::<usize, Option<prunus_cpu::team::Parallel>>(address))
    };
}

/// Uses as many threads as another library from now on, unless a call says: the address of a C function without
/// arguments that returns their number; 0 for as many as there are CPUs again.
///
/// The caller answers for the address: see `prunus.torch.teams`.
#[pyfunction]
pub(crate) fn follow_threads(address: usize) {
    // SAFETY: zero is none; else it is such a function of a loaded library, by what is asked of the caller.
    unsafe {
        prunus_cpu::team::follow(std::mem::transmute::<usize, Option<prunus_cpu::team::Count>>(address))
    };
}

/// The kernel that the last product on this thread ran as.
#[pyfunction]
pub(crate) fn last_path() -> &'static str {
    LAST_PATH.get()
}

/// The CPU's name, caches, features, and how the SIMD level was chosen.
#[pyfunction]
pub(crate) fn cpu_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("model", machine::model())?;
    info.set_item("features", machine::features())?;
    info.set_item("caches", machine::caches())?;
    info.set_item("level", levels::current().name())?;
    info.set_item("level_origin", levels::origin())?;
    info.set_item("constants", prunus_cpu::dsd::constants())?;
    Ok(info)
}

/// Multiply-adds that this machine reaches in registers, in FLOP/s.
#[pyfunction]
pub(crate) fn measure_flops(py: Python<'_>, dtype: &str, threads: usize, seconds: f64) -> PyResult<f64> {
    enter(py, threads, |context| machine::measure_flops(context, dtype, seconds))
}

/// Bytes read from memory a second.
#[pyfunction]
pub(crate) fn measure_bandwidth(py: Python<'_>, threads: usize, seconds: f64) -> PyResult<f64> {
    enter(py, threads, |context| machine::measure_bandwidth(context, seconds))
}
