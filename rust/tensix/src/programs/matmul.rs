//! Dense products on a grid of cores: two-dimensional multicast.
//!
//! Rows of cores share rows of `in0`, columns of cores share columns of `in1`. For each block along K one core of a row
//! sends `in0`'s block to its row, and the first core of a column reads `in1`'s block and sends it down its column
//! (tenstorrent/tt-metal: matmul_multicore_reuse_mcast_2d and its kernels).

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::numerics::Format;
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{Area, CoreId, Place, Verb};

/// How a product is cut: figures in tiles but for the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blocking {
    /// Cores along n and along m.
    pub grid: (u16, u16),
    /// Tiles of K.
    pub k: u32,
    /// Rows and columns of tiles of the output that a core has.
    pub per_core: (u32, u32),
    /// Tiles of K in a block.
    pub in0_block_w: u32,
    /// Rows and columns of tiles that are computed at once.
    pub out_block: (u32, u32),
    /// Rows and columns of tiles in the destination registers.
    pub out_subblock: (u32, u32),
}

/// Where operands are, and in what format.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operands {
    /// `in0` lies in L1, a block of it on each core; otherwise in DRAM.
    pub in0_sharded: bool,
    /// The output stays in L1.
    pub out_sharded: bool,
    /// Of all operands.
    pub format: Format,
    /// Partial sums are added in L1 by the packer.
    pub packer_l1_acc: bool,
}

/// Buffers of a product's operands; of sharded ones, addresses in L1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handles {
    /// Buffer in DRAM, or address.
    pub in0: u32,
    /// Buffer in DRAM.
    pub in1: u16,
    /// Buffer in DRAM, or address.
    pub out: u32,
}

pub(super) const IN0: u8 = 0;
pub(super) const IN1: u8 = 1;
pub(super) const OUT: u8 = 16;
pub(super) const PARTIALS: u8 = 24;
// Semaphores: counts of receivers that are ready, and flags that a block is there.
pub(super) const IN0_READY: u8 = 0;
pub(super) const IN0_VALID: u8 = 1;
pub(super) const IN1_READY: u8 = 2;
pub(super) const IN1_VALID: u8 = 3;
/// Always 1: what flags are set to.
pub(super) const VALID: u8 = 4;
/// What semaphores are at the start.
pub(super) const SEMAPHORES: [u32; 5] = [0, 0, 0, 0, 1];

impl Blocking {
    fn k_blocks(&self) -> u32 {
        self.k.div_ceil(self.in0_block_w)
    }

    fn out_blocks(&self) -> (u32, u32) {
        (self.per_core.0.div_ceil(self.out_block.0), self.per_core.1.div_ceil(self.out_block.1))
    }

    /// # Errors
    /// If the parts do not fit into each other.
    pub fn check(&self, spec: &ChipSpec, wide: bool) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Misused(format!("blocking of a product: {what}")));
        let [columns, rows] = [spec.workers.x.len() as u16, spec.workers.y.len() as u16];
        if self.grid.0 == 0 || self.grid.1 == 0 || self.grid.0 > columns || self.grid.1 > rows {
            return wrong(format!("a grid of {:?} cores, {} has {columns} x {rows}", self.grid, spec.name));
        }
        let parts = [
            ("per_core", self.per_core),
            ("out_block", self.out_block),
            ("out_subblock", self.out_subblock),
            ("k, in0_block_w", (self.k, self.in0_block_w)),
        ];
        if let Some((name, value)) = parts.iter().find(|(_, (a, b))| *a == 0 || *b == 0) {
            return wrong(format!("{name} is {value:?}"));
        }
        if !self.k.is_multiple_of(self.in0_block_w) {
            return wrong(format!("in0_block_w {} does not divide {} tiles of k", self.in0_block_w, self.k));
        }
        let divides = |a: (u32, u32), b: (u32, u32)| b.0.is_multiple_of(a.0) && b.1.is_multiple_of(a.1);
        if !divides(self.out_subblock, self.out_block) || !divides(self.out_block, self.per_core) {
            return wrong(format!(
                "subblocks {:?} of blocks {:?} of {:?} tiles must divide each other",
                self.out_subblock, self.out_block, self.per_core
            ));
        }
        let most = spec.matrix.dst_tiles / if wide { 2 } else { 1 };
        if self.out_subblock.0 * self.out_subblock.1 > most {
            return wrong(format!("a subblock of {:?} tiles, registers hold {most}", self.out_subblock));
        }
        Ok(())
    }
}

