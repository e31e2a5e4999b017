//! How cores find out, as a program runs, which tiles of an operand are live, and tell each other.
//!
//! Each core takes its share of the tiles of its row of cores: it reads them, its compute kernel finds the largest
//! magnitude of each, and a data-movement kernel compares that with the threshold and makes a mask, a bit a tile. The
//! first core of a row gathers the masks of its row and sends them along it; it says for each column of `in0` whether some
//! tile is live, the chip's first core brings together what the rows said, and sends that to all.

use crate::kernel::Api;
use crate::numerics::Format;
use crate::verbs::{Along, Area, Binary, CoreId, Place, Unary};

use super::live::Plan;
use super::matmul::{SEMAPHORES, VALID, receive, send};

pub(super) const MASK: u8 = 2;
pub(super) const LISTS: u8 = 3;
pub(super) const TILES: u8 = 4;
pub(super) const NORMS: u8 = 17;
pub(super) const MAGNITUDES: u8 = 25;

const FIRST: u8 = SEMAPHORES.len() as u8;
const ROW_READY: u8 = FIRST;
/// The masks of the own row of cores are there.
pub(super) const ROW_VALID: u8 = FIRST + 1;
const ALL_READY: u8 = FIRST + 2;
const ALL_VALID: u8 = FIRST + 3;
const HOST_READY: u8 = FIRST + 4;
const HOST_VALID: u8 = FIRST + 5;
/// The core's own list of live tiles is there.
pub(super) const LISTED: u8 = FIRST + 6;
/// The core's own mask is there.
const MASKED: u8 = FIRST + 7;
/// Semaphores that are needed beside those of a product.
pub(super) const MORE_SEMAPHORES: usize = 8;

/// RISC-V instructions, a cycle each, beside loads and stores that are counted by themselves. For each tile: take the
/// value's bits, compare, shift into the word, count, go round.
const COMPARE: f64 = 6.0;
/// For each word of a mask: compare with zero, advance, go round.
pub(super) const WORD: f64 = 4.0;
/// For each bit that is set: isolate it, find its place (no such instruction on Wormhole: a multiplication and a table),
/// clear it, add it to where the word begins, keep row and column, go round.
pub(super) const BIT: f64 = 12.0;
/// To change a word of the core's own local memory, which answers at once: its address, load, change, store.
pub(super) const CHANGE: f64 = 4.0;

/// Who says what is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decide {
    /// The cores: they scan the operand.
    Scan,
    /// The operation before, which left a mask with each core for its share of tiles.
    Known,
    /// The host: cores scan, their statistics go to a buffer in DRAM and by PCIe to the host, and its masks come back.
    Host {
        /// The buffer, with a page for each core as [`super::dynamic::statistics`] says.
        statistics: u16,
    },
}

/// How the tiles of an operand are dealt to cores, and where in L1 their masks are.
pub(super) struct Deal {
    pub(super) grid: (u16, u16),
    /// Rows of tiles of `in0`, and of a row of cores; columns of tiles.
    pub(super) rows: u32,
    pub(super) per_core: u32,
    pub(super) k: u32,
    /// Rows of tiles of an output block.
    pub(super) high: u32,
    pub(super) decide: Decide,
    pub(super) tau: f32,
    /// Masks of all cores where they are not found: a chip without values, or the operation before knows.
    pub(super) given: Option<Vec<bool>>,
    /// The chip keeps no values: what a load returns means nothing.
    pub(super) timing: bool,
    /// Tiles that are taken at once: half of the destination registers.
    pub(super) batch: u32,
    pub(super) norm: Format,
    /// Cycles of the exchange with the host, to load a word, and to store one.
    pub(super) exchange: f64,
    pub(super) load: f64,
    pub(super) store: f64,
    /// Words after which a transfer may begin in L1. Masks have whole ones: all that is sent has been written.
    pub(super) grain: u32,
    /// All cores but the first.
    pub(super) others: Area,
    pub(super) root: CoreId,
}

impl Deal {
    fn tiles_of(&self, y: u16) -> u32 {
        let before = u32::from(y) * self.per_core;
        self.rows.saturating_sub(before).min(self.per_core) * self.k
    }

