//! Dense products of layers, by multicast: operands of two formats, and an epilogue on the core that has the sums.
//!
//! As in [`super::matmul`] the first core of a row or column reads blocks along K and sends them to the others. Three ways to
//! lay parts of the result on the chip: on a grid, where rows of cores share `in0` and columns `in1`; side by side, where all
//! cores share `in0` and each reads its own columns of `in1`; or below each other, where all share `in1`
//! (tenstorrent/tt-metal: matmul_multicore_reuse_mcast_2d and matmul_multicore_reuse_mcast_1d). [`super::cut`] chooses.

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::numerics::Format;
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{Area, CoreId, Verb};

use super::epilogue::{BIAS, Epilogue, Line, MORE_SEMAPHORES, Order, Rings, Target, help, write};
use super::matmul::{
    Blocking, IN0, IN0_READY, IN0_VALID, IN1, IN1_READY, IN1_VALID, OUT, PARTIALS, SEMAPHORES, read_tiles,
    receive, send,
};

/// How parts of the result lie on the chip's cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// On a grid: two-dimensional multicast.
    Grid,
    /// Side by side, on a rectangle of so many columns and rows of cores, row by row: `in0` goes to all.
    Across(u16, u16),
    /// Below each other, in the same way: `in1` goes to all.
    Down(u16, u16),
}

/// Formats of both operands and of the result.
pub type Formats = (Format, Format, Format);

/// A product of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// How it is cut; the grid counts parts across and down.
    pub blocking: Blocking,
    /// Where the parts are.
    pub spread: Spread,
    /// Formats of operands and result.
    pub formats: Formats,
    /// Buffers of operands and result.
    pub buffers: (u16, u16, u16),
    /// Rows and columns of tiles of the result that are written; what parts have beyond is padding.
    pub extent: (u32, u32),
    /// What happens to sums.
    pub epilogue: Epilogue,
}

/// What all kernels know.
struct Shared {
    layer: Layer,
    order: Order,
    tiles: (u32, u32, u32),
    n_tiles: u32,
    flush: bool,
    /// Partial sums and the output have one place.
    shares: bool,
}

/// What the kernels of a core know.
#[derive(Clone)]
struct Plan {
    shared: Rc<Shared>,
    /// The part, across and down.
    at: (u16, u16),
    /// Cores that get `in0` from the first one of these, and `in1`: area and how many receive.
    row: (Area, u32),
    column: (Area, u32),
    row_start: CoreId,
    column_start: CoreId,
}

impl Plan {
    /// Output blocks in order: first row and column of tiles within the core's part.
    fn blocks(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let Blocking { per_core, out_block, .. } = self.shared.layer.blocking;
        let (down, across) = (per_core.0 / out_block.0, per_core.1 / out_block.1);
        (0..down).flat_map(move |i| (0..across).map(move |j| (i * out_block.0, j * out_block.1)))
    }

    /// Where an output block is written that begins at a row and column of the core's part.
    fn target(&self, (i, j): (u32, u32)) -> Target {
        let (shared, (m, n)) = (&self.shared, self.first());
        let Layer { blocking: Blocking { per_core, out_block, out_subblock, .. }, buffers, extent, .. } =
            &shared.layer;
        let number = i / out_block.0 * (per_core.1 / out_block.1) + j / out_block.1;
        Target {
            place: (buffers.2, shared.tiles.2, shared.n_tiles),
            first: (m + i, n + j),
            most: *extent,
            before: number * (out_block.0 / out_subblock.0),
        }
    }

    fn k_blocks(&self) -> u32 {
        let Blocking { k, in0_block_w, .. } = self.shared.layer.blocking;
        k / in0_block_w
    }

    /// First row and column of tiles of the core's part.
    fn first(&self) -> (u32, u32) {
        let per_core = self.shared.layer.blocking.per_core;
        (u32::from(self.at.1) * per_core.0, u32::from(self.at.0) * per_core.1)
    }
}

