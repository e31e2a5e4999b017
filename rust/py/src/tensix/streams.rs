//! Programs of equal pieces of work, whose text is made of verbs in Python and runs without it.

use numpy::PyReadonlyArray1;
use prunus_tensix::Options;
use prunus_tensix::programs::norms::Norms;
use prunus_tensix::programs::streams::{Buffer, Piece, Stream, Streams, Text, spread};
use prunus_tensix::programs::wide::Wide;
use prunus_tensix::verbs::Verb as Asked;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::program::{TensixChip, fidelity_of, report};
use super::tiles::format_of;
use super::verb::Verb;
use super::watch::enter;

/// Verbs of a text's three parts.
type Verbs = (Vec<Py<Verb>>, Vec<Py<Verb>>, Vec<Py<Verb>>);
/// Number of the stream and page of each access, and where those of each piece begin.
type Accesses<'py> = (PyReadonlyArray1<'py, u8>, PyReadonlyArray1<'py, u32>, PyReadonlyArray1<'py, u32>);

fn lists(accesses: &Accesses<'_>, pieces: usize) -> PyResult<Vec<Vec<(u8, u32)>>> {
    let (streams, pages, starts) = (accesses.0.as_slice()?, accesses.1.as_slice()?, accesses.2.as_slice()?);
    let ends = starts.first() == Some(&0)
        && starts.last().map(|last| *last as usize) == Some(pages.len())
        && starts.is_sorted();
    if starts.len() != pieces + 1 || streams.len() != pages.len() || !ends {
        let (s, p, n) = (streams.len(), pages.len(), starts.len());
        let text = format!("{s} streams, {p} pages and {n} starts of {pieces} pieces do not fit each other");
        return Err(PyValueError::new_err(text));
    }
    let each = starts.windows(2).map(|two| (two[0] as usize)..(two[1] as usize));
    Ok(each
        .map(|part| streams[part.clone()].iter().copied().zip(pages[part].iter().copied()).collect())
        .collect())
}

/// Runs pieces of work on a chip: circular buffers as (number, format, bytes of a page, pages), streams as (circular
/// buffer, buffer in DRAM, bytes), and what is found of the first output as (branch, columns, rows, format, squares,
/// threshold, buffer, circular buffer, and without values what is live).
#[pyfunction]
#[pyo3(signature = (chip, buffers, inputs, outputs, text, repeats, groups, reads, writes, norms, fidelity, wide, timeline, threads=1, stop=None))]
#[allow(clippy::too_many_arguments, clippy::type_complexity, reason = "the parts of a program")]
pub(crate) fn tensix_streams<'py>(
    py: Python<'py>,
    mut chip: PyRefMut<'py, TensixChip>,
    buffers: Vec<(u8, String, u32, u32)>,
    inputs: Vec<(u8, u16, u32)>,
    outputs: Vec<(u8, u16, u32)>,
    text: Verbs,
    repeats: PyReadonlyArray1<'py, u32>,
    groups: PyReadonlyArray1<'py, u32>,
    reads: Accesses<'py>,
    writes: Accesses<'py>,
    norms: Option<(u32, u32, u32, String, bool, Option<f64>, u16, u8, Option<Vec<u8>>)>,
    fidelity: &str,
    wide: bool,
    timeline: u32,
    threads: usize,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = Options { fidelity: fidelity_of(fidelity)?, wide, timeline, threads, ..Options::default() };
    let stream = |(cb, buffer, bytes)| Stream { cb, buffer, bytes };
    let verbs = |list: &[Py<Verb>]| list.iter().map(|verb| verb.get().asked.clone()).collect::<Vec<Asked>>();
    let mut all = Streams {
        inputs: inputs.into_iter().map(stream).collect(),
        outputs: outputs.into_iter().map(stream).collect(),
        text: Text { first: verbs(&text.0), again: verbs(&text.1), last: verbs(&text.2) },
        ..Streams::default()
    };
    for (cb, format, page_bytes, pages) in buffers {
        all.buffers.push(Buffer { cb, format: format_of(&format)?, page_bytes, pages });
    }
    if let Some((branch, columns, rows, format, squares, threshold, buffer, cb, live)) = norms {
        let format = format_of(&format)?;
        let live = live.map(|live| live.into_iter().map(|byte| byte != 0).collect());
        all.norms = Some((Norms { branch, columns, rows, format, squares, threshold, buffer, live }, cb));
    }
    let (repeats, groups) = (repeats.as_slice()?, groups.as_slice()?);
    if repeats.len() != groups.len() {
        let (one, other) = (repeats.len(), groups.len());
        return Err(PyValueError::new_err(format!("repeats of {one} pieces, groups of {other}")));
    }
    let reads = lists(&reads, repeats.len())?;
    let writes = lists(&writes, repeats.len())?;
    let pieces: Vec<Piece> = repeats
        .iter()
        .zip(groups)
        .zip(reads)
        .zip(writes)
        .map(|(((repeats, groups), reads), writes)| Piece {
            repeats: *repeats,
            groups: *groups,
            reads,
            writes,
        })
        .collect();
    let simulator = &mut chip.simulator;
    let run = enter(py, stop, |interrupt| {
        let [columns, rows] = simulator.spec().workers.compute_grid;
        let parts = spread(pieces, usize::from(columns) * usize::from(rows));
        let program = simulator.here(all.program(simulator, parts)?);
        simulator.run(program, options, interrupt)
    })?;
    report(py, &chip.simulator, &run)
}

/// Tiles side by side whose columns are whole branches, and bytes of a page of their norms.
#[pyfunction]
pub(crate) fn tensix_norms(branch: u32, columns: u32) -> (u32, u32) {
    let branch = branch.max(1);
    (
        prunus_tensix::programs::norms::tiles(branch, columns),
        prunus_tensix::programs::norms::page_bytes(branch, columns),
    )
}

/// Finds norms of branches that no core holds, in a result of tiles in DRAM: `norms` as in [`tensix_streams`], without a
/// circular buffer. Its buffer has a page of 32 words for each row of tiles and each branch.
#[pyfunction]
#[pyo3(signature = (chip, result, norms, timeline, threads=1, stop=None))]
#[allow(clippy::type_complexity, reason = "what is found")]
pub(crate) fn tensix_wide_norms<'py>(
    py: Python<'py>,
    mut chip: PyRefMut<'py, TensixChip>,
    result: u16,
    norms: (u32, u32, u32, String, bool, Option<f64>, u16, Option<Vec<u8>>),
    timeline: u32,
    threads: usize,
    stop: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (branch, columns, rows, format, squares, threshold, buffer, live) = norms;
    let live = live.map(|live| live.into_iter().map(|byte| byte != 0).collect());
    let format = format_of(&format)?;
    let norms = Norms { branch, columns, rows, format, squares, threshold, buffer, live };
    let options = Options { timeline, threads, ..Options::default() };
    let simulator = &mut chip.simulator;
    let run = enter(py, stop, |interrupt| {
        let program = Wide { norms, result }.program(simulator)?;
        simulator.run(simulator.here(program), options, interrupt)
    })?;
    report(py, &chip.simulator, &run)
}
