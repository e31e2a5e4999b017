//! How products of layers are cut, and what that is predicted to take.
//!
//! The prediction is arithmetic on the chip's own figures: of what each block along K takes the matrix unit, the cores that
//! read and send it, and DRAM, the slowest counts, and what comes before the first block and after the last one is added.
//! It only chooses; how long a product takes comes out of running it.

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::numerics::{Fidelity, Format};

use super::epilogue::{Epilogue, Order};
use super::layer::{Formats, Spread, partials, registers, room};
use super::matmul::Blocking;

/// Share of the DRAM channels' rate that readers of all cores get.
const DRAM_SHARE: f64 = 0.9;
/// Tiles of K in a block, at most.
const WIDEST: u32 = 16;
/// Padding of a core's part that is worth better divisors: an eighth of it.
const PADDING: u32 = 8;
/// Tiles that a list's reader asks for at once (`streams`).
const CHUNK: f64 = 8.0;
/// Runs of pages that are looked at to see how they are spread over channels: the pattern repeats.
const SAMPLE: usize = 96;
/// Tiles along a side: above any chip's memory, and few enough to look at all divisors.
const MOST: u32 = 1 << 20;

/// A product that is to be cut.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Tiles along m, k and n.
    pub tiles: (u32, u32, u32),
    /// Formats of operands and result.
    pub formats: Formats,
    /// Sums in 32 bits.
    pub wide: bool,
    /// Of products.
    pub fidelity: Fidelity,
    /// What happens to sums.
    pub epilogue: &'a Epilogue,
}

/// A way to cut a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// Blocks and parts.
    pub blocking: Blocking,
    /// Where parts are.
    pub spread: Spread,
    /// Cycles that this is predicted to take.
    pub cycles: f64,
}

/// What a chip's parts take, in cycles.
struct Costs {
    /// From asking for a page to its arrival, beside its bytes.
    latency: f64,
    /// A core that is ready to the block having been sent, beside its bytes.
    handshake: f64,
    /// A read or a write of a page, at least.
    page: f64,
    /// Bytes a cycle that a core reads, and that it sends.
    read: f64,
    send: f64,
    /// Bytes a cycle of all channels.
    dram: f64,
    math: f64,
    unpack: f64,
    pairs: bool,
    pack: f64,
    vector: f64,
}

impl Costs {
    fn new(spec: &ChipSpec, fidelity: Fidelity) -> Self {
        let (software, noc, matrix) = (&spec.software, &spec.noc, &spec.matrix);
        let way = f64::from(spec.grid.columns + spec.grid.rows) * noc.hop_cycles;
        let flit = f64::from(noc.flit_bytes);
        let phases = fidelity.phases() as f64;
        Self {
            latency: spec.dram.latency_cycles + noc.read_turnaround_cycles + way + software.barrier,
            handshake: way
                + software.multicast
                + 2.0 * (software.semaphore_inc + software.semaphore_set + software.semaphore_wait)
                + software.cb_reserve
                + software.cb_push,
            page: software.read + software.page_address,
            read: flit * noc.read_rate,
            send: flit * noc.write_rate,
            dram: spec.dram.channels.len() as f64 * spec.dram.read_bytes_per_cycle * DRAM_SHARE,
            math: phases * (matrix.tile_cycles + matrix.phase_cycles) + matrix.product_cycles,
            unpack: spec.unpack.bytes_per_cycle,
            pairs: spec.unpack.pairs,
            pack: spec.pack.bytes_per_cycle,
            vector: matrix.vector_cycles,
        }
    }

    /// A core reads so many pages.
    fn pages(&self, pages: f64, bytes: f64) -> f64 {
        pages * self.page.max(bytes / self.read)
    }

    /// Products of one step along K of a subblock: math, or unpacking where that is slower. The operand with fewer tiles is
    /// held, the other one's come for each of its tiles, or for each two.
    fn step(&self, (h, w): (u32, u32), (b0, b1): (f64, f64)) -> f64 {
        let (held, stream, each, other) = if w >= h { (b0, b1, h, w) } else { (b1, b0, w, h) };
        let turns = if self.pairs { each.div_ceil(2) } else { each };
        let held = f64::from(each) * held / self.unpack;
        let stream = f64::from(turns * other) * stream / self.unpack;
        (f64::from(h * w) * self.math).max(held).max(stream)
    }
}

