//! Copies into the order that tile products want.
//!
//! A tile of x holds words of 32 bits, a word being [`Product::STEP`] values that follow each other
//! down a column: row `w` of the tile has word `w` of 16 columns. A tile of W is rows of such words.

use std::arch::x86_64::*;

use super::super::convert::Rect;
use super::super::transpose::transpose_32;
use crate::amx::{COLS, Product, ROW_BYTES};

/// Words of a full tile.
const WORDS: usize = COLS * COLS;

/// Packs a rectangle of at most 16 columns into `words` rows of a tile, padded with zeros on both
/// sides: rows of the rectangle beyond `rows` and columns beyond `cols` are never read.
///
/// # Safety
/// AVX-512 must be present, the rectangle readable with `rows ≤ words * STEP`, and `dst` writeable
/// for `words * 16` words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn x_tile<P: Product>(rect: &Rect, dst: *mut u32, words: usize) {
    let size = size_of::<P::Elem>() as isize;
    let full = rect.rows / P::STEP;
    // SAFETY: words `0..full` are whole; the one after is gathered value by value; the rest is zeros.
    unsafe {
        if rect.col_stride == size {
            for word in 0..full {
                interleave::<P>(rect, word, P::STEP, dst.add(word * COLS));
            }
            if full < words {
                interleave::<P>(rect, full, rect.rows % P::STEP, dst.add(full * COLS));
            }
        } else if rect.row_stride == size {
            columns::<P>(rect, dst, words);
            return;
        } else {
            for word in 0..words.min(full + 1) {
                let count = P::STEP.min(rect.rows - word * P::STEP);
                gather::<P>(rect, word, count, dst.add(word * COLS));
            }
        }
        if full + 1 < words {
            dst.add((full + 1) * COLS).write_bytes(0, (words - full - 1) * COLS);
        }
    }
}

/// Packs a rectangle whose columns are contiguous: a transposition of words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn columns<P: Product>(rect: &Rect, dst: *mut u32, words: usize) {
    let bytes = rect.rows * size_of::<P::Elem>();
    // SAFETY: a whole tile is read where it lies; of others, what is inside the rectangle by masks.
    unsafe {
        if bytes == ROW_BYTES && rect.cols == COLS {
            transpose_32(&Rect { rows: COLS, row_stride: 4, ..*rect }, dst, COLS);
            return;
        }
        let mask = if bytes == 0 { 0 } else { u64::MAX >> (64 - bytes) };
        let (mut tile, mut turned) = ([0u32; WORDS], [0u32; WORDS]);
        for c in 0..rect.cols {
            let run = rect.src.offset(c as isize * rect.col_stride);
            let run = _mm512_maskz_loadu_epi8(mask, run.cast());
            _mm512_storeu_si512(tile.as_mut_ptr().add(c * COLS).cast(), run);
        }
        turn(&tile, &mut turned);
        dst.copy_from_nonoverlapping(turned.as_ptr(), words * COLS);
    }
}

/// Transposes 16 × 16 words.
fn turn(tile: &[u32; WORDS], turned: &mut [u32; WORDS]) {
    let src = tile.as_ptr().cast();
    let rect = Rect { src, rows: COLS, cols: COLS, row_stride: 4, col_stride: ROW_BYTES as isize };
    // SAFETY: 16 × 16 words on both sides; the level in use implies AVX2.
    unsafe { transpose_32(&rect, turned.as_mut_ptr(), COLS) };
}

/// Packs one word's `count` rows, each contiguous, into 16 words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
unsafe fn interleave<P: Product>(rect: &Rect, word: usize, count: usize, dst: *mut u32) {
    let mask = ((1u32 << rect.cols.min(COLS)) - 1) as u16;
    let mut sum = _mm512_setzero_si512();
    for i in 0..count {
        // SAFETY: row `word * STEP + i` of the rectangle; the mask keeps to its columns.
        unsafe {
            let row = rect.src.offset((word * P::STEP + i) as isize * rect.row_stride);
            let wide = if P::STEP == 2 {
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row.cast()))
            } else {
                _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, row.cast()))
            };
            let by = _mm_cvtsi32_si128((i * 32 / P::STEP) as i32);
            sum = _mm512_or_si512(sum, _mm512_sll_epi32(wide, by));
        }
    }
    // SAFETY: the caller provides 16 words.
    unsafe { _mm512_storeu_si512(dst.cast(), sum) };
}

/// Packs one word's `count` rows at any strides into 16 words.
unsafe fn gather<P: Product>(rect: &Rect, word: usize, count: usize, dst: *mut u32) {
    let dst = dst.cast::<P::Elem>();
    // SAFETY: rows `word * STEP…` and columns of the rectangle; 16 words of the tile.
    unsafe {
        dst.write_bytes(0, COLS * P::STEP);
        for c in 0..rect.cols.min(COLS) {
            for i in 0..count {
                let row = (word * P::STEP + i) as isize;
                let at = rect.src.offset(row * rect.row_stride + c as isize * rect.col_stride);
                dst.add(c * P::STEP + i).write(at.cast::<P::Elem>().read_unaligned());
            }
        }
    }
}

