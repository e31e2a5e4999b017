//! Verbs of the data-movement threads: circular buffers, networks, links between chips, semaphores, words of L1.

use prunus_tensix::verbs::Verb as Asked;
use pyo3::prelude::*;

use super::KernelContext;
use crate::tensix::errors::misused;
use crate::tensix::verb::{At, Byte, OnMesh, Place, Rectangle, Verb, Whole, Word};

#[allow(clippy::too_many_arguments, reason = "the hardware's calls have as many")]
#[pymethods]
impl KernelContext {
    /// Wait until a circular buffer has room for so many pages.
    fn cb_reserve_back(&self, py: Python<'_>, cb: Byte, pages: Word) -> PyResult<Py<Verb>> {
        self.make(py, "cb_reserve_back", Asked::CbReserveBack { cb: cb.byte(), pages: pages.0 })
    }

    /// Wait until a circular buffer holds so many pages.
    fn cb_wait_front(&self, py: Python<'_>, cb: Byte, pages: Word) -> PyResult<Py<Verb>> {
        self.make(py, "cb_wait_front", Asked::CbWaitFront { cb: cb.byte(), pages: pages.0 })
    }

    /// Give the first pages of a circular buffer back.
    fn cb_pop_front(&self, py: Python<'_>, cb: Byte, pages: Word) -> PyResult<Py<Verb>> {
        self.make(py, "cb_pop_front", Asked::CbPopFront { cb: cb.byte(), pages: pages.0 })
    }

    /// Hand pages that were reserved and filled to whoever waits for them.
    fn cb_push_back(&self, py: Python<'_>, cb: Byte, pages: Word) -> PyResult<Py<Verb>> {
        if let Some(packed) = self.state().packed.get_mut(cb.0 as usize) {
            *packed = 0;
        }
        self.make(py, "cb_push_back", Asked::CbPushBack { cb: cb.byte(), pages: pages.0 })
    }

    /// Return the address of the first page that was reserved.
    fn get_write_ptr(&self, py: Python<'_>, cb: Byte) -> PyResult<Py<Verb>> {
        self.make(py, "get_write_ptr", Asked::GetWritePtr { cb: cb.byte() })
    }

    /// Return the address of the first page that was waited for.
    fn get_read_ptr(&self, py: Python<'_>, cb: Byte) -> PyResult<Py<Verb>> {
        self.make(py, "get_read_ptr", Asked::GetReadPtr { cb: cb.byte() })
    }

    /// Start to read from a place to the core's own L1.
    fn noc_async_read(&self, py: Python<'_>, src: &Place, dst: Word, size: Word) -> PyResult<Py<Verb>> {
        let from = self.place(py, src)?;
        self.make(
            py,
            "noc_async_read",
            Asked::NocAsyncRead { from, to: dst.0, bytes: size.0, stateful: false },
        )
    }

