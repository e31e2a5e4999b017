//! What a kernel in Python calls: each method makes a verb, and the kernel yields it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prunus_tensix::mesh::{ChipId, Mesh};
use prunus_tensix::verbs::{self, Along, Area, Binary, Broadcast, Unary, Verb as Asked};
use pyo3::prelude::*;

use super::errors::misused;
use super::verb::{At, Byte, Cores, Dim, OnMesh, Place, Rectangle, Tile, Verb, Where, Whole, Word};

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

#[allow(clippy::too_many_arguments, reason = "the hardware's calls have as many")]
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

    /// Have the math thread take a free half of the destination registers.
    fn tile_regs_acquire(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_acquire", Asked::TileRegsAcquire)
    }

    /// Hand the half that was acquired to the packer.
    fn tile_regs_commit(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_commit", Asked::TileRegsCommit)
    }

    /// Have the packer wait for a half that was committed.
    fn tile_regs_wait(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_wait", Asked::TileRegsWait)
    }

    /// Give the half that was packed back to the math thread.
    fn tile_regs_release(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_release", Asked::TileRegsRelease)
    }

    /// Add the product of a tile of ``in0_cb`` and one of ``in1_cb`` to tile ``dst`` of the destination registers.
    fn matmul_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(
            py,
            "matmul_tiles",
            Asked::MatmulBlock {
                in0_cb: in0_cb.byte(),
                in1_cb: in1_cb.byte(),
                in0: in0.0,
                in1: in1.0,
                dst: dst.0,
                h: 1,
                w: 1,
                in0_stride: 1,
            },
        )
    }

    /// Add products of ``rt_dim`` tiles of ``in0_cb``, ``kt_dim`` apart, and ``ct_dim`` tiles of ``in1_cb``, side by side.
    ///
    /// Their sums begin at tile ``dst`` of the destination registers, row by row.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the API's call")]
    fn matmul_block(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
        ct_dim: Dim,
        rt_dim: Dim,
        kt_dim: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(
            py,
            "matmul_block",
            Asked::MatmulBlock {
                in0_cb: in0_cb.byte(),
                in1_cb: in1_cb.byte(),
                in0: in0.0,
                in1: in1.0,
                dst: dst.0,
                h: rt_dim.0,
                w: ct_dim.0,
                in0_stride: kt_dim.0,
            },
        )
    }

    /// Copy a tile of a circular buffer to tile ``dst`` of the destination registers.
    fn copy_tile(&self, py: Python<'_>, cb: Byte, tile: Tile, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "copy_tile", Asked::CopyTile { cb: cb.byte(), tile: tile.0, dst: dst.0 })
    }

    /// Put the sum of two tiles into tile ``dst`` of the destination registers.
    fn add_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(py, "add_tiles", binary(Binary::Add, (in0_cb, in1_cb), in0, in1, dst))
    }

    /// Put the difference of two tiles into tile ``dst`` of the destination registers.
    fn sub_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(py, "sub_tiles", binary(Binary::Sub, (in0_cb, in1_cb), in0, in1, dst))
    }

    /// Put the product, value by value, of two tiles into tile ``dst`` of the destination registers.
    fn mul_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(py, "mul_tiles", binary(Binary::Mul, (in0_cb, in1_cb), in0, in1, dst))
    }

    /// Replace each x of a tile of the destination registers by max(x, 0).
    fn relu_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "relu_tile", Asked::UnaryTile { op: Unary::Relu, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by x times the normal distribution's cumulative function.
    fn gelu_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "gelu_tile", Asked::UnaryTile { op: Unary::Gelu, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by x / (1 + exp(-x)).
    fn silu_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "silu_tile", Asked::UnaryTile { op: Unary::Silu, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by exp(x).
    fn exp_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "exp_tile", Asked::UnaryTile { op: Unary::Exp, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by 1 / x.
    fn recip_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "recip_tile", Asked::UnaryTile { op: Unary::Recip, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by the absolute value.
    fn abs_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "abs_tile", Asked::UnaryTile { op: Unary::Abs, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by its square root.
    fn sqrt_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "sqrt_tile", Asked::UnaryTile { op: Unary::Sqrt, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by x * x.
    fn square_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "square_tile", Asked::UnaryTile { op: Unary::Square, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by log(1 + exp(x)).
    fn softplus_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "softplus_tile", Asked::UnaryTile { op: Unary::Softplus, dst: dst.0 })
    }

    /// Multiply a tile of the destination registers by a number.
    fn mul_unary_tile(&self, py: Python<'_>, dst: Tile, value: f32) -> PyResult<Py<Verb>> {
        let op = Unary::Scale(value.to_bits());
        self.make(py, "mul_unary_tile", Asked::UnaryTile { op, dst: dst.0 })
    }

    /// Add a number to a tile of the destination registers.
    fn add_unary_tile(&self, py: Python<'_>, dst: Tile, value: f32) -> PyResult<Py<Verb>> {
        let op = Unary::Offset(value.to_bits());
        self.make(py, "add_unary_tile", Asked::UnaryTile { op, dst: dst.0 })
    }

    /// Add tile ``other`` of the destination registers to tile ``dst`` of them.
    fn add_binary_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "add_binary_tile", registers(Binary::Add, dst, other))
    }

    /// Subtract tile ``other`` of the destination registers from tile ``dst`` of them.
    fn sub_binary_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "sub_binary_tile", registers(Binary::Sub, dst, other))
    }

    /// Multiply tile ``dst`` of the destination registers by tile ``other`` of them, value by value.
    fn mul_binary_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "mul_binary_tile", registers(Binary::Mul, dst, other))
    }

    /// Replace each value of tile ``dst`` of the destination registers by the larger one of it and tile ``other``'s.
    fn binary_max_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "binary_max_tile", registers(Binary::Max, dst, other))
    }

    /// Set tile ``dst`` of the destination registers to 0 where tile ``mask`` of them is 0.
    fn mask_tile(&self, py: Python<'_>, dst: Tile, mask: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "mask_tile", Asked::MaskTile { dst: dst.0, mask: mask.0 })
    }

    /// Copy a tile of a circular buffer of which the first "row", "col" or "scalar" stands for all.
    fn unary_bcast(
        &self,
        py: Python<'_>,
        broadcast: &str,
        cb: Byte,
        tile: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        let broadcast = broadcast_of(py, broadcast)?;
        let asked = Asked::BroadcastTile { broadcast, cb: cb.byte(), tile: tile.0, dst: dst.0 };
        self.make(py, "unary_bcast", asked)
    }

    /// Put the sums ("sum") or the largest values ("max") of a tile's rows ("row"), of its columns ("col") or of all of it
    /// ("scalar") into the first column, row or value of tile ``dst`` of the destination registers.
    fn reduce_tile(
        &self,
        py: Python<'_>,
        op: &str,
        along: &str,
        cb: Byte,
        tile: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        let op = match op {
            "sum" => Binary::Add,
            "max" => Binary::Max,
            _ => return Err(misused(py, &format!("misused: tiles are reduced by sum or max, got {op:?}"))),
        };
        let along = match along {
            "row" => Along::Row,
            "col" => Along::Column,
            "scalar" => Along::Both,
            _ => return Err(misused(py, &format!("misused: expected row, col or scalar, got {along:?}"))),
        };
        let asked = Asked::ReduceTile { op, along, cb: cb.byte(), tile: tile.0, dst: dst.0 };
        self.make(py, "reduce_tile", asked)
    }

    /// Write a tile of the destination registers to page ``tile`` of those reserved.
    ///
    /// By default tiles go to one page after the other, from each ``cb_push_back`` on.
    #[pyo3(signature = (dst, cb, tile=None))]
    fn pack_tile(&self, py: Python<'_>, dst: Tile, cb: Byte, tile: Option<Tile>) -> PyResult<Py<Verb>> {
        let tile = self.next_page(&cb, tile, 1);
        self.make(py, "pack_tile", Asked::PackTile { dst: dst.0, cb: cb.byte(), tile, tiles: 1 })
    }

    /// Write so many tiles of the destination registers to the next pages of those reserved.
    fn pack_tile_block(&self, py: Python<'_>, dst: Tile, cb: Byte, tiles: Dim) -> PyResult<Py<Verb>> {
        let tile = self.next_page(&cb, None, tiles.0);
        self.make(py, "pack_tile_block", Asked::PackTile { dst: dst.0, cb: cb.byte(), tile, tiles: tiles.0 })
    }

    /// Have the packer add to what pages hold, or overwrite it again.
    fn pack_reconfig_l1_acc(&self, py: Python<'_>, on: bool) -> PyResult<Py<Verb>> {
        self.make(py, "pack_reconfig_l1_acc", Asked::PackReconfigL1Acc { on })
    }
}