/// What every kernel of a product knows.
#[derive(Clone, Copy)]
struct Plan {
    blocking: Blocking,
    operands: Operands,
    handles: Handles,
    tile: u32,
    at: (u16, u16),
    /// Area of the own row, and of the own column below its first core.
    row: Area,
    column: Area,
    /// Number of the first core of the own row and column, and of cores in a line of the chip.
    row_start: CoreId,
    column_start: CoreId,
    n_tiles: u32,
    /// A multicast has left before its flag is sent.
    flush: bool,
    /// Partial sums and the output have one place.
    shares: bool,
}

impl Plan {
    /// Output blocks in order: first tile row and column of each within the core's part.
    fn blocks(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let Blocking { out_block, .. } = self.blocking;
        let (down, across) = self.blocking.out_blocks();
        (0..down).flat_map(move |i| (0..across).map(move |j| (i * out_block.0, j * out_block.1)))
    }

    fn first(&self) -> (u32, u32) {
        let per_core = self.blocking.per_core;
        (u32::from(self.at.1) * per_core.0, u32::from(self.at.0) * per_core.1)
    }
}

/// Reads a rectangle of tiles of a matrix in DRAM into consecutive pages.
pub(super) async fn read_tiles(
    api: &Api,
    buffer: u16,
    tile: u32,
    width: u32,
    rows: std::ops::Range<u32>,
    columns: std::ops::Range<u32>,
    mut to: u32,
) {
    for row in rows {
        for column in columns.clone() {
            let place = Place::Dram { buffer, page: row * width + column, offset: 0 };
            api.noc_async_read(place, to, tile).await;
            to += tile;
        }
    }
    api.noc_async_read_barrier().await;
}

/// Sends a block that lies at `from` to an area, when all its receivers are ready. A sender that receives its own
/// block waits for it as the others do.
pub(super) async fn send(
    api: &Api,
    (area, receivers): (Area, u32),
    sems: (u8, u8),
    (from, to): (u32, u32),
    bytes: u32,
    flush: bool,
) {
    api.noc_semaphore_wait(sems.0, receivers).await;
    api.noc_semaphore_set(sems.0, 0).await;
    api.noc_async_write_multicast(from, area, to, bytes, true).await;
    if flush {
        api.noc_async_writes_flushed().await;
    }
    if area.own {
        api.noc_semaphore_set(sems.1, 0).await;
    }
    api.noc_semaphore_set_multicast(VALID, sems.1, area).await;
    if area.own {
        api.noc_semaphore_wait(sems.1, 1).await;
    }
}

/// Has the sender know that there is room, and waits for the block.
pub(super) async fn receive(api: &Api, sender: CoreId, sems: (u8, u8)) {
    api.noc_semaphore_set(sems.1, 0).await;
    api.noc_semaphore_inc(sender, sems.0, 1).await;
    api.noc_semaphore_wait(sems.1, 1).await;
}

async fn in0_sharded(api: Api, plan: Plan) {
    let Plan { blocking, handles, tile, at, row, row_start, .. } = plan;
    let (columns, rows) = (u32::from(blocking.grid.0), blocking.per_core.0);
    let pages = rows * blocking.in0_block_w;
    let k_blocks = blocking.k_blocks();
    let shard_tiles = blocking.k.div_ceil(columns);
    let shard_blocks = shard_tiles.div_ceil(blocking.in0_block_w);
    for _ in plan.blocks() {
        for block in 0..k_blocks {
            api.cb_reserve_back(IN0, pages).await;
            let sender = (block / shard_blocks) as u16;
            if at.0 == sender {
                let to = api.get_write_ptr(IN0).await;
                let mut from = handles.in0;
                if shard_blocks > 1 {
                    let bytes = blocking.in0_block_w * tile;
                    let offset = block % shard_blocks * bytes;
                    let core = row_start + at.0;
                    for line in 0..rows {
                        let address = handles.in0 + line * shard_tiles * tile + offset;
                        api.noc_async_read(Place::L1 { core, address }, to + line * bytes, bytes).await;
                    }
                    api.noc_async_read_barrier().await;
                    from = to;
                }
                if columns > 1 {
                    let area = Area { own: from != to, ..row };
                    send(
                        &api,
                        (area, columns - 1),
                        (IN0_READY, IN0_VALID),
                        (from, to),
                        pages * tile,
                        plan.flush,
                    )
                    .await;
                } else if from != to {
                    let core = row_start + at.0;
                    api.noc_async_write(from, Place::L1 { core, address: to }, pages * tile).await;
                    api.noc_async_write_barrier().await;
                }
            } else {
                receive(&api, row_start + sender, (IN0_READY, IN0_VALID)).await;
            }
            api.cb_push_back(IN0, pages).await;
        }
    }
    api.noc_async_write_barrier().await;
}

