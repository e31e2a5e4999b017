//! Chips and programs whose kernels are written in Python.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use numpy::PyArray1;
use prunus_tensix::numerics::Fidelity;
use prunus_tensix::program::{CircularBuffer, Launch, Program, Role};
use prunus_tensix::programs::epilogue::Epilogue;
use prunus_tensix::report::Run;
use prunus_tensix::time::{TICKS, Time};
use prunus_tensix::timeline::{About, Timeline};
use prunus_tensix::{ChipSpec, Error, Options, Simulator};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use super::context::KernelContext;
use super::errors::to_python;
use super::kernel::{Shared, Watch, Written, annotate, generator_of};
use super::products::{Product, Pruned, grid};
use super::tiles::format_of;
use super::verb::Cores;
use super::watch::enter;
use crate::door::Signals;

/// Number, cores, chips, format, bytes of a page, pages, address, and the buffer whose place it shares.
type Buffer = (u8, Vec<(u32, u32)>, Vec<(u32, u32)>, String, u32, u32, Option<u32>, Option<u8>);
/// Context, role, network, and the generator.
type Kernel = (Py<KernelContext>, String, u8, Py<PyAny>);

/// Names of the chips that come with the package.
#[pyfunction]
pub(crate) fn chip_names() -> Vec<&'static str> {
    ChipSpec::names().collect()
}

