//! Stores in stages: what the plain loop over a row would do value by value.
//!
//! A result whose columns are contiguous takes the sums transposed, and 16-bit results are rounded in
//! vectors: a tile's rows of 32 values are too short for the compiler to do so by itself. Bias and
//! activation come first, along the rows of the sums, into a buffer.

use std::any::TypeId;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use half::{bf16, f16};
use prunus_core::Epilogue;

use super::convert::Rect;
use super::store::{Finished, Round, Sum, store_vectors};
use super::transpose::transpose_32;
use crate::level::{self, Level};

/// Rows and columns of sums that are done at a time.
const ROWS: usize = 32;
const COLS: usize = 64;

fn is<A: 'static, B: 'static>() -> bool {
    TypeId::of::<A>() == TypeId::of::<B>()
}

/// Whether [`round_rows`] knows how to round these.
fn rounds<A: 'static, O: 'static>() -> bool {
    level::current() >= Level::Avx512 && is::<A, f32>() && (is::<O, bf16>() || is::<O, f16>())
}

/// Whether the result's columns, and not its rows, are contiguous, and the sums can be transposed.
fn turns<A, O>(f: &Finished<A>) -> bool {
    let size = size_of::<O>() as isize;
    size_of::<A>() == 4 && f.row_stride == size && f.col_stride != size
}

/// Whether a store pays in stages.
pub(crate) fn apply<A: Sum, O: 'static>(f: &Finished<A>) -> bool {
    turns::<A, O>(f) || (rounds::<A, O>() && f.col_stride == size_of::<O>() as isize)
}

/// Stores in stages.
///
/// # Safety
/// As for any store (see [`super::store`]), with AVX2 there, and only where [`apply`] says so.
pub(crate) unsafe fn store<A, O>(f: &Finished<A>, epilogue: &Epilogue<'_>)
where
    A: Sum + Round<A> + Round<O>,
    O: Copy + 'static,
{
    let turns = turns::<A, O>(f);
    let mut finished = [const { MaybeUninit::<A>::uninit() }; ROWS * COLS];
    let mut turned = [const { MaybeUninit::<A>::uninit() }; ROWS * COLS];
    for r in (0..f.rows).step_by(ROWS) {
        for c in (0..f.cols).step_by(COLS) {
            // SAFETY: parts of the sums and of the result; `rows × cols` values fit the two buffers,
            // and are written before they are read.
            unsafe {
                let mut part = Finished {
                    sums: f.sums.add(r * f.sums_row + c),
                    rows: ROWS.min(f.rows - r),
                    cols: COLS.min(f.cols - c),
                    first_row: f.first_row + r,
                    out: f.out.offset(r as isize * f.row_stride + c as isize * f.col_stride),
                    ..*f
                };
                if !epilogue.is_identity() {
                    let to = Finished {
                        out: finished.as_mut_ptr().cast(),
                        row_stride: (COLS * size_of::<A>()) as isize,
                        col_stride: size_of::<A>() as isize,
                        ..part
                    };
                    store_vectors::<A, A>(&to, epilogue);
                    (part.sums, part.sums_row) = (finished.as_ptr().cast(), COLS);
                }
                if turns {
                    let rect = Rect {
                        src: part.sums.cast(),
                        rows: part.cols,
                        cols: part.rows,
                        row_stride: 4,
                        col_stride: 4 * part.sums_row as isize,
                    };
                    transpose_32(&rect, turned.as_mut_ptr().cast(), ROWS);
                    (part.sums, part.sums_row) = (turned.as_ptr().cast(), ROWS);
                    (part.rows, part.cols) = (part.cols, part.rows);
                    (part.row_stride, part.col_stride) = (part.col_stride, part.row_stride);
                }
                match rounds::<A, O>() {
                    true if is::<O, f16>() => round_rows::<A, true>(&part),
                    true => round_rows::<A, false>(&part),
                    false => store_vectors::<A, O>(&part, &Epilogue::default()),
                }
            }
        }
    }
}

/// Rounds rows of float32 to bfloat16 or float16, to nearest, ties to even; NaN stays a quiet NaN.
///
/// # Safety
/// AVX-512 must be there and the sums be float32; the result's rows must be contiguous.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn round_rows<A, const TO_F16: bool>(f: &Finished<A>) {
    const LANES: usize = 16;
    for r in 0..f.rows {
        // SAFETY: row r of both sides; masks keep to its columns.
        unsafe {
            let sums = f.sums.add(r * f.sums_row).cast::<f32>();
            let out = f.out.offset(r as isize * f.row_stride).cast::<i16>();
            for c in (0..f.cols).step_by(LANES) {
                let mask = u16::MAX >> (LANES - LANES.min(f.cols - c));
                let v = _mm512_maskz_loadu_ps(mask, sums.add(c));
                let narrow = if TO_F16 {
                    _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)
                } else {
                    let bits = _mm512_castps_si512(v);
                    let upper = _mm512_srli_epi32::<16>(bits);
                    let even = _mm512_and_si512(upper, _mm512_set1_epi32(1));
                    let half = _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF));
                    let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
                    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                    let quiet = _mm512_mask_or_epi32(rounded, is_nan, upper, _mm512_set1_epi32(0x40));
                    _mm512_cvtepi32_epi16(quiet)
                };
                _mm256_mask_storeu_epi16(out.add(c), mask, narrow);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_round_as_values_do() {
        if !Level::Avx512.is_available() {
            return;
        }
        let mut sums: Vec<f32> =
            (0..20_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9))).collect();
        sums.extend([f32::INFINITY, -0.0, f32::MAX, f32::MIN_POSITIVE, 65504.0, 65520.0, 1e-8, f32::NAN]);
        for halfway in [0x3F80_8000, 0x3F81_8000, 0x7F7F_8000, 0x3F80_7FFF, 0x3F80_8001] {
            sums.push(f32::from_bits(halfway));
        }
        let (mut to_bf16, mut to_f16) = (vec![0u16; sums.len()], vec![0u16; sums.len()]);
        let cols = sums.len();
        let finished = |out: &mut [u16]| Finished {
            sums: sums.as_ptr(),
            sums_row: cols,
            rows: 1,
            cols,
            first_row: 0,
            out: out.as_mut_ptr().cast(),
            row_stride: 0,
            col_stride: 2,
        };
        // SAFETY: one row of as many values on both sides; AVX-512 is there.
        unsafe {
            round_rows::<f32, false>(&finished(&mut to_bf16));
            round_rows::<f32, true>(&finished(&mut to_f16));
        }
        for (i, &v) in sums.iter().enumerate() {
            let expected: (bf16, f16) = (Round::round(v), Round::round(v));
            assert_eq!(to_bf16[i], expected.0.to_bits(), "{v:e}");
            assert_eq!(to_f16[i], expected.1.to_bits(), "{v:e}");
        }
    }
}