async fn in0(api: Api, plan: Plan) {
    let shared = Rc::clone(&plan.shared);
    let Layer { blocking, epilogue, .. } = &shared.layer;
    let pages = blocking.out_block.0 * blocking.in0_block_w;
    let (m, n) = plan.first();
    let order = shared.order.all();
    let mut rings = Rings::default();
    let sems = (IN0_READY, IN0_VALID);
    for (i, j) in plan.blocks() {
        let rows = m + i..m + i + blocking.out_block.0;
        for block in 0..plan.k_blocks() {
            api.cb_reserve_back(IN0, pages).await;
            if plan.at.0 == 0 {
                let to = api.get_write_ptr(IN0).await;
                let k = block * blocking.in0_block_w;
                let (buffer, tile) = (shared.layer.buffers.0, shared.tiles.0);
                let across = k..k + blocking.in0_block_w;
                read_tiles(&api, buffer, tile, blocking.k, rows.clone(), across, to).await;
                if plan.row.1 > 0 {
                    send(&api, plan.row, sems, (to, to), pages * tile, shared.flush).await;
                }
            } else {
                receive(&api, plan.row_start, sems).await;
            }
            api.cb_push_back(IN0, pages).await;
        }
        bias(&api, &plan, true, (i, j)).await;
        let pages: Vec<u32> = order.iter().map(|(r, c)| (m + i + r) * shared.n_tiles + n + j + c).collect();
        epilogue.read(&api, &pages, shared.order.piece.0 * shared.order.piece.1, &mut rings).await;
        write(&api, epilogue, &shared.order, plan.target((i, j))).await;
    }
    api.noc_async_write_barrier().await;
}

/// Takes part in receiving what goes to all cores of a rectangle, and does nothing with it.
async fn idle(api: Api, plan: Plan) {
    let shared = Rc::clone(&plan.shared);
    let mut blocks = plan.blocks().count() as u32 * plan.k_blocks();
    let across = plan.row.1 > 0;
    let sems = if across { (IN0_READY, IN0_VALID) } else { (IN1_READY, IN1_VALID) };
    if shared.layer.epilogue.has_bias(across) {
        blocks += plan.blocks().count() as u32;
    }
    for _ in 0..blocks {
        receive(&api, if across { plan.row_start } else { plan.column_start }, sems).await;
    }
}

/// The bias of an output block, if it goes along the row of cores (`down`), or down the column.
async fn bias(api: &Api, plan: &Plan, down: bool, (i, j): (u32, u32)) {
    let shared = &plan.shared;
    let ((m, n), (h, w)) = (plan.first(), shared.layer.blocking.out_block);
    if !shared.layer.epilogue.has_bias(down) {
        return;
    }
    let first = if down { m + i } else { n + j };
    let tiles: Vec<u32> = (first..first + if down { h } else { w }).collect();
    let flush = shared.flush;
    let line = if down {
        let sems = (IN0_READY, IN0_VALID);
        Line { first: plan.at.0 == 0, start: plan.row_start, receivers: plan.row, sems, flush }
    } else {
        let sems = (IN1_READY, IN1_VALID);
        Line { first: plan.at.1 == 0, start: plan.column_start, receivers: plan.column, sems, flush }
    };
    shared.layer.epilogue.bias(api, &tiles, line).await;
}

async fn in1_and_out(api: Api, plan: Plan) {
    let shared = Rc::clone(&plan.shared);
    let Layer { blocking, buffers, epilogue, .. } = &shared.layer;
    let pages = blocking.in0_block_w * blocking.out_block.1;
    let n = plan.first().1;
    let sems = (IN1_READY, IN1_VALID);
    for (i, j) in plan.blocks() {
        for block in 0..plan.k_blocks() {
            api.cb_reserve_back(IN1, pages).await;
            if plan.at.1 == 0 {
                let to = api.get_write_ptr(IN1).await;
                let k = block * blocking.in0_block_w;
                let (lines, across) = (k..k + blocking.in0_block_w, n + j..n + j + blocking.out_block.1);
                read_tiles(&api, buffers.1, shared.tiles.1, shared.n_tiles, lines, across, to).await;
                if plan.column.1 > 0 {
                    send(&api, plan.column, sems, (to, to), pages * shared.tiles.1, shared.flush).await;
                }
            } else {
                receive(&api, plan.column_start, sems).await;
            }
            api.cb_push_back(IN1, pages).await;
        }
        bias(&api, &plan, false, (i, j)).await;
        help(&api, epilogue, &shared.order, plan.target((i, j))).await;
    }
    api.noc_async_write_barrier().await;
}

