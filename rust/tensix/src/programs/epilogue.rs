//! What happens to sums of a product on their way out: biases, functions, factors, masks, and norms of branches.
//!
//! Tiles that belong to those of the result come from DRAM to the core that has these; a bias, which a row or a column of
//! cores has in common, is read once and sent to them.

use crate::kernel::Api;
use crate::numerics::{Format, TILE};
use crate::program::CircularBuffer;
use crate::verbs::{Area, Binary, Broadcast, CoreId, Place, Unary, Verb};

use super::matmul::{OUT, SEMAPHORES, receive, send};
use super::norms::{Norms, Reach};

/// Circular buffers: what is added, biases, factors, masks, norms.
pub(super) const ADD: u8 = 6;
pub(super) const BIAS: u8 = 7;
pub(super) const SCALE: u8 = 8;
pub(super) const MASK: u8 = 9;
/// Norms are put together here, by each of both data-movement threads.
const NORMS: u8 = 18;
const MORE_NORMS: u8 = 19;
/// Counts of rows of subblocks whose norms the second thread has found, and that the first one has written.
const FOUND: u8 = SEMAPHORES.len() as u8;
const WRITTEN: u8 = FOUND + 1;
/// Semaphores that are needed beside those of a product.
pub(super) const MORE_SEMAPHORES: usize = 2;

/// Tiles that are read before their arrival is waited for, about.
const CHUNK: u32 = 8;

/// Tiles in DRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Number of the buffer.
    pub buffer: u16,
    /// What its tiles are stored as.
    pub format: Format,
}

/// A vector that is added to sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// First rows of tiles side by side, one for each column of tiles of the result.
    Row(Source),
    /// First columns of tiles below each other, one for each row of tiles.
    Column(Source),
}

impl Bias {
    fn source(self) -> Source {
        match self {
            Self::Row(source) | Self::Column(source) => source,
        }
    }
}

/// What happens to sums, in this order, before they are written; nothing by default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Epilogue {
    /// Tiles that are added, as those of the result.
    pub add: Option<Source>,
    /// Added as well.
    pub bias: Option<Bias>,
    /// A number that sums are multiplied by.
    pub factor: Option<f32>,
    /// A function of each.
    pub activation: Option<Unary>,
    /// Tiles of factors.
    pub scale: Option<Source>,
    /// Tiles that are 0 where the result is.
    pub mask: Option<Source>,
    /// What is found of the result.
    pub norms: Option<Norms>,
}

impl Epilogue {
    /// Tiles that come beside those of the result, in the order in which they are used.
    fn beside(&self) -> impl Iterator<Item = (u8, Source)> + use<> {
        [(ADD, self.add), (SCALE, self.scale), (MASK, self.mask)]
            .into_iter()
            .filter_map(|(cb, source)| Some((cb, source?)))
    }

    /// Destination registers that are needed beside those of sums.
    pub(super) fn spares(&self) -> u32 {
        u32::from(self.bias.is_some() || self.beside().next().is_some())
    }

    /// Columns of tiles that must lie in one core side by side.
    pub(super) fn reach(&self) -> u32 {
        self.norms.as_ref().map_or(1, Norms::tiles)
    }

    /// Bytes of the tiles that come beside each one of the result.
    pub(super) fn bytes_beside(&self) -> u64 {
        self.beside().map(|(_, source)| source.format.tile_bytes() as u64).sum()
    }

    /// Cycles that a data-movement core takes to find norms in a tile.
    pub(super) fn norm_cycles(&self) -> f64 {
        self.norms.as_ref().map_or(0.0, Norms::tile_cycles)
    }

    /// Passes of the vector unit, or as long ones of the unpacker and the matrix unit, over a tile.
    pub(super) fn passes(&self) -> f64 {
        let function = match self.activation {
            None => 0.0,
            Some(Unary::Relu) => 1.0,
            Some(_) => 7.0,
        };
        let bias = if self.bias.is_some() { 2.0 } else { 0.0 };
        function + bias + 2.0 * self.beside().count() as f64 + f64::from(u8::from(self.factor.is_some()))
    }