async fn in0_dram(api: Api, plan: Plan) {
    let Plan { blocking, handles, tile, at, row, row_start, .. } = plan;
    let columns = u32::from(blocking.grid.0);
    let pages = blocking.out_block.0 * blocking.in0_block_w;
    for (i, _) in plan.blocks() {
        for block in 0..blocking.k_blocks() {
            api.cb_reserve_back(IN0, pages).await;
            if at.0 == 0 {
                let to = api.get_write_ptr(IN0).await;
                let first = plan.first().0 + i;
                let k = block * blocking.in0_block_w;
                let (lines, across) = (first..first + blocking.out_block.0, k..k + blocking.in0_block_w);
                read_tiles(&api, handles.in0 as u16, tile, blocking.k, lines, across, to).await;
                if columns > 1 {
                    send(
                        &api,
                        (row, columns - 1),
                        (IN0_READY, IN0_VALID),
                        (to, to),
                        pages * tile,
                        plan.flush,
                    )
                    .await;
                }
            } else {
                receive(&api, row_start, (IN0_READY, IN0_VALID)).await;
            }
            api.cb_push_back(IN0, pages).await;
        }
    }
    api.noc_async_write_barrier().await;
}

async fn in1_and_out(api: Api, plan: Plan) {
    let Plan { blocking, operands, handles, tile, at, column, column_start, n_tiles, .. } = plan;
    let rows = u32::from(blocking.grid.1);
    let pages = blocking.in0_block_w * blocking.out_block.1;
    let (m, n) = plan.first();
    for (i, j) in plan.blocks() {
        for block in 0..blocking.k_blocks() {
            api.cb_reserve_back(IN1, pages).await;
            if at.1 == 0 {
                let to = api.get_write_ptr(IN1).await;
                let k = block * blocking.in0_block_w;
                let (lines, across) = (k..k + blocking.in0_block_w, n + j..n + j + blocking.out_block.1);
                read_tiles(&api, handles.in1, tile, n_tiles, lines, across, to).await;
                if rows > 1 {
                    send(
                        &api,
                        (column, rows - 1),
                        (IN1_READY, IN1_VALID),
                        (to, to),
                        pages * tile,
                        plan.flush,
                    )
                    .await;
                }
            } else {
                receive(&api, column_start, (IN1_READY, IN1_VALID)).await;
            }
            api.cb_push_back(IN1, pages).await;
        }
        if !operands.out_sharded {
            let (h, w) = blocking.out_subblock;
            for down in (0..blocking.out_block.0).step_by(h as usize) {
                for over in (0..blocking.out_block.1).step_by(w as usize) {
                    api.cb_wait_front(OUT, h * w).await;
                    let mut from = api.get_read_ptr(OUT).await;
                    for r in 0..h {
                        for c in 0..w {
                            let page = (m + i + down + r) * n_tiles + n + j + over + c;
                            let place = Place::Dram { buffer: handles.out as u16, page, offset: 0 };
                            api.noc_async_write(from, place, tile).await;
                            from += tile;
                        }
                    }
                    api.noc_async_write_barrier().await;
                    api.cb_pop_front(OUT, h * w).await;
                }
            }
        }
    }
    api.noc_async_write_barrier().await;
}

async fn compute(api: Api, plan: Plan) {
    let Plan { blocking, operands, .. } = plan;
    let k_blocks = blocking.k_blocks();
    let ((bh, bw), (h, w), kw) = (blocking.out_block, blocking.out_subblock, blocking.in0_block_w);
    let (in0_pages, in1_pages, out_pages) = (bh * kw, kw * bw, bh * bw);
    let l1_acc = operands.packer_l1_acc && k_blocks > 2;
    let shared = plan.shares && !operands.out_sharded && k_blocks > 1;
    for _ in plan.blocks() {
        for block in 0..k_blocks {
            let last = block + 1 == k_blocks;
            // With sums in L1 partial results come back once, before the last block; otherwise before each.
            let reload = block > 0 && (!l1_acc || last);
            if l1_acc && block < 2 {
                api.pack_reconfig_l1_acc(block > 0).await;
            }
            if l1_acc && last {
                api.pack_reconfig_l1_acc(false).await;
            }
            api.cb_wait_front(IN0, in0_pages).await;
            api.cb_wait_front(IN1, in1_pages).await;
            let mut to_wait = 0;
            for down in (0..bh).step_by(h as usize) {
                for over in (0..bw).step_by(w as usize) {
                    api.tile_regs_acquire().await;
                    if reload {
                        api.cb_wait_front(PARTIALS, h * w).await;
                        for tile in 0..h * w {
                            api.copy_tile(PARTIALS, tile, tile).await;
                        }
                        api.cb_pop_front(PARTIALS, h * w).await;
                    }
                    for k in 0..kw {
                        api.call(Verb::MatmulBlock {
                            in0_cb: IN0,
                            in1_cb: IN1,
                            in0: down * kw + k,
                            in1: k * bw + over,
                            dst: 0,
                            h,
                            w,
                            in0_stride: kw,
                        })
                        .await;
                    }
                    api.tile_regs_commit().await;
                    let to = if last { OUT } else { PARTIALS };
                    if shared && block == 0 {
                        // Partial sums lie where the block before may still be written out.
                        to_wait += h * w;
                        api.cb_reserve_back(OUT, to_wait).await;
                    }
                    api.cb_reserve_back(to, h * w).await;
                    api.tile_regs_wait().await;
                    api.pack_tiles(0, to, 0, h * w).await;
                    api.tile_regs_release().await;
                    api.cb_push_back(to, h * w).await;
                }
            }
            if l1_acc && block + 2 < k_blocks {
                api.cb_wait_front(PARTIALS, out_pages).await;
                api.cb_pop_front(PARTIALS, out_pages).await;
            }
            api.cb_pop_front(IN0, in0_pages).await;
            api.cb_pop_front(IN1, in1_pages).await;
        }
    }
}

