//! Block-sparse products on a grid of cores: as the dense ones, but dead tiles are neither read nor sent nor multiplied.
//!
//! Rows of cores share live tiles of the sparse `in0`, columns of cores share those rows of `in1`'s tiles that a live
//! tile of any row needs. Each core multiplies for its own live tiles, so rows of cores that have more of them hold up
//! the others at the next hand-over: imbalance shows.

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::numerics::Format;
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{Area, CoreId, Place, Verb};

use super::matmul::{
    Blocking, IN0, IN0_READY, IN0_VALID, IN1, IN1_READY, IN1_VALID, OUT, PARTIALS, receive, send,
};

/// Which tiles of `in0` exist: for each row of tiles the ascending columns of its live ones, whose pages follow each
/// other in DRAM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TilePattern {
    /// Columns of live tiles, row by row.
    pub columns: Vec<u32>,
    /// Where each row begins, and the end.
    pub starts: Vec<u32>,
}

impl TilePattern {
    /// Rows of tiles.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (u32, u32)> + '_ {
        let (from, end) = (self.starts[row] as usize, self.starts[row + 1] as usize);
        self.columns[from..end].iter().enumerate().map(move |(i, column)| (*column, (from + i) as u32))
    }

    /// # Errors
    /// If columns are not ascending, or outside of `inner` columns.
    pub fn check(&self, inner: u32) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Misused(format!("pattern of tiles: {what}")));
        let ends = self.starts.first() == Some(&0)
            && self.starts.last().copied() == u32::try_from(self.columns.len()).ok()
            && self.starts.windows(2).all(|two| two[0] <= two[1]);
        if !ends {
            return wrong(format!("starts must ascend from 0 to {}", self.columns.len()));
        }
        for row in 0..self.rows() {
            let mut before = None;
            for (column, _) in self.row(row) {
                if column >= inner || before.is_some_and(|before| before >= column) {
                    return wrong(format!("columns of row {row} must ascend and be below {inner}"));
                }
                before = Some(column);
            }
        }
        Ok(())
    }

    /// An order of rows in which every `each` of them have about the same number of live tiles.
    #[must_use]
    pub fn balanced(&self, groups: usize, each: usize) -> Vec<Option<u32>> {
        let mut rows: Vec<u32> = (0..self.rows() as u32).collect();
        let live = |row: u32| self.starts[row as usize + 1] - self.starts[row as usize];
        rows.sort_by_key(|row| std::cmp::Reverse(live(*row)));
        let mut parts: Vec<(u64, Vec<u32>)> = vec![(0, Vec::new()); groups];
        for row in rows {
            let open = parts.iter_mut().filter(|(_, part)| part.len() < each);
            if let Some(part) = open.min_by_key(|(load, part)| (*load, part.len())) {
                part.0 += u64::from(live(row));
                part.1.push(row);
            }
        }
        let mut order = Vec::with_capacity(groups * each);
        for (_, mut part) in parts {
            part.sort_unstable();
            order.extend(part.iter().copied().map(Some));
            order.resize(order.len().next_multiple_of(each.max(1)), None);
        }
        order.resize(groups * each, None);
        order
    }
}

/// A live tile of a block along K.
#[derive(Debug, Clone, Copy)]
struct Live {
    /// Row within the output block, and column within the block along K.
    row: u32,
    column: u32,
    page: u32,
}

/// What is live in one block along K.
#[derive(Debug, Clone, Default)]
struct Part {
    block: u32,
    /// Columns within the block that some row of cores needs.
    needed: Vec<u32>,
    /// For each row of cores its live tiles, row by row.
    live: Vec<Vec<Live>>,
}

/// What all kernels of a product know.
struct Shared {
    blocking: Blocking,
    tile: u32,
    out_tile: u32,
    buffers: (u16, u16, u16),
    /// For each output block along M, what is live along K.
    parts: Vec<Vec<Part>>,
    /// The row of tiles of the output at each place, where there is one.
    order: Vec<Option<u32>>,
    n_tiles: u32,
    k_tiles: u32,
    flush: bool,
    /// Partial sums and the output have one place.
    shares: bool,
    /// Cycles to look up an entry of a list in L1.
    look: f64,
}