    /// Circular buffers for output blocks of so many rows and columns of tiles, `piece` of them in the registers at once.
    pub(super) fn buffers(&self, block: (u32, u32), piece: u32, cores: &[CoreId]) -> Vec<CircularBuffer> {
        let mut found = Vec::new();
        let mut add = |id, format: Format, page_bytes, pages| {
            let cores = cores.to_vec();
            found.push(CircularBuffer { id, cores, format, page_bytes, pages, address: None, shares: None });
        };
        for (cb, source) in self.beside() {
            add(cb, source.format, source.format.tile_bytes() as u32, 2 * chunk(piece));
        }
        if let Some(bias) = self.bias {
            let pages = if matches!(bias, Bias::Row(_)) { block.1 } else { block.0 };
            let format = bias.source().format;
            add(BIAS, format, format.tile_bytes() as u32, pages);
        }
        if let Some(norms) = &self.norms {
            for cb in [NORMS, MORE_NORMS] {
                add(cb, Format::Float32, norms.page_bytes(), 1);
            }
        }
        found
    }

    /// Bytes of L1 that these take.
    pub(super) fn bytes(&self, block: (u32, u32), piece: u32) -> u64 {
        let each = self.buffers(block, piece, &[]);
        each.iter().map(|buffer| u64::from(buffer.page_bytes) * u64::from(buffer.pages)).sum()
    }

    /// Reads the tiles beside those of an output block: pages in the order in which the compute kernel takes them,
    /// `piece` at once.
    pub(super) async fn read(&self, api: &Api, pages: &[u32], piece: u32, rings: &mut Rings) {
        let beside: Vec<_> = self.beside().collect();
        if beside.is_empty() {
            return;
        }
        if rings.starts.is_empty() {
            for (cb, _) in &beside {
                rings.starts.push(api.get_write_ptr(*cb).await);
            }
        }
        let (chunk, ring) = (chunk(piece), 2 * chunk(piece));
        for part in pages.chunks(chunk as usize) {
            let count = part.len() as u32;
            for ((cb, source), start) in beside.iter().zip(&rings.starts) {
                api.cb_reserve_back(*cb, count).await;
                let tile = source.format.tile_bytes() as u32;
                for (at, page) in (rings.count..).zip(part) {
                    let place = Place::Dram { buffer: source.buffer, page: *page, offset: 0 };
                    api.noc_async_read(place, start + at % ring * tile, tile).await;
                }
            }
            api.noc_async_read_barrier().await;
            for (cb, _) in &beside {
                api.cb_push_back(*cb, count).await;
            }
            rings.count = (rings.count + count) % ring;
        }
    }

    /// The text of the compute kernel between sums and packing, for the tiles in the first registers: their rows and
    /// columns in the output block.
    pub(super) async fn apply(&self, api: &Api, tiles: &[(u32, u32)]) {
        let count = tiles.len() as u32;
        let add = |dst| Verb::BinaryDst { op: Binary::Add, dst, other: count };
        self.take(api, (ADD, self.add), count, add).await;
        for (dst, (row, column)) in (0..).zip(tiles) {
            if let Some(bias) = self.bias {
                let (broadcast, tile) = match bias {
                    Bias::Row(_) => (Broadcast::Row, *column),
                    Bias::Column(_) => (Broadcast::Column, *row),
                };
                api.call(Verb::BroadcastTile { broadcast, cb: BIAS, tile, dst: count }).await;
                api.call(add(dst)).await;
            }
            if let Some(factor) = self.factor {
                api.unary_tile(Unary::Scale(factor.to_bits()), dst).await;
            }
            if let Some(op) = self.activation {
                api.unary_tile(op, dst).await;
            }
        }
        let scale = |dst| Verb::BinaryDst { op: Binary::Mul, dst, other: count };
        self.take(api, (SCALE, self.scale), count, scale).await;
        self.take(api, (MASK, self.mask), count, |dst| Verb::MaskTile { dst, mask: count }).await;
    }

    async fn take(
        &self,
        api: &Api,
        (cb, source): (u8, Option<Source>),
        count: u32,
        with: impl Fn(u32) -> Verb,
    ) {
        if source.is_none() {
            return;
        }
        api.cb_wait_front(cb, count).await;
        for dst in 0..count {
            api.copy_tile(cb, dst, count).await;
            api.call(with(dst)).await;
        }
        api.cb_pop_front(cb, count).await;
    }

    /// Whether there is a bias of columns, which goes along rows of cores (`down`), or one of rows, which goes down columns.
    pub(super) fn has_bias(&self, down: bool) -> bool {
        matches!((self.bias, down), (Some(Bias::Row(_)), false) | (Some(Bias::Column(_)), true))
    }