    /// The share of a core, counted from the first tile of its row of cores.
    pub(super) fn share(&self, (x, y): (u16, u16)) -> std::ops::Range<u32> {
        let all = self.tiles_of(y);
        let each = all.div_ceil(u32::from(self.grid.0));
        (u32::from(x) * each).min(all)..((u32::from(x) + 1) * each).min(all)
    }

    /// The most tiles that a core has.
    pub(super) fn most(&self) -> u32 {
        (self.per_core * self.k).div_ceil(u32::from(self.grid.0))
    }

    fn slot_words(&self) -> u32 {
        self.most().div_ceil(32).next_multiple_of(self.grain)
    }

    /// Where the mask of a core of the own row is.
    pub(super) fn slot(&self, x: u16) -> u32 {
        4 * u32::from(x) * self.slot_words()
    }

    /// Words for a row of `in0`'s columns.
    pub(super) fn width(&self) -> u32 {
        self.k.div_ceil(32)
    }

    /// Words that say which columns are needed, for each output block along M.
    pub(super) fn union_words(&self) -> u32 {
        (self.per_core / self.high * self.width()).next_multiple_of(self.grain)
    }

    /// Where that is as row `y` of cores says it; behind all of them what holds for all.
    fn union(&self, y: u16) -> u32 {
        self.slot(self.grid.0) + 4 * u32::from(y) * self.union_words()
    }

    fn statistics(&self) -> u32 {
        self.union(self.grid.1 + 1).next_multiple_of(64)
    }

    /// Bytes of L1 for all of these.
    pub(super) fn bytes(&self) -> u32 {
        let host = if matches!(self.decide, Decide::Host { .. }) {
            (4 * self.most()).next_multiple_of(64)
        } else {
            0
        };
        self.statistics() + host
    }

    /// Bytes of lists: two for each tile that may be live, one for each column's place, and their number.
    pub(super) fn list_bytes(&self) -> u32 {
        (4 + 2 * self.per_core * self.k + self.k * (self.per_core / self.high)).next_multiple_of(64)
    }

    fn batches(&self, at: (u16, u16)) -> Vec<u32> {
        let mut left = self.share(at).len() as u32;
        let mut counts = Vec::new();
        while left > 0 {
            counts.push(left.min(self.batch));
            left -= left.min(self.batch);
        }
        counts
    }

    /// Whether a tile of a row of cores is live, where that is given.
    fn given(&self, y: u16, tile: u32) -> Option<bool> {
        let first = u32::from(y) * self.per_core * self.k;
        self.given.as_ref().map(|given| given[(first + tile) as usize])
    }

    /// A word of a core's mask, where that is given.
    fn given_word(&self, at: (u16, u16), word: u32) -> Option<u32> {
        let share = self.share(at);
        let bits = (0..32).map(|bit| (bit, share.start + 32 * word + bit));
        let live = bits.filter(|(_, tile)| *tile < share.end);
        self.given.as_ref()?;
        Some(live.fold(0, |word, (bit, tile)| word | u32::from(self.given(at.1, tile) == Some(true)) << bit))
    }

    /// Loads a word of the mask of a core of the own row.
    pub(super) async fn word(&self, api: &Api, base: u32, at: (u16, u16), word: u32) -> u32 {
        let loaded = api.l1_load(base + self.slot(at.0) + 4 * word).await;
        if self.timing { self.given_word(at, word).unwrap_or(0) } else { loaded }
    }

    fn is_live(&self, bits: u32) -> bool {
        let norm = if self.norm == Format::Float32 { bits } else { bits << 16 };
        // Not `norm > tau`: a NaN is live.
        !matches!(
            f32::from_bits(norm).partial_cmp(&self.tau),
            Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
        )
    }
}

/// Which of a core's data-movement threads reads tiles and which one makes the mask: `first` is the one of `in0`.
///
/// Tiles come by network 0. From there it goes along the rows of the endpoints of DRAM and then spreads over columns of
/// cores; by network 1 all would go up the few columns that have endpoints.
pub(super) async fn find(api: &Api, deal: &Deal, plan: &Plan, first: bool) {
    if first == plan.swap {
        read(api, deal, plan).await;
        if !first {
            api.noc_semaphore_wait(MASKED, 1).await;
        }
    } else {
        mask(api, deal, plan).await;
        if first {
            api.noc_semaphore_set(MASKED, 1).await;
        }
    }
}