/// How many times as long DRAM takes for pages because they are not spread over all channels: `runs` of `length` pages that
/// are read at once.
fn crowding(channels: usize, runs: impl Iterator<Item = u64>, length: u32) -> f64 {
    let (mut load, mut all) = (vec![0_u32; channels], 0);
    for first in runs.take(SAMPLE) {
        for page in first..first + u64::from(length.min(channels as u32)) {
            load[(page % channels as u64) as usize] += 1;
            all += 1;
        }
    }
    let most = load.iter().copied().max().unwrap_or(0);
    if all == 0 { 1.0 } else { f64::from(most) * channels as f64 / f64::from(all) }
}

fn bytes(format: Format) -> f64 {
    format.tile_bytes() as f64
}

fn divisors(of: u32) -> impl Iterator<Item = u32> {
    (1..=of).filter(move |part| of.is_multiple_of(*part))
}

/// Tiles of a part where `cores` share a length, in whole `unit`s: as few as there are, and some more.
fn parts(length: u32, cores: u32, unit: u32) -> impl Iterator<Item = u32> {
    let least = length.div_ceil(cores.max(1)).next_multiple_of(unit.max(1));
    (least..=least + least / PADDING).step_by(unit.max(1) as usize)
}

impl Request<'_> {
    fn bytes_of_l1(&self, blocking: &Blocking, piece: u32) -> u64 {
        let own = room(blocking, self.formats, self.wide);
        let own = own.iter().filter(|(_, _, _, shares)| shares.is_none());
        let own: u64 = own.map(|(_, format, pages, _)| u64::from(*pages) * format.tile_bytes() as u64).sum();
        own + self.epilogue.bytes(blocking.out_block, piece)
    }

    /// Cycles that a cut is predicted to take.
    #[must_use]
    pub fn predict(&self, spec: &ChipSpec, blocking: &Blocking, spread: Spread) -> f64 {
        let costs = Costs::new(spec, self.fidelity);
        let ((bh, bw), kw) = (blocking.out_block, blocking.in0_block_w);
        let (h, w) = (f64::from(bh), f64::from(bw));
        let (b0, b1, out) = (bytes(self.formats.0), bytes(self.formats.1), bytes(self.formats.2));
        let (columns, rows) = (f64::from(blocking.grid.0), f64::from(blocking.grid.1));
        let (sh, sw) = blocking.out_subblock;
        let subblocks = h * w / f64::from(sh * sw);
        let k = f64::from(kw);
        // What a block along K takes each part of a core, and DRAM.
        let math = subblocks * (k * costs.step((sh, sw), (b0, b1)) + 30.0);
        let pack = if blocking.k > kw { h * w * bytes(partials(self.wide)) / costs.pack } else { 0.0 };
        let send = |shared: bool, bytes: f64| {
            if shared { bytes / costs.send + costs.handshake } else { costs.page }
        };
        let (to_row, to_column) = match spread {
            Spread::Grid => (columns > 1.0, rows > 1.0),
            Spread::Across(..) => (true, false),
            Spread::Down(..) => (false, true),
        };
        let all = columns * rows;
        let read0 = if to_row { rows } else { all } * h * k * b0;
        let read1 = if to_column { columns } else { all } * w * k * b1;
        let channels = spec.dram.channels.len();
        let (inner, n_tiles) =
            (u64::from(blocking.k), u64::from(blocking.per_core.1 * u32::from(blocking.grid.0)));
        // Two blocks are under way at once.
        let lines = 0..2 * u64::from(kw);
        let per_core = (u64::from(blocking.per_core.0), u64::from(blocking.per_core.1));
        let of_part = |y: u64| (0..u64::from(bh)).map(move |i| (y * per_core.0 + i) * inner);
        let crowd0 = crowding(channels, (0..u64::from(blocking.grid.1)).flat_map(of_part), 2 * kw);
        let of_line =
            |line: u64| (0..u64::from(blocking.grid.0)).map(move |x| line * n_tiles + x * per_core.1);
        let crowd1 = crowding(channels, lines.flat_map(of_line), bw);
        let dram = (read0 * crowd0 + read1 * crowd1) / costs.dram;
        // On a grid `in0` comes to one column of cores over links of two columns of routers; the one core that reads for
        // all others has the same share of DRAM as each of them.
        let (least0, least1) = match spread {
            Spread::Grid => (read0 / (2.0 * costs.read), 0.0),
            Spread::Across(..) => (dram.min((all + 1.0) * h * k * b0 / costs.dram), 0.0),
            Spread::Down(..) => (0.0, dram.min((all + 1.0) * w * k * b1 / costs.dram)),
        };
        let in0 = costs.pages(h * k, b0).max(least0) + costs.latency + send(to_row, h * k * b0);
        let in1 = costs.pages(w * k, b1).max(least1) + costs.latency + send(to_column, w * k * b1);
        let block = math.max(pack).max(in0).max(in1).max(dram);
        // What is done once for an output block.
        let beside = self.epilogue.bytes_beside() as f64;
        let last = (h * w * self.epilogue.passes() * costs.vector)
            .max(h * w * beside / costs.read + costs.latency)
            .max(all * h * w * beside / costs.dram);
        let written = costs.pages(h * w, out).max(all * h * w * out / costs.dram) + costs.latency;
        // Two threads find norms.
        let norms = h * w * self.epilogue.norm_cycles() / 2.0;
        let blocks = f64::from(blocking.per_core.0 / bh) * f64::from(blocking.per_core.1 / bw);
        blocks * (f64::from(blocking.k / kw) * block + in0.max(in1) + last + written + norms)
    }

    /// Whether a way to cut fits L1, with the largest subblocks; and what it would take.
    fn with_subblock(&self, spec: &ChipSpec, start: Blocking, spread: Spread) -> Option<Cut> {
        let most = registers(spec, self.wide);
        let mut best: Option<Cut> = None;
        for h in divisors(start.out_block.0).filter(|h| *h <= most) {
            for w in divisors(start.out_block.1).filter(|w| h * *w <= most) {
                let blocking = Blocking { out_subblock: (h, w), ..start };
                let order = Order::new(blocking.out_block, (h, w), most, self.epilogue.spares());
                if self.bytes_of_l1(&blocking, order.piece.0 * order.piece.1) > u64::from(room_of(spec)) {
                    continue;
                }
                let cycles = self.predict(spec, &blocking, spread);
                keep(&mut best, Some(Cut { blocking, spread, cycles }));
            }
        }
        best
    }

    /// The best cut of parts of so many tiles.
    fn blocks(&self, spec: &ChipSpec, per_core: (u32, u32), grid: (u16, u16), spread: Spread) -> Option<Cut> {
        let reach = self.epilogue.reach();
        let mut best: Option<Cut> = None;
        for bh in divisors(per_core.0) {
            for bw in divisors(per_core.1).filter(|bw| bw.is_multiple_of(reach)) {
                for kw in 1..=WIDEST.min(self.tiles.1) {
                    let k = self.tiles.1.next_multiple_of(kw);
                    // Padding along K is multiplied too.
                    if (k - self.tiles.1) * 2 * PADDING > self.tiles.1 {
                        continue;
                    }
                    let start = Blocking {
                        grid,
                        k,
                        per_core,
                        in0_block_w: kw,
                        out_block: (bh, bw),
                        out_subblock: (1, 1),
                    };
                    let found = self.with_subblock(spec, start, spread);
                    if let Some(found) = found.filter(|one| best.is_none_or(|best| one.cycles < best.cycles))
                    {
                        best = Some(found);
                    }
                }
            }
        }
        best
    }

    fn check(&self) -> Result<(), Error> {
        let (m, k, n) = self.tiles;
        if [m, k, n].iter().any(|side| *side == 0 || *side > MOST) {
            return Err(Error::Misused(format!(
                "a product of ({m}, {k}, {n}) tiles: at least 1 and at most {MOST} along a side"
            )));
        }
        Ok(())
    }

    /// The cut on a grid that is predicted to take the least time, if any fits.
    fn grid(&self, spec: &ChipSpec) -> Option<Cut> {
        let (m, _, n) = self.tiles;
        let [x, y] = spec.workers.compute_grid;
        let mut best = None;
        for down in parts(m, u32::from(y), 1) {
            for across in parts(n, u32::from(x), self.epilogue.reach()) {
                let grid = (used(n, across), used(m, down));
                keep(&mut best, self.blocks(spec, (down, across), grid, Spread::Grid));
            }
        }
        best
    }

    /// The cut into parts side by side, or below each other, that is predicted to take the least time, if any fits.
    ///
    /// Only for results with few rows or columns of tiles, at most twice the cores along a side of the grid: of larger ones
    /// a core would have whole rows or columns, and one core would send nearly all there is.
    ///
    /// # Errors
    /// If the product is empty.
    pub fn line(&self, spec: &ChipSpec) -> Result<Option<Cut>, Error> {
        self.check()?;
        let ((m, _, n), reach) = (self.tiles, self.epilogue.reach());
        let [x, y] = spec.workers.compute_grid;
        let all = u32::from(x) * u32::from(y);
        if m.min(n) > 2 * u32::from(x.max(y)) {
            return Ok(None);
        }
        let rectangle = |count: u16| (count.min(x), count.div_ceil(x));
        let mut best = None;
        for across in parts(n, all, reach) {
            let count = used(n, across);
            let (wide, high) = rectangle(count);
            keep(&mut best, self.blocks(spec, (m, across), (count, 1), Spread::Across(wide, high)));
        }
        for down in parts(m, all, 1) {
            let (count, across) = (used(m, down), n.next_multiple_of(reach));
            let (wide, high) = rectangle(count);
            keep(&mut best, self.blocks(spec, (down, across), (1, count), Spread::Down(wide, high)));
        }
        Ok(best)
    }

    /// The cut that is predicted to take the least time, of all that fit: on a grid, or on a line if that takes less.
    ///
    /// # Errors
    /// If the product is empty, or nothing fits L1.
    pub fn choose(&self, spec: &ChipSpec) -> Result<Cut, Error> {
        let mut best = None;
        let line = self.line(spec)?;
        keep(&mut best, self.grid(spec));
        keep(&mut best, line);
        best.ok_or_else(|| {
            let (m, k, n) = self.tiles;
            Error::Misused(format!(
                "L1 overflow: no blocks of a product of ({m}, {k}, {n}) tiles fit into {} B of {}",
                room_of(spec),
                spec.name
            ))
        })
    }

    /// Cycles that the same product is predicted to take by lists ([`super::streams`]), where cores share nothing, and
    /// so many tiles of the result are wanted.
    #[must_use]
    pub fn lists(&self, spec: &ChipSpec, wanted: f64) -> f64 {
        let costs = Costs::new(spec, self.fidelity);
        let most = if self.epilogue.norms.is_some() { 1 } else { registers(spec, self.wide).min(4) };
        let most = if most > 1 { most - self.epilogue.spares() } else { 1 };
        let width = divisors(self.tiles.2).filter(|width| *width <= most).last().unwrap_or(1);
        let (b0, b1, out) = (bytes(self.formats.0), bytes(self.formats.1), bytes(self.formats.2));
        let [x, y] = spec.workers.compute_grid;
        let cores = f64::from(x) * f64::from(y);
        let (w, k) = (f64::from(width), f64::from(self.tiles.1));
        let groups = wanted / w;
        // The busiest core's.
        let own = (groups / cores).ceil();
        let beside = self.epilogue.bytes_beside() as f64;
        let pages = k * (1.0 + w);
        let each = (costs.pages(k, b0) + costs.pages(k * w, b1)) + pages / CHUNK * costs.latency;
        let reading = own * (each + costs.pages(w, beside) + costs.latency);
        let dram = groups * (k * (b0 + w * b1) + w * (out + beside)) / costs.dram;
        let math = own * k * costs.step((1, width), (b0, b1));
        reading.max(dram).max(math).max(own * w * self.epilogue.norm_cycles()) + costs.latency
    }
}

/// Keeps the better one of two cuts.
fn keep(best: &mut Option<Cut>, found: Option<Cut>) {
    if let Some(found) = found.filter(|one| best.is_none_or(|best| one.cycles < best.cycles)) {
        *best = Some(found);
    }
}

/// Parts of so many tiles that a length has.
fn used(length: u32, part: u32) -> u16 {
    u16::try_from(length.div_ceil(part)).unwrap_or(u16::MAX)
}

fn room_of(spec: &ChipSpec) -> u32 {
    spec.l1.bytes - spec.l1.reserved
}