#[derive(Clone)]
struct Plan {
    shared: Rc<Shared>,
    at: (u16, u16),
    row: Area,
    column: Area,
    row_start: CoreId,
    column_start: CoreId,
}

impl Plan {
    /// Output blocks in order: number along M, and first column of tiles in the core's part.
    fn blocks(&self) -> impl Iterator<Item = (usize, u32)> + use<> {
        let Blocking { per_core, out_block, .. } = self.shared.blocking;
        let (down, across) = (per_core.0 / out_block.0, per_core.1 / out_block.1);
        (0..down as usize).flat_map(move |i| (0..across).map(move |j| (i, j * out_block.1)))
    }
}

async fn in0(api: Api, plan: Plan) {
    let shared = Rc::clone(&plan.shared);
    let Blocking { grid, out_block, in0_block_w, .. } = shared.blocking;
    let pages = out_block.0 * in0_block_w;
    for (i, _) in plan.blocks() {
        for part in &shared.parts[i] {
            let live = &part.live[usize::from(plan.at.1)];
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
    }
    api.noc_async_write_barrier().await;
}

async fn in1_and_out(api: Api, plan: Plan) {
    let shared = Rc::clone(&plan.shared);
    let Blocking { grid, per_core, out_block, in0_block_w, out_subblock: (_, w), .. } = shared.blocking;
    let (rows, pages) = (u32::from(grid.1), in0_block_w * out_block.1);
    let n = u32::from(plan.at.0) * per_core.1;
    for (i, j) in plan.blocks() {
        for part in &shared.parts[i] {
            api.cb_reserve_back(IN1, pages).await;
            if plan.at.1 == 0 {
                let start = api.get_write_ptr(IN1).await;
                let mut to = start;
                for column in &part.needed {
                    api.cycles(shared.look).await;
                    let first = (part.block * in0_block_w + column) * shared.n_tiles + n + j;
                    for page in first..first + out_block.1 {
                        let place = Place::Dram { buffer: shared.buffers.1, page, offset: 0 };
                        api.noc_async_read(place, to, shared.tile).await;
                        to += shared.tile;
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
        let first = usize::from(plan.at.1) * per_core.0 as usize + i * out_block.0 as usize;
        for row in first..first + out_block.0 as usize {
            for over in (0..out_block.1).step_by(w as usize) {
                api.cb_wait_front(OUT, w).await;
                let mut from = api.get_read_ptr(OUT).await;
                if let Some(row) = shared.order[row] {
                    for c in 0..w {
                        let page = row * shared.n_tiles + n + j + over + c;
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
    api.noc_async_write_barrier().await;
}

async fn compute(api: Api, plan: Plan) {
    let shared = Rc::clone(&plan.shared);
    let Blocking { out_block: (bh, bw), in0_block_w: kw, out_subblock: (_, w), .. } = shared.blocking;
    let (in0_pages, in1_pages, out_pages) = (bh * kw, kw * bw, bh * bw);
    let own = usize::from(plan.at.1);
    for (i, _) in plan.blocks() {
        let all = shared.parts[i].iter().filter(|part| !part.live[own].is_empty()).count();
        let mut done = 0;
        for part in &shared.parts[i] {
            let live = &part.live[own];
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
                            api.cycles(shared.look).await;
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
            // Registers are zero when they are acquired.
            for _ in (0..bh * bw).step_by(w as usize) {
                api.tile_regs_acquire().await;
                api.tile_regs_commit().await;
                api.cb_reserve_back(OUT, w).await;
                api.tile_regs_wait().await;
                api.pack_tiles(0, OUT, 0, w).await;
                api.tile_regs_release().await;
                api.cb_push_back(OUT, w).await;
            }
        }
    }
}

/// The program of `in0 @ in1`, where `in0` has the tiles of a pattern in its buffer and `in1` and the output are dense.
///
/// # Errors
/// If the blocking does not fit the chip or the pattern.
pub fn program(
    simulator: &Simulator,
    blocking: &Blocking,
    pattern: &TilePattern,
    (format, out_format): (Format, Format),
    buffers: (u16, u16, u16),
    wide: bool,
) -> Result<Program, Error> {
    let spec = simulator.spec();
    blocking.check(spec, wide)?;
    pattern.check(blocking.k)?;
    let (columns, rows) = blocking.grid;
    let (bh, bw) = blocking.out_block;
    if blocking.out_subblock.0 != 1 {
        return Err(Error::Misused(format!(
            "subblocks of {:?} tiles: of one row here",
            blocking.out_subblock
        )));
    }
    let order = pattern.balanced(usize::from(rows), blocking.per_core.0 as usize);
    if pattern.rows() > order.len() {
        let room = order.len();
        return Err(Error::Misused(format!("{} rows of tiles, cores have {room}", pattern.rows())));
    }
    let partial = if wide { Format::Float32 } else { Format::Bfloat16 };
    let shared = Rc::new(Shared {
        blocking: *blocking,
        tile: format.tile_bytes() as u32,
        out_tile: out_format.tile_bytes() as u32,
        buffers,
        parts: parts(blocking, pattern, &order),
        order,
        n_tiles: blocking.per_core.1 * u32::from(columns),
        k_tiles: blocking.k,
        flush: spec.software.multicast_flush,
        shares: partial == out_format,
        look: spec.software.l1_load * 2.0,
    });
    let cores: Vec<_> = (0..rows).flat_map(|y| (0..columns).map(move |x| simulator.core(x, y))).collect();
    let mut program = Program { semaphores: vec![0, 0, 0, 0, 1], ..Program::default() };
    let kw = shared.blocking.in0_block_w;
    let deep = if shared.k_tiles > kw { 2 } else { 1 };
    // A core may be done before others have what they need: all of its output has room then.
    for (id, format, pages, shares) in [
        (IN0, format, bh * kw * deep, None),
        (IN1, format, kw * bw * deep, None),
        (OUT, out_format, bh * bw, None),
        (PARTIALS, partial, bh * bw, shared.shares.then_some(OUT)),
    ] {
        let (page_bytes, cores) = (format.tile_bytes() as u32, cores.clone());
        program.buffers.push(CircularBuffer { id, cores, format, page_bytes, pages, address: None, shares });
    }
    let place = |x, y| simulator.place(simulator.core(x, y));
    for y in 0..rows {
        for x in 0..columns {
            let plan = Plan {
                shared: Rc::clone(&shared),
                at: (x, y),
                row: Area { from: place(0, y), to: place(columns - 1, y), own: false },
                column: Area { from: place(x, 0), to: place(x, rows - 1), own: false },
                row_start: simulator.core(0, y),
                column_start: simulator.core(x, 0),
            };
            let core = simulator.core(x, y);
            let swap = x > columns / 2 && y > 0;
            let mut launch = |role, noc, name: &str, body| {
                program.launches.push(Launch { core, role, noc, name: name.into(), kernel: body });
            };
            let (first, second, third) = (plan.clone(), plan.clone(), plan);
            launch(Role::DataMovement1, 1 - u8::from(swap), "in0", kernel(move |api| in0(api, first)));
            launch(Role::DataMovement0, u8::from(swap), "in1", kernel(move |api| in1_and_out(api, second)));
            launch(Role::Compute, 0, "compute", kernel(move |api| compute(api, third)));
        }
    }
    Ok(program)
}

/// What is live in each output block along M and each block along K; blocks of which nothing is live are left out.
fn parts(blocking: &Blocking, pattern: &TilePattern, order: &[Option<u32>]) -> Vec<Vec<Part>> {
    let kw = blocking.in0_block_w;
    let (rows, per_core, bh) = (usize::from(blocking.grid.1), blocking.per_core.0, blocking.out_block.0);
    let blank = || (0..blocking.k / kw).map(|block| Part { block, needed: vec![], live: vec![vec![]; rows] });
    let mut all: Vec<Vec<Part>> = (0..per_core / bh).map(|_| blank().collect()).collect();
    for (place, row) in order.iter().enumerate() {
        let (y, within) = (place / per_core as usize, place as u32 % per_core);
        let Some(row) = row else { continue };
        for (column, page) in pattern.row(*row as usize) {
            let part = &mut all[(within / bh) as usize][(column / kw) as usize];
            part.live[y].push(Live { row: within % bh, column: column % kw, page });
            part.needed.push(column % kw);
        }
    }
    for parts in &mut all {
        for part in parts.iter_mut() {
            part.needed.sort_unstable();
            part.needed.dedup();
        }
        parts.retain(|part| !part.needed.is_empty());
    }
    all
}
