//! What live units contribute: `out[t] = Σ_j h[t, j] · w[j] + bias` over the live units of each row.

use std::ops::Range;

use prunus_core::{Epilogue, Error, MatMut, MatRef, VecRef};

use super::kernel::{CombineArgs, CombineFn, Entry, RowLanes, copied};
use super::{Live, check_rows, compute_type};
use crate::dispatch::with_floats;
use crate::dsd::convert::{Convert, Element, Rect};
use crate::dsd::store::{Finished, Store, Sum};
use crate::memory::Workspace;
use crate::threads::{Context, for_each};

/// Rows of the table that are summed in one go: a few vectors of each stay in the first cache while all
/// rows of the result take theirs.
const GROUP: usize = 32;
/// The same for a single row of the result, which reads each of them once.
const SINGLE_GROUP: usize = 8;
/// Rows of the result whose sums are kept at a time.
const ROWS: usize = 128;
/// Values of sums that one task keeps: half of a second cache.
const SUMS: usize = 128 << 10;
/// Columns of a strip: a multiple of what the kernel keeps in registers on every level.
const COLUMNS: usize = 128;

/// Sums of live rows of a table, weighted by `h`.
#[derive(Clone, Copy)]
pub struct Combine<'a> {
    /// Factors, rows × units, any strides.
    pub h: MatRef<'a>,
    /// The table, units × n, rows contiguous.
    pub w: MatRef<'a>,
    /// Which units take part; None: all.
    pub live: Option<Live<'a>>,
    /// One value a column.
    pub bias: Option<VecRef<'a>>,
    /// The result, rows × n.
    pub out: MatMut<'a>,
}

impl Combine<'_> {
    /// Runs the product and says which kernel did it.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, or [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        self.check()?;
        let compute = compute_type(self.h.dtype, self.w.dtype, self.out.view.dtype);
        with_floats!("combine", compute, L => run::<L>(self, context), else Err(self.no_kernel()))
    }

    fn no_kernel(&self) -> Error {
        let (a, b, out) = (self.h.dtype, self.w.dtype, self.out.view.dtype);
        Error::DTypes { what: "sum of live rows", a, b, out }
    }

    fn check(&self) -> Result<(), Error> {
        let fault = |what, expected: (usize, usize), got: (usize, usize)| {
            let text = |(a, b)| format!("{a} x {b}");
            Err(Error::Shape { what, expected: text(expected), got: text(got) })
        };
        if self.h.cols != self.w.rows {
            return fault("table", (self.h.cols, self.w.cols), (self.w.rows, self.w.cols));
        }
        let out = (self.out.view.rows, self.out.view.cols);
        if out != (self.h.rows, self.w.cols) {
            return fault("result", (self.h.rows, self.w.cols), out);
        }
        if let Some(bias) = &self.bias
            && bias.len != self.w.cols
        {
            return fault("bias", (self.w.cols, 1), (bias.len, 1));
        }
        if let Some(live) = &self.live {
            Live::new(live.bytes, live.branch, self.h.rows, self.h.cols)?;
        }
        check_rows("table", &self.w)
    }
}

/// Some rows of the result: which rows of the table they need, group by group, and with what factors.
struct Plan<A> {
    /// Units that any row needs, ascending.
    units: Vec<usize>,
    group: usize,
    entries: Vec<Entry<A>>,
    /// For each group and row where its entries start; one more at the end of each group.
    starts: Vec<usize>,
}

struct Job<'a, L: RowLanes> {
    call: &'a Combine<'a>,
    kernel: CombineFn<L>,
    convert: Convert<L::Elem>,
    store: Store<L::Acc>,
}

fn run<L>(call: &Combine<'_>, context: &Context<'_>) -> Result<(), Error>
where
    L: RowLanes,
    L::Elem: Element + Sum,
{
    let fault = || call.no_kernel();
    let (_, kernel) = L::kernels(call.w.dtype).ok_or_else(fault)?;
    let convert = <L::Elem as Element>::convert(call.h.dtype).ok_or_else(fault)?;
    let store = <L::Elem as Sum>::store(call.out.view.dtype).ok_or_else(fault)?;
    let job = Job::<L> { call, kernel, convert, store };
    let (rows, n) = (call.out.view.rows, call.out.view.cols);
    for first in (0..rows).step_by(ROWS) {
        let rows = first..rows.min(first + ROWS);
        let plan = job.plan(rows.clone())?;
        let wide = (SUMS / rows.len()).min(n.div_ceil(context.threads.max(1)));
        let strip = wide.next_multiple_of(COLUMNS).max(COLUMNS);
        for_each(context, n.div_ceil(strip), |task| {
            job.strip(&plan, rows.clone(), task * strip..n.min((task + 1) * strip))
        })?;
    }
    Ok(())
}

