//! What a product would cost on a chip: only time, no values.

use prunus_tensix::numerics::Format;
use prunus_tensix::programs::blocking::{self, Request};
use prunus_tensix::programs::matmul::{self, Blocking, Handles, Operands};
use prunus_tensix::programs::sparse::{self, TilePattern};
use prunus_tensix::{ChipSpec, Error, Options, Simulator};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::to_python;
use super::program::{fidelity_of, report};
use super::watch::enter;

/// Columns of live tiles, and where each row of them begins.
type Rows = (Vec<u32>, Vec<u32>);

/// The compute grid, without cores that would have no part.
fn grid(spec: &ChipSpec, (m, _, n): (u32, u32, u32)) -> (u16, u16) {
    let [columns, rows] = spec.workers.compute_grid;
    let used = |cores: u16, tiles: u32| {
        let each = tiles.div_ceil(u32::from(cores)).max(1);
        u16::try_from(tiles.div_ceil(each).max(1)).map_or(cores, |parts| parts.min(cores))
    };
    (used(columns, n), used(rows, m))
}

/// Tiles of the output, padded to whole parts of cores.
fn covered(blocking: &Blocking) -> Result<(u32, u32), Error> {
    let (rows, columns) = (u32::from(blocking.grid.1), u32::from(blocking.grid.0));
    blocking
        .per_core
        .0
        .checked_mul(rows)
        .zip(blocking.per_core.1.checked_mul(columns))
        .ok_or_else(|| Error::Misused("a product with more tiles than any chip has".into()))
}

fn pages(a: u32, b: u32) -> Result<u32, Error> {
    a.checked_mul(b).ok_or_else(|| Error::Misused(format!("{a} x {b} tiles are more than any chip has")))
}

/// Runs the product of an (m, k) and a (k, n) matrix of tiles in DRAM. With `live`, the left one has only the tiles of that
/// pattern.
#[pyfunction]
#[pyo3(signature = (spec_text, tiles, live, format, fidelity, wide, stop=None))]
#[allow(clippy::too_many_arguments, reason = "what a product is")]
pub(crate) fn tensix_estimate<'py>(
    py: Python<'py>,
    spec_text: &str,
    tiles: (u32, u32, u32),
    live: Option<Rows>,
    format: &str,
    fidelity: &str,
    wide: bool,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = ChipSpec::parse(spec_text).map_err(|error| to_python(py, &error))?;
    let fidelity = fidelity_of(fidelity)?;
    let format = Format::from_name(format)
        .ok_or_else(|| PyValueError::new_err(format!("there is no format {format:?}")))?;
    let (spec, run) = enter(py, stop, |interrupt| {
        let grid = grid(&spec, tiles);
        let mut simulator = Simulator::new(spec, false);
        let program = match live {
            None => dense(&mut simulator, tiles, grid, format, wide)?,
            Some((columns, starts)) => {
                let pattern = TilePattern { columns, starts };
                live_tiles(&mut simulator, tiles, grid, &pattern, format, wide)?
            }
        };
        let options = Options { fidelity, wide, ..Options::default() };
        let run = simulator.run(program, options, interrupt)?;
        Ok((simulator.spec().clone(), run))
    })?;
    report(py, &spec, &run)
}

fn dense(
    simulator: &mut Simulator,
    tiles: (u32, u32, u32),
    grid: (u16, u16),
    format: Format,
    wide: bool,
) -> Result<prunus_tensix::program::Program, Error> {
    let operands = Operands { in0_sharded: false, out_sharded: false, format, packer_l1_acc: true };
    let blocking = Request { tiles, grid, operands, wide, tuned: true }.choose(simulator.spec())?;
    let (m, n) = covered(&blocking)?;
    let tile = format.tile_bytes() as u32;
    let in0 = u32::from(simulator.buffer(tile, pages(m, blocking.k)?, None)?);
    let in1 = simulator.buffer(tile, pages(blocking.k, n)?, None)?;
    let out = u32::from(simulator.buffer(tile, pages(m, n)?, None)?);
    matmul::program(simulator, &blocking, &operands, &Handles { in0, in1, out }, wide)
}

fn live_tiles(
    simulator: &mut Simulator,
    tiles: (u32, u32, u32),
    grid: (u16, u16),
    pattern: &TilePattern,
    format: Format,
    wide: bool,
) -> Result<prunus_tensix::program::Program, Error> {
    if pattern.rows() != tiles.0 as usize {
        let rows = pattern.rows();
        return Err(Error::Misused(format!("a pattern of {rows} rows for {} rows of tiles", tiles.0)));
    }
    let blocking = blocking::sparse(simulator.spec(), tiles, grid, (format, format), wide)?;
    let (m, n) = covered(&blocking)?;
    let tile = format.tile_bytes() as u32;
    let count = u32::try_from(pattern.columns.len()).unwrap_or(u32::MAX).max(1);
    let buffers = (
        simulator.buffer(tile, count, None)?,
        simulator.buffer(tile, pages(tiles.1, n)?, None)?,
        simulator.buffer(tile, pages(m, n)?, None)?,
    );
    sparse::program(simulator, &blocking, pattern, (format, format), buffers, wide)
}