/// The program of a product.
///
/// # Errors
/// If the blocking does not fit the chip.
pub fn program(
    simulator: &Simulator,
    blocking: &Blocking,
    operands: &Operands,
    handles: &Handles,
    wide: bool,
) -> Result<Program, Error> {
    let spec = simulator.spec();
    blocking.check(spec, wide)?;
    let (columns, rows) = blocking.grid;
    let cores: Vec<_> = (0..rows)
        .flat_map(|y| (0..columns).map(move |x| (x, y)))
        .map(|(x, y)| simulator.core(x, y))
        .collect();
    let tile = operands.format.tile_bytes() as u32;
    let deep = if blocking.k_blocks() > 1 { 2 } else { 1 };
    let (bh, bw) = blocking.out_block;
    let mut program = Program { semaphores: SEMAPHORES.to_vec(), ..Program::default() };
    let mut buffer = |id, format: Format, pages, address, shares| {
        let (page_bytes, cores) = (format.tile_bytes() as u32, cores.clone());
        program.buffers.push(CircularBuffer { id, cores, format, page_bytes, pages, address, shares });
    };
    buffer(IN0, operands.format, bh * blocking.in0_block_w * deep, None, None);
    buffer(IN1, operands.format, bw * blocking.in0_block_w * deep, None, None);
    buffer(OUT, operands.format, bh * bw, operands.out_sharded.then_some(handles.out), None);
    // Partial sums have more bits than block formats; otherwise they lie where the result will.
    let partial = if wide { Format::Float32 } else { Format::Bfloat16 };
    let shares = partial == operands.format;
    if blocking.k_blocks() > 1 {
        buffer(PARTIALS, partial, bh * bw, None, shares.then_some(OUT));
    }
    for y in 0..rows {
        for x in 0..columns {
            let place = |x, y| simulator.place(simulator.core(x, y));
            let plan = Plan {
                blocking: *blocking,
                operands: *operands,
                handles: *handles,
                tile,
                at: (x, y),
                row: Area { from: place(0, y), to: place(columns - 1, y), own: false },
                column: Area { from: place(x, 0), to: place(x, rows - 1), own: false },
                row_start: simulator.core(0, y),
                column_start: simulator.core(x, 0),
                n_tiles: blocking.per_core.1 * u32::from(columns),
                flush: spec.software.multicast_flush,
                shares,
            };
            let core = simulator.core(x, y);
            // The networks change roles in the right half, to spread what is read from DRAM.
            let swap = !operands.in0_sharded && x > columns / 2 && y > 0;
            let mut launch = |role, noc, name: &str, body| {
                program.launches.push(Launch { core, role, noc, name: name.into(), kernel: body });
            };
            if operands.in0_sharded {
                launch(Role::DataMovement1, 1, "in0", kernel(move |api| in0_sharded(api, plan)));
            } else {
                launch(
                    Role::DataMovement1,
                    1 - u8::from(swap),
                    "in0",
                    kernel(move |api| in0_dram(api, plan)),
                );
            }
            launch(Role::DataMovement0, u8::from(swap), "in1", kernel(move |api| in1_and_out(api, plan)));
            launch(Role::Compute, 0, "compute", kernel(move |api| compute(api, plan)));
        }
    }
    Ok(program)
}
