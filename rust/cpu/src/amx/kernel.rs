//! Sums of tiles: a few rows of W by a few columns of x, over all steps of a block row.
//!
//! # What limits it
//! By Intel's optimization manual a product of full tiles takes the multiplier 16 cycles and gives
//! its result after 52, so that four independent sums keep it busy; loading a tile takes the two
//! load ports 8 cycles. A full tile holds 1 KiB, and one product is 16 × 16 × 32 multiply-adds of
//! bfloat16 (× 64 of int8).
//!
//! | sums (rows × columns) | tile loads | products | loads, cycles | products, cycles |
//! |---|---|---|---|---|
//! | 2 × 2: 32 × 32 | 4 (4 KiB) | 4 | 32 | 64 |
//! | 1 × 4: 16 × 64 | 5 (5 KiB) | 4 | 40 | 64 |
//! | 1 × 2, 2 × 1 at edges | 3 | 2 | 24 | 52 (latency) |
//!
//! So loads from the first cache, even with rows that straddle cache lines (twice the accesses), stay
//! behind the multiplier. x (2 KiB a step) comes from the second cache, at 32 bytes a cycle of the 48
//! or so that it sustains; W (2 KiB a step) comes from memory in the first panel's pass, which is why
//! that pass asks for it ahead of time, and from the second cache afterwards. When both come from
//! there, 4 KiB in 64 cycles are above what it sustains: about three quarters of the multiplier's
//! rate is the ceiling then, several times what dense products reach in practice.
//!
//! Tiles of less than full depth (blocks of 16 bfloat16: 32 of 64 bytes) take the multiplier as long
//! as full ones: half the rate, with fewer bytes to load.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::{COLS, Product, ROW_BYTES, ROWS, load, store, zero};

/// Steps by which W is asked for ahead of its use. Six steps of 64 cycles are about the time that
/// memory takes to answer, and 12 KiB of 48 in the first cache.
pub(crate) const AHEAD: usize = 6;

/// One step of a sum: some columns of a block, and the rows of x that they multiply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// First row of W's columns.
    pub w: *const u8,
    /// Which tile of a panel.
    pub x: usize,
}

/// Arguments of one pass over the steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// Steps to sum over, in order; [`AHEAD`] more lie behind them where W is to be asked for.
    pub steps: *const Step,
    /// How many.
    pub count: usize,
    /// Bytes from one row of W to the next.
    pub w_pitch: isize,
    /// Bytes of the rows' part that one step takes, and the rows: what asking ahead covers.
    pub w_bytes: usize,
    pub w_rows: usize,
    /// Panels of x: columns 0 to 31 and 32 to 63 of the pass.
    pub x: [*const u8; 2],
    /// Bytes from one step's tiles to the next in each.
    pub x_pitch: [usize; 2],
    /// Bytes of one tile of x.
    pub x_tile: usize,
    /// Sums so far, 64 bytes to a row of a tile, `sums_pitch` from row to row; null for zeros.
    pub init: *const u8,
    /// Where the sums go.
    pub out: *mut u8,
    /// Bytes from one row of `init` and of `out` to the next.
    pub init_pitch: isize,
    pub out_pitch: isize,
    /// Ask for the W of steps to come.
    pub fetch: bool,
}

/// Runs a pass with `tiles` row tiles (1 or 2) and column tiles (1 or 2, and to 4 for one row tile).
///
/// # Safety
/// AMX must be available and the tiles set for this number of rows; the pointers must cover what
/// `args` describes.
pub(crate) unsafe fn run<P: Product>((rows, cols): (usize, usize), args: &Pass) {
    // SAFETY: the caller's promise, in each arm.
    unsafe {
        match (rows, cols, args.fetch) {
            (2, 2, true) => two_rows::<P, 2, true>(args),
            (2, 2, false) => two_rows::<P, 2, false>(args),
            (2, 1, _) => two_rows::<P, 1, true>(args),
            (1, 4, true) => one_row::<P, 4, true>(args),
            (1, 4, false) => one_row::<P, 4, false>(args),
            (1, 3, _) => one_row::<P, 3, true>(args),
            (1, 2, _) => one_row::<P, 2, true>(args),
            (1, 1, _) => one_row::<P, 1, true>(args),
            _ => unreachable!("no pass of {rows} by {cols} tiles"),
        }
    }
}

/// The cache lines of a later step's W, asked for in quarters between the products.
struct Fetch {
    at: *const u8,
    line: usize,
    quarter: usize,
}

impl Fetch {
    #[inline(always)]
    unsafe fn of<const F: bool>(args: &Pass, step: *const Step) -> Self {
        if !F || !args.fetch {
            return Self { at: std::ptr::null(), line: 0, quarter: 0 };
        }
        // Rows that lie close together are one run of lines; others are a line each.
        let close = args.w_pitch <= ROW_BYTES as isize;
        let bytes = args.w_rows.saturating_sub(1) * args.w_pitch as usize + args.w_bytes;
        let lines = if close { bytes.div_ceil(ROW_BYTES) } else { args.w_rows };
        // SAFETY: the caller lists steps that far ahead.
        let at = unsafe { (*step.add(AHEAD)).w };
        Self { at, line: if close { ROW_BYTES } else { args.w_pitch as usize }, quarter: lines.div_ceil(4) }
    }

