//! What a product would cost on a chip, and, where that is asked for, its values.

use prunus_tensix::programs::sparse::TilePattern;
use prunus_tensix::{ChipSpec, Error, Options, Simulator};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::errors::to_python;
use super::products::{Dense, Product, grid};
use super::program::{fidelity_of, report};
use super::tiles::product_format;
use super::watch::enter;

/// Columns of live tiles, and where each row of them begins.
pub(super) type Rows = (Vec<u32>, Vec<u32>);

/// Runs the product of an (m, k) and a (k, n) matrix of tiles in DRAM. With `live`, the left one has only the tiles of that
/// pattern (`decide` "static"; `balance` deals rows of tiles to rows of cores by their live ones), or has all, and what is
/// live is found as the program runs: by the cores ("dynamic"), the operation before ("epilogue") or the host ("host"). `in0_l1` and
/// `out_l1`: whether the left operand and the result of a dense product lie in L1.
#[pyfunction]
#[pyo3(signature = (spec_text, tiles, live, format, fidelity, wide, decide="static", balance=true, in0_l1=false, out_l1=false, stop=None))]
#[allow(clippy::too_many_arguments, reason = "what a product is")]
pub(crate) fn tensix_estimate<'py>(
    py: Python<'py>,
    spec_text: &str,
    tiles: (u32, u32, u32),
    live: Option<Rows>,
    format: &str,
    fidelity: &str,
    wide: bool,
    decide: &str,
    balance: bool,
    in0_l1: bool,
    out_l1: bool,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = ChipSpec::parse(spec_text).map_err(|error| to_python(py, &error))?;
    let fidelity = fidelity_of(fidelity)?;
    let format = product_format(py, format)?;
    let (simulator, run) = enter(py, stop, |interrupt| {
        let grid = grid(&spec, tiles);
        let mut simulator = Simulator::new(spec, false);
        let product = Product { tiles, grid, format, wide };
        let program = match live {
            None => product.dense(&mut simulator, fidelity, (in0_l1, out_l1))?.program,
            Some((columns, starts)) => {
                let pattern = TilePattern { columns, starts };
                match decide {
                    "static" => product.sparse(&mut simulator, &pattern, balance)?,
                    by => product.dynamic(&mut simulator, &pattern, by)?,
                }
            }
        };
        let options = Options { fidelity, wide, ..Options::default() };
        let run = simulator.run(program, options, interrupt)?;
        Ok((simulator, run))
    })?;
    report(py, &simulator, &run)
}

/// Runs the dense product of two matrices of tiles in DRAM, with values; returns the report and the product's tiles. Parts
/// of cores must cover the product: it has no rows or columns of tiles beyond it.
#[pyfunction]
#[pyo3(signature = (spec_text, tiles, in0, in1, format, fidelity, wide, threads, stop=None))]
#[allow(clippy::too_many_arguments, reason = "what a product is, and how to run it")]
pub(crate) fn tensix_multiply<'py>(
    py: Python<'py>,
    spec_text: &str,
    tiles: (u32, u32, u32),
    in0: &[u8],
    in1: &[u8],
    format: &str,
    fidelity: &str,
    wide: bool,
    threads: usize,
    stop: Option<Py<PyAny>>,
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyBytes>)> {
    let spec = ChipSpec::parse(spec_text).map_err(|error| to_python(py, &error))?;
    let fidelity = fidelity_of(fidelity)?;
    let format = product_format(py, format)?;
    let (simulator, run, out) = enter(py, stop, |interrupt| {
        let grid = grid(&spec, tiles);
        let mut simulator = Simulator::new(spec, true);
        let Dense { program, handles, covered, .. } =
            Product { tiles, grid, format, wide }.dense(&mut simulator, fidelity, (false, false))?;
        if covered != (tiles.0, tiles.2) {
            return Err(Error::Misused(format!(
                "a product of {} x {} tiles, parts of {} x {} cores cover {} x {}",
                tiles.0, tiles.2, grid.1, grid.0, covered.0, covered.1
            )));
        }
        simulator.write_buffer(handles.in0 as u16, in0)?;
        simulator.write_buffer(handles.in1, in1)?;
        let options = Options { fidelity, wide, threads, ..Options::default() };
        let run = simulator.run(program, options, interrupt)?;
        Ok((simulator, run, handles.out as u16))
    })?;
    let bytes = simulator.read_buffer(out).map_err(|error| to_python(py, &error))?;
    Ok((report(py, &simulator, &run)?, PyBytes::new(py, bytes)))
}
