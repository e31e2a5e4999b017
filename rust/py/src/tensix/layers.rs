//! Products of layers by multicast, with what happens to sums on the cores that have them.

use prunus_tensix::Options;
use prunus_tensix::programs::cut::Request;
use prunus_tensix::programs::epilogue::{Bias, Epilogue, Source};
use prunus_tensix::programs::layer::{Formats, Layer, Spread};
use prunus_tensix::programs::norms::Norms;
use prunus_tensix::programs::sparse::{self, TilePattern};
use prunus_tensix::programs::{blocking, dynamic};
use prunus_tensix::verbs::Unary;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::to_python;
use super::products::{Pruned, covered, grid};
use super::program::{TensixChip, fidelity_of, report};
use super::tiles::format_of;
use super::watch::enter;

/// Number of a buffer in DRAM and the format of its tiles.
type Place = (u16, String);
/// What is found of a result: branch, columns, rows, format, squares, threshold, buffer, and without values what is live.
type Found = (u32, u32, u32, String, bool, Option<f64>, u16, Option<Vec<u8>>);

/// Padded sizes, cycles, cycles by lists, and whether parts lie on a line.
type Predicted = ((u32, u32, u32), f64, f64, bool);

/// What happens to sums, as Python says it.
#[derive(FromPyObject)]
pub(crate) struct Ending {
    add: Option<Place>,
    row: Option<Place>,
    column: Option<Place>,
    factor: Option<f64>,
    activation: Option<String>,
    scale: Option<Place>,
    mask: Option<Place>,
    found: Option<Found>,
}

fn source(place: Option<&Place>) -> PyResult<Option<Source>> {
    place.map(|(buffer, format)| Ok(Source { buffer: *buffer, format: format_of(format)? })).transpose()
}

impl Ending {
    fn epilogue(&self) -> PyResult<Epilogue> {
        let activation = match self.activation.as_deref() {
            None => None,
            Some("relu") => Some(Unary::Relu),
            Some("gelu") => Some(Unary::Gelu),
            Some("silu") => Some(Unary::Silu),
            Some(other) => {
                return Err(PyValueError::new_err(format!(
                    "activation must be relu, gelu or silu, got {other:?}"
                )));
            }
        };
        let bias = match (source(self.row.as_ref())?, source(self.column.as_ref())?) {
            (Some(_), Some(_)) => {
                return Err(PyValueError::new_err("a bias is one of rows or of columns, not both"));
            }
            (Some(row), None) => Some(Bias::Row(row)),
            (None, column) => column.map(Bias::Column),
        };
        let norms = match &self.found {
            None => None,
            Some((branch, columns, rows, format, squares, threshold, buffer, live)) => Some(Norms {
                branch: (*branch).max(1),
                columns: *columns,
                rows: *rows,
                format: format_of(format)?,
                squares: *squares,
                threshold: *threshold,
                buffer: *buffer,
                live: live.as_ref().map(|live| live.iter().map(|byte| *byte != 0).collect()),
            }),
        };
        Ok(Epilogue {
            add: source(self.add.as_ref())?,
            bias,
            factor: self.factor.map(|factor| factor as f32),
            activation,
            scale: source(self.scale.as_ref())?,
            mask: source(self.mask.as_ref())?,
            norms,
        })
    }
}

fn formats_of(formats: &(String, String, String)) -> PyResult<Formats> {
    Ok((format_of(&formats.0)?, format_of(&formats.1)?, format_of(&formats.2)?))
}

/// How a product of a layer, of (m, k, n) tiles, is cut: the rows, inner and columns of tiles that it then has with its
/// padding, and the cycles it is predicted to take; and those by lists, with so many tiles of the result wanted; and whether parts
/// lie on a line.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "what a product is")]
pub(crate) fn tensix_layer_cut(
    py: Python<'_>,
    chip: PyRef<'_, TensixChip>,
    tiles: (u32, u32, u32),
    formats: (String, String, String),
    ending: Ending,
    wanted: f64,
    fidelity: &str,
    wide: bool,
) -> PyResult<Predicted> {
    let (formats, fidelity, epilogue) = (formats_of(&formats)?, fidelity_of(fidelity)?, ending.epilogue()?);
    let request = Request { tiles, formats, wide, fidelity, epilogue: &epilogue };
    let spec = chip.simulator.spec();
    let cut = request.choose(spec).map_err(|error| to_python(py, &error))?;
    let (rows, columns) = covered(&cut.blocking).map_err(|error| to_python(py, &error))?;
    let line = cut.spread != Spread::Grid;
    Ok(((rows, cut.blocking.k, columns), cut.cycles, request.lists(spec, wanted), line))
}

