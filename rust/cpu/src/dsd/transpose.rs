//! Transposing copies of 32-bit values.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::convert::Rect;
#[cfg(target_arch = "x86_64")]
use crate::level;
use crate::level::Level;

/// Whether `level` has a transposing copy.
pub(crate) fn is_available(level: Level) -> bool {
    // Levels above scalar are of this machine's architecture: no other can be chosen.
    level != Level::Scalar
}

/// Copies a rectangle whose columns are contiguous runs (`row_stride == 4`) to `dst`, where rows are
/// contiguous: a transposition of tiles in registers, edges by single values.
///
/// Tiles are as wide as a cache line where AVX-512 is there: runs often lie a power of two apart, in
/// one cache set, and a line that is used whole need not stay.
///
/// # Safety
/// A level for which [`is_available`] holds must be present, the rectangle readable and `dst`
/// writeable for `rows` rows of `cols`.
pub(crate) unsafe fn transpose_32(rect: &Rect, dst: *mut u32, dst_row: usize) {
    // SAFETY: the caller's promise; every level with a transposing copy has AVX2 or is AArch64.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if level::current() >= Level::Avx512 {
            transpose_avx512(rect, dst, dst_row);
        } else {
            transpose_avx2(rect, dst, dst_row);
        }
        #[cfg(target_arch = "aarch64")]
        cut::<4>(rect, dst, dst_row, |src, run, dst, row| tile_4x4(src, run, dst, row));
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        cut::<1>(rect, dst, dst_row, |src, _, dst, _| dst.write(src.cast::<u32>().read_unaligned()));
    }
}

