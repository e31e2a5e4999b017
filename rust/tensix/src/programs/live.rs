//! Kernels of block-sparse products by multicast, whoever says what is live.
//!
//! Rows of cores share live tiles of `in0`, columns of cores share those rows of `in1`'s tiles that a live tile of any row
//! needs. Each core multiplies for its own live tiles, so rows of cores that have more of them hold up the others at the
//! next hand-over: imbalance shows. What is live comes as lists: made before the program runs ([`super::sparse`]), or by
//! the cores as it runs ([`super::dynamic`]).

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::Api;
use crate::numerics::Format;
use crate::program::{CircularBuffer, Program};
use crate::simulator::Simulator;
use crate::verbs::{Area, CoreId, Place, Verb};

use super::epilogue::{BIAS, Epilogue, Line, Order, Rings};
use super::layer::registers;
use super::matmul::{
    Blocking, IN0, IN0_READY, IN0_VALID, IN1, IN1_READY, IN1_VALID, OUT, PARTIALS, SEMAPHORES, receive, send,
};

/// A live tile of a block along K.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Live {
    /// Row within the output block, and column within the block along K.
    pub(super) row: u32,
    pub(super) column: u32,
    pub(super) page: u32,
}

/// What is live in one block along K, as a core knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub(super) block: u32,
    /// Columns within the block that some row of cores needs.
    pub(super) needed: Vec<u32>,
    /// Live tiles of the own row of cores, row by row.
    pub(super) live: Vec<Live>,
}

/// For each output block along M, what is live along K: blocks that some row of cores needs.
pub(super) type Parts = Rc<Vec<Vec<Part>>>;

/// What all kernels of a product know.
pub(super) struct Shared {
    pub(super) blocking: Blocking,
    /// Bytes of tiles of both operands and of the output.
    pub(super) tile: u32,
    in1_tile: u32,
    out_tile: u32,
    epilogue: Epilogue,
    /// Output blocks row by row, in pieces that leave registers for the epilogue.
    pieces: Order,
    pub(super) buffers: (u16, u16, u16),
    /// The row of tiles of the output at each place, where there is one.
    pub(super) order: Vec<Option<u32>>,
    n_tiles: u32,
    pub(super) flush: bool,
    /// Partial sums and the output have one place.
    shares: bool,
    /// Cycles to look up an entry of a list in L1.
    pub(super) look: f64,
    /// Cycles to look up, of a tile's column, the place among those needed; where lists do not say it.
    pub(super) rank: f64,
}

/// What the kernels of a core know.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) shared: Rc<Shared>,
    pub(super) at: (u16, u16),
    pub(super) core: CoreId,
    /// Networks change roles here.
    pub(super) swap: bool,
    pub(super) row: Area,
    column: Area,
    pub(super) row_start: CoreId,
    column_start: CoreId,
}

/// A product's operands and how it is cut.
pub(super) struct Layout<'a> {
    pub(super) blocking: &'a Blocking,
    pub(super) formats: (Format, Format, Format),
    pub(super) buffers: (u16, u16, u16),
    pub(super) wide: bool,
    pub(super) order: Vec<Option<u32>>,
    pub(super) epilogue: Epilogue,
    pub(super) rank: f64,
}

impl Layout<'_> {
    /// The program without kernels, and what they know.
    ///
    /// # Errors
    /// If the blocking does not fit the chip.
    pub(super) fn program(self, simulator: &Simulator) -> Result<(Program, Rc<Shared>), Error> {
        let Self {
            blocking,
            formats: (format, in1_format, out_format),
            buffers,
            wide,
            order,
            epilogue,
            rank,
        } = self;
        let spec = simulator.spec();
        blocking.check(spec, wide)?;
        if blocking.out_subblock.0 != 1 {
            let subblock = blocking.out_subblock;
            return Err(Error::Misused(format!("subblocks of {subblock:?} tiles: of one row here")));
        }
        if epilogue.norms.is_some() {
            return Err(Error::Unsupported("norms of the result of a block-sparse product".into()));
        }
        let ((columns, rows), (bh, bw), kw) = (blocking.grid, blocking.out_block, blocking.in0_block_w);
        let partial = if wide { Format::Float32 } else { Format::Bfloat16 };
        let row = (1, blocking.out_subblock.1);
        let pieces = Order::new((bh, bw), row, registers(spec, wide), epilogue.spares());
        let shared = Shared {
            blocking: *blocking,
            tile: format.tile_bytes() as u32,
            in1_tile: in1_format.tile_bytes() as u32,
            epilogue,
            pieces,
            out_tile: out_format.tile_bytes() as u32,
            buffers,
            order,
            n_tiles: blocking.per_core.1 * u32::from(columns),
            flush: spec.software.multicast_flush,
            shares: partial == out_format,
            look: spec.software.l1_load * 2.0,
            rank,
        };
        let cores: Vec<_> = (0..rows).flat_map(|y| (0..columns).map(move |x| simulator.core(x, y))).collect();
        let mut program = Program { semaphores: SEMAPHORES.to_vec(), ..Program::default() };
        let deep = if blocking.k > kw { 2 } else { 1 };
        // A core may be done before others have what they need: all of its output has room then.
        for (id, format, pages, shares) in [
            (IN0, format, bh * kw * deep, None),
            (IN1, in1_format, kw * bw * deep, None),
            (OUT, out_format, bh * bw, None),
            (PARTIALS, partial, bh * bw, shared.shares.then_some(OUT)),
        ] {
            let (page_bytes, cores) = (format.tile_bytes() as u32, cores.clone());
            program.buffers.push(CircularBuffer {
                id,
                cores,
                format,
                page_bytes,
                pages,
                address: None,
                shares,
            });
        }
        program.buffers.extend(shared.epilogue.buffers((bh, bw), pieces.piece.1, &cores));
        Ok((program, Rc::new(shared)))
    }
}