/// Runs a product of a layer on buffers in DRAM, padded as [`tensix_layer_cut`] says.
#[pyfunction]
#[pyo3(signature = (chip, tiles, buffers, formats, ending, fidelity, wide, timeline, threads=1, stop=None))]
#[allow(clippy::too_many_arguments, reason = "what a product is, and how to run it")]
pub(crate) fn tensix_layer<'py>(
    py: Python<'py>,
    mut chip: PyRefMut<'py, TensixChip>,
    tiles: (u32, u32, u32),
    buffers: (u16, u16, u16),
    formats: (String, String, String),
    ending: Ending,
    fidelity: &str,
    wide: bool,
    timeline: u32,
    threads: usize,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (formats, fidelity, epilogue) = (formats_of(&formats)?, fidelity_of(fidelity)?, ending.epilogue()?);
    let options = Options { fidelity, wide, timeline, threads, ..Options::default() };
    let simulator = &mut chip.simulator;
    let run = enter(py, stop, |interrupt| {
        let request = Request { tiles, formats, wide, fidelity, epilogue: &epilogue };
        let cut = request.choose(simulator.spec())?;
        let layer = Layer {
            blocking: cut.blocking,
            spread: cut.spread,
            formats,
            buffers,
            extent: (tiles.0, tiles.2),
            epilogue,
        };
        let program = layer.program(simulator, wide)?;
        simulator.run(simulator.here(program), options, interrupt)
    })?;
    report(py, &chip.simulator, &run)
}

/// The same of a product whose left operand has only some tiles: those of a pattern, or, with `known`, those that the cores
/// which wrote it know to be live.
#[pyfunction]
pub(crate) fn tensix_sparse_covered(
    py: Python<'_>,
    chip: PyRef<'_, TensixChip>,
    tiles: (u32, u32, u32),
    known: bool,
    formats: (String, String, String),
    ending: Ending,
    wide: bool,
) -> PyResult<(u32, u32, u32)> {
    let (formats, epilogue) = (formats_of(&formats)?, ending.epilogue()?);
    let spec = chip.simulator.spec();
    let cut = if known { dynamic::cut } else { blocking::sparse };
    cut(spec, tiles, grid(spec, tiles), formats, wide, &epilogue)
        .and_then(|blocking| covered(&blocking).map(|(m, n)| (m, blocking.k, n)))
        .map_err(|error| to_python(py, &error))
}

/// Runs a product whose left operand has only some tiles: with `pattern` these alone are in its buffer (columns, and where
/// rows begin); otherwise all are, and the mask, a byte a tile, says which of them are live.
#[pyfunction]
#[pyo3(signature = (chip, tiles, pattern, mask, buffers, formats, ending, fidelity, wide, timeline, threads=1, stop=None))]
#[allow(clippy::too_many_arguments, reason = "what a product is, and how to run it")]
pub(crate) fn tensix_sparse<'py>(
    py: Python<'py>,
    mut chip: PyRefMut<'py, TensixChip>,
    tiles: (u32, u32, u32),
    pattern: Option<(Vec<u32>, Vec<u32>)>,
    mask: Option<&[u8]>,
    buffers: (u16, u16, u16),
    formats: (String, String, String),
    ending: Ending,
    fidelity: &str,
    wide: bool,
    timeline: u32,
    threads: usize,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (formats, fidelity, epilogue) = (formats_of(&formats)?, fidelity_of(fidelity)?, ending.epilogue()?);
    let options = Options { fidelity, wide, timeline, threads, ..Options::default() };
    let mask = mask.map(|mask| mask.iter().map(|live| *live != 0).collect());
    let simulator = &mut chip.simulator;
    let run = enter(py, stop, |interrupt| match pattern {
        None => {
            let pruned =
                Pruned { tiles, buffers, formats, epilogue, tau: 0.0, by: "epilogue", mask, options };
            Ok(pruned.run(simulator, interrupt)?.0)
        }
        Some((columns, starts)) => {
            let pattern = TilePattern { columns, starts };
            let spec = simulator.spec();
            let blocking = blocking::sparse(spec, tiles, grid(spec, tiles), formats, wide, &epilogue)?;
            let program =
                sparse::program(simulator, &blocking, &pattern, formats, buffers, wide, epilogue, true)?;
            simulator.run(simulator.here(program), options, interrupt)
        }
    })?;
    report(py, &chip.simulator, &run)
}
