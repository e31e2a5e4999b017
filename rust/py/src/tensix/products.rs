//! Built-in products on a chip: their buffers, the programs, and what they report.

use prunus_core::Interrupt;
use prunus_tensix::numerics::{Fidelity, Format};
use prunus_tensix::program::Program;
use prunus_tensix::programs::blocking::{self, Request};
use prunus_tensix::programs::cut::{self, Cut};
use prunus_tensix::programs::dynamic::{self, Decide, Pruning};
use prunus_tensix::programs::epilogue::Epilogue;
use prunus_tensix::programs::layer::{Formats, Layer, Spread};
use prunus_tensix::programs::matmul::{self, Blocking, Handles, Operands};
use prunus_tensix::programs::sparse::{self, TilePattern};
use prunus_tensix::report::Run;
use prunus_tensix::{ChipSpec, Error, Options, Simulator};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::to_python;
use super::program::{TensixChip, fidelity_of, report};
use super::tiles::format_of;
use super::watch::enter;

/// The compute grid, without cores that would have no part.
pub(super) fn grid(spec: &ChipSpec, (m, _, n): (u32, u32, u32)) -> (u16, u16) {
    let [columns, rows] = spec.workers.compute_grid;
    let used = |cores: u16, tiles: u32| {
        let each = tiles.div_ceil(u32::from(cores)).max(1);
        u16::try_from(tiles.div_ceil(each).max(1)).map_or(cores, |parts| parts.min(cores))
    };
    (used(columns, n), used(rows, m))
}

/// Tiles of the output, padded to whole parts of cores.
pub(super) fn covered(blocking: &Blocking) -> Result<(u32, u32), Error> {
    let (rows, columns) = (u32::from(blocking.grid.1), u32::from(blocking.grid.0));
    blocking
        .per_core
        .0
        .checked_mul(rows)
        .zip(blocking.per_core.1.checked_mul(columns))
        .ok_or_else(|| Error::Misused("a product with more tiles than any chip has".into()))
}

pub(super) fn pages(a: u32, b: u32) -> Result<u32, Error> {
    a.checked_mul(b).ok_or_else(|| Error::Misused(format!("{a} x {b} tiles are more than any chip has")))
}

/// The program of a dense product, its buffers, and the rows and columns of tiles that it covers.
pub(super) struct Dense {
    pub(super) program: Program,
    pub(super) handles: Handles,
    pub(super) covered: (u32, u32),
    /// Tiles along the inner dimension, with padding.
    pub(super) k: u32,
}

/// A program, its operands' buffers, and tiles in a row of each.
pub(super) type OnBuffers = (Program, (u16, u16), (u32, u32));

/// A product on buffers of its own: sizes in tiles, and how it is computed.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) tiles: (u32, u32, u32),
    pub(super) grid: (u16, u16),
    pub(super) format: Format,
    pub(super) wide: bool,
}

impl Product {
    fn tile(&self) -> u32 {
        self.format.tile_bytes() as u32
    }

    /// The product of dense operands: on a grid, or on a line of cores if that is predicted to take less. With operands in
    /// L1 (`in0` and the result) it is one on a grid, each core's part of them where the core needs it.
    pub(super) fn dense(
        &self,
        simulator: &mut Simulator,
        fidelity: Fidelity,
        (in0_sharded, out_sharded): (bool, bool),
    ) -> Result<Dense, Error> {
        let Self { tiles, grid, format, wide } = *self;
        let operands = Operands { in0_sharded, out_sharded, format, packer_l1_acc: true };
        let request = Request { tiles, grid, operands, wide, tuned: true };
        let found = request.choose(simulator.spec());
        if !in0_sharded && !out_sharded {
            let (formats, epilogue) = ((format, format, format), Epilogue::default());
            let layer = cut::Request { tiles, formats, wide, fidelity, epilogue: &epilogue };
            if let Some(line) = layer.line(simulator.spec())? {
                let faster =
                    |grid: &Blocking| line.cycles < layer.predict(simulator.spec(), grid, Spread::Grid);
                if found.as_ref().ok().is_none_or(faster) {
                    return self.line(simulator, line, formats);
                }
            }
        }
        let blocking = found?;
        let (m, n) = covered(&blocking)?;
        let columns = u32::from(blocking.grid.0);
        let in0 = if in0_sharded {
            simulator.tensor(pages(blocking.per_core.0, blocking.k.div_ceil(columns))? * self.tile())?
        } else {
            u32::from(simulator.buffer(self.tile(), pages(m, blocking.k)?, None)?)
        };
        let in1 = simulator.buffer(self.tile(), pages(blocking.k, n)?, None)?;
        let out = if out_sharded {
            simulator.tensor(pages(blocking.per_core.0, blocking.per_core.1)? * self.tile())?
        } else {
            u32::from(simulator.buffer(self.tile(), pages(m, n)?, None)?)
        };
        let handles = Handles { in0, in1, out };
        let program = matmul::program(simulator, &blocking, &operands, &handles, wide)?;
        Ok(Dense { program, handles, covered: (m, n), k: blocking.k })
    }

