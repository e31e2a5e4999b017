//! Transposing copies of 32-bit values.

use std::arch::x86_64::*;

use super::convert::Rect;

/// Copies a rectangle whose columns are contiguous runs (`row_stride == 4`) to `dst`, where rows are
/// contiguous: a transposition of 8 × 8 tiles in registers, edges by single values.
///
/// # Safety
/// AVX2 must be present, the rectangle readable and `dst` writeable for `rows` rows of `cols`.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn transpose_32(rect: &Rect, dst: *mut u32, dst_row: usize) {
    let (rows, cols) = (rect.rows, rect.cols);
    let (full_rows, full_cols) = (rows / 8 * 8, cols / 8 * 8);
    // SAFETY: tiles stay inside the rectangle.
    unsafe {
        for i in (0..full_rows).step_by(8) {
            for j in (0..full_cols).step_by(8) {
                let src = rect.src.offset(i as isize * 4 + j as isize * rect.col_stride);
                tile_8x8(src, rect.col_stride, dst.add(i * dst_row + j), dst_row);
            }
        }
        let single = |i: usize, j: usize| {
            let src = rect.src.offset(i as isize * 4 + j as isize * rect.col_stride);
            *dst.add(i * dst_row + j) = src.cast::<u32>().read_unaligned();
        };
        for i in 0..rows {
            let from = if i < full_rows { full_cols } else { 0 };
            for j in from..cols {
                single(i, j);
            }
        }
    }
}

/// Transposes one 8 × 8 tile: run `j` of the source becomes column `j` of the destination.
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