async fn compute(api: Api, plan: Plan) {
    let shared = Rc::clone(&plan.shared);
    let Layer { blocking, epilogue, .. } = &shared.layer;
    let k_blocks = plan.k_blocks();
    let ((bh, bw), (h, w), kw) = (blocking.out_block, blocking.out_subblock, blocking.in0_block_w);
    let (in0_pages, in1_pages, out_pages) = (bh * kw, kw * bw, bh * bw);
    let whole = Order { piece: (h, w), ..shared.order };
    let l1_acc = k_blocks > 2;
    for _ in plan.blocks() {
        for block in 0..k_blocks {
            let last = block + 1 == k_blocks;
            let reload = block > 0 && (!l1_acc || last);
            if l1_acc && block < 2 {
                api.pack_reconfig_l1_acc(block > 0).await;
            }
            if l1_acc && last {
                api.pack_reconfig_l1_acc(false).await;
            }
            api.cb_wait_front(IN0, in0_pages).await;
            api.cb_wait_front(IN1, in1_pages).await;
            if last && let Some(tiles) = epilogue.bias_tiles((bh, bw)) {
                api.cb_wait_front(BIAS, tiles).await;
            }
            // Only with the last block along K the epilogue needs registers.
            let order = if last { shared.order } else { whole };
            let (ph, pw) = order.piece;
            let (to, mut to_wait) = (if last { OUT } else { PARTIALS }, 0);
            for down in (0..bh).step_by(h as usize) {
                for over in (0..bw).step_by(w as usize) {
                    for (r, c) in order.pieces() {
                        api.tile_regs_acquire().await;
                        if reload {
                            api.cb_wait_front(PARTIALS, ph * pw).await;
                            for tile in 0..ph * pw {
                                api.copy_tile(PARTIALS, tile, tile).await;
                            }
                            api.cb_pop_front(PARTIALS, ph * pw).await;
                        }
                        for k in 0..kw {
                            api.call(Verb::MatmulBlock {
                                in0_cb: IN0,
                                in1_cb: IN1,
                                in0: (down + r) * kw + k,
                                in1: k * bw + over + c,
                                dst: 0,
                                h: ph,
                                w: pw,
                                in0_stride: kw,
                            })
                            .await;
                        }
                        if last {
                            epilogue.apply(&api, &order.tiles(down + r, over + c)).await;
                        }
                        api.tile_regs_commit().await;
                        if shared.shares && k_blocks > 1 && block == 0 {
                            // Partial sums lie where the block before may still be written out.
                            to_wait += ph * pw;
                            api.cb_reserve_back(OUT, to_wait).await;
                        }
                        api.cb_reserve_back(to, ph * pw).await;
                        api.tile_regs_wait().await;
                        api.pack_tiles(0, to, 0, ph * pw).await;
                        api.tile_regs_release().await;
                        api.cb_push_back(to, ph * pw).await;
                    }
                }
            }
            if l1_acc && block + 2 < k_blocks {
                api.cb_wait_front(PARTIALS, out_pages).await;
                api.cb_pop_front(PARTIALS, out_pages).await;
            }
            if last && let Some(tiles) = epilogue.bias_tiles((bh, bw)) {
                api.cb_pop_front(BIAS, tiles).await;
            }
            api.cb_pop_front(IN0, in0_pages).await;
            api.cb_pop_front(IN1, in1_pages).await;
        }
    }
}