impl Plan {
    /// What the kernels of each core of the grid know.
    pub(super) fn all(simulator: &Simulator, shared: &Rc<Shared>) -> Vec<Self> {
        let (columns, rows) = shared.blocking.grid;
        let place = |x, y| simulator.place(simulator.core(x, y));
        let each = (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y)));
        each.map(|(x, y)| Self {
            shared: Rc::clone(shared),
            at: (x, y),
            core: simulator.core(x, y),
            swap: x > columns / 2 && y > 0,
            row: Area { from: place(0, y), to: place(columns - 1, y), own: false },
            column: Area { from: place(x, 0), to: place(x, rows - 1), own: false },
            row_start: simulator.core(0, y),
            column_start: simulator.core(x, 0),
        })
        .collect()
    }

    /// Output blocks in order: number along M, and first column of tiles in the core's part.
    fn blocks(&self) -> impl Iterator<Item = (usize, u32)> + use<> {
        let Blocking { per_core, out_block, .. } = self.shared.blocking;
        let (down, across) = (per_core.0 / out_block.0, per_core.1 / out_block.1);
        (0..down as usize).flat_map(move |i| (0..across).map(move |j| (i, j * out_block.1)))
    }
}

impl Plan {
    /// The row of tiles of the result at each row of an output block; of those that have none, another one.
    fn rows(&self, i: usize) -> impl Iterator<Item = u32> + '_ {
        let Blocking { per_core, out_block, .. } = self.shared.blocking;
        let first = usize::from(self.at.1) * per_core.0 as usize + i * out_block.0 as usize;
        self.shared.order[first..first + out_block.0 as usize].iter().map(|row| row.unwrap_or(0))
    }

    /// First column of tiles of an output block.
    fn left(&self, j: u32) -> u32 {
        u32::from(self.at.0) * self.shared.blocking.per_core.1 + j
    }

    /// The bias of an output block, if it goes along the row of cores (`down`), or down the column.
    async fn bias(&self, api: &Api, down: bool, (i, j): (usize, u32)) {
        let shared = &self.shared;
        let (columns, rows) = shared.blocking.grid;
        let flush = shared.flush;
        if !shared.epilogue.has_bias(down) {
            return;
        }
        let (tiles, line): (Vec<u32>, _) = if down {
            let (receivers, sems) = ((self.row, u32::from(columns) - 1), (IN0_READY, IN0_VALID));
            let line = Line { first: self.at.0 == 0, start: self.row_start, receivers, sems, flush };
            (self.rows(i).collect(), line)
        } else {
            let (receivers, sems) = ((self.column, u32::from(rows) - 1), (IN1_READY, IN1_VALID));
            let line = Line { first: self.at.1 == 0, start: self.column_start, receivers, sems, flush };
            ((self.left(j)..self.left(j) + shared.blocking.out_block.1).collect(), line)
        };
        shared.epilogue.bias(api, &tiles, line).await;
    }

    /// What comes beside the tiles of an output block.
    async fn beside(&self, api: &Api, (i, j): (usize, u32), rings: &mut Rings) {
        let shared = &self.shared;
        let rows: Vec<u32> = self.rows(i).collect();
        let left = self.left(j);
        let page = |(r, c): &(u32, u32)| rows[*r as usize] * shared.n_tiles + left + c;
        let pages: Vec<u32> = shared.pieces.all().iter().map(page).collect();
        shared.epilogue.read(api, &pages, shared.pieces.piece.1, rings).await;
    }
}

