//! Which branches of a result are live, found by a data-movement core in the tiles that it is about to write.
//!
//! A branch is some neighbouring columns; a row's norm over it is the largest absolute value or the root of the sum of
//! squares. The RISC-V cores have no floating point: of finite numbers the bits without the sign ascend with the size, so
//! the largest one is found by whole numbers; squares are added by routines of the compiler's library.

use crate::kernel::Api;
use crate::numerics::{FACE, Format, TILE};
use crate::verbs::Place;

/// Cycles of a value beside its load: shift, mask, compare and the loop, in order, one instruction a cycle.
const VALUE: f64 = 5.0;
/// Cycles of a square and a sum without floating-point instructions: assumed, two calls of some 40 instructions.
const SQUARE: f64 = 80.0;
/// Cycles of a comparison with the threshold, and of what is noted of it.
pub(super) const DECIDE: f64 = 8.0;

/// What is found.
#[derive(Debug, Clone, PartialEq)]
pub struct Norms {
    /// Columns of a branch, and those of the whole result.
    pub branch: u32,
    /// Columns of the result.
    pub columns: u32,
    /// Rows of the result.
    pub rows: u32,
    /// Format of its tiles: float32, bfloat16 or float16.
    pub format: Format,
    /// Roots of sums of squares, not largest values.
    pub squares: bool,
    /// Branches whose norm is not above it become 0.
    pub threshold: Option<f64>,
    /// Buffer in DRAM for norms: for each row of tiles and each piece a page of 32 rows of `float32`, with one word for
    /// each branch of the piece.
    pub buffer: u16,
    /// Without values, what is found to be live: for each row each branch.
    pub live: Option<Vec<bool>>,
}

/// The tiles of a piece.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    /// Their addresses in L1, from left to right.
    pub(super) tiles: Vec<u32>,
    /// Row and column of tiles of the first one in the result.
    pub(super) top: u32,
    pub(super) left: u32,
}

/// A value of 16 bits as the bits of an `f32` of the same order.
fn widen(format: Format, half: u32) -> u32 {
    match format {
        Format::Float16 => half::f16::from_bits(half as u16).to_f32().to_bits(),
        _ => half << 16,
    }
}

impl Norms {
    /// Tiles side by side whose columns are whole branches, where the result has that many.
    #[must_use]
    pub fn tiles(&self) -> u32 {
        tiles(self.branch, self.columns)
    }

    /// Branches of a full piece.
    fn branches(&self) -> u32 {
        branches(self.branch, self.columns)
    }

    /// Bytes of a page of norms.
    #[must_use]
    pub fn page_bytes(&self) -> u32 {
        page_bytes(self.branch, self.columns)
    }

    /// Cycles of a tile, about.
    pub(super) fn tile_cycles(&self) -> f64 {
        (TILE * TILE) as f64 * (2.0 + if self.squares { SQUARE } else { VALUE })
    }

    /// Finds norms of the tiles of a piece; they are put together in a page of the circular buffer `cb`.
    pub(super) async fn find(&self, api: &Api, reach: &Reach, cb: u8) {
        let across = self.columns.div_ceil(TILE as u32);
        let (top, left) = (reach.top * TILE as u32, reach.left);
        let columns = (self.columns - left * TILE as u32).min(reach.tiles.len() as u32 * TILE as u32);
        let each = self.branches();
        api.cb_reserve_back(cb, 1).await;
        let page = api.get_write_ptr(cb).await;
        for row in 0..(self.rows - top).min(TILE as u32) {
            for at in 0..each {
                let (from, end) = (columns.min(at * self.branch), columns.min((at + 1) * self.branch));
                // Of branches that the last piece of a row has not, the norm is 0.
                let norm = self.norm(api, reach, row, from..end).await;
                api.l1_store(page + (row * each + at) * 4, norm.to_bits()).await;
                if let Some(threshold) = self.threshold {
                    api.cycles(DECIDE).await;
                    // NaN is not below anything, and so is live.
                    let dead = match self.known(top + row, left * TILE as u32, at) {
                        Some(live) => !live,
                        None => f64::from(norm) <= threshold,
                    };
                    if dead {
                        self.clear(api, reach, row, from..end).await;
                    }
                }
            }
        }
        api.cb_push_back(cb, 1).await;
        api.cb_wait_front(cb, 1).await;
        let pieces = across.div_ceil(self.tiles());
        let number = reach.top * pieces + left / self.tiles();
        let place = Place::Dram { buffer: self.buffer, page: number, offset: 0 };
        let rows = (self.rows - top).min(TILE as u32);
        api.noc_async_write(page, place, (rows * each * 4).next_multiple_of(16)).await;
        api.noc_async_write_barrier().await;
        api.cb_pop_front(cb, 1).await;
    }

    /// What is known of a branch of a piece that begins at a column.
    fn known(&self, row: u32, column: u32, at: u32) -> Option<bool> {
        let across = self.columns.div_ceil(self.branch);
        let branch = column / self.branch + at;
        let live = self.live.as_ref()?;
        Some(branch < across && live.get((row * across + branch) as usize).copied().unwrap_or(false))
    }

