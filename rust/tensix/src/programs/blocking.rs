//! How a product is cut where nobody says how: as Tenstorrent's benchmark does it, or as its library does.

use std::cmp::Reverse;

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::numerics::Format;
use crate::programs::epilogue::Epilogue;
use crate::programs::matmul::{Blocking, Operands};

/// Configurations of the benchmark by format and shape of a core's part
/// (tenstorrent/tt-metal: tests/ttnn/unit_tests/benchmarks/test_benchmark.py).
const RULES: &str = include_str!("../../rules/matmul.csv");

/// Subblocks in order of preference (tenstorrent/tt-metal: matmul_program_config.cpp).
const SUBBLOCKS: [(u32, u32); 20] = [
    (4, 2),
    (2, 4),
    (8, 1),
    (1, 8),
    (7, 1),
    (1, 7),
    (3, 2),
    (2, 3),
    (6, 1),
    (1, 6),
    (5, 1),
    (1, 5),
    (2, 2),
    (4, 1),
    (1, 4),
    (3, 1),
    (1, 3),
    (2, 1),
    (1, 2),
    (1, 1),
];

/// Tiles along a side of a product: above any chip's memory, and few enough to look at all divisors.
const MOST: u32 = 1 << 20;

/// A product that is to be cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Tiles along m, k and n.
    pub tiles: (u32, u32, u32),
    /// Cores along n and along m.
    pub grid: (u16, u16),
    /// Where operands lie, and in what format.
    pub operands: Operands,
    /// Sums in 32 bits.
    pub wide: bool,
    /// As the benchmark is tuned; otherwise as the library chooses when it is given no configuration.
    pub tuned: bool,
}

/// Divisors, the largest first.
fn divisors(of: u32) -> impl Iterator<Item = u32> {
    (1..=of).rev().filter(move |part| of.is_multiple_of(*part))
}

/// What the benchmark has for a core's part in tiles: divisor of K tiles, blocks of the output down and across.
fn rule(format: Format, part: (u32, u32, u32)) -> Option<[u32; 3]> {
    RULES.lines().skip(1).find_map(|line| {
        let mut cells = line.split(',');
        let named = cells.next()?.to_lowercase() == format.name();
        let figures: Vec<u32> = cells.filter_map(|cell| cell.trim().parse().ok()).collect();
        let [m, k, n, rest @ ..] = figures.as_slice() else { return None };
        if !named || (*m, *k, *n) != (part.0 * 32, part.1 * 32, part.2 * 32) {
            return None;
        }
        rest.try_into().ok()
    })
}

/// Cuts a block-sparse product; formats are those of both operands and of the output.
///
/// Rows of `in1` are sent down the columns of cores once for each output block along M, and that is what a sparse product
/// waits for: so the output blocks are as high as fit, and then as wide.
///
/// # Errors
/// If the product is empty, or not even single tiles fit.
pub fn sparse(
    spec: &ChipSpec,
    tiles: (u32, u32, u32),
    grid: (u16, u16),
    formats: (Format, Format, Format),
    wide: bool,
    epilogue: &Epilogue,
) -> Result<Blocking, Error> {
    sparse_beside(spec, tiles, grid, formats, wide, epilogue, 0)
}

/// The same, where other things take so many bytes of L1.
pub(super) fn sparse_beside(
    spec: &ChipSpec,
    (m, k, n): (u32, u32, u32),
    grid: (u16, u16),
    (in0, in1, out_format): (Format, Format, Format),
    wide: bool,
    epilogue: &Epilogue,
    beside: u64,
) -> Result<Blocking, Error> {
    let (columns, rows) = (u32::from(grid.0), u32::from(grid.1));
    if [m, k, n, columns, rows].contains(&0) || [m, k, n].iter().any(|side| *side > MOST) {
        return Err(Error::Misused(format!("a product of ({m}, {k}, {n}) tiles on {grid:?} cores")));
    }
    let per_core = (m.div_ceil(rows), n.div_ceil(columns));
    let most = spec.matrix.dst_tiles / if wide { 2 } else { 1 };
    let partial = if wide { Format::Float32 } else { Format::Bfloat16 };
    let room = u64::from(spec.l1.bytes - spec.l1.reserved).saturating_sub(beside);
    for h in divisors(per_core.0) {
        for w in divisors(per_core.1) {
            for in0_block_w in divisors(k).filter(|part| *part <= 8) {
                let several = if k > in0_block_w { 2 } else { 1 };
                let tile = |format: Format| format.tile_bytes() as u64;
                let mut bytes = u64::from(h * in0_block_w) * several * tile(in0);
                bytes += u64::from(w * in0_block_w) * several * tile(in1);
                bytes += u64::from(h * w) * tile(out_format) + epilogue.bytes((h, w), most);
                if partial != out_format {
                    bytes += u64::from(h * w) * tile(partial);
                }
                if bytes <= room {
                    let across = divisors(w).find(|part| *part <= most).unwrap_or(1);
                    return Ok(Blocking {
                        grid,
                        k,
                        per_core,
                        in0_block_w,
                        out_block: (h, w),
                        out_subblock: (1, across),
                    });
                }
            }
        }
    }
    Err(Error::Misused(format!(
        "L1 overflow: no blocks of {per_core:?} x {k} tiles a core fit into {room} B"
    )))
}

