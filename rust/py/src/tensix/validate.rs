//! Published measurements run as programs.

use prunus_tensix::numerics::Fidelity;
use prunus_tensix::programs::blocking::Request;
use prunus_tensix::programs::matmul::{self, Blocking, Handles, Operands};
use prunus_tensix::programs::patterns::{self, DramPattern, Pattern, Traffic};
use prunus_tensix::{ChipSpec, Error, Options, Simulator};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::to_python;
use super::tiles::product_format;
use super::watch::enter;

fn chip(py: Python<'_>, text: &str) -> PyResult<ChipSpec> {
    ChipSpec::parse(text).map_err(|error| to_python(py, &error))
}

/// Pages of a matrix of tiles, or of any other buffer: no more than a machine can count.
fn pages(factors: &[u32]) -> Result<u32, Error> {
    factors
        .iter()
        .try_fold(1_u32, |product, factor| product.checked_mul(*factor))
        .ok_or_else(|| Error::Misused(format!("{factors:?} pages are more than any chip has")))
}

/// Runs a pattern of traffic from L1 to L1.
#[pyfunction]
#[pyo3(signature = (spec_text, traffic, multicast, transactions, partners, same_axis, stateful, loopback, noc, bytes, linked=false, stop=None))]
#[allow(clippy::too_many_arguments, reason = "the columns of a measurement")]
pub(crate) fn tensix_traffic<'py>(
    py: Python<'py>,
    spec_text: &str,
    traffic: &str,
    multicast: bool,
    transactions: u32,
    partners: u32,
    same_axis: bool,
    stateful: bool,
    loopback: bool,
    noc: u8,
    bytes: u32,
    linked: bool,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = chip(py, spec_text)?;
    let traffic = Traffic::from_name(traffic)
        .ok_or_else(|| PyValueError::new_err(format!("there is no pattern {traffic:?}")))?;
    if noc > 1 {
        return Err(PyValueError::new_err(format!("a chip has NoCs 0 and 1, got {noc}")));
    }
    let pattern = Pattern {
        traffic,
        multicast,
        linked,
        transactions,
        partners,
        same_axis,
        stateful,
        loopback,
        noc,
        bytes,
    };
    let run = enter(py, stop, |interrupt| {
        let mut simulator = Simulator::new(spec, false);
        let program = patterns::traffic(&simulator, &pattern)?;
        simulator.run(program, Options::default(), interrupt)
    })?;
    let found = PyDict::new(py);
    found.set_item("cycles", run.cycles())?;
    found.set_item("events", run.events)?;
    Ok(found)
}

/// Runs a pattern of traffic between cores and DRAM.
#[pyfunction]
#[pyo3(signature = (spec_text, one_channel, write, cores, transactions, bytes, stop=None))]
#[allow(clippy::too_many_arguments, reason = "the columns of a measurement")]
pub(crate) fn tensix_dram<'py>(
    py: Python<'py>,
    spec_text: &str,
    one_channel: bool,
    write: bool,
    cores: u32,
    transactions: u32,
    bytes: u32,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = chip(py, spec_text)?;
    let pattern = DramPattern { one_channel, write, cores, transactions, bytes };
    let run = enter(py, stop, |interrupt| {
        pages(&[cores, transactions, bytes])?;
        let mut simulator = Simulator::new(spec, false);
        let program = patterns::dram(&mut simulator, &pattern)?;
        simulator.run(program, Options::default(), interrupt)
    })?;
    let found = PyDict::new(py);
    found.set_item("cycles", run.cycles())?;
    found.set_item("events", run.events)?;
    Ok(found)
}

/// Cuts a product where nobody says how: tiles along m, k, n and cores along n, m.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "what a cut depends on")]
pub(crate) fn tensix_blocking<'py>(
    py: Python<'py>,
    spec_text: &str,
    tiles: (u32, u32, u32),
    grid: (u16, u16),
    format: &str,
    in0_sharded: bool,
    out_sharded: bool,
    wide: bool,
    tuned: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = chip(py, spec_text)?;
    let operands =
        Operands { in0_sharded, out_sharded, format: product_format(py, format)?, packer_l1_acc: true };
    let blocking = Request { tiles, grid, operands, wide, tuned }
        .choose(&spec)
        .map_err(|error| to_python(py, &error))?;
    let found = PyDict::new(py);
    found.set_item("k", blocking.k)?;
    found.set_item("in0_block_w", blocking.in0_block_w)?;
    found.set_item("per_core", blocking.per_core)?;
    found.set_item("out_block", blocking.out_block)?;
    found.set_item("out_subblock", blocking.out_subblock)?;
    Ok(found)
}

/// Runs a dense product that is cut in a given way; all sizes are in tiles.
#[pyfunction]
#[pyo3(signature = (spec_text, k, grid, per_core, in0_block_w, out_block, out_subblock, format, fidelity, in0_sharded, out_sharded, packer_l1_acc, wide, stop=None))]
#[allow(clippy::too_many_arguments, reason = "the columns of a measurement")]
pub(crate) fn tensix_product<'py>(
    py: Python<'py>,
    spec_text: &str,
    k: u32,
    grid: (u16, u16),
    per_core: (u32, u32),
    in0_block_w: u32,
    out_block: (u32, u32),
    out_subblock: (u32, u32),
    format: &str,
    fidelity: &str,
    in0_sharded: bool,
    out_sharded: bool,
    packer_l1_acc: bool,
    wide: bool,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = chip(py, spec_text)?;
    let format = product_format(py, format)?;
    let fidelity = Fidelity::from_name(fidelity)
        .ok_or_else(|| PyValueError::new_err(format!("there is no fidelity {fidelity:?}")))?;
    let blocking = Blocking { grid, k, per_core, in0_block_w, out_block, out_subblock };
    let operands = Operands { in0_sharded, out_sharded, format, packer_l1_acc };
    let run = enter(py, stop, |interrupt| {
        blocking.check(&spec, wide)?;
        let (columns, rows) = (u32::from(grid.0), u32::from(grid.1));
        let tile = format.tile_bytes() as u32;
        let mut simulator = Simulator::new(spec, false);
        let in1 = simulator.buffer(tile, pages(&[k, per_core.1, columns])?, None)?;
        let in0 = if in0_sharded {
            simulator.tensor(pages(&[per_core.0, k.div_ceil(columns), tile])?)?
        } else {
            u32::from(simulator.buffer(tile, pages(&[per_core.0, rows, k])?, None)?)
        };
        let out = if out_sharded {
            simulator.tensor(pages(&[per_core.0, per_core.1, tile])?)?
        } else {
            u32::from(simulator.buffer(tile, pages(&[per_core.0, rows, per_core.1, columns])?, None)?)
        };
        let program = matmul::program(&simulator, &blocking, &operands, &Handles { in0, in1, out }, wide)?;
        simulator.run(program, Options { fidelity, wide, ..Options::default() }, interrupt)
    })?;
    let found = PyDict::new(py);
    found.set_item("cycles", run.cycles())?;
    found.set_item("math_cycles", run.math_cycles())?;
    found.set_item("events", run.events)?;
    Ok(found)
}