    /// The bias of an output block: the first core of a line reads these tiles of it and sends them to the others.
    pub(super) async fn bias(&self, api: &Api, tiles: &[u32], line: Line) {
        let Some(source) = self.bias.map(Bias::source) else { return };
        let (count, tile) = (tiles.len() as u32, source.format.tile_bytes() as u32);
        api.cb_reserve_back(BIAS, count).await;
        if line.first {
            let to = api.get_write_ptr(BIAS).await;
            for (at, page) in (0..).zip(tiles) {
                let place = Place::Dram { buffer: source.buffer, page: *page, offset: 0 };
                api.noc_async_read(place, to + at * tile, tile).await;
            }
            api.noc_async_read_barrier().await;
            if line.receivers.1 > 0 {
                send(api, line.receivers, line.sems, (to, to), count * tile, line.flush).await;
            }
        } else {
            receive(api, line.start, line.sems).await;
        }
        api.cb_push_back(BIAS, count).await;
    }

    /// Pages that the compute kernel waits for before it adds the bias of an output block, and gives back after it.
    pub(super) fn bias_tiles(&self, block: (u32, u32)) -> Option<u32> {
        self.bias.map(|bias| if matches!(bias, Bias::Row(_)) { block.1 } else { block.0 })
    }

    /// Finds norms in tiles that lie in L1, side by side, from column `left` of the result on: as one of two threads, each
    /// every other reach of columns.
    async fn find(&self, api: &Api, tiles: &[u32], top: u32, left: u32, second: bool) {
        let Some(norms) = &self.norms else { return };
        let (across, reach) = (norms.columns.div_ceil(TILE as u32), norms.tiles());
        let cb = if second { MORE_NORMS } else { NORMS };
        for (number, part) in (0..).zip(tiles.chunks(reach as usize)) {
            let at = left + number * reach;
            // Rows begin with the one thread and the other in turn, as there may be one reach in each.
            if at < across && (number + top) % 2 == u32::from(second) {
                let there = part.len().min((across - at) as usize);
                norms.find(api, &Reach { tiles: part[..there].to_vec(), top, left: at }, cb).await;
            }
        }
    }
}

/// Cores that have something in common, as one of them sees it.
#[derive(Clone, Copy)]
pub(super) struct Line {
    /// It is the one that reads.
    pub(super) first: bool,
    /// Which that is.
    pub(super) start: CoreId,
    /// Where the others are, and how many.
    pub(super) receivers: (Area, u32),
    pub(super) sems: (u8, u8),
    /// A multicast has left before its flag is sent.
    pub(super) flush: bool,
}

/// Where the circular buffers of [`Epilogue::read`] are, and how many of their pages were filled.
#[derive(Default)]
pub(super) struct Rings {
    starts: Vec<u32>,
    count: u32,
}

/// Tiles that are read at once: whole pieces.
fn chunk(piece: u32) -> u32 {
    piece * (CHUNK / piece).max(1)
}

/// How an output block is laid out in circular buffers: subblock by subblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) block: (u32, u32),
    pub(super) subblock: (u32, u32),
    /// Rows and columns of a subblock that are in the registers at once while the epilogue has some of these.
    pub(super) piece: (u32, u32),
}

impl Order {
    /// Pieces as large as the registers allow, where the epilogue needs `spares` of `most`.
    pub(super) fn new(block: (u32, u32), subblock: (u32, u32), most: u32, spares: u32) -> Self {
        let (h, w) = subblock;
        let room = most.saturating_sub(spares).max(1);
        let largest =
            |of: u32, most: u32| (1..=most.min(of).max(1)).rev().find(|part| of.is_multiple_of(*part));
        let piece = if spares == 0 || h * w <= room {
            subblock
        } else if w <= room {
            (largest(h, room / w).unwrap_or(1), w)
        } else {
            (1, largest(w, room).unwrap_or(1))
        };
        Self { block, subblock, piece }
    }

    /// First row and column of each piece of a subblock, in order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let Self { subblock: (h, w), piece: (ph, pw), .. } = *self;
        (0..h).step_by(ph as usize).flat_map(move |r| (0..w).step_by(pw as usize).map(move |c| (r, c)))
    }

    /// Tiles of a piece that begins at a place of the output block.
    pub(super) fn tiles(&self, row: u32, column: u32) -> Vec<(u32, u32)> {
        let (ph, pw) = self.piece;
        (row..row + ph).flat_map(|r| (column..column + pw).map(move |c| (r, c))).collect()
    }

    /// All tiles of an output block in order.
    pub(super) fn all(&self) -> Vec<(u32, u32)> {
        let ((bh, bw), (h, w)) = (self.block, self.subblock);
        let mut tiles = Vec::with_capacity((bh * bw) as usize);
        for down in (0..bh).step_by(h as usize) {
            for over in (0..bw).step_by(w as usize) {
                for (r, c) in self.pieces() {
                    tiles.extend(self.tiles(down + r, over + c));
                }
            }
        }
        tiles
    }

    /// The place of a tile in that order.
    fn place(&self, row: u32, column: u32) -> u32 {
        let ((_, bw), (h, w)) = (self.block, self.subblock);
        (row / h * (bw / w) + column / w) * h * w + row % h * w + column % w
    }
}