    fn line(&self, simulator: &mut Simulator, line: Cut, formats: Formats) -> Result<Dense, Error> {
        let (m, n) = covered(&line.blocking)?;
        let k = line.blocking.k;
        let buffers = (
            simulator.buffer(self.tile(), pages(m, k)?, None)?,
            simulator.buffer(self.tile(), pages(k, n)?, None)?,
            simulator.buffer(self.tile(), pages(m, n)?, None)?,
        );
        let layer = Layer {
            blocking: line.blocking,
            spread: line.spread,
            formats,
            buffers,
            extent: (self.tiles.0, self.tiles.2),
            epilogue: Epilogue::default(),
        };
        let handles = Handles { in0: u32::from(buffers.0), in1: buffers.1, out: u32::from(buffers.2) };
        Ok(Dense { program: layer.program(simulator, self.wide)?, handles, covered: (m, n), k })
    }

    fn rest(
        &self,
        simulator: &mut Simulator,
        blocking: &Blocking,
        in0: u32,
    ) -> Result<(u16, u16, u16), Error> {
        let (m, n) = covered(blocking)?;
        Ok((
            simulator.buffer(self.tile(), in0, None)?,
            simulator.buffer(self.tile(), pages(self.tiles.1, n)?, None)?,
            simulator.buffer(self.tile(), pages(m, n)?, None)?,
        ))
    }

    /// The product of dense operands, its operands' buffers, and tiles in a row of each.
    pub(super) fn dense_on(&self, simulator: &mut Simulator, fidelity: Fidelity) -> Result<OnBuffers, Error> {
        let found = self.dense(simulator, fidelity, (false, false))?;
        let inner = found.k;
        Ok((found.program, (found.handles.in0 as u16, found.handles.in1), (inner, found.covered.1)))
    }

    /// The left operand has only the tiles of a pattern.
    pub(super) fn sparse(
        &self,
        simulator: &mut Simulator,
        pattern: &TilePattern,
        balance: bool,
    ) -> Result<Program, Error> {
        Ok(self.sparse_on(simulator, pattern, balance)?.0)
    }

    pub(super) fn sparse_on(
        &self,
        simulator: &mut Simulator,
        pattern: &TilePattern,
        balance: bool,
    ) -> Result<OnBuffers, Error> {
        let Self { tiles, grid, format, wide } = *self;
        if pattern.rows() != tiles.0 as usize {
            let rows = pattern.rows();
            return Err(Error::Misused(format!("a pattern of {rows} rows for {} rows of tiles", tiles.0)));
        }
        let blocking = blocking::sparse(
            simulator.spec(),
            tiles,
            grid,
            (format, format, format),
            wide,
            &Epilogue::default(),
        )?;
        let count = u32::try_from(pattern.columns.len()).unwrap_or(u32::MAX).max(1);
        let buffers = self.rest(simulator, &blocking, count)?;
        let program = sparse::program(
            simulator,
            &blocking,
            pattern,
            (format, format, format),
            buffers,
            wide,
            Epilogue::default(),
            balance,
        )?;
        Ok((program, (buffers.0, buffers.1), (tiles.1, covered(&blocking)?.1)))
    }

    /// What is live of the left operand is found as the program runs, and is what the pattern says.
    pub(super) fn dynamic(
        &self,
        simulator: &mut Simulator,
        pattern: &TilePattern,
        by: &str,
    ) -> Result<Program, Error> {
        Ok(self.dynamic_on(simulator, pattern, by)?.0)
    }

    pub(super) fn dynamic_on(
        &self,
        simulator: &mut Simulator,
        pattern: &TilePattern,
        by: &str,
    ) -> Result<OnBuffers, Error> {
        let Self { tiles, grid, format, wide } = *self;
        pattern.check(tiles.1)?;
        let mut mask = vec![false; pages(tiles.0, tiles.1)? as usize];
        for (row, ends) in pattern.starts.windows(2).enumerate() {
            for column in &pattern.columns[ends[0] as usize..ends[1] as usize] {
                if let Some(live) = mask.get_mut(row * tiles.1 as usize + *column as usize) {
                    *live = true;
                }
            }
        }
        let blocking = dynamic::cut(
            simulator.spec(),
            tiles,
            grid,
            (format, format, format),
            wide,
            &Epilogue::default(),
        )?;
        let buffers = self.rest(simulator, &blocking, pages(tiles.0, tiles.1)?)?;
        let decide = decide(simulator, &blocking, by)?;
        let pruning = Pruning { decide, tau: 0.0, mask: Some(&mask), rows: tiles.0 };
        let program = dynamic::program(
            simulator,
            &blocking,
            &pruning,
            (format, format, format),
            buffers,
            wide,
            Epilogue::default(),
        )?
        .0;
        Ok((program, (buffers.0, buffers.1), (tiles.1, covered(&blocking)?.1)))
    }
}