impl Request {
    /// Bytes of L1 that a core needs.
    fn l1_bytes(&self, blocking: &Blocking) -> u64 {
        let bytes = |tiles: u64, format: Format| tiles.saturating_mul(format.tile_bytes() as u64);
        let (h, w) = (u64::from(blocking.out_block.0), u64::from(blocking.out_block.1));
        let (format, kw) = (self.operands.format, u64::from(blocking.in0_block_w));
        let several = blocking.k > blocking.in0_block_w;
        let mut sum = bytes((h + w) * kw * if several { 2 } else { 1 }, format) + bytes(h * w, format);
        let partial = if self.wide { Format::Float32 } else { Format::Bfloat16 };
        // The library counts partial sums also where they share the output's place.
        if several && (partial != format || !self.tuned) {
            sum += bytes(h * w, partial);
        }
        if self.operands.in0_sharded {
            let across = blocking.k.div_ceil(u32::from(self.grid.0));
            sum += bytes(u64::from(blocking.per_core.0) * u64::from(across), format);
        }
        sum
    }

    fn with_subblock(&self, spec: &ChipSpec, blocking: Blocking) -> Blocking {
        let most = spec.matrix.dst_tiles / if self.wide { 2 } else { 1 };
        let (rows, columns) = blocking.out_block;
        let out_subblock = SUBBLOCKS
            .into_iter()
            .find(|(h, w)| {
                h * w <= most
                    && rows.is_multiple_of(*h)
                    && columns.is_multiple_of(*w)
                    && (*h == 1 || !self.operands.out_sharded)
            })
            .unwrap_or((1, 1));
        Blocking { out_subblock, ..blocking }
    }

    /// Pairs of out-block sizes, those with more tiles first, of these the ones closer to a square, then the lower ones.
    fn out_blocks(&self, per_core: (u32, u32)) -> Vec<(u32, u32)> {
        if self.operands.in0_sharded || self.operands.out_sharded {
            return vec![per_core];
        }
        let mut pairs: Vec<_> =
            divisors(per_core.0).flat_map(|h| divisors(per_core.1).map(move |w| (h, w))).collect();
        pairs.sort_by_key(|(h, w)| (Reverse(u64::from(*h) * u64::from(*w)), h.abs_diff(*w), *h));
        pairs
    }

    /// Cycles in which a core's busiest unit or the memory is done, where all that can overlap does; and tiles that a core
    /// gets, of which fewer are better where the cycles are the same.
    ///
    /// Of the matrix unit it takes the rate of LoFi, so that the cut is good for every fidelity. Senders count twice: blocks
    /// of both operands come from the same channels of memory, and what has to be ready at every step must not be busy
    /// all the time (with a factor of 1, bfloat16 products of 6144 on n150 and of 8192 on p150 take 15 % longer).
    fn takes(&self, spec: &ChipSpec, blocking: &Blocking) -> (f64, f64) {
        let Blocking { per_core, in0_block_w, out_block: (h, w), out_subblock: (down, across), k, .. } =
            *blocking;
        let pairs = |a: u32, b: u32| f64::from(a) * f64::from(b);
        let bytes = self.operands.format.tile_bytes() as f64;
        let partial = if self.wide { Format::Float32 } else { Format::Bfloat16 };
        let (columns, rows) = self.grid;
        // A step multiplies one block along K into one block of the output.
        let products = pairs(h, w) * f64::from(in0_block_w);
        let math = products * (spec.matrix.tile_cycles + spec.matrix.phase_cycles);
        let unpack = {
            let (larger, both) = (f64::from(down.max(across)), f64::from(down + across));
            let once = larger * bytes / spec.unpack.bytes_per_cycle;
            products / pairs(down, across) * once.max(both * bytes / spec.unpack.joint_bytes_per_cycle)
        };
        let packed = partial.tile_bytes() as f64 / spec.pack.accumulate_bytes_per_cycle;
        let pack = pairs(h, w) * (packed + spec.pack.tile_cycles);
        // Between two subblocks registers change hands and the result is announced.
        let software = &spec.software;
        let change = 4.0 * software.tile_regs + software.cb_reserve + software.cb_push;
        let changes = pairs(h / down, w / across) * change;
        // One core reads a block, tile by tile, sends it to the others of its line, and waits for them.
        let line = f64::from(columns.max(rows)) * spec.noc.hop_cycles;
        let latency = spec.dram.latency_cycles + 4.0 * line;
        let sent = bytes / f64::from(spec.noc.flit_bytes);
        let read = sent.max(software.read + software.page_address);
        let send = latency + pairs(h.max(w), in0_block_w) * (read + sent);
        let blocks = pairs(per_core.0 / h, per_core.1 / w);
        let steps = blocks * f64::from(k / in0_block_w);
        let received = blocks * pairs(h + w, k);
        let in0 = if self.operands.in0_sharded { 0.0 } else { pairs(h, rows.into()) };
        let of_lines = blocks * f64::from(k) * (in0 + pairs(w, columns.into())) * bytes;
        let memory = of_lines / (spec.dram.channels.len() as f64 * spec.dram.read_bytes_per_cycle);
        ((steps * (math.max(unpack).max(pack) + changes).max(2.0 * send)).max(memory), received)
    }