/// Reads the core's share of tiles.
async fn read(api: &Api, deal: &Deal, plan: &Plan) {
    if deal.decide == Decide::Known {
        return;
    }
    let first = u32::from(plan.at.1) * deal.per_core * deal.k;
    let mut page = first + deal.share(plan.at).start;
    for count in deal.batches(plan.at) {
        api.cb_reserve_back(TILES, deal.batch).await;
        let mut to = api.get_write_ptr(TILES).await;
        for _ in 0..count {
            api.noc_async_read(
                Place::Dram { buffer: plan.shared.buffers.0, page, offset: 0 },
                to,
                plan.shared.tile,
            )
            .await;
            page += 1;
            to += plan.shared.tile;
        }
        api.noc_async_read_barrier().await;
        api.cb_push_back(TILES, deal.batch).await;
    }
}

/// Finds the largest magnitude of each tile. `reduce_tile` takes its tiles from L1, so magnitudes go there first; the next
/// batch's are packed while the last one's are reduced.
pub(super) async fn norms(api: &Api, deal: &Deal, plan: &Plan) {
    if deal.decide == Decide::Known {
        return;
    }
    let (counts, batch) = (deal.batches(plan.at), deal.batch);
    for step in 0..=counts.len() {
        if let Some(count) = counts.get(step) {
            api.cb_wait_front(TILES, batch).await;
            api.tile_regs_acquire().await;
            for tile in 0..*count {
                api.copy_tile(TILES, tile, tile).await;
            }
            for tile in 0..*count {
                api.unary_tile(Unary::Abs, tile).await;
            }
            api.tile_regs_commit().await;
            api.cb_pop_front(TILES, batch).await;
            pack(api, MAGNITUDES, *count, batch).await;
        }
        if let Some(count) = step.checked_sub(1).and_then(|before| counts.get(before)) {
            api.cb_wait_front(MAGNITUDES, batch).await;
            api.tile_regs_acquire().await;
            for tile in 0..*count {
                api.reduce_tile(Binary::Max, Along::Both, MAGNITUDES, tile, tile).await;
            }
            api.tile_regs_commit().await;
            api.cb_pop_front(MAGNITUDES, batch).await;
            pack(api, NORMS, *count, batch).await;
        }
    }
}

async fn pack(api: &Api, cb: u8, count: u32, batch: u32) {
    api.cb_reserve_back(cb, batch).await;
    api.tile_regs_wait().await;
    api.pack_tiles(0, cb, 0, count).await;
    api.tile_regs_release().await;
    api.cb_push_back(cb, batch).await;
}

/// Makes the mask of the core's share.
async fn mask(api: &Api, deal: &Deal, plan: &Plan) {
    let base = api.get_write_ptr(MASK).await;
    let slot = base + deal.slot(plan.at.0);
    if deal.decide == Decide::Known {
        // The operation before has paid for this.
        for word in 0..deal.slot_words() {
            let value = deal.given_word(plan.at, word).unwrap_or(0);
            api.l1_store(slot + 4 * word, value).await;
        }
        return;
    }
    let host = matches!(deal.decide, Decide::Host { .. });
    let (mut tile, mut word) = (0, 0);
    let bytes = deal.norm.tile_bytes() as u32;
    for count in deal.batches(plan.at) {
        api.cb_wait_front(NORMS, deal.batch).await;
        let from = api.get_read_ptr(NORMS).await;
        for place in 0..count {
            let norm = api.l1_load(from + place * bytes).await;
            let known = deal.given(plan.at.1, deal.share(plan.at).start + tile);
            word |= u32::from(known.unwrap_or_else(|| deal.is_live(norm))) << (tile % 32);
            if host {
                api.l1_store(base + deal.statistics() + 4 * tile, norm).await;
            }
            tile += 1;
            if tile % 32 == 0 {
                api.l1_store(slot + tile / 8 - 4, word).await;
                word = 0;
            }
        }
        api.cycles(COMPARE * f64::from(count)).await;
        api.cb_pop_front(NORMS, deal.batch).await;
    }
    for left in tile / 32..deal.slot_words() {
        api.l1_store(slot + 4 * left, word).await;
        word = 0;
    }
    if let Decide::Host { statistics } = deal.decide {
        exchange(api, deal, plan, (statistics, base + deal.statistics(), 4 * tile)).await;
    }
}