/// The text of a chip that comes with the package.
#[pyfunction]
pub(crate) fn chip_text(py: Python<'_>, name: &str) -> PyResult<&'static str> {
    ChipSpec::text(name).map_err(|error| to_python(py, &error))
}

/// Raises where a chip's text is no description of one, or its figures contradict each other.
#[pyfunction]
pub(crate) fn check_chip(py: Python<'_>, text: &str) -> PyResult<()> {
    ChipSpec::parse(text).map(drop).map_err(|error| to_python(py, &error))
}

/// A simulated chip with its memory.
#[pyclass(module = "prunus._core")]
pub(crate) struct TensixChip {
    pub(super) simulator: Simulator,
    cores: Arc<Cores>,
    values: bool,
}

#[pymethods]
impl TensixChip {
    #[new]
    #[pyo3(signature = (spec, values, mesh=(1, 1)))]
    fn new(py: Python<'_>, spec: &str, values: bool, mesh: (u16, u16)) -> PyResult<Self> {
        let spec = ChipSpec::parse(spec).map_err(|error| to_python(py, &error))?;
        let (chip, x, y) = (spec.name.clone(), spec.workers.x.clone(), spec.workers.y.clone());
        let simulator = Simulator::mesh(spec, mesh, values).map_err(|error| to_python(py, &error))?;
        let cores = Cores { chip, mesh: simulator.chips(), x, y };
        Ok(Self { simulator, cores: Arc::new(cores), values })
    }

    /// Chooses the chip, by row and column, that buffers and built-in programs are for from now on.
    fn stand_on(&mut self, py: Python<'_>, chip: (u32, u32)) -> PyResult<()> {
        let chip = self.cores.chip(py, chip)?;
        self.simulator.stand_on(chip).map_err(|error| to_python(py, &error))
    }

    /// A buffer in DRAM of the chosen chip; its number.
    #[pyo3(signature = (page_bytes, pages, channel=None))]
    fn buffer(&mut self, py: Python<'_>, page_bytes: u32, pages: u32, channel: Option<u16>) -> PyResult<u16> {
        self.simulator.buffer(page_bytes, pages, channel).map_err(|error| to_python(py, &error))
    }

    /// Room in every core's L1; its address.
    fn tensor(&mut self, py: Python<'_>, size: u32) -> PyResult<u32> {
        self.simulator.tensor(size).map_err(|error| to_python(py, &error))
    }

    fn write_buffer(&mut self, py: Python<'_>, buffer: u16, data: &[u8]) -> PyResult<()> {
        if !self.values {
            return Ok(());
        }
        self.simulator.write_buffer(buffer, data).map_err(|error| to_python(py, &error))
    }

    /// Writes some pages of a buffer, whose bytes follow each other.
    fn write_pages(&mut self, py: Python<'_>, buffer: u16, pages: Vec<u32>, data: &[u8]) -> PyResult<()> {
        if !self.values {
            return Ok(());
        }
        self.simulator.write_pages(buffer, &pages, data).map_err(|error| to_python(py, &error))
    }

    fn read_buffer<'py>(&self, py: Python<'py>, buffer: u16) -> PyResult<Bound<'py, PyBytes>> {
        self.check_values(py)?;
        let bytes = self.simulator.read_buffer(buffer).map_err(|error| to_python(py, &error))?;
        Ok(PyBytes::new(py, bytes))
    }

    #[pyo3(signature = (core, address, data, chip=(0, 0)))]
    fn write_l1(
        &mut self,
        py: Python<'_>,
        core: (u32, u32),
        address: u32,
        data: &[u8],
        chip: (u32, u32),
    ) -> PyResult<()> {
        let core = self.cores.everywhere(py, self.cores.chip(py, chip)?, core)?;
        self.simulator.write_l1(core, address, data).map_err(|error| to_python(py, &error))
    }

    #[pyo3(signature = (core, address, size, chip=(0, 0)))]
    fn read_l1<'py>(
        &self,
        py: Python<'py>,
        core: (u32, u32),
        address: u32,
        size: u32,
        chip: (u32, u32),
    ) -> PyResult<Bound<'py, PyBytes>> {
        let core = self.cores.everywhere(py, self.cores.chip(py, chip)?, core)?;
        self.check_values(py)?;
        let bytes = self.simulator.read_l1(core, address, size).map_err(|error| to_python(py, &error))?;
        Ok(PyBytes::new(py, bytes))
    }

    /// What a kernel on a core is given; ``pages`` has number and bytes of a page of each circular buffer there.
    #[pyo3(signature = (core, name, pages, chip=(0, 0)))]
    fn context(
        &self,
        py: Python<'_>,
        core: (u32, u32),
        name: String,
        pages: Vec<(u8, u32)>,
        chip: (u32, u32),
    ) -> PyResult<KernelContext> {
        self.cores.number(py, core.0, core.1)?;
        let on = (chip, self.cores.chip(py, chip)?);
        Ok(KernelContext::new(Arc::clone(&self.cores), core, on, name, pages))
    }

    /// What makes verbs for a text that is run later.
    fn recorder(&self) -> KernelContext {
        KernelContext::recorder(Arc::clone(&self.cores))
    }

    /// Buffers in DRAM that there are.
    fn buffers(&self) -> usize {
        self.simulator.buffers()
    }

    /// Gives all buffers in DRAM back but the first ones.
    fn keep_buffers(&mut self, count: usize) {
        self.simulator.keep_buffers(count);
    }

    /// Runs a program to its end; kernels run with the GIL, on the calling thread.
    #[pyo3(signature = (buffers, semaphores, kernels, fidelity, fp32_dest_acc, limit, patience=None, timeline=0, threads=1))]
    #[allow(clippy::too_many_arguments, reason = "the parts of a program, and how to run it")]
    fn run<'py>(
        &mut self,
        py: Python<'py>,
        buffers: Vec<Buffer>,
        semaphores: Vec<u32>,
        kernels: Vec<Kernel>,
        fidelity: &str,
        fp32_dest_acc: bool,
        limit: f64,
        patience: Option<f64>,
        timeline: u32,
        threads: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let options =
            Options { fidelity: fidelity_of(fidelity)?, wide: fp32_dest_acc, limit, timeline, threads };
        let patience = patience.map(|seconds| {
            Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|patience| !patience.is_zero())
                .ok_or_else(|| PyValueError::new_err(format!("patience is positive, got {seconds}")))
        });
        let patience = patience.transpose()?;
        let mut program = Program { semaphores, ..Program::default() };
        for (id, places, chips, format, page_bytes, pages, address, shares) in buffers {
            let mut cores = Vec::with_capacity(places.len() * chips.len());
            for chip in chips {
                let chip = self.cores.chip(py, chip)?;
                for core in &places {
                    cores.push(self.cores.everywhere(py, chip, *core)?);
                }
            }
            let format = format_of(&format)?;
            program.buffers.push(CircularBuffer { id, cores, format, page_bytes, pages, address, shares });
        }
        let mut checked = Vec::with_capacity(kernels.len());
        for (context, role, noc, generator) in kernels {
            let core = self.cores.everywhere(py, context.get().on.1, context.get().at)?;
            let generator = generator_of(generator.bind(py), &context.get().whose())?;
            checked.push((context, core, role_of(&role)?, noc, generator));
        }
        let watch = patience.map(|patience| Watch::start(py, patience)).transpose()?;
        let shared = Rc::new(Shared { raised: RefCell::new(None), watch });
        for (context, core, role, noc, generator) in checked {
            let name = context.get().name.clone();
            let kernel = Box::new(Written::new(generator, context, Rc::clone(&shared)));
            program.launches.push(Launch { core, role, noc, name, kernel });
        }
        let signals = Signals::new();
        let result = self.simulator.run(program, options, &signals);
        let raised = shared.raised.take();
        match (result, raised, signals.raised()) {
            (Ok(run), ..) => report(py, &self.simulator, &run),
            (Err(Error::Kernel(place)), Some(raised), _) => Err(annotate(py, raised, &place)),
            (Err(Error::Interrupted), _, Some(raised)) => Err(raised),
            (Err(error), ..) => Err(to_python(py, &error)),
        }
    }

    /// Bytes of L1 that a program has on each core.
    fn l1_bytes(&self) -> u32 {
        let l1 = &self.simulator.spec().l1;
        l1.bytes - l1.reserved
    }

    /// How many columns of tiles `in1` and the output of [`Self::pruned_product`] have: those wanted, or some more.
    #[pyo3(signature = (tiles, format, out_format, fp32_dest_acc))]
    fn pruned_columns(
        &self,
        py: Python<'_>,
        tiles: (u32, u32, u32),
        format: &str,
        out_format: &str,
        fp32_dest_acc: bool,
    ) -> PyResult<u32> {
        let (format, out_format) = (format_of(format)?, format_of(out_format)?);
        let spec = self.simulator.spec();
        let product = Product { tiles, grid: grid(spec, tiles), format, wide: fp32_dest_acc };
        Pruned::columns(spec, &product, out_format).map_err(|error| to_python(py, &error))
    }

    /// Runs the product of an (m, k) and a (k, n) matrix of tiles in DRAM whose left one is pruned as the program runs: a
    /// tile is live unless its largest magnitude is at most `tau`. `decide` says who finds that: the cores ("dynamic"),
    /// the operation before ("epilogue", with its `mask`) or the host ("host", which takes some DRAM each time). A chip
    /// without values is given the mask.
    #[pyo3(signature = (
        tiles, buffers, tau, formats, fidelity, fp32_dest_acc, limit, decide="dynamic", mask=None, threads=1, stop=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "what a product is")]
    fn pruned_product<'py>(
        &mut self,
        py: Python<'py>,
        tiles: (u32, u32, u32),
        buffers: (u16, u16, u16),
        tau: f32,
        formats: (String, String),
        fidelity: &str,
        fp32_dest_acc: bool,
        limit: f64,
        decide: &str,
        mask: Option<&[u8]>,
        threads: usize,
        stop: Option<Py<PyAny>>,
    ) -> PyResult<Reported<'py>> {
        let fidelity = fidelity_of(fidelity)?;
        let options = Options { fidelity, wide: fp32_dest_acc, limit, threads, ..Options::default() };
        let (format, out) = (format_of(&formats.0)?, format_of(&formats.1)?);
        let mask = mask.map(|mask| mask.iter().map(|live| *live != 0).collect());
        let (formats, epilogue) = ((format, format, out), Epilogue::default());
        let pruned = Pruned { tiles, buffers, formats, epilogue, tau, by: decide, mask, options };
        let simulator = &mut self.simulator;
        let (run, found) = enter(py, stop, |interrupt| pruned.run(simulator, interrupt))?;
        let found: Vec<u8> = found.into_iter().map(u8::from).collect();
        Ok((report(py, &self.simulator, &run)?, PyBytes::new(py, &found)))
    }
}