/// An output block that is written: its buffer, bytes of a tile and columns of tiles; where it begins; rows and columns of
/// tiles of the result, beyond which nothing is written; and how many rows of subblocks were before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) place: (u16, u32, u32),
    pub(super) first: (u32, u32),
    pub(super) most: (u32, u32),
    pub(super) before: u32,
}

/// Finds norms in some rows of subblocks of an output block, those from `down` on.
async fn find(api: &Api, epilogue: &Epilogue, order: &Order, target: &Target, down: u32, second: bool) {
    let ((_, bw), (h, _)) = (order.block, order.subblock);
    api.cb_wait_front(OUT, h * bw).await;
    let start = api.get_read_ptr(OUT).await;
    let (base, tile) = (order.place(down, 0), target.place.1);
    for row in (down..down + h).filter(|row| target.first.0 + row < target.most.0) {
        let tiles: Vec<u32> =
            (0..bw).map(|column| start + (order.place(row, column) - base) * tile).collect();
        epilogue.find(api, &tiles, target.first.0 + row, target.first.1, second).await;
    }
}

/// The second thread's part of [`write`]: half of the norms.
pub(super) async fn help(api: &Api, epilogue: &Epilogue, order: &Order, target: Target) {
    if epilogue.norms.is_none() {
        return;
    }
    let rows = target.before..;
    for (number, down) in rows.zip((0..order.block.0).step_by(order.subblock.0 as usize)) {
        // What lies at the front until then was found already.
        api.noc_semaphore_wait_min(WRITTEN, number).await;
        find(api, epilogue, order, &target, down, true).await;
        api.noc_semaphore_set(FOUND, number + 1).await;
    }
}

/// Writes an output block, and finds what is to be found of it before.
pub(super) async fn write(api: &Api, epilogue: &Epilogue, order: &Order, target: Target) {
    let ((bh, bw), (h, w)) = (order.block, order.subblock);
    let Target { place: (buffer, tile, width), first, most, before } = target;
    // Norms reach over whole rows of a block.
    let over = if epilogue.norms.is_some() { bw } else { w };
    for (number, down) in (before..).zip((0..bh).step_by(h as usize)) {
        if epilogue.norms.is_some() {
            find(api, epilogue, order, &target, down, false).await;
            api.noc_semaphore_wait_min(FOUND, number + 1).await;
        }
        for left in (0..bw).step_by(over as usize) {
            api.cb_wait_front(OUT, h * over).await;
            let start = api.get_read_ptr(OUT).await;
            let base = order.place(down, left);
            for row in (down..down + h).filter(|row| first.0 + row < most.0) {
                for column in (left..left + over).filter(|column| first.1 + column < most.1) {
                    let page = (first.0 + row) * width + first.1 + column;
                    let place = Place::Dram { buffer, page, offset: 0 };
                    let from = start + (order.place(row, column) - base) * tile;
                    api.noc_async_write(from, place, tile).await;
                }
            }
            api.noc_async_write_barrier().await;
            api.cb_pop_front(OUT, h * over).await;
        }
        if epilogue.norms.is_some() {
            api.noc_semaphore_set(WRITTEN, number + 1).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn pieces_cover_a_block_in_the_order_of_its_subblocks() {
        for (block, subblock, most, spares, piece) in [
            ((4, 4), (2, 2), 4, 1, (1, 2)),
            ((4, 4), (1, 4), 4, 1, (1, 2)),
            ((8, 2), (4, 1), 4, 1, (2, 1)),
            ((2, 6), (1, 3), 4, 1, (1, 3)),
            ((2, 6), (2, 2), 4, 0, (2, 2)),
            ((4, 2), (4, 2), 8, 1, (2, 2)),
            ((5, 7), (1, 7), 8, 1, (1, 7)),
        ] {
            let order = Order::new(block, subblock, most, spares);
            assert_eq!(order.piece, piece, "{block:?} {subblock:?}");
            let all = order.all();
            assert_eq!(all.len() as u32, block.0 * block.1);
            for (at, (row, column)) in all.iter().enumerate() {
                assert_eq!(order.place(*row, *column), at as u32);
            }
        }
    }
}