    /// Cuts the product. Parts that do not divide are padded up.
    ///
    /// Without tuning the search is the library's own: the widest block along K for which some block of the output fits
    /// L1, with the largest such block. Where the benchmark has no configuration for the shape of a tuned product, it is
    /// what keeps the units and the networks busy for the least time.
    ///
    /// # Errors
    /// If the product is empty, or not even single tiles fit.
    pub fn choose(&self, spec: &ChipSpec) -> Result<Blocking, Error> {
        let ((m, k, n), (columns, rows)) = (self.tiles, (u32::from(self.grid.0), u32::from(self.grid.1)));
        let (tiles, grid) = (self.tiles, self.grid);
        if [m, k, n, columns, rows].contains(&0) {
            return Err(Error::Misused(format!("a product of {tiles:?} tiles on {grid:?} cores is empty")));
        }
        if [m, k, n].iter().any(|side| *side > MOST) {
            return Err(Error::Misused(format!("a product of {tiles:?} tiles: at most {MOST} along a side")));
        }
        let per_core = (m.div_ceil(rows), n.div_ceil(columns));
        // A shard has the same number of K tiles on each core.
        let k = if self.operands.in0_sharded { k.next_multiple_of(columns) } else { k };
        let room = u64::from(spec.l1.bytes - spec.l1.reserved);
        let fits = |blocking: &Blocking| self.l1_bytes(blocking) <= room;
        let start = Blocking {
            grid: self.grid,
            k,
            per_core,
            in0_block_w: 1,
            out_block: per_core,
            out_subblock: (1, 1),
        };
        let even = m.is_multiple_of(rows) && n.is_multiple_of(columns) && k.is_multiple_of(columns);
        if self.tuned && even {
            let found = rule(self.operands.format, (per_core.0, k / columns, per_core.1));
            if let Some([div, down, across]) = found {
                let in0_block_w = k / columns / div;
                let out_block = (per_core.0 / down, per_core.1 / across);
                let blocking = self.with_subblock(spec, Blocking { in0_block_w, out_block, ..start });
                // What lies in L1 is no part of a core's, but all of it.
                let sharded = self.operands.in0_sharded || self.operands.out_sharded;
                let whole = !sharded || out_block == per_core;
                if whole && fits(&blocking) && blocking.check(spec, self.wide).is_ok() {
                    return Ok(blocking);
                }
            }
        }
        // K tiles of one column of cores where K divides; otherwise the library takes one at a time, and a tuned product
        // the most that divide K.
        let widest = match (k.is_multiple_of(columns), self.tuned) {
            (true, _) => k / columns,
            (false, false) => 1,
            (false, true) => divisors(k).find(|part| *part <= k.div_ceil(columns)).unwrap_or(1),
        };
        let mut best: Option<((f64, f64), Blocking)> = None;
        for in0_block_w in divisors(widest) {
            for out_block in self.out_blocks(per_core) {
                let blocking = Blocking { in0_block_w, out_block, ..start };
                if !fits(&blocking) {
                    continue;
                }
                let blocking = self.with_subblock(spec, blocking);
                blocking.check(spec, self.wide)?;
                if !self.tuned {
                    return Ok(blocking);
                }
                let takes = self.takes(spec, &blocking);
                if best.is_none_or(|(least, _)| takes < least) {
                    best = Some((takes, blocking));
                }
            }
        }
        if let Some((_, blocking)) = best {
            return Ok(blocking);
        }
        let least = self.out_blocks(per_core).pop().unwrap_or(per_core);
        let need = self.l1_bytes(&Blocking { in0_block_w: 1, out_block: least, ..start });
        let kept = match (self.operands.in0_sharded, self.operands.out_sharded) {
            (false, false) => "",
            (true, false) => ", with in0 in L1",
            (false, true) => ", with the result in L1",
            (true, true) => ", with in0 and the result in L1",
        };
        Err(Error::Misused(format!(
            "L1 overflow: blocks of {per_core:?} x {k} tiles a core need at least {need} B{kept}: {room} B of {} are there",
            spec.name
        )))
    }
}