/// Destination registers of a half.
pub(super) fn registers(simulator: &crate::chip::ChipSpec, wide: bool) -> u32 {
    simulator.matrix.dst_tiles / if wide { 2 } else { 1 }
}

/// What partial sums are stored as.
pub(super) fn partials(wide: bool) -> Format {
    if wide { Format::Float32 } else { Format::Bfloat16 }
}

/// Circular buffers without those of the epilogue: number, format, pages, and what they share their place with.
pub(super) fn room(
    blocking: &Blocking,
    (in0, in1, out): Formats,
    wide: bool,
) -> Vec<(u8, Format, u32, Option<u8>)> {
    let (bh, bw) = blocking.out_block;
    let deep = if blocking.k > blocking.in0_block_w { 2 } else { 1 };
    let mut found = vec![
        (IN0, in0, bh * blocking.in0_block_w * deep, None),
        (IN1, in1, bw * blocking.in0_block_w * deep, None),
        (OUT, out, bh * bw, None),
    ];
    if deep > 1 {
        found.push((PARTIALS, partials(wide), bh * bw, (partials(wide) == out).then_some(OUT)));
    }
    found
}

impl Layer {
    fn check(&self, simulator: &Simulator, wide: bool) -> Result<(), Error> {
        let spec = simulator.spec();
        let wrong = |what: String| Err(Error::Misused(format!("a layer's product: {what}")));
        let (columns, rows) = self.blocking.grid;
        let (x, y) = match self.spread {
            Spread::Grid => (columns, rows),
            Spread::Across(x, y) | Spread::Down(x, y) => (x, y),
        };
        // The grid itself is checked by the rest.
        Blocking { grid: (x, y), ..self.blocking }.check(spec, wide)?;
        let parts = u32::from(columns) * u32::from(rows);
        let line = match self.spread {
            Spread::Grid => true,
            Spread::Across(..) => rows == 1,
            Spread::Down(..) => columns == 1,
        };
        if !line || parts == 0 || parts > u32::from(x) * u32::from(y) {
            return wrong(format!("{columns} x {rows} parts, {:?}", self.spread));
        }
        let floats = [self.formats.0, self.formats.1, self.formats.2].iter().all(|format| format.is_float());
        if !floats && self.blocking.k > self.blocking.in0_block_w {
            return Err(Error::Unsupported(
                "partial sums of integers: the packer adds no integers in L1".into(),
            ));
        }
        let reach = self.epilogue.reach();
        let across = self.epilogue.norms.as_ref().map_or(1, |norms| norms.columns.div_ceil(32));
        if !self.blocking.out_block.1.is_multiple_of(reach) && self.blocking.out_block.1 < across {
            return wrong(format!(
                "output blocks of {} columns of tiles, norms reach over {reach}",
                self.blocking.out_block.1
            ));
        }
        Ok(())
    }

    /// The core of a part, and those that an operand goes to all of: area, receivers and the first core.
    fn core(&self, simulator: &Simulator, (x, y): (u16, u16)) -> CoreId {
        match self.spread {
            Spread::Grid => simulator.core(x, y),
            Spread::Across(wide, _) => simulator.core(x % wide, x / wide),
            Spread::Down(wide, _) => simulator.core(y % wide, y / wide),
        }
    }

    fn plan(&self, simulator: &Simulator, shared: &Rc<Shared>, (x, y): (u16, u16)) -> Plan {
        let place = |x, y| simulator.place(simulator.core(x, y));
        let own = self.core(simulator, (x, y));
        let (columns, rows) = self.blocking.grid;
        let alone = (Area { from: simulator.place(own), to: simulator.place(own), own: false }, 0);
        let all = |wide: u16, high: u16| {
            let area = Area { from: place(0, 0), to: place(wide - 1, high - 1), own: false };
            (area, u32::from(wide) * u32::from(high) - 1)
        };
        let zero = simulator.core(0, 0);
        let (row, column, row_start, column_start) = match self.spread {
            Spread::Grid => (
                (Area { from: place(0, y), to: place(columns - 1, y), own: false }, u32::from(columns) - 1),
                (Area { from: place(x, 0), to: place(x, rows - 1), own: false }, u32::from(rows) - 1),
                simulator.core(0, y),
                simulator.core(x, 0),
            ),
            Spread::Across(wide, high) => (all(wide, high), alone, zero, own),
            Spread::Down(wide, high) => (alone, all(wide, high), own, zero),
        };
        Plan { shared: Rc::clone(shared), at: (x, y), row, column, row_start, column_start }
    }