    /// The address of the word that holds a value, and the bits to shift it by.
    fn place(&self, reach: &Reach, row: u32, column: u32) -> (u32, u32) {
        let (tile, face) = (TILE as u32, FACE as u32);
        let start = reach.tiles[(column / tile) as usize];
        let (row, column) = (row % tile, column % tile);
        let number = (row / face * 2 + column / face) * face * face + row % face * face + column % face;
        match self.format {
            Format::Float32 => (start + number * 4, 0),
            _ => (start + number / 2 * 4, number % 2 * 16),
        }
    }

    fn bits(&self, word: u32, shift: u32) -> u32 {
        match self.format {
            Format::Float32 => word,
            format => widen(format, word >> shift & 0xffff),
        }
    }

    async fn norm(&self, api: &Api, reach: &Reach, row: u32, columns: std::ops::Range<u32>) -> f32 {
        let (largest, sum) = self.pass(api, reach, row, columns.clone(), 1.0).await;
        if !self.squares {
            return largest;
        }
        if sum.is_normal() || largest == 0.0 || !largest.is_finite() {
            return sum.sqrt();
        }
        // Squares of small values are 0 and those of large ones infinite, where the norm is neither.
        let (_, sum) = self.pass(api, reach, row, columns, largest).await;
        sum.sqrt() * largest
    }

    /// The largest absolute value, and the sum of squares in units of `unit`.
    async fn pass(
        &self,
        api: &Api,
        reach: &Reach,
        row: u32,
        columns: std::ops::Range<u32>,
        unit: f32,
    ) -> (f32, f32) {
        let (mut largest, mut sum) = (0, 0.0_f32);
        let (mut held, mut word) = (u32::MAX, 0);
        for column in columns {
            let (address, shift) = self.place(reach, row, column);
            if held != address {
                (held, word) = (address, api.l1_load(address).await);
            }
            let bits = self.bits(word, shift) & 0x7fff_ffff;
            api.cycles(if self.squares { SQUARE } else { VALUE }).await;
            largest = largest.max(bits);
            let value = f32::from_bits(bits) / unit;
            sum = value.mul_add(value, sum);
        }
        (f32::from_bits(largest), sum)
    }

    /// Goes on with a sum over some more columns of a row.
    pub(super) async fn add(
        &self,
        api: &Api,
        reach: &Reach,
        row: u32,
        columns: std::ops::Range<u32>,
        sum: &mut Sum,
    ) {
        let (mut held, mut word) = (u32::MAX, 0);
        for column in columns {
            let (address, shift) = self.place(reach, row, column);
            if held != address {
                (held, word) = (address, api.l1_load(address).await);
            }
            api.cycles(if self.squares { SQUARE } else { VALUE }).await;
            sum.add(self.bits(word, shift) & 0x7fff_ffff);
        }
    }

    pub(super) async fn clear(&self, api: &Api, reach: &Reach, row: u32, columns: std::ops::Range<u32>) {
        for column in columns {
            let (address, shift) = self.place(reach, row, column);
            if self.format == Format::Float32 {
                api.l1_store(address, 0).await;
            } else {
                let word = api.l1_load(address).await;
                api.l1_store(address, word & !(0xffff << shift)).await;
            }
        }
    }
}

/// What is known of a branch of which a part has been seen.
///
/// Squares of small values would be 0 and those of large ones infinite, where the norm is neither: each has a sum of its own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    /// Bits of the largest absolute value: they ascend with the size.
    largest: u32,
    small: f32,
    plain: f32,
    large: f32,
}

/// Values from which on squares are summed in other units, and the roots of these.
const LARGE: f32 = f32::from_bits((127 + 60) << 23);
const SMALL: f32 = f32::from_bits((127 - 60) << 23);
const UNIT: f32 = f32::from_bits((127 + 80) << 23);

impl Sum {
    fn add(&mut self, bits: u32) {
        self.largest = self.largest.max(bits);
        let value = f32::from_bits(bits);
        let (sum, value) = if value > LARGE {
            (&mut self.large, value / UNIT)
        } else if value < SMALL {
            (&mut self.small, value * UNIT)
        } else {
            (&mut self.plain, value)
        };
        *sum = value.mul_add(value, *sum);
    }

    /// The largest absolute value, or the root of the sum of squares.
    pub(super) fn norm(&self, squares: bool) -> f32 {
        let largest = f32::from_bits(self.largest);
        if !squares || !largest.is_finite() {
            return largest;
        }
        if self.large > 0.0 {
            return (self.large + self.plain / UNIT / UNIT).sqrt() * UNIT;
        }
        if self.plain > 0.0 {
            (self.plain + self.small / UNIT / UNIT).sqrt()
        } else {
            self.small.sqrt() / UNIT
        }
    }
}

/// Tiles side by side whose columns are whole branches, where the result has that many.
#[must_use]
pub fn tiles(branch: u32, columns: u32) -> u32 {
    let (mut a, mut b) = (branch, TILE as u32);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (branch / a).min(columns.div_ceil(TILE as u32)).max(1)
}

/// Branches of as many columns.
fn branches(branch: u32, columns: u32) -> u32 {
    (tiles(branch, columns) * TILE as u32).min(columns).div_ceil(branch).max(1)
}

/// Bytes of a page of norms: 32 rows, a word for each branch, to a multiple of 64.
#[must_use]
pub fn page_bytes(branch: u32, columns: u32) -> u32 {
    (branches(branch, columns) * 4 * TILE as u32).next_multiple_of(64)
}