    #[inline(always)]
    unsafe fn next(&mut self) {
        for _ in 0..self.quarter {
            // SAFETY: a hint; never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.at.cast()) };
            self.at = self.at.wrapping_add(self.line);
        }
    }
}

/// Two row tiles by `C` (1 or 2) column tiles. Sums in tiles 0 to 3 (row by row), W in 4 and 5, x in 6
/// and 7.
#[inline(never)]
unsafe fn two_rows<P: Product, const C: usize, const F: bool>(args: &Pass) {
    let down = |pitch: isize| ROWS as isize * pitch;
    // SAFETY: the caller's promise.
    unsafe {
        if args.init.is_null() {
            zero::<0>();
            zero::<1>();
            zero::<2>();
            zero::<3>();
        } else {
            let (from, pitch) = (args.init, args.init_pitch);
            load::<0>(from, pitch);
            load::<2>(from.offset(down(pitch)), pitch);
            if C == 2 {
                load::<1>(from.add(ROW_BYTES), pitch);
                load::<3>(from.offset(down(pitch)).add(ROW_BYTES), pitch);
            }
        }
        let pitch = args.w_pitch;
        for i in 0..args.count {
            let step = args.steps.add(i);
            let mut fetch = Fetch::of::<F>(args, step);
            let (w, x) = ((*step).w, args.x[0].add((*step).x * args.x_pitch[0]));
            load::<4>(w, pitch);
            load::<6>(x, ROW_BYTES as isize);
            P::multiply::<0, 4, 6>();
            fetch.next();
            load::<5>(w.offset(down(pitch)), pitch);
            P::multiply::<2, 5, 6>();
            fetch.next();
            if C == 2 {
                load::<7>(x.add(args.x_tile), ROW_BYTES as isize);
                P::multiply::<1, 4, 7>();
                fetch.next();
                P::multiply::<3, 5, 7>();
                fetch.next();
            } else {
                fetch.next();
                fetch.next();
            }
        }
        let (to, pitch) = (args.out, args.out_pitch);
        store::<0>(to, pitch);
        store::<2>(to.offset(down(pitch)), pitch);
        if C == 2 {
            store::<1>(to.add(ROW_BYTES), pitch);
            store::<3>(to.offset(down(pitch)).add(ROW_BYTES), pitch);
        }
    }
}

/// One row tile by `C` (1 to 4) column tiles: what short blocks leave. Sums in tiles 0 to 3, W in 4, x
/// in 5 to 7 and 5 again.
#[inline(never)]
unsafe fn one_row<P: Product, const C: usize, const F: bool>(args: &Pass) {
    // SAFETY: the caller's promise.
    unsafe {
        if args.init.is_null() {
            zero::<0>();
            zero::<1>();
            zero::<2>();
            zero::<3>();
        } else {
            let (from, pitch) = (args.init, args.init_pitch);
            load::<0>(from, pitch);
            if C > 1 {
                load::<1>(from.add(ROW_BYTES), pitch);
            }
            if C > 2 {
                load::<2>(from.add(2 * ROW_BYTES), pitch);
            }
            if C > 3 {
                load::<3>(from.add(3 * ROW_BYTES), pitch);
            }
        }
        for i in 0..args.count {
            let step = args.steps.add(i);
            let mut fetch = Fetch::of::<F>(args, step);
            let near = args.x[0].add((*step).x * args.x_pitch[0]);
            load::<4>((*step).w, args.w_pitch);
            load::<5>(near, ROW_BYTES as isize);
            P::multiply::<0, 4, 5>();
            fetch.next();
            if C > 1 {
                load::<6>(near.add(args.x_tile), ROW_BYTES as isize);
                P::multiply::<1, 4, 6>();
            }
            fetch.next();
            if C > 2 {
                let far = args.x[1].add((*step).x * args.x_pitch[1]);
                load::<7>(far, ROW_BYTES as isize);
                P::multiply::<2, 4, 7>();
                if C > 3 {
                    load::<5>(far.add(args.x_tile), ROW_BYTES as isize);
                    P::multiply::<3, 4, 5>();
                }
            }
            fetch.next();
            fetch.next();
        }
        let (to, pitch) = (args.out, args.out_pitch);
        store::<0>(to, pitch);
        if C > 1 {
            store::<1>(to.add(ROW_BYTES), pitch);
        }
        if C > 2 {
            store::<2>(to.add(2 * ROW_BYTES), pitch);
        }
        if C > 3 {
            store::<3>(to.add(3 * ROW_BYTES), pitch);
        }
    }
}

/// Multiply-adds of a step with full tiles, for reports.
pub(crate) const fn step_work<P: Product>() -> usize {
    4 * ROWS * COLS * (ROW_BYTES / 4) * P::STEP
}