/// Sends statistics to the host and waits for its masks, which are where the core's own would be.
async fn exchange(api: &Api, deal: &Deal, plan: &Plan, (buffer, from, bytes): (u16, u32, u32)) {
    let cores = u32::from(deal.grid.0) * u32::from(deal.grid.1);
    if bytes > 0 {
        let page = u32::from(plan.at.1) * u32::from(deal.grid.0) + u32::from(plan.at.0);
        api.noc_async_write(from, Place::Dram { buffer, page, offset: 0 }, bytes).await;
        api.noc_async_write_barrier().await;
    }
    if plan.core != deal.root {
        api.noc_semaphore_inc(deal.root, HOST_READY, 1).await;
        api.noc_semaphore_wait(HOST_VALID, 1).await;
        return;
    }
    api.noc_semaphore_wait(HOST_READY, cores - 1).await;
    api.cycles(deal.exchange).await;
    if cores > 1 {
        api.noc_semaphore_set_multicast(VALID, HOST_VALID, deal.others).await;
    }
}

/// Has the masks of a row of cores on each of its cores.
pub(super) async fn gather(api: &Api, deal: &Deal, plan: &Plan, base: u32) {
    let (others, sems) = (u32::from(deal.grid.0) - 1, (ROW_READY, ROW_VALID));
    if plan.core != plan.row_start {
        let (slot, bytes) = (base + deal.slot(plan.at.0), 4 * deal.slot_words());
        api.noc_async_write(slot, Place::L1 { core: plan.row_start, address: slot }, bytes).await;
        receive(api, plan.row_start, sems).await;
        return;
    }
    if others > 0 {
        send(api, (plan.row, others), sems, (base, base), deal.slot(deal.grid.0), plan.shared.flush).await;
    }
    api.noc_semaphore_set(ROW_VALID, 1).await;
}

/// Has on each core which columns of `in0` some row of cores needs, and returns that: [`Deal::union_words`].
pub(super) async fn unite(api: &Api, deal: &Deal, plan: &Plan, base: u32, tiles: &[(u32, u32)]) -> Vec<u32> {
    let (words, rows) = (deal.union_words(), u32::from(deal.grid.1));
    let (own, all) = (base + deal.union(plan.at.1), base + deal.union(deal.grid.1));
    let sems = (ALL_READY, ALL_VALID);
    if plan.core == plan.row_start {
        let mut said = vec![0_u32; words as usize];
        for (row, column) in tiles {
            said[(row / deal.high * deal.width() + column / 32) as usize] |= 1 << (column % 32);
        }
        api.cycles(CHANGE * tiles.len() as f64).await;
        for (word, value) in said.iter().enumerate() {
            api.l1_store(own + 4 * word as u32, *value).await;
        }
        if plan.core != deal.root {
            api.noc_async_write(own, Place::L1 { core: deal.root, address: own }, 4 * words).await;
            receive(api, deal.root, sems).await;
        }
    }
    if plan.core == deal.root {
        api.noc_semaphore_wait(ALL_READY, rows - 1).await;
        for word in 0..words {
            let mut some = 0;
            for y in 0..deal.grid.1 {
                some |= api.l1_load(base + deal.union(y) + 4 * word).await;
            }
            api.cycles(WORD * f64::from(rows)).await;
            api.l1_store(all + 4 * word, some).await;
        }
        if u32::from(deal.grid.0) * rows > 1 {
            send(api, (deal.others, rows - 1), sems, (all, all), 4 * words, plan.shared.flush).await;
        }
    } else if plan.core != plan.row_start {
        api.noc_semaphore_wait(ALL_VALID, 1).await;
    }
    let mut said = Vec::with_capacity(words as usize);
    for word in 0..words {
        let loaded = api.l1_load(all + 4 * word).await;
        said.push(if deal.timing { deal.given_union(word) } else { loaded });
    }
    said
}

impl Deal {
    /// A word of what all rows of cores need, as the given mask has it.
    fn given_union(&self, word: u32) -> u32 {
        let (block, first) = (word / self.width(), word % self.width() * 32);
        let Some(given) = &self.given else { return 0 };
        let of_block = |row: &u32| row % self.per_core / self.high == block;
        let mut said = 0;
        for row in (0..self.rows).filter(of_block) {
            for bit in 0..32.min(self.k - first) {
                said |= u32::from(given[(row * self.k + first + bit) as usize]) << bit;
            }
        }
        said
    }
}
