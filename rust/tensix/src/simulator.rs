//! A chip with its memory, on which programs run one after the other.

use prunus_core::Interrupt;

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::machine::{Machine, Options};
use crate::memory::Memory;
use crate::program::Program;
use crate::report::Run;
use crate::verbs::CoreId;

/// A simulated chip.
pub struct Simulator {
    spec: ChipSpec,
    memory: Memory,
}

impl Simulator {
    /// A chip with empty memory; with `values`, its programs compute, otherwise they only take time.
    #[must_use]
    pub fn new(spec: ChipSpec, values: bool) -> Self {
        Self { memory: Memory::new(&spec, values), spec }
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

    /// A buffer in DRAM, its pages in turn in all channels, or all in one.
    ///
    /// # Errors
    /// If it is empty, or DRAM is too small.
    pub fn buffer(&mut self, page_bytes: u32, pages: u32, channel: Option<u16>) -> Result<u16, Error> {
        self.memory.buffer(&self.spec, page_bytes, pages, channel)
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
        if usize::from(core) >= self.spec.cores()
            || u64::from(address) + bytes > u64::from(self.spec.l1.bytes)
        {
            return Err(Error::Misused(format!(
                "{bytes} B at {address} of core {core}'s L1: {} has {} cores with {} B",
                self.spec.name,
                self.spec.cores(),
                self.spec.l1.bytes
            )));
        }
        Ok(())
    }

    /// Number of the core at logical coordinates.
    #[must_use]
    pub fn core(&self, x: u16, y: u16) -> CoreId {
        y * self.spec.workers.x.len() as u16 + x
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
        Machine::new(&self.spec, &mut self.memory, interrupt, options).run(program)
    }
}
