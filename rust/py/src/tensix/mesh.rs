//! Products on several chips, and what their parts need of each other.

use prunus_core::Interrupt;
use prunus_tensix::numerics::Format;
use prunus_tensix::program::Program;
use prunus_tensix::programs::gather::{self, Gather, Part};
use prunus_tensix::programs::sparse::TilePattern;
use prunus_tensix::report::Run;
use prunus_tensix::{ChipSpec, Error, Options, Simulator};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::errors::to_python;
use super::estimate::Rows;
use super::products::{Product, grid};
use super::program::{TensixChip, fidelity_of, report};
use super::watch::enter;

/// A matrix: whether lines are rows of chips, bytes of a page, and each chip's buffer and own pages.
type Lines = (bool, u32, Vec<(u16, Vec<u32>)>);

/// Makes matrices whole on each chip whose pages lie spread over the chips of its line.
#[pyfunction]
#[pyo3(signature = (chip, lines, timeline=0, threads=1, stop=None))]
pub(crate) fn tensix_gather<'py>(
    py: Python<'py>,
    mut chip: PyRefMut<'py, TensixChip>,
    lines: Vec<Lines>,
    timeline: u32,
    threads: usize,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let gathers: Vec<_> = lines
        .into_iter()
        .map(|(along_rows, page_bytes, parts)| {
            let parts = parts.into_iter().map(|(buffer, pages)| Part { buffer, pages }).collect();
            Gather { along_rows, page_bytes, parts }
        })
        .collect();
    let options = Options { timeline, threads, ..Options::default() };
    let simulator = &mut chip.simulator;
    let run = enter(py, stop, |interrupt| {
        let program = gather::program(simulator, &gathers)?;
        simulator.run(program, options, interrupt)
    })?;
    report(py, &chip.simulator, &run)
}

/// A product that is cut over a mesh: rows of the left operand over rows of chips, columns of the right one over columns.
struct Cut {
    tiles: (u32, u32, u32),
    mesh: (u16, u16),
    format: Format,
    live: Option<TilePattern>,
    decide: String,
    balance: bool,
    options: Options,
}

impl Cut {
    /// Tiles of each chip's part: all have as many, edges are padded.
    fn each(&self) -> (u32, u32, u32) {
        let (m, k, n) = self.tiles;
        (m.div_ceil(u32::from(self.mesh.0)), k, n.div_ceil(u32::from(self.mesh.1)))
    }

    /// Rows of a row of chips that are live, with empty ones behind the matrix's end.
    fn pattern(&self, row: u16) -> Option<TilePattern> {
        let live = self.live.as_ref()?;
        let (each, all) = (self.each().0 as usize, live.starts.len().saturating_sub(1));
        let (from, end) = ((usize::from(row) * each).min(all), ((usize::from(row) + 1) * each).min(all));
        let (first, last) = (live.starts[from], live.starts[end]);
        let mut starts: Vec<_> = live.starts[from..=end].iter().map(|start| start - first).collect();
        starts.resize(each + 1, last - first);
        Some(TilePattern { columns: live.columns[first as usize..last as usize].to_vec(), starts })
    }

    /// What each chip has at first, and the program that multiplies when all have what they need.
    fn programs(&self, simulator: &mut Simulator) -> Result<([Gather; 2], Program), Error> {
        let tiles = self.each();
        let ((m, k, n), (rows, columns)) = (tiles, self.mesh);
        let product = Product {
            tiles,
            grid: grid(simulator.spec(), tiles),
            format: self.format,
            wide: self.options.wide,
        };
        let page_bytes = self.format.tile_bytes() as u32;
        let gather = |along_rows| Gather { along_rows, page_bytes, parts: Vec::new() };
        let (mut left, mut right) = (gather(true), gather(false));
        let mut all: Option<Program> = None;
        for chip in 0..rows * columns {
            simulator.stand_on(chip)?;
            let (row, column) = (chip / columns, chip % columns);
            let pattern = self.pattern(row);
            let (program, (in0, in1), (inner, across)) = match &pattern {
                None => product.dense_on(simulator, self.options.fidelity)?,
                Some(pattern) if self.decide == "static" => {
                    product.sparse_on(simulator, pattern, self.balance)?
                }
                Some(pattern) => product.dynamic_on(simulator, pattern, &self.decide)?,
            };
            // Blocks of K as they lie: over the columns of chips of the left operand, over their rows of the right one.
            let range = |parts: u16, part: u16| {
                let each = k.div_ceil(u32::from(parts));
                (u32::from(part) * each).min(k)..((u32::from(part) + 1) * each).min(k)
            };
            let own = range(columns, column);
            let pages = match &pattern {
                Some(pattern) if self.decide == "static" => {
                    let mine = pattern.columns.iter().enumerate().filter(|(_, at)| own.contains(at));
                    mine.map(|(page, _)| page as u32).collect()
                }
                _ => (0..m).flat_map(|i| own.clone().map(move |j| i * inner + j)).collect(),
            };
            left.parts.push(Part { buffer: in0, pages });
            let pages = range(rows, row).flat_map(|i| (0..n).map(move |j| i * across + j)).collect();
            right.parts.push(Part { buffer: in1, pages });
            let here = simulator.here(program);
            all = Some(match all {
                None => here,
                Some(others) => others.beside(here)?,
            });
        }
        Ok(([left, right], all.unwrap_or_default()))
    }

    fn run(&self, spec: ChipSpec, interrupt: &dyn Interrupt) -> Result<(Simulator, [Run; 2]), Error> {
        let mut simulator = Simulator::mesh(spec, self.mesh, false)?;
        let (gathers, product) = self.programs(&mut simulator)?;
        let program = gather::program(&simulator, &gathers)?;
        let first = simulator.run(program, self.options, interrupt)?;
        let second = simulator.run(product, self.options, interrupt)?;
        Ok((simulator, [first, second]))
    }
}

/// Runs the product of an (m, k) and a (k, n) matrix of tiles on a mesh of chips, as [`super::estimate::tensix_estimate`] does
/// on one: reports of what makes operands whole where they are needed, and of the product.
#[pyfunction]
#[pyo3(signature = (spec_text, mesh, tiles, live, format, fidelity, wide, decide="static", balance=true, stop=None))]
#[allow(clippy::too_many_arguments, reason = "what a product is")]
pub(crate) fn tensix_estimate_mesh<'py>(
    py: Python<'py>,
    spec_text: &str,
    mesh: (u16, u16),
    tiles: (u32, u32, u32),
    live: Option<Rows>,
    format: &str,
    fidelity: &str,
    wide: bool,
    decide: &str,
    balance: bool,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let spec = ChipSpec::parse(spec_text).map_err(|error| to_python(py, &error))?;
    let options = Options { fidelity: fidelity_of(fidelity)?, wide, ..Options::default() };
    let format = Format::from_name(format)
        .ok_or_else(|| PyValueError::new_err(format!("there is no format {format:?}")))?;
    let live = live.map(|(columns, starts)| TilePattern { columns, starts });
    if let Some(live) = &live {
        live.check(tiles.1).map_err(|error| to_python(py, &error))?;
    }
    let cut = Cut { tiles, mesh, format, live, decide: decide.to_owned(), balance, options };
    let (simulator, runs) = enter(py, stop, |interrupt| cut.run(spec, interrupt))?;
    let reports = runs.iter().map(|run| report(py, &simulator, run)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, reports)
}