    /// Wait until all reads of this kernel have arrived.
    fn noc_async_read_barrier(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "noc_async_read_barrier", Asked::NocAsyncReadBarrier)
    }

    /// Start to write from the core's own L1 to a place.
    fn noc_async_write(&self, py: Python<'_>, src: Word, dst: &Place, size: Word) -> PyResult<Py<Verb>> {
        let to = self.place(py, dst)?;
        self.make(
            py,
            "noc_async_write",
            Asked::NocAsyncWrite { from: src.0, to, bytes: size.0, stateful: false },
        )
    }

    /// Wait until all writes of this kernel are acknowledged.
    fn noc_async_write_barrier(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "noc_async_write_barrier", Asked::NocAsyncWriteBarrier)
    }

    /// Wait until all writes of this kernel have left the core.
    fn noc_async_writes_flushed(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "noc_async_writes_flushed", Asked::NocAsyncWritesFlushed)
    }

    /// Start to write from the own L1 to one address of all cores of a rectangle, given by its first and last core.
    ///
    /// The core itself is left out unless ``loopback_src``. ``linked`` lets the next multicast use the same path.
    #[pyo3(signature = (src, cores, dst, size, linked=false, loopback_src=false))]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the API's call")]
    fn noc_async_write_multicast(
        &self,
        py: Python<'_>,
        src: Word,
        cores: Rectangle,
        dst: Word,
        size: Word,
        linked: bool,
        loopback_src: bool,
    ) -> PyResult<Py<Verb>> {
        let area = self.area(py, &cores, loopback_src)?;
        self.make(
            py,
            "noc_async_write_multicast",
            Asked::NocAsyncWriteMulticast { from: src.0, area, to: dst.0, bytes: size.0, linked },
        )
    }

    /// Add to a semaphore of another core.
    #[pyo3(signature = (core, semaphore, by=Whole(1)))]
    fn noc_semaphore_inc(&self, py: Python<'_>, core: At, semaphore: Byte, by: Word) -> PyResult<Py<Verb>> {
        let core = self.cores.number(py, core.0.0, core.1.0)?;
        self.make(
            py,
            "noc_semaphore_inc",
            Asked::NocSemaphoreInc { core, semaphore: semaphore.byte(), by: by.0 },
        )
    }

    /// Send from the own L1 to a place on another chip, over Ethernet.
    ///
    /// Waits until the tile of the link that leads there has room, for each packet. ``link`` is one of those to the
    /// neighbour, by default the core's number modulo how many there are.
    #[pyo3(signature = (src, dst, size, link=None))]
    fn fabric_unicast_noc_unicast_write(
        &self,
        py: Python<'_>,
        src: Word,
        dst: &Place,
        size: Word,
        link: Option<Byte>,
    ) -> PyResult<Py<Verb>> {
        let ((chip, to), link) = (self.far(py, dst)?, link.map(|link| link.byte()));
        self.make(
            py,
            "fabric_unicast_noc_unicast_write",
            Asked::FabricUnicastNocUnicastWrite { from: src.0, chip, to, bytes: size.0, link },
        )
    }

    /// Send from the own L1 to a place on another chip, and behind it add to a semaphore of a core of that chip.
    #[pyo3(signature = (src, dst, size, core, semaphore, by=Whole(1), link=None))]
    fn fabric_unicast_noc_fused_unicast_with_atomic_inc(
        &self,
        py: Python<'_>,
        src: Word,
        dst: &Place,
        size: Word,
        core: At,
        semaphore: Byte,
        by: Word,
        link: Option<Byte>,
    ) -> PyResult<Py<Verb>> {
        let ((chip, to), link) = (self.far(py, dst)?, link.map(|link| link.byte()));
        let (core, semaphore) = (self.cores.number(py, core.0.0, core.1.0)?, semaphore.byte());
        let (from, bytes, by) = (src.0, size.0, by.0);
        self.make(
            py,
            "fabric_unicast_noc_fused_unicast_with_atomic_inc",
            Asked::FabricUnicastNocFusedUnicastWithAtomicInc {
                from,
                chip,
                to,
                bytes,
                core,
                semaphore,
                by,
                link,
            },
        )
    }

    /// Add to a semaphore of a core of another chip, behind all that this kernel sent there before by the same link.
    #[pyo3(signature = (chip, core, semaphore, by=Whole(1), link=None))]
    fn fabric_unicast_noc_unicast_atomic_inc(
        &self,
        py: Python<'_>,
        chip: OnMesh,
        core: At,
        semaphore: Byte,
        by: Word,
        link: Option<Byte>,
    ) -> PyResult<Py<Verb>> {
        let chip = self.cores.chip(py, (chip.0.0, chip.1.0))?;
        let (core, semaphore) = (self.cores.number(py, core.0.0, core.1.0)?, semaphore.byte());
        let (by, link) = (by.0, link.map(|link| link.byte()));
        self.make(
            py,
            "fabric_unicast_noc_unicast_atomic_inc",
            Asked::FabricUnicastNocUnicastAtomicInc { chip, core, semaphore, by, link },
        )
    }

    /// Set a semaphore of the own core.
    fn noc_semaphore_set(&self, py: Python<'_>, semaphore: Byte, value: Word) -> PyResult<Py<Verb>> {
        self.make(
            py,
            "noc_semaphore_set",
            Asked::NocSemaphoreSet { semaphore: semaphore.byte(), value: value.0 },
        )
    }

    /// Wait until a semaphore of the own core has a value.
    fn noc_semaphore_wait(&self, py: Python<'_>, semaphore: Byte, value: Word) -> PyResult<Py<Verb>> {
        self.make(
            py,
            "noc_semaphore_wait",
            Asked::NocSemaphoreWait { semaphore: semaphore.byte(), value: value.0, at_least: false },
        )
    }

    /// Wait until a semaphore of the own core has at least a value.
    fn noc_semaphore_wait_min(&self, py: Python<'_>, semaphore: Byte, value: Word) -> PyResult<Py<Verb>> {
        self.make(
            py,
            "noc_semaphore_wait_min",
            Asked::NocSemaphoreWait { semaphore: semaphore.byte(), value: value.0, at_least: true },
        )
    }

    /// Set a semaphore of all cores of a rectangle to what the semaphore ``src`` of the own core is now.
    #[pyo3(signature = (src, semaphore, cores, loopback_src=false))]
    fn noc_semaphore_set_multicast(
        &self,
        py: Python<'_>,
        src: Byte,
        semaphore: Byte,
        cores: Rectangle,
        loopback_src: bool,
    ) -> PyResult<Py<Verb>> {
        let area = self.area(py, &cores, loopback_src)?;
        self.make(
            py,
            "noc_semaphore_set_multicast",
            Asked::NocSemaphoreSetMulticast { from: src.byte(), semaphore: semaphore.byte(), area },
        )
    }

    /// Return the 32-bit word at an address of the own L1.
    fn l1_load(&self, py: Python<'_>, address: Word) -> PyResult<Py<Verb>> {
        self.make(py, "l1_load", Asked::L1Load { address: address.0 })
    }

    /// Write a 32-bit word to an address of the own L1.
    fn l1_store(&self, py: Python<'_>, address: Word, value: Word) -> PyResult<Py<Verb>> {
        self.make(py, "l1_store", Asked::L1Store { address: address.0, value: value.0 })
    }

    /// Spend cycles on work of the RISC-V core that nothing else stands for.
    fn cycles(&self, py: Python<'_>, cycles: f64) -> PyResult<Py<Verb>> {
        if !(0.0..=1e12).contains(&cycles) {
            return Err(misused(
                py,
                &format!("misused: {} takes {cycles} cycles: expected 0 to 1e12", self.whose()),
            ));
        }
        self.make(py, "cycles", Asked::Cycles(cycles))
    }
}
