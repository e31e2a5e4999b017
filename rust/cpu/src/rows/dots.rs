//! Hidden units from inputs: `out[t, j] = activation(x[t] · w[j] + bias[j]) · scale[t, j]` where it is live.

use std::ops::Range;

use prunus_core::{Activation, DType, Epilogue, Error, MatMut, MatRef, VecRef};

use super::finish::{Magnitude, finish, padded};
use super::kernel::{DotArgs, DotFn, RowLanes};
use super::{Live, check_rows, compute_type};
use crate::dispatch::with_floats;
use crate::dsd::convert::{Convert, Element, Rect};
use crate::dsd::store::{Finished, Store, Sum};
use crate::memory::Workspace;
use crate::threads::{Context, for_each};

/// Units that one task computes, at least: whole cache lines of the result.
const UNITS: usize = 64;
/// Units whose partial sums wait together.
const GROUP: usize = 16;
/// Rows of x that share the partial sums of a group: a bit of a word each.
const TOKENS: usize = u32::BITS as usize;
/// Rows of x that one task takes.
const TASK_TOKENS: usize = 256;
/// Values of a row that are multiplied before the next rows of x take their turn: four rows of each side
/// fit the first cache.
const PART: usize = 1024;
/// Rows of x that one task copies.
const COPY_ROWS: usize = 64;
/// As many rows of x stay in the first cache whole.
const WHOLE_ROWS: usize = 2;
/// Rows of the table that the kernel multiplies together, with all rows of x that need any of them.
const BAND: usize = 4;
/// What a product costs in a band, and alone, when each row of the table meets only what needs it but reads
/// x four times as often: measured, as a ratio.
const BAND_COST: u32 = 2;
const SINGLE_COST: u32 = 5;
/// What bands one by one cost more than a whole group at once, as a ratio.
const BANDS_COST: u32 = 8;
const AT_ONCE_COST: u32 = 7;

/// How the liveness of a branch is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Largest absolute value.
    Max,
    /// Root of the sum of squares.
    L2,
}

/// Where the liveness of the result goes.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Units in a branch.
    pub branch: usize,
    /// What is measured.
    pub norm: Norm,
    /// A branch is dead if its norm is at most this; NaN is not.
    pub tau: f64,
    /// Norms, rows × branches, in the type that sums are computed in: a coarser one would take what is
    /// small for nothing.
    pub norms: *mut u8,
    /// Their type.
    pub dtype: DType,
    /// One byte each, rows × branches: 1 is live. Null: nothing is decided, and nothing set to zero.
    pub live: *mut u8,
}

// SAFETY: each task writes branches of its own; the constructor's caller keeps the memory.
unsafe impl Send for Found {}
// SAFETY: as above.
unsafe impl Sync for Found {}

/// Products of all rows of `x` with live rows of `w`.
#[derive(Clone, Copy)]
pub struct Dots<'a> {
    /// Inputs, rows × k, any strides.
    pub x: MatRef<'a>,
    /// The table, units × k, rows contiguous.
    pub w: MatRef<'a>,
    /// What to compute; None: everything.
    pub live: Option<Live<'a>>,
    /// One value a unit.
    pub bias: Option<VecRef<'a>>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Factors after the activation, rows × units.
    pub scale: Option<MatRef<'a>>,
    /// The result, rows × units.
    pub out: MatMut<'a>,
    /// Where to write the liveness of the result.
    pub found: Option<Found>,
}

impl Dots<'_> {
    /// Runs the product and says which kernel did it.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, or [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        run_all(std::slice::from_ref(self), context)
    }

    fn compute(&self) -> Option<DType> {
        compute_type(self.x.dtype, self.w.dtype, self.out.view.dtype)
    }

    fn no_kernel(&self) -> Error {
        let (a, b, out) = (self.x.dtype, self.w.dtype, self.out.view.dtype);
        Error::DTypes { what: "product with live rows", a, b, out }
    }

    fn check(&self) -> Result<(), Error> {
        let (rows, units) = (self.x.rows, self.w.rows);
        let fault = |what, expected: (usize, usize), got: (usize, usize)| {
            let text = |(a, b)| format!("{a} x {b}");
            Err(Error::Shape { what, expected: text(expected), got: text(got) })
        };
        if self.x.cols != self.w.cols {
            return fault("table", (units, self.x.cols), (units, self.w.cols));
        }
        let out = (self.out.view.rows, self.out.view.cols);
        if out != (rows, units) {
            return fault("result", (rows, units), out);
        }
        if let Some(scale) = &self.scale
            && (scale.rows, scale.cols) != (rows, units)
        {
            return fault("scale", (rows, units), (scale.rows, scale.cols));
        }
        if let Some(found) = &self.found
            && Some(found.dtype) != self.compute()
        {
            return Err(self.no_kernel());
        }
        if let Some(scale) = &self.scale
            && Some(scale.dtype) != self.compute()
        {
            return Err(self.no_kernel());
        }
        if let Some(bias) = &self.bias
            && bias.len != units
        {
            return fault("bias", (units, 1), (bias.len, 1));
        }
        if let Some(live) = &self.live {
            Live::new(live.bytes, live.branch, rows, units)?;
        }
        if self.found.is_some_and(|found| found.branch == 0) {
            return fault("branch", (1, 1), (0, 1));
        }
        check_rows("table", &self.w)
    }
}

