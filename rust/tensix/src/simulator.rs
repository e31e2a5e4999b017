//! A chip, or several in a mesh, with its memory, on which programs run one after the other.

use prunus_core::Interrupt;

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::machine::{Machine, Options};
use crate::memory::Memory;
use crate::mesh::{ChipId, Mesh};
use crate::program::Program;
use crate::report::Run;
use crate::verbs::CoreId;

/// A simulated chip, or a mesh of equal ones.
pub struct Simulator {
    spec: ChipSpec,
    mesh: Mesh,
    /// The chip that what is made and run without naming one is for.
    site: ChipId,
    memory: Memory,
}

impl Simulator {
    /// A chip with empty memory; with `values`, its programs compute, otherwise they only take time.
    #[must_use]
    pub fn new(spec: ChipSpec, values: bool) -> Self {
        Self { memory: Memory::new(&spec, Mesh::ONE, values), spec, mesh: Mesh::ONE, site: 0 }
    }

    /// Chips in rows and columns, each with memory of its own.
    ///
    /// # Errors
    /// If the board has no links for such a mesh, or it is too large.
    pub fn mesh(spec: ChipSpec, (rows, columns): (u16, u16), values: bool) -> Result<Self, Error> {
        let mesh = Mesh::new(&spec, rows, columns)?;
        Ok(Self { memory: Memory::new(&spec, mesh, values), spec, mesh, site: 0 })
    }

    /// Which chips there are.
    #[must_use]
    pub fn chips(&self) -> Mesh {
        self.mesh
    }

    /// Its description.
    #[must_use]
    pub fn spec(&self) -> &ChipSpec {
        &self.spec
    }

    /// Whether its programs compute, and not only take time.
    #[must_use]
    pub fn keeps_values(&self) -> bool {
        self.memory.values
    }

    /// Chooses the chip for [`Self::buffer`] and [`Self::here`]: the first one until then.
    ///
    /// # Errors
    /// If there is no such chip.
    pub fn stand_on(&mut self, chip: ChipId) -> Result<(), Error> {
        if chip >= self.mesh.chips() {
            return Err(Error::Misused(format!("chip {chip}: the mesh has {}", self.mesh.chips())));
        }
        self.site = chip;
        Ok(())
    }

    /// A program of the first chip on the chosen one.
    #[must_use]
    pub fn here(&self, program: Program) -> Program {
        program.moved(self.first_core(self.site))
    }

    /// A buffer in DRAM of the chosen chip, its pages in turn in all channels, or all in one.
    ///
    /// # Errors
    /// If it is empty, or DRAM is too small.
    pub fn buffer(&mut self, page_bytes: u32, pages: u32, channel: Option<u16>) -> Result<u16, Error> {
        self.buffer_on(self.site, page_bytes, pages, channel)
    }

    /// The same in DRAM of any chip. Numbers of buffers count over all chips.
    ///
    /// # Errors
    /// If it is empty, DRAM is too small, or there is no such chip.
    pub fn buffer_on(
        &mut self,
        chip: ChipId,
        page_bytes: u32,
        pages: u32,
        channel: Option<u16>,
    ) -> Result<u16, Error> {
        self.memory.buffer(&self.spec, chip, page_bytes, pages, channel)
    }

    /// Room for a tensor in every core's L1, at the address that is returned.
    ///
    /// # Errors
    /// If L1 is too small.
    pub fn tensor(&mut self, bytes: u32) -> Result<u32, Error> {
        self.memory.tensor(&self.spec, bytes)
    }

    /// Buffers in DRAM that there are.
    #[must_use]
    pub fn buffers(&self) -> usize {
        self.memory.count()
    }

    /// Gives all buffers in DRAM back but the first ones.
    pub fn keep_buffers(&mut self, count: usize) {
        self.memory.keep(count);
    }

    /// Writes all bytes of a buffer in DRAM.
    ///
    /// # Errors
    /// If there is no such buffer, it has another size, or the chip keeps no values.
    pub fn write_buffer(&mut self, buffer: u16, bytes: &[u8]) -> Result<(), Error> {
        self.memory.fill(buffer, bytes)
    }

    /// Writes some pages of a buffer in DRAM, whose bytes follow each other.
    ///
    /// # Errors
    /// If there is no such buffer, it has not these pages, or the chip keeps no values.
    pub fn write_pages(&mut self, buffer: u16, pages: &[u32], bytes: &[u8]) -> Result<(), Error> {
        self.memory.fill_pages(buffer, pages, bytes)
    }

    /// All bytes of a buffer in DRAM.
    ///
    /// # Errors
    /// If there is no such buffer, some page of it was never written, or the chip keeps no values.
    pub fn read_buffer(&self, buffer: u16) -> Result<&[u8], Error> {
        self.memory.contents(buffer)
    }

    /// Writes bytes to a core's L1.
    ///
    /// # Errors
    /// If there is no such core, or its L1 ends before.
    pub fn write_l1(&mut self, core: CoreId, address: u32, bytes: &[u8]) -> Result<(), Error> {
        self.check_l1(core, address, bytes.len() as u64)?;
        if self.memory.values {
            self.memory.l1[usize::from(core)].write(address, bytes);
        }
        Ok(())
    }

    /// Bytes of a core's L1.
    ///
    /// # Errors
    /// If there is no such core, its L1 ends before, or some of them were never written.
    pub fn read_l1(&self, core: CoreId, address: u32, bytes: u32) -> Result<&[u8], Error> {
        self.check_l1(core, address, u64::from(bytes))?;
        self.memory.l1[usize::from(core)]
            .read(address, bytes)
            .map_err(|at| Error::Undefined(format!("nothing was written at {at} of core {core}'s L1")))
    }

    fn check_l1(&self, core: CoreId, address: u32, bytes: u64) -> Result<(), Error> {
        if usize::from(core) >= self.memory.l1.len()
            || u64::from(address) + bytes > u64::from(self.spec.l1.bytes)
        {
            return Err(Error::Misused(format!(
                "{bytes} B at {address} of core {core}'s L1: {} has {} cores with {} B",
                self.spec.name,
                self.memory.l1.len(),
                self.spec.l1.bytes
            )));
        }
        Ok(())
    }

    /// Number of the core at logical coordinates, on the first chip; kernels call cores of their own chip so.
    #[must_use]
    pub fn core(&self, x: u16, y: u16) -> CoreId {
        y * self.spec.workers.x.len() as u16 + x
    }

    /// Number of the first core of a chip: launches and circular buffers count cores over all chips.
    #[must_use]
    pub fn first_core(&self, chip: ChipId) -> CoreId {
        chip * self.spec.cores() as CoreId
    }

    /// NoC coordinates of a core.
    #[must_use]
    pub fn place(&self, core: CoreId) -> (u16, u16) {
        let across = self.spec.workers.x.len();
        let (x, y) = (usize::from(core) % across, usize::from(core) / across);
        (self.spec.workers.x[x], self.spec.workers.y[y % self.spec.workers.y.len()])
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// Whatever the program does wrong, and where.
    pub fn run(
        &mut self,
        program: Program,
        options: Options,
        interrupt: &dyn Interrupt,
    ) -> Result<Run, Error> {
        Machine::new(&self.spec, self.mesh, &mut self.memory, interrupt, options).run(program)
    }
}
