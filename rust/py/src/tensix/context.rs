//! What a kernel in Python calls: each method makes a verb, and the kernel yields it.

mod compute;
mod movement;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prunus_tensix::mesh::{ChipId, Mesh};
use prunus_tensix::verbs::{self, Area, Verb as Asked};
use pyo3::prelude::*;

use super::errors::misused;
use super::verb::{At, Byte, Cores, OnMesh, Place, Rectangle, Verb, Where, Word};

/// What a kernel knows of its core, and the calls it can yield.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct KernelContext {
    pub(super) cores: Arc<Cores>,
    pub(super) at: (u32, u32),
    /// Row and column of its chip, and the chip's number.
    pub(super) on: ((u32, u32), ChipId),
    pub(super) name: String,
    /// Bytes of a page of each circular buffer.
    pub(super) pages: Vec<(u8, u32)>,
    state: Mutex<State>,
    /// Verbs are only made, for a text that is run later.
    records: bool,
}

#[derive(Default)]
struct State {
    last: Option<Py<Verb>>,
    /// Tiles packed to each circular buffer since its last push.
    packed: [u32; 32],
}

impl KernelContext {
    pub(super) fn new(
        cores: Arc<Cores>,
        at: (u32, u32),
        on: ((u32, u32), ChipId),
        name: String,
        pages: Vec<(u8, u32)>,
    ) -> Self {
        Self { cores, at, on, name, pages, state: Mutex::default(), records: false }
    }

    /// A context whose verbs become a text.
    pub(super) fn recorder(cores: Arc<Cores>) -> Self {
        Self { records: true, ..Self::new(cores, (0, 0), ((0, 0), 0), "text".into(), Vec::new()) }
    }

    pub(super) fn whose(&self) -> String {
        let (row, column) = self.on.0;
        let chip =
            if self.cores.mesh == Mesh::ONE { String::new() } else { format!(" of chip ({row}, {column})") };
        format!("kernel {} on core ({}, {}){chip}", self.name, self.at.0, self.at.1)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to go on from a verb that was made and not yielded: it would silently not happen.
    pub(super) fn check_yielded(&self, py: Python<'_>, next: &str) -> PyResult<()> {
        let forgotten = match &self.state().last {
            Some(last) if !last.get().yielded.load(Ordering::Relaxed) => last.get().name,
            _ => return Ok(()),
        };
        Err(misused(
            py,
            &format!(
                "misused: {} did not yield its {forgotten} before {next}: `yield k.{forgotten}(...)`",
                self.whose()
            ),
        ))
    }

    fn make(&self, py: Python<'_>, name: &'static str, asked: Asked) -> PyResult<Py<Verb>> {
        if !self.records {
            self.check_yielded(py, name)?;
        }
        let verb = Py::new(py, Verb { name, asked, yielded: AtomicBool::new(false) })?;
        self.state().last = Some(verb.clone_ref(py));
        Ok(verb)
    }

    /// A place on the own chip.
    fn place(&self, py: Python<'_>, place: &Place) -> PyResult<verbs::Place> {
        if let Some((row, column)) = place.1.filter(|chip| *chip != self.on.0) {
            let what = format!("a place on chip ({row}, {column}), which its networks do not reach");
            let how = "data goes there by fabric_unicast_noc_unicast_write";
            return Err(misused(py, &format!("misused: {} uses {what}: {how}", self.whose())));
        }
        self.somewhere(py, place)
    }

    /// A place on another chip, and the chip.
    fn far(&self, py: Python<'_>, place: &Place) -> PyResult<(ChipId, verbs::Place)> {
        let Some(chip) = place.1 else {
            let what = "sends over Ethernet to a place without a chip: get_noc_addr(core, address, chip)";
            return Err(misused(py, &format!("misused: {} {what}", self.whose())));
        };
        Ok((self.cores.chip(py, chip)?, self.somewhere(py, place)?))
    }

    fn somewhere(&self, py: Python<'_>, place: &Place) -> PyResult<verbs::Place> {
        Ok(match place.0 {
            Where::L1 { x, y, address } => verbs::Place::L1 { core: self.cores.number(py, x, y)?, address },
            Where::Dram { buffer, page, offset } => verbs::Place::Dram { buffer, page, offset },
        })
    }

    fn area(&self, py: Python<'_>, Rectangle(first, last): &Rectangle, own: bool) -> PyResult<Area> {
        self.cores.number(py, first.0.0, first.1.0)?;
        self.cores.number(py, last.0.0, last.1.0)?;
        let noc = |at: &At| (self.cores.x[at.0.0 as usize], self.cores.y[at.1.0 as usize]);
        Ok(Area { from: noc(first), to: noc(last), own })
    }
}

#[pymethods]
impl KernelContext {
    /// Logical coordinates of the kernel's core, (x, y).
    #[getter]
    fn core(&self) -> (u32, u32) {
        self.at
    }

    /// Row and column of the kernel's chip in its mesh.
    #[getter]
    fn chip(&self) -> (u32, u32) {
        self.on.0
    }

    /// Rows and columns of chips.
    #[getter]
    fn mesh(&self) -> (u16, u16) {
        (self.cores.mesh.rows(), self.cores.mesh.columns())
    }

    /// What messages call the kernel.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// Return the place of an address of a core's L1, on the own chip or on the one in a row and column. This is no verb.
    #[pyo3(signature = (core, address, chip=None))]
    fn get_noc_addr(&self, py: Python<'_>, core: At, address: Word, chip: Option<OnMesh>) -> PyResult<Place> {
        self.cores.number(py, core.0.0, core.1.0)?;
        if let Some((row, column)) = &chip {
            self.cores.chip(py, (row.0, column.0))?;
        }
        Ok(Place::l1(core, address, chip))
    }

    /// Return the bytes of a page of a circular buffer. This is no verb.
    fn get_tile_size(&self, py: Python<'_>, cb: Byte) -> PyResult<u32> {
        let found = self.pages.iter().find(|(id, _)| *id == cb.byte());
        found.map(|(_, bytes)| *bytes).ok_or_else(|| {
            let (x, y) = self.at;
            let what = format!("circular buffer {}, which the program has not on core ({x}, {y})", cb.0);
            misused(py, &format!("misused: {} uses {what}", self.whose()))
        })
    }

    fn __repr__(&self) -> String {
        format!("<context of {}>", self.whose())
    }
}