/// Cuts the rectangle into `S × S` tiles and does the edges.
///
/// # Safety
/// As [`transpose_32`]; `tile` transposes `S` runs of `S` values into `S` rows.
#[inline(always)]
unsafe fn cut<const S: usize>(
    rect: &Rect,
    dst: *mut u32,
    dst_row: usize,
    tile: impl Fn(*const u8, isize, *mut u32, usize),
) {
    let (rows, cols) = (rect.rows, rect.cols);
    let (full_rows, full_cols) = (rows / S * S, cols / S * S);
    // SAFETY: tiles and single values stay inside the rectangle.
    unsafe {
        let at = |i: usize, j: usize| {
            let src = rect.src.offset(i as isize * 4 + j as isize * rect.col_stride);
            tile(src, rect.col_stride, dst.add(i * dst_row + j), dst_row);
        };
        // Along what lies farther apart: of that, lines are used whole before others take their place.
        if rect.col_stride.unsigned_abs() >= 4 * dst_row {
            for j in (0..full_cols).step_by(S) {
                (0..full_rows).step_by(S).for_each(|i| at(i, j));
            }
        } else {
            for i in (0..full_rows).step_by(S) {
                (0..full_cols).step_by(S).for_each(|j| at(i, j));
            }
        }
        for i in 0..rows {
            let from = if i < full_rows { full_cols } else { 0 };
            for j in from..cols {
                let src = rect.src.offset(i as isize * 4 + j as isize * rect.col_stride);
                dst.add(i * dst_row + j).write(src.cast::<u32>().read_unaligned());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2(rect: &Rect, dst: *mut u32, dst_row: usize) {
    // SAFETY: the caller's promise, handed on tile by tile.
    unsafe { cut::<8>(rect, dst, dst_row, |src, run, dst, row| tile_8x8(src, run, dst, row)) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(rect: &Rect, dst: *mut u32, dst_row: usize) {
    // SAFETY: the caller's promise, handed on tile by tile.
    unsafe { cut::<16>(rect, dst, dst_row, |src, run, dst, row| tile_16x16(src, run, dst, row)) }
}

/// Transposes one 8 × 8 tile: run `j` of the source becomes column `j` of the destination.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn tile_8x8(src: *const u8, run_stride: isize, dst: *mut u32, dst_row: usize) {
    // SAFETY: the caller provides 8 runs of 8 values, and 8 rows of 8 to write.
    unsafe {
        let run = |j: isize| _mm256_loadu_ps(src.offset(j * run_stride).cast());
        let pair = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let ((a0, a1), (b0, b1)) = (pair(run(0), run(1)), pair(run(2), run(3)));
        let ((c0, c1), (d0, d1)) = (pair(run(4), run(5)), pair(run(6), run(7)));
        let quad = |a, b| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
        let ((p0, p1), (p2, p3)) = (quad(a0, b0), quad(a1, b1));
        let ((q0, q1), (q2, q3)) = (quad(c0, d0), quad(c1, d1));
        let put = |i: usize, v: __m256| _mm256_storeu_ps(dst.add(i * dst_row).cast(), v);
        for (i, (p, q)) in [(p0, q0), (p1, q1), (p2, q2), (p3, q3)].into_iter().enumerate() {
            put(i, _mm256_permute2f128_ps::<0x20>(p, q));
            put(i + 4, _mm256_permute2f128_ps::<0x31>(p, q));
        }
    }
}

/// Transposes one 16 × 16 tile.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn tile_16x16(src: *const u8, run_stride: isize, dst: *mut u32, dst_row: usize) {
    // SAFETY: the caller provides 16 runs of 16 values, and 16 rows of 16 to write.
    unsafe {
        // Four runs to four vectors, each of whose 128-bit lanes holds one value of each run.
        let quad = |j: isize| {
            let run = |j: isize| _mm512_loadu_ps(src.offset(j * run_stride).cast());
            let (a, b, c, d) = (run(j), run(j + 1), run(j + 2), run(j + 3));
            let (ab0, ab1) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (cd0, cd1) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            [
                _mm512_shuffle_ps::<0x44>(ab0, cd0),
                _mm512_shuffle_ps::<0xEE>(ab0, cd0),
                _mm512_shuffle_ps::<0x44>(ab1, cd1),
                _mm512_shuffle_ps::<0xEE>(ab1, cd1),
            ]
        };
        let (p, q, r, s) = (quad(0), quad(4), quad(8), quad(12));
        for i in 0..4 {
            // Lane l of p[i] is row 4 l + i, runs 0 to 3; q, r and s hold the other runs.
            let even_pq = _mm512_shuffle_f32x4::<0x88>(p[i], q[i]);
            let odd_pq = _mm512_shuffle_f32x4::<0xDD>(p[i], q[i]);
            let even_rs = _mm512_shuffle_f32x4::<0x88>(r[i], s[i]);
            let odd_rs = _mm512_shuffle_f32x4::<0xDD>(r[i], s[i]);
            let put = |row: usize, v| _mm512_storeu_ps(dst.add(row * dst_row).cast(), v);
            put(i, _mm512_shuffle_f32x4::<0x88>(even_pq, even_rs));
            put(i + 4, _mm512_shuffle_f32x4::<0x88>(odd_pq, odd_rs));
            put(i + 8, _mm512_shuffle_f32x4::<0xDD>(even_pq, even_rs));
            put(i + 12, _mm512_shuffle_f32x4::<0xDD>(odd_pq, odd_rs));
        }
    }
}

/// Transposes one 4 × 4 tile: run `j` of the source becomes column `j` of the destination.
#[cfg(target_arch = "aarch64")]
#[inline]
unsafe fn tile_4x4(src: *const u8, run_stride: isize, dst: *mut u32, dst_row: usize) {
    // SAFETY: the caller provides 4 runs of 4 values, at any alignment, and 4 rows of 4 to write.
    unsafe {
        let run = |j: isize| vreinterpretq_u32_u8(vld1q_u8(src.offset(j * run_stride)));
        let (even, odd) = ((run(0), run(2)), (run(1), run(3)));
        let (a, b) = (vzip1q_u32(even.0, even.1), vzip2q_u32(even.0, even.1));
        let (c, d) = (vzip1q_u32(odd.0, odd.1), vzip2q_u32(odd.0, odd.1));
        vst1q_u32(dst, vzip1q_u32(a, c));
        vst1q_u32(dst.add(dst_row), vzip2q_u32(a, c));
        vst1q_u32(dst.add(2 * dst_row), vzip1q_u32(b, d));
        vst1q_u32(dst.add(3 * dst_row), vzip2q_u32(b, d));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level;

    #[test]
    fn every_value_lands_at_its_place_and_nowhere_else() {
        if !level::available().into_iter().any(is_available) {
            return;
        }
        let sizes = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 33];
        for rows in sizes {
            for cols in sizes {
                // Runs apart, adjacent, backwards, repeated, and off any alignment.
                let far = 4 * rows as isize + 12;
                for (run, off) in [(far, 0), (4 * rows as isize, 0), (-far, 0), (0, 0), (far + 1, 3)] {
                    let bytes = run.unsigned_abs() * cols + 4 * rows + 8;
                    let src: Vec<u8> = (0..bytes).map(|i| (i * 131 % 251) as u8).collect();
                    let first = if run < 0 { bytes - 4 * rows - 8 } else { off };
                    let rect = Rect {
                        src: src.as_ptr().wrapping_add(first),
                        rows,
                        cols,
                        row_stride: 4,
                        col_stride: run,
                    };
                    let dst_row = cols + 3;
                    let mut dst = vec![0xDEAD_BEEFu32; rows * dst_row + 1];
                    // SAFETY: a level is there; every run lies in `src`, every row in `dst`.
                    unsafe { transpose_32(&rect, dst.as_mut_ptr(), dst_row) };
                    for (at, got) in dst.into_iter().enumerate() {
                        let (i, j) = (at / dst_row, at % dst_row);
                        let want = if i < rows && j < cols {
                            let from = (first as isize + 4 * i as isize + run * j as isize) as usize;
                            u32::from_ne_bytes(src[from..from + 4].try_into().unwrap())
                        } else {
                            0xDEAD_BEEF
                        };
                        assert_eq!(got, want, "({i}, {j}) of {rows} x {cols}, runs {run} apart");
                    }
                }
            }
        }
    }
}