/// What a run used, and the mask of live tiles, a byte each.
type Reported<'py> = (Bound<'py, PyDict>, Bound<'py, PyBytes>);

fn cycles(time: Time) -> f64 {
    time as f64 / TICKS as f64
}

impl TensixChip {
    fn check_values(&self, py: Python<'_>) -> PyResult<()> {
        match self.values {
            true => Ok(()),
            false => {
                let text = "a chip that only takes time keeps no values: there is nothing to read".into();
                Err(to_python(py, &Error::Unsupported(text)))
            }
        }
    }
}

/// What a run used, for Python.
pub(super) fn report<'py>(py: Python<'py>, simulator: &Simulator, run: &Run) -> PyResult<Bound<'py, PyDict>> {
    let (spec, mesh) = (simulator.spec(), simulator.chips());
    let (across, each) = (spec.workers.x.len(), spec.cores());
    let (columns, nodes) = (spec.grid.columns, spec.grid.columns * spec.grid.rows);
    // NoC coordinates of a node, and row and column of its chip.
    let at = |node: u16| ((node % nodes % columns, node % nodes / columns), mesh.place(node / nodes));
    let report = PyDict::new(py);
    report.set_item("cycles", run.cycles())?;
    report.set_item("math_cycles", run.math_cycles())?;
    report.set_item("events", run.events)?;
    report.set_item("fidelity", format!("{:?}", run.fidelity))?;
    report.set_item("hop_bytes", run.hop_flits * u64::from(spec.noc.flit_bytes))?;
    let cores = PyList::empty(py);
    for (id, core) in run.cores.iter().enumerate().filter(|(_, core)| core.took_part) {
        let one = PyDict::new(py);
        one.set_item("core", (id % each % across, id % each / across))?;
        one.set_item("chip", mesh.place((id / each) as u16))?;
        one.set_item("math_end", cycles(core.math_end))?;
        one.set_item("math_busy", cycles(core.math_busy))?;
        one.set_item("unpack_busy", core.unpack_busy.map(cycles))?;
        one.set_item("pack_busy", cycles(core.pack_busy))?;
        one.set_item("waits", core.waits.map(cycles))?;
        one.set_item("products", core.products)?;
        one.set_item("unpack_bytes", core.unpack_bytes)?;
        one.set_item("pack_bytes", core.pack_bytes)?;
        one.set_item("computes", core.computes)?;
        one.set_item("threads", core.lanes.iter().map(|lane| *lane as usize).collect::<Vec<_>>())?;
        let list = |times: &[Time]| times.iter().copied().map(cycles).collect::<Vec<_>>();
        one.set_item("thread_ends", list(&core.thread_ends))?;
        one.set_item("thread_waits", list(&core.thread_waits))?;
        cores.append(one)?;
    }
    report.set_item("cores", cores)?;
    let links = run.links.iter().map(|link| {
        let port = ["x", "y", "in", "out"][usize::from(link.port) % 4];
        let bytes = link.flits * u64::from(spec.noc.flit_bytes);
        let (place, chip) = at(link.node);
        (link.noc, place, port, bytes, cycles(link.busy), chip)
    });
    report.set_item("links", links.collect::<Vec<_>>())?;
    let channels = run.channels.iter().map(|(node, bytes, busy)| {
        let (place, chip) = at(*node);
        (place, *bytes, cycles(*busy), chip)
    });
    report.set_item("channels", channels.collect::<Vec<_>>())?;
    report.set_item("mesh", (mesh.rows(), mesh.columns()))?;
    let ethernet = run.ethernet.iter().map(|link| {
        let chips = (mesh.place(link.chips.0), mesh.place(link.chips.1));
        (chips.0, chips.1, link.link, link.packets, link.bytes, link.wire_bytes, cycles(link.busy))
    });
    report.set_item("ethernet", ethernet.collect::<Vec<_>>())?;
    if let Some(timeline) = &run.timeline {
        report.set_item("timeline", threads(py, simulator, timeline)?)?;
    }
    Ok(report)
}