    /// The program.
    ///
    /// # Errors
    /// If the blocking does not fit the chip, or the epilogue the blocking.
    pub fn program(self, simulator: &Simulator, wide: bool) -> Result<Program, Error> {
        self.check(simulator, wide)?;
        let spec = simulator.spec();
        let blocking = self.blocking;
        let (columns, rows) = blocking.grid;
        let parts: Vec<_> = (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y))).collect();
        let cores: Vec<_> = parts.iter().map(|part| self.core(simulator, *part)).collect();
        let tile = |format: Format| format.tile_bytes() as u32;
        let most = registers(spec, wide);
        let order = Order::new(blocking.out_block, blocking.out_subblock, most, self.epilogue.spares());
        let mut program = Program { semaphores: SEMAPHORES.to_vec(), ..Program::default() };
        program.semaphores.extend([0; MORE_SEMAPHORES]);
        for (id, format, pages, shares) in room(&blocking, self.formats, wide) {
            let (page_bytes, cores) = (tile(format), cores.clone());
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
        let piece = order.piece.0 * order.piece.1;
        program.buffers.extend(self.epilogue.buffers(blocking.out_block, piece, &cores));
        let shared = Rc::new(Shared {
            order,
            tiles: (tile(self.formats.0), tile(self.formats.1), tile(self.formats.2)),
            n_tiles: blocking.per_core.1 * u32::from(columns),
            flush: spec.software.multicast_flush,
            shares: partials(wide) == self.formats.2,
            layer: self,
        });
        let layer = &shared.layer;
        for part in &parts {
            let plan = layer.plan(simulator, &shared, *part);
            let core = layer.core(simulator, *part);
            // The networks change roles in the right half, to spread what is read from DRAM; below each other all cores
            // read `in0`, by the network whose packets leave DRAM's columns first.
            let swap = u8::from(match layer.spread {
                Spread::Grid => part.0 > columns / 2 && part.1 > 0,
                Spread::Across(..) => false,
                Spread::Down(..) => true,
            });
            let mut launch = |role, noc, name: &str, body| {
                program.launches.push(Launch { core, role, noc, name: name.into(), kernel: body });
            };
            let (one, two, three) = (plan.clone(), plan.clone(), plan);
            launch(Role::DataMovement1, 1 - swap, "in0", kernel(move |api| in0(api, one)));
            launch(Role::DataMovement0, swap, "in1", kernel(move |api| in1_and_out(api, two)));
            launch(Role::Compute, 0, "compute", kernel(move |api| compute(api, three)));
        }
        // What goes to all cores of a rectangle goes also to those that have no part.
        let (wide, high) = match layer.spread {
            Spread::Grid => (0, 0),
            Spread::Across(wide, high) | Spread::Down(wide, high) => (wide, high),
        };
        for number in parts.len() as u16..(wide * high).max(parts.len() as u16) {
            let at = if matches!(layer.spread, Spread::Across(..)) { (number, 0) } else { (0, number) };
            let plan = layer.plan(simulator, &shared, at);
            let (role, noc) = match layer.spread {
                Spread::Across(..) => (Role::DataMovement1, 1),
                _ => (Role::DataMovement0, 1),
            };
            program.launches.push(Launch {
                core: layer.core(simulator, at),
                role,
                noc,
                name: "idle".into(),
                kernel: kernel(move |api| idle(api, plan)),
            });
        }
        Ok(program)
    }
}