/// Copies some rows of a block of W so that each has `pitch` bytes, padded with zeros: `rect` is rows
/// of W by the columns that lie inside the matrix, at any strides.
///
/// # Safety
/// AVX-512 must be present, the rectangle readable, and `dst` writeable for `rect.rows * pitch` bytes,
/// where `pitch` is a multiple of 4 no less than a row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn w_rows<P: Product>(rect: &Rect, dst: *mut u8, pitch: usize) {
    let size = size_of::<P::Elem>();
    if rect.col_stride == size as isize {
        let bytes = rect.cols * size;
        for r in 0..rect.rows {
            // SAFETY: row r of both sides.
            unsafe {
                let to = dst.add(r * pitch);
                to.copy_from_nonoverlapping(rect.src.offset(r as isize * rect.row_stride), bytes);
                to.add(bytes).write_bytes(0, pitch - bytes);
            }
        }
        return;
    }
    // A transposed block: what is a row of W here lies in columns, as x does. Pack tiles like those of
    // x, whose 16 columns are rows of W, and turn their words round.
    let (mut tile, mut turned) = ([0u32; WORDS], [0u32; WORDS]);
    let words = pitch / 4;
    for row in (0..rect.rows).step_by(COLS) {
        for word in (0..words).step_by(COLS) {
            let (rows, count) = (COLS.min(rect.rows - row), COLS.min(words - word));
            let from = (word * P::STEP).min(rect.cols);
            // SAFETY: parts of the rectangle; a tile of 16 × 16 words; `rows` rows of `count` words.
            unsafe {
                let at = row as isize * rect.row_stride + from as isize * rect.col_stride;
                let part = Rect {
                    src: rect.src.wrapping_offset(at),
                    rows: (count * P::STEP).min(rect.cols - from),
                    cols: rows,
                    row_stride: rect.col_stride,
                    col_stride: rect.row_stride,
                };
                x_tile::<P>(&part, tile.as_mut_ptr(), count);
                turn(&tile, &mut turned);
                for r in 0..rows {
                    let to = dst.add((row + r) * pitch + word * 4).cast::<u32>();
                    to.copy_from_nonoverlapping(turned.as_ptr().add(r * COLS), count);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amx::{Bf16, Int8};
    use crate::level::Level;

    /// Packs by the definition, from a rectangle of values that number their place.
    fn check<P: Product>(rows: usize, cols: usize, words: usize, by_column: bool, gap: usize) {
        let size = size_of::<P::Elem>();
        let inner = (if by_column { rows } else { cols }) + gap;
        let outer = if by_column { cols } else { rows };
        let memory: Vec<u8> = (0..inner * outer * size * 2 + 64).map(|i| (i * 7 + i / 251) as u8).collect();
        // A gap of two or more also spreads the inner dimension.
        let step = if gap > 1 { 2 * size } else { size };
        let (near, far) = (step as isize, (inner * step) as isize);
        let (row_stride, col_stride) = if by_column { (near, far) } else { (far, near) };
        let value = |r: usize, c: usize, byte: usize| {
            if r < rows && c < cols {
                memory[r * row_stride as usize + c * col_stride as usize + byte]
            } else {
                0
            }
        };
        let rect = Rect { src: memory.as_ptr(), rows, cols, row_stride, col_stride };
        let mut tile = vec![0xAAAA_AAAAu32; words * COLS + 8];
        // SAFETY: the rectangle lies in `memory`; the tile has room; the caller checked AVX-512.
        unsafe { x_tile::<P>(&rect, tile.as_mut_ptr(), words) };
        for word in 0..words {
            for c in 0..COLS {
                let got = tile[word * COLS + c].to_le_bytes();
                for (b, byte) in got.into_iter().enumerate() {
                    let expected = value(word * P::STEP + b / size, c, b % size);
                    assert_eq!(byte, expected, "{rows} x {cols}, word {word}, column {c}");
                }
            }
        }
        assert!(tile[words * COLS..].iter().all(|&word| word == 0xAAAA_AAAA));

        // The same rectangle seen as W: rows are columns.
        let rect = Rect {
            src: memory.as_ptr(),
            rows: cols,
            cols: rows,
            row_stride: col_stride,
            col_stride: row_stride,
        };
        let pitch = words * 4;
        let mut copy = vec![0xAAu8; cols * pitch + 8];
        // SAFETY: as above.
        unsafe { w_rows::<P>(&rect, copy.as_mut_ptr(), pitch) };
        for c in 0..cols {
            for b in 0..pitch {
                assert_eq!(copy[c * pitch + b], value(b / size, c, b % size), "{cols} x {rows}, row {c}");
            }
        }
        assert!(copy[cols * pitch..].iter().all(|&byte| byte == 0xAA));
    }

    #[test]
    fn tiles_hold_what_they_should_and_nothing_else_is_touched() {
        if !Level::Avx512.is_available() {
            return;
        }
        for (rows, cols) in [(1, 1), (2, 16), (3, 5), (31, 16), (32, 16), (32, 15), (17, 9), (7, 12)] {
            for by_column in [false, true] {
                for gap in [0, 1, 3] {
                    check::<Bf16>(rows, cols, 16, by_column, gap);
                    check::<Int8>(rows, cols, 16, by_column, gap);
                    check::<Int8>(rows, cols, rows.div_ceil(4), by_column, gap);
                    check::<Bf16>(rows, cols, rows.div_ceil(2), by_column, gap);
                }
            }
        }
    }
}