/// What threads did, a column for each figure.
fn threads<'py>(py: Python<'py>, simulator: &Simulator, timeline: &Timeline) -> PyResult<Bound<'py, PyDict>> {
    let (across, each) = (simulator.spec().workers.x.len() as u16, simulator.spec().cores() as u16);
    let place = |core: u16| {
        let (chip, core) = (core / each, core % each);
        ((core % across, core / across), simulator.chips().place(chip))
    };
    let columns = PyDict::new(py);
    let all = timeline.intervals.as_slice();
    columns.set_item("core", PyArray1::from_iter(py, all.iter().map(|one| one.core)))?;
    columns.set_item("thread", PyArray1::from_iter(py, all.iter().map(|one| one.lane as u8)))?;
    columns.set_item("label", PyArray1::from_iter(py, all.iter().map(|one| one.label)))?;
    columns.set_item("calls", PyArray1::from_iter(py, all.iter().map(|one| one.calls)))?;
    columns.set_item("start", PyArray1::from_iter(py, all.iter().map(|one| cycles(one.start))))?;
    columns.set_item("end", PyArray1::from_iter(py, all.iter().map(|one| cycles(one.end))))?;
    columns.set_item("busy", PyArray1::from_iter(py, all.iter().map(|one| cycles(one.busy))))?;
    let labels = timeline.labels.iter().map(|label| match label.about {
        About::None => (label.name.to_owned(), label.waits),
        About::Cb(cb) => (format!("{} cb {cb}", label.name), label.waits),
        About::Semaphore(semaphore) => (format!("{} semaphore {semaphore}", label.name), label.waits),
    });
    columns.set_item("labels", labels.collect::<Vec<_>>())?;
    let kernels = timeline.kernels.iter().map(|(core, lane, name)| (*core, *lane as usize, name.as_str()));
    columns.set_item("kernels", kernels.collect::<Vec<_>>())?;
    let cores: std::collections::BTreeSet<_> = timeline.kernels.iter().map(|(core, ..)| *core).collect();
    columns.set_item("places", cores.into_iter().map(|core| (core, place(core))).collect::<Vec<_>>())?;
    columns.set_item("dropped", timeline.dropped)?;
    Ok(columns)
}

pub(super) fn fidelity_of(name: &str) -> PyResult<Fidelity> {
    let all = [Fidelity::LoFi, Fidelity::HiFi2, Fidelity::HiFi3, Fidelity::HiFi4];
    all.into_iter().find(|fidelity| format!("{fidelity:?}") == name).ok_or_else(|| {
        PyValueError::new_err(format!("fidelity is LoFi, HiFi2, HiFi3 or HiFi4, got {name:?}"))
    })
}

/// Readers run on the second core for data movement and writers on the first, as tt-metal's default configurations do.
fn role_of(name: &str) -> PyResult<Role> {
    match name {
        "writer" => Ok(Role::DataMovement0),
        "reader" => Ok(Role::DataMovement1),
        "compute" => Ok(Role::Compute),
        _ => Err(PyValueError::new_err(format!("role is reader, writer or compute, got {name:?}"))),
    }
}