/// Writes a block of the output.
async fn write(api: &Api, plan: &Plan, (i, j): (usize, u32)) {
    let shared = &plan.shared;
    let Blocking { per_core, out_block, out_subblock: (_, w), .. } = shared.blocking;
    let left = plan.left(j);
    let first = usize::from(plan.at.1) * per_core.0 as usize + i * out_block.0 as usize;
    for row in first..first + out_block.0 as usize {
        for over in (0..out_block.1).step_by(w as usize) {
            api.cb_wait_front(OUT, w).await;
            let mut from = api.get_read_ptr(OUT).await;
            if let Some(row) = shared.order[row] {
                for c in 0..w {
                    let page = row * shared.n_tiles + left + over + c;
                    let place = Place::Dram { buffer: shared.buffers.2, page, offset: 0 };
                    api.noc_async_write(from, place, shared.out_tile).await;
                    from += shared.out_tile;
                }
                api.noc_async_write_barrier().await;
            }
            api.cb_pop_front(OUT, w).await;
        }
    }
}

/// Reads live tiles of `in0` and sends them along the row of cores, or receives them; writes the output.
///
/// This thread writes because its network goes along y first: writes of the other one, which goes along x first, crowd the
/// vertical links of the columns that have DRAM.
pub(super) async fn in0_and_out(api: Api, plan: Plan, parts: Parts) {
    let shared = Rc::clone(&plan.shared);
    let Blocking { grid, out_block, in0_block_w, .. } = shared.blocking;
    let pages = out_block.0 * in0_block_w;
    let mut rings = Rings::default();
    for (i, j) in plan.blocks() {
        for part in &parts[i] {
            let live = &part.live;
            api.cycles(shared.look).await;
            if live.is_empty() {
                continue;
            }
            api.cb_reserve_back(IN0, pages).await;
            if plan.at.0 == 0 {
                let start = api.get_write_ptr(IN0).await;
                let mut to = start;
                for tile in live {
                    let place = Place::Dram { buffer: shared.buffers.0, page: tile.page, offset: 0 };
                    api.cycles(shared.look).await;
                    api.noc_async_read(place, to, shared.tile).await;
                    to += shared.tile;
                }
                api.noc_async_read_barrier().await;
                let others = u32::from(grid.0) - 1;
                if others > 0 {
                    let sems = (IN0_READY, IN0_VALID);
                    send(&api, (plan.row, others), sems, (start, start), to - start, shared.flush).await;
                }
            } else {
                receive(&api, plan.row_start, (IN0_READY, IN0_VALID)).await;
            }
            api.cb_push_back(IN0, pages).await;
        }
        plan.bias(&api, true, (i, j)).await;
        plan.beside(&api, (i, j), &mut rings).await;
        write(&api, &plan, (i, j)).await;
    }
    api.noc_async_write_barrier().await;
}

/// Reads the rows of `in1` that are needed and sends them down the column of cores, or receives them.
pub(super) async fn in1(api: Api, plan: Plan, parts: Parts) {
    let shared = Rc::clone(&plan.shared);
    let Blocking { grid, out_block, in0_block_w, .. } = shared.blocking;
    let (rows, pages) = (u32::from(grid.1), in0_block_w * out_block.1);
    for (i, j) in plan.blocks() {
        // Before what is summed: a core that has all it needs waits for nothing that comes after what others need.
        plan.bias(&api, false, (i, j)).await;
        for part in &parts[i] {
            api.cb_reserve_back(IN1, pages).await;
            if plan.at.1 == 0 {
                let start = api.get_write_ptr(IN1).await;
                let mut to = start;
                for column in &part.needed {
                    api.cycles(shared.look).await;
                    let first = (part.block * in0_block_w + column) * shared.n_tiles + plan.left(j);
                    for page in first..first + out_block.1 {
                        let place = Place::Dram { buffer: shared.buffers.1, page, offset: 0 };
                        api.noc_async_read(place, to, shared.in1_tile).await;
                        to += shared.in1_tile;
                    }
                }
                api.noc_async_read_barrier().await;
                if rows > 1 {
                    let sems = (IN1_READY, IN1_VALID);
                    send(&api, (plan.column, rows - 1), sems, (start, start), to - start, shared.flush).await;
                }
            } else {
                receive(&api, plan.column_start, (IN1_READY, IN1_VALID)).await;
            }
            api.cb_push_back(IN1, pages).await;
        }
    }
    api.noc_async_write_barrier().await;
}

