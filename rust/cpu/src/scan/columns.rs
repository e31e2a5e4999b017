//! A task's channels, read from and written to arrays of any layout and type.

use half::{bf16, f16};
use prunus_core::{DType, Epilogue, Error, MatRef};

use super::lanes::Float;
use crate::dsd::convert::{Cast, Convert, Element, Rect};
use crate::dsd::store::{Finished, Round, Store, Sum};

/// Runs of neighbouring channels: the first one, and how many.
pub(super) type Runs = [(usize, usize)];

/// Channels in a run on average from which on a run is copied as a rectangle; below, value by value.
const LONG: usize = 8;

fn are_short(runs: &Runs) -> bool {
    runs.iter().map(|&(_, n)| n).sum::<usize>() < runs.len() * LONG
}

/// Calls `f` with the place among the task's channels, the first channel and the length of each run.
pub(super) fn each(runs: &Runs, mut f: impl FnMut(usize, usize, usize)) {
    let mut at = 0;
    for &(channel, n) in runs {
        f(at, channel, n);
        at += n;
    }
}

/// Copies the runs' columns of some rows, value by value.
type Gather<E> =
    unsafe fn(view: &MatRef<'_>, first: usize, rows: usize, runs: &Runs, to: *mut E, width: usize);
/// Writes the runs' columns of some rows, value by value.
type Scatter<E> =
    unsafe fn(view: &MatRef<'_>, first: usize, rows: usize, runs: &Runs, from: *const E, width: usize);

/// How one operand is read.
#[derive(Clone, Copy)]
pub(super) struct Reader<E> {
    pub convert: Convert<E>,
    gather: Gather<E>,
}

/// How the result is written.
#[derive(Clone, Copy)]
pub(super) struct Writer<E> {
    store: Store<E>,
    scatter: Scatter<E>,
}

impl<E: Float> Reader<E> {
    pub(super) fn new(dtype: DType) -> Result<Self, Error> {
        match (<E as Element>::convert(dtype), E::gather(dtype)) {
            (Some(convert), Some(gather)) => Ok(Self { convert, gather }),
            _ => Err(Error::DTypes { what: "scan", a: dtype, b: E::DTYPE, out: E::DTYPE }),
        }
    }

    /// Copies `rows` rows of the runs' columns to `to`, `width` apart; what is left of a row becomes 0.
    ///
    /// # Safety
    /// The rows and columns are within the view, and `to` has room for `rows` rows of `width`.
    pub(super) unsafe fn read(
        &self,
        view: &MatRef<'_>,
        first: usize,
        rows: usize,
        runs: &Runs,
        to: *mut E,
        width: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if are_short(runs) {
                (self.gather)(view, first, rows, runs, to, width);
            } else {
                each(runs, |at, channel, n| {
                    let rect = Rect {
                        src: view.at(first, channel),
                        rows,
                        cols: n,
                        row_stride: view.row_stride,
                        col_stride: view.col_stride,
                    };
                    (self.convert)(&rect, to.add(at), width);
                });
            }
            let channels: usize = runs.iter().map(|&(_, n)| n).sum();
            for row in 0..rows {
                std::slice::from_raw_parts_mut(to.add(row * width + channels), width - channels)
                    .fill(E::ZERO);
            }
        }
    }
}

impl<E: Float> Writer<E> {
    pub(super) fn new(dtype: DType) -> Result<Self, Error> {
        match (<E as Sum>::store(dtype), E::scatter(dtype)) {
            (Some(store), Some(scatter)) => Ok(Self { store, scatter }),
            _ => Err(Error::DTypes { what: "scan", a: E::DTYPE, b: E::DTYPE, out: dtype }),
        }
    }

    /// Writes `rows` rows, `width` apart, to the runs' columns.
    ///
    /// # Safety
    /// The rows and columns are within the view, which may be written, and `from` holds as many rows.
    pub(super) unsafe fn write(
        &self,
        view: &MatRef<'_>,
        first: usize,
        rows: usize,
        runs: &Runs,
        from: *const E,
        width: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if are_short(runs) {
                (self.scatter)(view, first, rows, runs, from, width);
                return;
            }
            each(runs, |at, channel, n| {
                let finished = Finished {
                    sums: from.add(at),
                    sums_row: width,
                    rows,
                    cols: n,
                    first_row: 0,
                    out: view.at(first, channel).cast_mut(),
                    row_stride: view.row_stride,
                    col_stride: view.col_stride,
                };
                (self.store)(&finished, &Epilogue::default());
            });
        }
    }
}

/// Asks for the cache lines of some rows of the runs' columns: rows lie too far apart for the hardware to
/// see what comes next.
#[cfg(target_arch = "x86_64")]
pub(super) fn prefetch(view: &MatRef<'_>, rows: std::ops::Range<usize>, runs: &Runs) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    let size = view.dtype.size();
    if view.col_stride != size as isize || are_short(runs) {
        return;
    }
    for row in rows {
        for &(channel, n) in runs {
            let from = view.at(row, channel);
            for byte in (0..n * size).step_by(64) {
                // SAFETY: a hint; never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(byte).cast()) };
            }
        }
    }
}

/// No hints elsewhere.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn prefetch(_: &MatRef<'_>, _: std::ops::Range<usize>, _: &Runs) {}

/// The storage types of a float type that is computed in.
pub(crate) trait Stored: Sized {
    fn gather(from: DType) -> Option<Gather<Self>>;
    fn scatter(to: DType) -> Option<Scatter<Self>>;
}

macro_rules! stored {
    ($e:ty, { $($from:ident => $s:ty),+ }) => {
        impl Stored for $e {
            fn gather(from: DType) -> Option<Gather<Self>> {
                match from {
                    $(DType::$from => Some(gather_as::<$s, $e>),)+
                    _ => None,
                }
            }
            fn scatter(to: DType) -> Option<Scatter<Self>> {
                match to {
                    DType::F64 => Some(scatter_as::<f64, $e>),
                    DType::F32 => Some(scatter_as::<f32, $e>),
                    DType::F16 => Some(scatter_as::<f16, $e>),
                    DType::Bf16 => Some(scatter_as::<bf16, $e>),
                    _ => None,
                }
            }
        }
    };
}
stored!(f32, { F32 => f32, F16 => f16, Bf16 => bf16 });
stored!(f64, { F64 => f64, F32 => f32, F16 => f16, Bf16 => bf16 });

unsafe fn gather_as<S: Cast<E>, E>(
    view: &MatRef<'_>,
    first: usize,
    rows: usize,
    runs: &Runs,
    to: *mut E,
    width: usize,
) {
    for row in 0..rows {
        let mut at = row * width;
        for &(channel, n) in runs {
            for channel in channel..channel + n {
                // SAFETY: the caller's promise; values may lie at any alignment.
                unsafe { *to.add(at) = view.at(first + row, channel).cast::<S>().read_unaligned().cast() };
                at += 1;
            }
        }
    }
}

unsafe fn scatter_as<O: Copy, E: Round<O>>(
    view: &MatRef<'_>,
    first: usize,
    rows: usize,
    runs: &Runs,
    from: *const E,
    width: usize,
) {
    for row in 0..rows {
        let mut at = row * width;
        for &(channel, n) in runs {
            for channel in channel..channel + n {
                let to = view.at(first + row, channel).cast_mut().cast::<O>();
                // SAFETY: the caller's promise; values may lie at any alignment.
                unsafe { to.write_unaligned((*from.add(at)).round()) };
                at += 1;
            }
        }
    }
}