impl KernelContext {
    /// The page that a pack without one goes to.
    fn next_page(&self, cb: &Byte, tile: Option<Tile>, tiles: u32) -> u32 {
        let mut state = self.state();
        match (tile, state.packed.get_mut(cb.0 as usize)) {
            (Some(tile), _) => tile.0,
            (None, Some(packed)) => {
                let page = *packed;
                *packed = page.saturating_add(tiles);
                page
            }
            (None, None) => 0,
        }
    }
}

fn binary(op: Binary, cbs: (Byte, Byte), in0: Tile, in1: Tile, dst: Tile) -> Asked {
    let (in0_cb, in1_cb) = (cbs.0.byte(), cbs.1.byte());
    Asked::BinaryTiles { op, broadcast: Broadcast::None, in0_cb, in1_cb, in0: in0.0, in1: in1.0, dst: dst.0 }
}

fn registers(op: Binary, dst: Tile, other: Tile) -> Asked {
    Asked::BinaryDst { op, dst: dst.0, other: other.0 }
}

fn broadcast_of(py: Python<'_>, name: &str) -> PyResult<Broadcast> {
    match name {
        "row" => Ok(Broadcast::Row),
        "col" => Ok(Broadcast::Column),
        "scalar" => Ok(Broadcast::Scalar),
        _ => Err(misused(py, &format!("misused: expected row, col or scalar, got {name:?}"))),
    }
}