impl<L> Job<'_, L>
where
    L: RowLanes,
    L::Elem: Element + Sum,
{
    /// Lists what some rows of the result need.
    fn plan(&self, rows: Range<usize>) -> Result<Plan<L::Acc>, Error> {
        let (h, live) = (&self.call.h, &self.call.live);
        let count = h.cols;
        let group = if rows.len() == 1 { SINGLE_GROUP } else { GROUP };
        let units: Vec<usize> = match live {
            None => (0..count).collect(),
            Some(live) => {
                let union = live.union(rows.clone());
                (0..count).filter(|unit| union[unit / live.branch]).collect()
            }
        };
        let factors = Workspace::of(&[rows.len(), count, size_of::<L::Elem>()])?;
        let factors = factors.as_ptr().cast::<L::Elem>();
        let rect = Rect {
            src: h.at(rows.start, 0),
            rows: rows.len(),
            cols: count,
            row_stride: h.row_stride,
            col_stride: h.col_stride,
        };
        // SAFETY: h is readable there, and the workspace has a row of `count` values for each of its rows.
        unsafe { (self.convert)(&rect, factors, count) };
        let mut plan = Plan { units, group, entries: Vec::new(), starts: Vec::new() };
        for units in plan.units.chunks(group) {
            for (t, row) in rows.clone().enumerate() {
                plan.starts.push(plan.entries.len());
                for (i, &unit) in units.iter().enumerate() {
                    if live.is_none_or(|live| live.at(row, unit)) {
                        // SAFETY: a value of the workspace.
                        let factor = unsafe { *factors.add(t * count + unit) };
                        plan.entries.push(Entry { row: i as u32, factor });
                    }
                }
            }
            plan.starts.push(plan.entries.len());
        }
        Ok(plan)
    }

    /// Computes some columns of some rows.
    fn strip(&self, plan: &Plan<L::Acc>, rows: Range<usize>, cols: Range<usize>) -> Result<(), Error> {
        let call = self.call;
        let width = cols.len().next_multiple_of(L::LANES);
        let sums = Workspace::of(&[rows.len(), width, size_of::<L::Acc>()])?;
        let sums = sums.as_ptr().cast::<L::Acc>();
        // SAFETY: the workspace holds as many values; zero bytes are zero.
        unsafe { sums.write_bytes(0, rows.len() * width) };
        let copy = Workspace::of(&[copied::<L>(), size_of::<L::Acc>()])?;
        let address = |&unit: &usize| call.w.at(unit, cols.start);
        let mut now: Vec<*const u8> = plan.units.iter().take(plan.group).map(address).collect();
        for (g, _) in plan.units.chunks(plan.group).enumerate() {
            let next: Vec<*const u8> =
                plan.units.iter().skip((g + 1) * plan.group).take(plan.group).map(address).collect();
            let args = CombineArgs::<L> {
                w: now.as_ptr(),
                rows: now.len(),
                next: next.as_ptr(),
                next_rows: next.len(),
                entries: plan.entries.as_ptr(),
                starts: plan.starts[g * (rows.len() + 1)..].as_ptr(),
                results: rows.len(),
                out: sums,
                out_row: width,
                cols: cols.len(),
                copy: copy.as_ptr().cast(),
            };
            // SAFETY: the level in use has the instruction set; the rows hold these columns, and the sums
            // whole vectors for each row.
            unsafe { (self.kernel)(&args) };
            now = next;
        }
        if let Some(bias) = &call.bias {
            for t in 0..rows.len() {
                for (i, col) in cols.clone().enumerate() {
                    // SAFETY: a value of the sums.
                    unsafe {
                        let at = sums.add(t * width + i);
                        at.write((*at).add(L::Elem::bias(bias, col)));
                    }
                }
            }
        }
        let out = &call.out;
        let finished = Finished {
            sums: sums.cast_const(),
            sums_row: width,
            rows: rows.len(),
            cols: cols.len(),
            first_row: 0,
            out: out.at(rows.start, cols.start),
            row_stride: out.view.row_stride,
            col_stride: out.view.col_stride,
        };
        // SAFETY: the sums are complete, and these columns of the result are the task's own.
        unsafe { (self.store)(&finished, &Epilogue::default()) };
        Ok(())
    }
}
