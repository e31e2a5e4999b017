//! The tile registers and the instructions on them, as in Intel's manual (volume 2).

use super::{flush, multiply_add, widen};

const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    words: [[u32; ROW_BYTES / 4]; ROWS],
}

/// The state of one thread.
pub(crate) struct Tiles {
    config: [u8; 64],
    tiles: [Tile; 8],
}

const EMPTY: Tile = Tile { rows: 0, row_bytes: 0, words: [[0; ROW_BYTES / 4]; ROWS] };

type Outcome = Result<(), &'static str>;

impl Tiles {
    /// What `tilerelease` leaves.
    pub(crate) const NEW: Self = Self { config: [0; 64], tiles: [EMPTY; 8] };

    /// `ldtilecfg`: palette, start row, reserved bytes, bytes of a row by tile, rows by tile.
    pub(crate) fn configure(&mut self, config: &[u8; 64]) -> Outcome {
        *self = Self::NEW;
        match config[0] {
            0 => return Ok(()),
            1 => {}
            _ => return Err("#GP: ldtilecfg with an unknown palette"),
        }
        let reserved = config[2..16].iter().chain(&config[32..48]).chain(&config[56..]);
        if config[1] != 0 || reserved.into_iter().any(|&byte| byte != 0) {
            return Err("#GP: ldtilecfg with reserved bytes or a start row");
        }
        for (i, tile) in self.tiles.iter_mut().enumerate() {
            let row_bytes = usize::from(u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]));
            let rows = usize::from(config[48 + i]);
            if rows > ROWS || row_bytes > ROW_BYTES || (rows == 0) != (row_bytes == 0) {
                return Err("#GP: ldtilecfg with a tile of no possible size");
            }
            (tile.rows, tile.row_bytes) = (rows, row_bytes);
        }
        self.config = *config;
        Ok(())
    }

    /// `sttilecfg`.
    pub(crate) fn config(&self) -> [u8; 64] {
        self.config
    }

    fn configured(&mut self, tile: usize) -> Result<&mut Tile, &'static str> {
        let tile = self.tiles.get_mut(tile).ok_or("#UD: no such tile")?;
        if tile.rows == 0 { Err("#UD: the tile has no size") } else { Ok(tile) }
    }

    /// `tilezero`.
    pub(crate) fn zero(&mut self, tile: usize) -> Outcome {
        self.configured(tile)?.words = EMPTY.words;
        Ok(())
    }

    /// `tileloadd`. What lies beyond the tile's size becomes zero.
    ///
    /// # Safety
    /// Every row must be readable.
    pub(crate) unsafe fn load(&mut self, tile: usize, at: *const u8, stride: i64) -> Outcome {
        let tile = self.configured(tile)?;
        tile.words = EMPTY.words;
        for r in 0..tile.rows {
            let from = at.wrapping_offset(r as isize * stride as isize);
            // SAFETY: the caller's promise.
            unsafe { from.copy_to_nonoverlapping(tile.words[r].as_mut_ptr().cast(), tile.row_bytes) };
        }
        Ok(())
    }

    /// `tilestored`.
    ///
    /// # Safety
    /// Every row must be writeable.
    pub(crate) unsafe fn store(&mut self, tile: usize, at: *mut u8, stride: i64) -> Outcome {
        let tile = self.configured(tile)?;
        for r in 0..tile.rows {
            let to = at.wrapping_offset(r as isize * stride as isize);
            // SAFETY: the caller's promise.
            unsafe { to.copy_from_nonoverlapping(tile.words[r].as_ptr().cast(), tile.row_bytes) };
        }
        Ok(())
    }

    /// Checks what every product of tiles demands of its operands, and hands them out.
    fn operands(&mut self, sums: usize, a: usize, b: usize) -> Result<(&mut Tile, Tile, Tile), &'static str> {
        if sums == a || sums == b || a == b {
            return Err("#UD: a product needs three different tiles");
        }
        let (a, b) = (*self.configured(a)?, *self.configured(b)?);
        let sums = self.configured(sums)?;
        if [a.row_bytes, b.row_bytes, sums.row_bytes].iter().any(|bytes| bytes % 4 != 0) {
            return Err("#UD: a product of tiles whose rows are no whole words");
        }
        if sums.rows != a.rows || sums.row_bytes != b.row_bytes || a.row_bytes / 4 != b.rows {
            return Err("#UD: a product of tiles whose sizes do not fit");
        }
        Ok((sums, a, b))
    }

    /// `tdpbf16ps`: the products of the pairs' lower and upper halves are summed apart, over all pairs,
    /// then added to each other and to the sum.
    pub(crate) fn multiply_bf16(&mut self, sums: usize, a: usize, b: usize) -> Outcome {
        let (sums, a, b) = self.operands(sums, a, b)?;
        for m in 0..sums.rows {
            for n in 0..sums.row_bytes / 4 {
                let mut halves = [0f32; 2];
                for k in 0..a.row_bytes / 4 {
                    for (half, upper) in halves.iter_mut().zip([false, true]) {
                        *half = multiply_add(widen(a.words[m][k], upper), widen(b.words[k][n], upper), *half);
                    }
                }
                let product = flush(halves[0] + halves[1]);
                let sum = flush(flush(f32::from_bits(sums.words[m][n])) + product);
                sums.words[m][n] = sum.to_bits();
            }
        }
        sums.clear_beyond();
        Ok(())
    }

    /// `tdpbssd`: four products of signed bytes to a sum, which wraps around.
    pub(crate) fn multiply_int8(&mut self, sums: usize, a: usize, b: usize) -> Outcome {
        let (sums, a, b) = self.operands(sums, a, b)?;
        for m in 0..sums.rows {
            for n in 0..sums.row_bytes / 4 {
                let mut sum = sums.words[m][n] as i32;
                for k in 0..a.row_bytes / 4 {
                    let pairs = a.words[m][k].to_le_bytes().into_iter().zip(b.words[k][n].to_le_bytes());
                    for (x, y) in pairs {
                        sum = sum.wrapping_add(i32::from(x as i8) * i32::from(y as i8));
                    }
                }
                sums.words[m][n] = sum as u32;
            }
        }
        sums.clear_beyond();
        Ok(())
    }
}

impl Tile {
    /// Whatever writes a tile leaves zeros beyond its size.
    fn clear_beyond(&mut self) {
        for (r, row) in self.words.iter_mut().enumerate() {
            let kept = if r < self.rows { self.row_bytes / 4 } else { 0 };
            row[kept..].fill(0);
        }
    }
}