/// Who says what is live, by its name.
fn decide(simulator: &mut Simulator, blocking: &Blocking, by: &str) -> Result<Decide, Error> {
    match by {
        "dynamic" => Ok(Decide::Scan),
        "epilogue" => Ok(Decide::Known),
        "host" => {
            let (bytes, pages) = dynamic::statistics(blocking);
            Ok(Decide::Host { statistics: simulator.buffer(bytes, pages, None)? })
        }
        _ => Err(Error::Misused(format!("decide is static, dynamic, epilogue or host, got {by:?}"))),
    }
}

/// A product on buffers that are there: sizes in tiles, buffers, and how it is pruned and computed.
pub(super) struct Pruned<'a> {
    pub(super) tiles: (u32, u32, u32),
    pub(super) buffers: (u16, u16, u16),
    pub(super) formats: Formats,
    pub(super) epilogue: Epilogue,
    pub(super) tau: f32,
    pub(super) by: &'a str,
    pub(super) mask: Option<Vec<bool>>,
    pub(super) options: Options,
}

impl Pruned<'_> {
    /// Columns of tiles that `in1` and the output have: as many as are wanted, or some more.
    pub(super) fn columns(spec: &ChipSpec, product: &Product, out_format: Format) -> Result<u32, Error> {
        let Product { tiles, grid, format, wide } = *product;
        Ok(covered(&dynamic::cut(
            spec,
            tiles,
            grid,
            (format, format, out_format),
            wide,
            &Epilogue::default(),
        )?)?
        .1)
    }

    /// Runs it; returns what it used, and what was live.
    pub(super) fn run(
        &self,
        simulator: &mut Simulator,
        interrupt: &dyn Interrupt,
    ) -> Result<(Run, Vec<bool>), Error> {
        let (tiles, wide) = (self.tiles, self.options.wide);
        let grid = grid(simulator.spec(), tiles);
        let blocking = dynamic::cut(simulator.spec(), tiles, grid, self.formats, wide, &self.epilogue)?;
        let decide = decide(simulator, &blocking, self.by)?;
        let pruning = Pruning { decide, tau: self.tau, mask: self.mask.as_deref(), rows: tiles.0 };
        let (program, found) = dynamic::program(
            simulator,
            &blocking,
            &pruning,
            self.formats,
            self.buffers,
            wide,
            self.epilogue.clone(),
        )?;
        let run = simulator.run(simulator.here(program), self.options, interrupt)?;
        Ok((run, found.mask()))
    }
}

/// The blocking of a dense product on a chip's own grid.
fn dense_blocking(
    spec: &ChipSpec,
    tiles: (u32, u32, u32),
    format: Format,
    wide: bool,
) -> Result<(Blocking, Operands), Error> {
    let grid = grid(spec, tiles);
    let operands = Operands { in0_sharded: false, out_sharded: false, format, packer_l1_acc: true };
    Ok((Request { tiles, grid, operands, wide, tuned: true }.choose(spec)?, operands))
}

/// Rows and columns of tiles that a product by multicast covers, and how many there are along its inner dimension.
#[pyfunction]
#[pyo3(signature = (chip, tiles, format, wide))]
pub(crate) fn tensix_covered(
    py: Python<'_>,
    chip: PyRef<'_, TensixChip>,
    tiles: (u32, u32, u32),
    format: &str,
    wide: bool,
) -> PyResult<(u32, u32, u32)> {
    let format = format_of(format)?;
    let found = dense_blocking(chip.simulator.spec(), tiles, format, wide)
        .and_then(|(blocking, _)| covered(&blocking).map(|(m, n)| (m, blocking.k, n)));
    found.map_err(|error| to_python(py, &error))
}

/// Runs a dense product of tiles of one format in DRAM by multicast.
#[pyfunction]
#[pyo3(signature = (chip, tiles, buffers, format, fidelity, wide, timeline, threads=1, stop=None))]
#[allow(clippy::too_many_arguments, reason = "what a product is, and how to run it")]
pub(crate) fn tensix_multicast<'py>(
    py: Python<'py>,
    mut chip: PyRefMut<'py, TensixChip>,
    tiles: (u32, u32, u32),
    buffers: (u16, u16, u16),
    format: &str,
    fidelity: &str,
    wide: bool,
    timeline: u32,
    threads: usize,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let format = format_of(format)?;
    let options = Options { fidelity: fidelity_of(fidelity)?, wide, timeline, threads, ..Options::default() };
    let simulator = &mut chip.simulator;
    let run = enter(py, stop, |interrupt| {
        let (blocking, operands) = dense_blocking(simulator.spec(), tiles, format, wide)?;
        let handles = Handles { in0: u32::from(buffers.0), in1: buffers.1, out: u32::from(buffers.2) };
        let program = simulator.here(matmul::program(simulator, &blocking, &operands, &handles, wide)?);
        simulator.run(program, options, interrupt)
    })?;
    report(py, &chip.simulator, &run)
}
