//! The two loops: moments of a run of values, and of the columns of some rows.

use half::{bf16, f16};

use super::Moments;
use crate::level::{self, Level};

/// Sums that are kept side by side: a vector or more of doubles on every level.
const LANES: usize = 16;
/// Doubles of scratch for each column: sum, mean, squares, least, most, NaN.
pub(super) const COLUMN_SUMS: usize = 6;

/// A stored float.
pub(super) trait Value: Copy + Send + Sync + 'static {
    fn wide(self) -> f64;
}
macro_rules! values {
    ($($t:ty: |$v:ident| $e:expr),+) => {
        $(impl Value for $t {
            #[inline(always)]
            fn wide(self) -> f64 { let $v = self; $e }
        })+
    };
}
values!(f32: |v| f64::from(v), f64: |v| v, f16: |v| f64::from(v.to_f32()),
    bf16: |v| f64::from(f32::from_bits(u32::from(v.to_bits()) << 16)));

/// Some columns of some rows.
pub(super) struct Part<S> {
    pub first: *const S,
    pub rows: usize,
    /// Bytes from one row to the next.
    pub row_stride: isize,
    pub skip_nan: bool,
    pub squares: bool,
}

/// The loops, compiled for the level in use.
pub(super) struct Kernels<S> {
    pub chunk: unsafe fn(*const S, usize, bool, bool) -> Moments,
    pub columns: unsafe fn(&Part<S>, &mut [Moments], *mut f64),
}

/// Moments of `count` values.
///
/// # Safety
/// The values must be readable; any alignment.
#[inline(always)]
unsafe fn chunk<S: Value>(at: *const S, count: usize, skip_nan: bool, squares: bool) -> Moments {
    // SAFETY: below `count`, which the caller provides.
    let value = |i: usize| unsafe { at.add(i).read_unaligned().wide() };
    let mut sums = [0f64; LANES];
    let (mut least, mut most) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
    let mut nans = [0f64; LANES];
    let whole = count / LANES * LANES;
    let mut take = |lane: usize, v: f64| {
        let nan = v.is_nan();
        sums[lane] += if nan && skip_nan { 0.0 } else { v };
        least[lane] = if v < least[lane] { v } else { least[lane] };
        most[lane] = if v > most[lane] { v } else { most[lane] };
        nans[lane] += if nan { 1.0 } else { 0.0 };
    };
    for from in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            take(lane, value(from + lane));
        }
    }
    for i in whole..count {
        take(i - whole, value(i));
    }
    let nans = nans.iter().sum::<f64>();
    let counted = if skip_nan { count as f64 - nans } else { count as f64 };
    let sum: f64 = sums.iter().sum();
    let mut apart = [0f64; LANES];
    if squares && counted > 0.0 {
        let mean = sum / counted;
        let mut take = |lane: usize, v: f64| {
            let distance = v - mean;
            let distance = if skip_nan && distance.is_nan() && v.is_nan() { 0.0 } else { distance };
            apart[lane] += distance * distance;
        };
        for from in (0..whole).step_by(LANES) {
            for lane in 0..LANES {
                take(lane, value(from + lane));
            }
        }
        for i in whole..count {
            take(i - whole, value(i));
        }
    }
    Moments {
        count: counted as u64,
        nans: nans as u64,
        sum,
        squares: apart.iter().sum(),
        min: least.iter().copied().fold(f64::INFINITY, f64::min),
        max: most.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// Merges the moments of some rows into those of their columns.
///
/// # Safety
/// The rows must hold a value for each column, and `scratch` [`COLUMN_SUMS`] doubles for each.
#[inline(always)]
unsafe fn columns<S: Value, const SKIP: bool>(part: &Part<S>, moments: &mut [Moments], scratch: *mut f64) {
    let width = moments.len();
    // SAFETY: the caller's promise; every value of it is written before it is read.
    let scratch = unsafe {
        scratch.write_bytes(0, COLUMN_SUMS * width);
        std::slice::from_raw_parts_mut(scratch, COLUMN_SUMS * width)
    };
    let (sums, rest) = scratch.split_at_mut(width);
    let (means, rest) = rest.split_at_mut(width);
    let (apart, rest) = rest.split_at_mut(width);
    let (least, rest) = rest.split_at_mut(width);
    let (most, nans) = rest.split_at_mut(width);
    least.fill(f64::INFINITY);
    most.fill(f64::NEG_INFINITY);
    let row = |r: usize| part.first.wrapping_byte_offset(r as isize * part.row_stride);
    for r in 0..part.rows {
        let row = row(r);
        let columns = sums.iter_mut().zip(&mut *least).zip(&mut *most).zip(&mut *nans).enumerate();
        for (c, (((sum, least), most), nans)) in columns {
            // SAFETY: a value of the row.
            let v = unsafe { row.add(c).read_unaligned().wide() };
            let nan = v.is_nan();
            *sum += if SKIP && nan { 0.0 } else { v };
            *least = if v < *least { v } else { *least };
            *most = if v > *most { v } else { *most };
            *nans += if nan { 1.0 } else { 0.0 };
        }
    }
    let rows = part.rows as f64;
    let counted = |nans: f64| if SKIP { rows - nans } else { rows };
    if part.squares {
        for ((mean, sum), nans) in means.iter_mut().zip(&*sums).zip(&*nans) {
            *mean = sum / counted(*nans);
        }
        for r in 0..part.rows {
            let row = row(r);
            for (c, (apart, mean)) in apart.iter_mut().zip(&*means).enumerate() {
                // SAFETY: as above.
                let v = unsafe { row.add(c).read_unaligned().wide() };
                let distance = v - mean;
                let distance = if SKIP && v.is_nan() { 0.0 } else { distance };
                *apart += distance * distance;
            }
        }
    }
    for (c, moments) in moments.iter_mut().enumerate() {
        moments.merge(&Moments {
            count: counted(nans[c]) as u64,
            nans: nans[c] as u64,
            sum: sums[c],
            squares: apart[c],
            min: least[c],
            max: most[c],
        });
    }
}

macro_rules! compiled {
    ($name:ident, [$($feature:meta)?]) => {
        fn $name<S: Value>() -> Kernels<S> {
            $(#[$feature])?
            unsafe fn run<S: Value>(at: *const S, count: usize, skip_nan: bool, squares: bool) -> Moments {
                // SAFETY: the caller vouches for the values, and that the features are present.
                unsafe { chunk(at, count, skip_nan, squares) }
            }
            $(#[$feature])?
            unsafe fn down<S: Value>(part: &Part<S>, moments: &mut [Moments], scratch: *mut f64) {
                // SAFETY: as above.
                unsafe {
                    match part.skip_nan {
                        true => columns::<S, true>(part, moments, scratch),
                        false => columns::<S, false>(part, moments, scratch),
                    }
                }
            }
            Kernels { chunk: run::<S>, columns: down::<S> }
        }
    };
}
compiled!(plain, []);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, [target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
compiled!(avx512, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);

impl<S: Value> Kernels<S> {
    /// The loops for the level in use.
    pub(super) fn current() -> Self {
        match level::current() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Dot | Level::Amx => avx512(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(),
            _ => plain(),
        }
    }
}