struct Job<'a, L: RowLanes> {
    call: &'a Dots<'a>,
    kernel: DotFn<L>,
    store: Store<L::Acc>,
    /// x, row by row, padded with zeros to whole vectors.
    x: *const L::Elem,
    x_row: usize,
}

// SAFETY: operands are shared for reading; tasks write parts of the result of their own.
unsafe impl<L: RowLanes> Sync for Job<'_, L> {}

/// Runs products of one input with tables of as many units, a few units of all of them at a time: a later one's
/// `scale` may be what an earlier one gives.
///
/// # Errors
/// As for [`Dots::run`].
pub(crate) fn run_all(calls: &[Dots<'_>], context: &Context<'_>) -> Result<&'static str, Error> {
    let first = calls.first().ok_or_else(|| Error::Bug("no products".to_owned()))?;
    for call in calls {
        call.check()?;
        if call.compute() != first.compute() {
            return Err(call.no_kernel());
        }
    }
    with_floats!("dots", first.compute(), L => run::<L>(calls, context), else Err(first.no_kernel()))
}

fn run<L>(calls: &[Dots<'_>], context: &Context<'_>) -> Result<(), Error>
where
    L: RowLanes,
    L::Elem: Element + Sum + Magnitude,
{
    let Some(first) = calls.first() else { return Ok(()) };
    let (tokens, units, k) = (first.x.rows, first.w.rows, first.x.cols);
    if tokens == 0 || units == 0 {
        return Ok(());
    }
    let size = size_of::<L::Elem>() as isize;
    // Read where it lies, if the kernel's vectors end where the rows do.
    let in_place = <L::Elem as Element>::NATIVE == Some(first.x.dtype)
        && first.x.col_stride == size
        && first.x.row_stride >= 0
        && first.x.row_stride % size == 0
        && k.is_multiple_of(L::LANES);
    let padded_row = k.next_multiple_of(L::LANES).max(L::LANES);
    let copy = Workspace::of(&[if in_place { 0 } else { tokens }, padded_row, size_of::<L::Elem>()])?;
    let (x, x_row) = match in_place {
        true => (first.x.at(0, 0).cast(), (first.x.row_stride / size) as usize),
        false => (copy.as_ptr().cast::<L::Elem>().cast_const(), padded_row),
    };
    let jobs: Vec<Job<'_, L>> = calls.iter().map(|call| job(call, x, x_row)).collect::<Result<_, _>>()?;
    if !in_place {
        let convert = <L::Elem as Element>::convert(first.x.dtype).ok_or_else(|| first.no_kernel())?;
        for_each(context, tokens.div_ceil(COPY_ROWS), |task| {
            jobs[0].copy_rows(convert, task * COPY_ROWS..tokens.min((task + 1) * COPY_ROWS));
            Ok(())
        })?;
    }
    // A task decides about whole branches.
    let branch = calls.iter().filter_map(|call| call.found).map(|found| found.branch.min(units)).max();
    let chunk = match branch {
        // As many tasks for each thread: of few, one more than the others have is a good part of the time.
        None if tokens == 1 => {
            let tasks = units.div_ceil(UNITS).next_multiple_of(context.threads.max(1));
            units.div_ceil(tasks).next_multiple_of(BAND).max(GROUP)
        }
        _ => UNITS.next_multiple_of(branch.unwrap_or(1)),
    };
    let chunks = units.div_ceil(chunk);
    let blocks = tokens.div_ceil(TASK_TOKENS);
    for_each(context, chunks * blocks, |task| {
        let (first, row) = (task / blocks * chunk, task % blocks * TASK_TOKENS);
        let (rows, units) = (row..tokens.min(row + TASK_TOKENS), first..units.min(first + chunk));
        jobs.iter().try_for_each(|job| job.part(rows.clone(), units.clone()))
    })
}

fn job<'a, L>(call: &'a Dots<'a>, x: *const L::Elem, x_row: usize) -> Result<Job<'a, L>, Error>
where
    L: RowLanes,
    L::Elem: Element + Sum,
{
    let (kernel, _) = L::kernels(call.w.dtype).ok_or_else(|| call.no_kernel())?;
    let store = <L::Elem as Sum>::store(call.out.view.dtype).ok_or_else(|| call.no_kernel())?;
    Ok(Job { call, kernel, store, x, x_row })
}

impl<L> Job<'_, L>
where
    L: RowLanes,
    L::Elem: Element + Sum + Magnitude,
{
    /// Copies rows of x to where the kernel reads them, with zeros behind.
    fn copy_rows(&self, convert: Convert<L::Elem>, rows: Range<usize>) {
        let x = &self.call.x;
        for t in rows {
            let rect = Rect {
                src: x.at(t, 0),
                rows: 1,
                cols: x.cols,
                row_stride: x.row_stride,
                col_stride: x.col_stride,
            };
            // SAFETY: x is readable, and the copy has a padded row for each of its rows; tasks have rows of
            // their own.
            unsafe {
                let to = self.x.cast_mut().add(t * self.x_row);
                convert(&rect, to, self.x_row);
                for i in x.cols..self.x_row {
                    to.add(i).write(L::Elem::default());
                }
            }
        }
    }

    /// Computes some units for some rows of x.
    fn part(&self, rows: Range<usize>, units: Range<usize>) -> Result<(), Error> {
        let call = self.call;
        let (height, width) = (rows.len(), units.len());
        let count = padded(height * width);
        let values = Workspace::of(&[count, size_of::<L::Elem>()])?;
        let values = values.as_ptr().cast::<L::Elem>();
        // SAFETY: the workspace holds as many values; zero bytes are zero.
        unsafe { values.write_bytes(0, count) };
        let wanted = match &call.live {
            None => units.clone().collect(),
            Some(live) => live.needed(rows.clone(), units.clone()),
        };
        let sums = Workspace::of(&[GROUP, TOKENS.min(height), L::LANES, size_of::<L::Elem>()])?;
        let mut groups = wanted.chunks(GROUP).peekable();
        while let Some(group) = groups.next() {
            let next = groups.peek().copied().unwrap_or(&[]);
            for first in rows.clone().step_by(TOKENS) {
                let block = Block {
                    rows: first..rows.end.min(first + TOKENS),
                    first_unit: units.start,
                    to: values.wrapping_add((first - rows.start) * width),
                    width,
                };
                // SAFETY: the place is the block's part of the values.
                unsafe { self.group(group, next, &block, sums.as_ptr().cast()) };
            }
        }
        self.finish(rows, units, values);
        Ok(())
    }

    /// Computes the units of a group for a few rows of x.
    ///
    /// # Safety
    /// The block's place has a row of values for each of its rows, `sums` a vector for each pair.
    unsafe fn group(&self, group: &[usize], next: &[usize], block: &Block<L>, sums: *mut L::Acc) {
        let call = self.call;
        // The group's rows of the table, and after them those that come next.
        let mut table = [std::ptr::null::<u8>(); 2 * GROUP];
        let mut listed = 0;
        for &unit in group.iter().chain(next.iter().take(GROUP)) {
            table[listed] = call.w.at(unit, 0);
            listed += 1;
        }
        let table = &table[..listed];
        let mut at = [0; GROUP];
        at.iter_mut().zip(group).for_each(|(at, &unit)| *at = unit - block.first_unit);
        // For each unit a bit for every row that needs it.
        let every = u32::MAX >> (TOKENS - block.rows.len());
        let mut needs = [every; GROUP];
        let needs = &mut needs[..group.len()];
        if let Some(live) = &call.live {
            needs.fill(0);
            let mut branches = [0; GROUP];
            for (branch, &unit) in branches.iter_mut().zip(group) {
                *branch = unit / live.branch;
            }
            let branches = &branches[..group.len()];
            let (first, last) = (branches[0], branches[branches.len() - 1]);
            let neighbours = live.branch == 1 && last - first + 1 == branches.len();
            for (bit, row) in block.rows.clone().enumerate() {
                let of_row = &live.bytes[row * live.branches..(row + 1) * live.branches];
                let mut bytes = [0; GROUP];
                if neighbours {
                    bytes[..branches.len()].copy_from_slice(&of_row[first..=last]);
                } else {
                    bytes.iter_mut().zip(branches).for_each(|(byte, &branch)| *byte = of_row[branch]);
                }
                for (need, &byte) in needs.iter_mut().zip(&bytes) {
                    *need |= if byte == 0 { 0 } else { 1 << bit };
                }
            }
        }
        let united = |needs: &[u32]| needs.iter().fold(0, |union, need| union | need);
        let union = united(needs);
        let in_bands: u32 = needs.chunks(BAND).map(|needs| united(needs).count_ones()).sum();
        let at_once = union.count_ones() * needs.len().div_ceil(BAND) as u32;
        if in_bands * BANDS_COST >= at_once * AT_ONCE_COST {
            // SAFETY: the caller's promise.
            unsafe { self.products(table, &at[..needs.len()], block, union, sums) };
            return;
        }
        for (band, needs) in needs.chunks(BAND).enumerate() {
            let (first, count) = (band * BAND, needs.len());
            let union = united(needs);
            let live: u32 = needs.iter().map(|need| need.count_ones()).sum();
            if live * SINGLE_COST < union.count_ones() * BAND_COST * count as u32 {
                for (i, &need) in (first..).zip(needs) {
                    // SAFETY: the caller's promise.
                    unsafe { self.products(&table[i..], &at[i..=i], block, need, sums) };
                }
            } else {
                // SAFETY: the caller's promise.
                unsafe { self.products(&table[first..], &at[first..first + count], block, union, sums) };
            }
        }
    }

    /// Writes dot products of the first rows of the table with the rows of a block whose bits are set.
    ///
    /// # Safety
    /// The addresses are rows of the table, for each of `at` one; positions are inside the block's rows of
    /// values, and `sums` has a vector for each pair.
    unsafe fn products(
        &self,
        table: &[*const u8],
        at: &[usize],
        block: &Block<L>,
        bits: u32,
        sums: *mut L::Acc,
    ) {
        let (k, size, count) = (self.call.w.cols, self.call.w.dtype.size(), at.len());
        let mut x = [std::ptr::null::<L::Elem>(); TOKENS];
        let mut out = [std::ptr::null_mut::<L::Elem>(); TOKENS];
        let mut cols = 0;
        for bit in Bits(bits) {
            x[cols] = self.x.wrapping_add((block.rows.start + bit) * self.x_row);
            out[cols] = block.to.wrapping_add(bit * block.width);
            cols += 1;
        }
        // A few rows of x stay in the first cache whole.
        let part = if cols <= WHOLE_ROWS { k.max(1) } else { PART };
        let mut w = [std::ptr::null::<u8>(); GROUP];
        let mut next = [std::ptr::null::<u8>(); GROUP];
        // The kernel takes four rows at a time: it asks for what lies so much further down the list.
        let stride = count.min(BAND);
        for from in (0..k.max(1)).step_by(part) {
            for (i, to) in w.iter_mut().enumerate().take(count) {
                *to = table[i].wrapping_add(from * size);
                next[i] = table[(i + stride).min(table.len() - 1)].wrapping_add(from * size);
            }
            let len = part.min(k - from);
            let args = DotArgs::<L> {
                w: w.as_ptr(),
                rows: count,
                next: next.as_ptr(),
                x: x.as_ptr(),
                cols,
                len,
                sums,
                starts: from == 0,
                ends: from + len == k,
                out: out.as_ptr(),
                at: at.as_ptr(),
            };
            // SAFETY: the level in use has the instruction set; the caller's promise.
            unsafe { (self.kernel)(&args) };
            x.iter_mut().take(cols).for_each(|x| *x = x.wrapping_add(part));
        }
    }

    /// Bias, activation, scale, liveness; then the values go to the result.
    fn finish(&self, rows: Range<usize>, units: Range<usize>, values: *mut L::Elem) {
        let call = self.call;
        let width = units.len();
        // SAFETY: the task's own values, zeros in the padding.
        let every = unsafe { std::slice::from_raw_parts_mut(values, padded(rows.len() * width)) };
        finish(call, rows.clone(), units.clone(), every);
        let out = &call.out;
        let finished = Finished {
            sums: every.as_ptr(),
            sums_row: width,
            rows: rows.len(),
            cols: width,
            first_row: 0,
            out: out.at(rows.start, units.start),
            row_stride: out.view.row_stride,
            col_stride: out.view.col_stride,
        };
        // SAFETY: the values are complete, and this part of the result is the task's own.
        unsafe { (self.store)(&finished, &Epilogue::default()) };
    }
}

/// Some rows of x, and where the products with some units go.
struct Block<L: RowLanes> {
    rows: Range<usize>,
    first_unit: usize,
    to: *mut L::Elem,
    /// Values from one row to the next.
    width: usize,
}

/// Positions of the bits that are set, ascending.
struct Bits(u32);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (bit < u32::BITS).then_some(bit as usize)
    }
}