/// Multiplies the core's own live tiles.
pub(super) async fn compute(api: Api, plan: Plan, parts: Parts) {
    let shared = Rc::clone(&plan.shared);
    let Blocking { out_block: (bh, bw), in0_block_w: kw, out_subblock: (_, w), .. } = shared.blocking;
    let (in0_pages, in1_pages, out_pages) = (bh * kw, kw * bw, bh * bw);
    for (i, _) in plan.blocks() {
        let all = parts[i].iter().filter(|part| !part.live.is_empty()).count();
        let mut done = 0;
        for part in &parts[i] {
            let live = &part.live;
            api.cycles(shared.look).await;
            api.cb_wait_front(IN1, in1_pages).await;
            if live.is_empty() {
                api.cb_pop_front(IN1, in1_pages).await;
                continue;
            }
            let (first, last) = (done == 0, done + 1 == all);
            if done < 2 {
                api.pack_reconfig_l1_acc(!first).await;
            }
            if last {
                api.pack_reconfig_l1_acc(false).await;
            } else {
                api.cb_reserve_back(PARTIALS, out_pages).await;
            }
            api.cb_wait_front(IN0, in0_pages).await;
            if last && !first {
                api.cb_wait_front(PARTIALS, out_pages).await;
            }
            if last && let Some(tiles) = shared.epilogue.bias_tiles((bh, bw)) {
                api.cb_wait_front(BIAS, tiles).await;
            }
            // Only at the end the epilogue needs registers.
            let w = if last { shared.pieces.piece.1 } else { w };
            let mut rest = live.as_slice();
            let mut start = 0;
            for row in 0..bh {
                let count = rest.iter().take_while(|tile| tile.row == row).count();
                let (here, later) = rest.split_at(count);
                rest = later;
                // A row with nothing in it has nothing to add; it begins and ends like the others.
                if !here.is_empty() || first || last {
                    for over in (0..bw).step_by(w as usize) {
                        api.tile_regs_acquire().await;
                        if last && !first {
                            for tile in 0..w {
                                api.copy_tile(PARTIALS, row * bw + over + tile, tile).await;
                            }
                        }
                        for (at, tile) in here.iter().enumerate() {
                            let place = part.needed.partition_point(|column| *column < tile.column) as u32;
                            api.cycles(shared.look + shared.rank).await;
                            api.call(Verb::MatmulBlock {
                                in0_cb: IN0,
                                in1_cb: IN1,
                                in0: start + at as u32,
                                in1: place * bw + over,
                                dst: 0,
                                h: 1,
                                w,
                                in0_stride: 1,
                            })
                            .await;
                        }
                        if last {
                            shared.epilogue.apply(&api, &shared.pieces.tiles(row, over)).await;
                        }
                        api.tile_regs_commit().await;
                        if last {
                            api.cb_reserve_back(OUT, w).await;
                        } else if first && shared.shares {
                            // Partial sums lie where the block before may still be written out.
                            api.cb_reserve_back(OUT, row * bw + over + w).await;
                        }
                        api.tile_regs_wait().await;
                        let (cb, tile) = if last { (OUT, 0) } else { (PARTIALS, row * bw + over) };
                        api.pack_tiles(0, cb, tile, w).await;
                        api.tile_regs_release().await;
                        if last {
                            api.cb_push_back(OUT, w).await;
                        }
                    }
                }
                start += count as u32;
            }
            if last && !first {
                api.cb_pop_front(PARTIALS, out_pages).await;
            }
            if !last {
                api.cb_push_back(PARTIALS, out_pages).await;
                if done + 2 < all {
                    api.cb_wait_front(PARTIALS, out_pages).await;
                    api.cb_pop_front(PARTIALS, out_pages).await;
                }
            }
            api.cb_pop_front(IN0, in0_pages).await;
            api.cb_pop_front(IN1, in1_pages).await;
            done += 1;
        }
        if all == 0 {
            if let Some(tiles) = shared.epilogue.bias_tiles((bh, bw)) {
                api.cb_wait_front(BIAS, tiles).await;
            }
            // Registers are zero when they are acquired.
            let w = shared.pieces.piece.1;
            for at in (0..bh * bw).step_by(w as usize) {
                api.tile_regs_acquire().await;
                shared.epilogue.apply(&api, &shared.pieces.tiles(at / bw, at % bw)).await;
                api.tile_regs_commit().await;
                api.cb_reserve_back(OUT, w).await;
                api.tile_regs_wait().await;
                api.pack_tiles(0, OUT, 0, w).await;
                api.tile_regs_release().await;
                api.cb_push_back(OUT, w).await;
            }
        }
        if let Some(tiles) = shared.epilogue.bias_tiles((bh, bw)) {
            api.cb_pop_front(BIAS, tiles).await;
        }
    }
}
