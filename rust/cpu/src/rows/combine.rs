//! What live units contribute: `out[t] = Σ_j h[t, j] · w[j] + bias` over the live units of each row.

use std::ops::Range;

use prunus_core::{Epilogue, Error, MatMut, MatRef, VecRef};

use super::kernel::{CombineArgs, CombineFn, Entry, RowLanes, copied};
use super::{Live, check_rows, compute_type};
use crate::dispatch::with_floats;
use crate::dsd::convert::{Convert, Element, Rect};
use crate::dsd::parts::take_sums;
use crate::dsd::store::{Finished, Store, Sum};
use crate::dsd::sums_type;
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
/// Columns of a strip are a multiple of this, which is one of every level's vectors. Coarser ones leave a thread with
/// twice the work of another where rows are short: 576 columns are 288 each and not 384 and 192.
const COLUMNS: usize = 32;

/// A table in panels of some columns, one behind the other: who sums a panel's columns reads without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Panels {
    cols: usize,
    stride: isize,
}

impl Panels {
    /// Says that `cols` columns lie in panels, `stride` bytes from one to the next; the last may hold more than are
    /// left.
    ///
    /// # Safety
    /// Wherever the first panel can be read, so can all that these columns take, as long as it can.
    pub unsafe fn new(cols: usize, stride: isize) -> Self {
        Self { cols, stride }
    }
}

/// Sums of live rows of a table, weighted by `h`.
#[derive(Clone, Copy)]
pub struct Combine<'a> {
    /// Factors, rows × units, any strides.
    pub h: MatRef<'a>,
    /// The table, units × n, rows contiguous; or the first of its panels.
    pub w: MatRef<'a>,
    /// Where the table's columns lie in panels: how.
    pub panels: Option<Panels>,
    /// Which units take part; None: all.
    pub live: Option<Live<'a>>,
    /// One value a column.
    pub bias: Option<VecRef<'a>>,
    /// The result, rows × n.
    pub out: MatMut<'a>,
    /// Whether sums go on from what the result holds, which must be of their type: as if units before these
    /// had been summed first.
    pub add: bool,
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

    /// Columns of the table.
    fn cols(&self) -> usize {
        self.panels.map_or(self.w.cols, |panels| panels.cols)
    }

    /// Where a unit's values begin for a strip's columns: of a table in panels, a panel's.
    fn at(&self, unit: usize, col: usize) -> *const u8 {
        match &self.panels {
            None => self.w.at(unit, col),
            Some(panels) => {
                let panel = (col / self.w.cols) as isize;
                self.w.at(unit, col % self.w.cols).wrapping_offset(panel * panels.stride)
            }
        }
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
        let n = self.cols();
        if self.h.cols != self.w.rows || (n > 0 && self.w.cols == 0) {
            return fault("table", (self.h.cols, n), (self.w.rows, self.w.cols));
        }
        let out = (self.out.view.rows, self.out.view.cols);
        if out != (self.h.rows, n) {
            return fault("result", (self.h.rows, n), out);
        }
        if let Some(bias) = &self.bias
            && bias.len != n
        {
            return fault("bias", (n, 1), (bias.len, 1));
        }
        let sums = sums_type(compute_type(self.h.dtype, self.w.dtype, self.out.view.dtype));
        if self.add && sums != Some(self.out.view.dtype) {
            return Err(self.no_kernel());
        }
        if let Some(live) = &self.live {
            Live::new(live.bytes, live.branch, self.h.rows, self.h.cols)?;
        }
        check_rows("table", &self.w)
    }
}

/// Factors of some rows of the result, in the type of sums.
struct Factors<E> {
    first: *const E,
    /// Values from one row to the next.
    row: usize,
}

/// What some rows of the result take of a group of rows of the table, for the kernel.
struct Entries<A> {
    list: Vec<Entry<A>>,
    /// For each row where its entries start; one more at the end.
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
        let copy = job.copied_factors(rows.clone())?;
        let factors = job.factors(rows.clone(), copy.as_ref());
        let units = job.units(rows.clone());
        let wide = (SUMS / rows.len()).min(n.div_ceil(context.threads.max(1)));
        // Strips end where panels do; without panels the table is one.
        let panel = if call.panels.is_some() { call.w.cols } else { n }.max(1);
        let each = panel.div_ceil(wide.next_multiple_of(COLUMNS).max(COLUMNS));
        let strip = panel.div_ceil(each).next_multiple_of(COLUMNS);
        let strips = panel.div_ceil(strip);
        for_each(context, n.div_ceil(panel) * strips, |task| {
            let (first, part) = (task / strips * panel, task % strips * strip);
            let end = n.min(first + panel.min(part + strip));
            match first + part < end {
                true => job.strip(&units, &factors, rows.clone(), first + part..end),
                false => Ok(()),
            }
        })?;
    }
    Ok(())
}

// SAFETY: factors are shared for reading.
unsafe impl<E> Sync for Factors<E> {}

impl<L> Job<'_, L>
where
    L: RowLanes,
    L::Elem: Element + Sum,
{
    /// Copies factors that do not lie as the kernel's entries are made from.
    fn copied_factors(&self, rows: Range<usize>) -> Result<Option<Workspace>, Error> {
        let h = &self.call.h;
        let size = size_of::<L::Elem>();
        let in_place = <L::Elem as Element>::NATIVE == Some(h.dtype)
            && (h.col_stride == size as isize || h.cols <= 1)
            && h.row_stride >= 0
            && h.row_stride % size as isize == 0
            && h.at(0, 0).cast::<L::Elem>().is_aligned();
        if in_place {
            return Ok(None);
        }
        let copy = Workspace::of(&[rows.len(), h.cols, size])?;
        let rect = Rect {
            src: h.at(rows.start, 0),
            rows: rows.len(),
            cols: h.cols,
            row_stride: h.row_stride,
            col_stride: h.col_stride,
        };
        // SAFETY: h is readable there, and the workspace has a row of values for each of its rows.
        unsafe { (self.convert)(&rect, copy.as_ptr().cast(), h.cols) };
        Ok(Some(copy))
    }

    /// Returns where the factors of some rows are: in their copy, if there is one.
    fn factors(&self, rows: Range<usize>, copy: Option<&Workspace>) -> Factors<L::Elem> {
        let h = &self.call.h;
        match copy {
            Some(copy) => Factors { first: copy.as_ptr().cast::<L::Elem>().cast_const(), row: h.cols },
            None => Factors {
                first: h.at(rows.start, 0).cast(),
                row: h.row_stride as usize / size_of::<L::Elem>(),
            },
        }
    }

    /// Lists the units that any of the rows needs, ascending.
    fn units(&self, rows: Range<usize>) -> Vec<usize> {
        let every = 0..self.call.h.cols;
        match &self.call.live {
            None => every.collect(),
            Some(live) => live.needed(rows, every),
        }
    }

    /// Lists what each row takes of a group of units. Made for each strip anew: a list for all units would
    /// be read from memory, this one stays in the first cache.
    fn list(
        &self,
        units: &[usize],
        factors: &Factors<L::Elem>,
        rows: Range<usize>,
        entries: &mut Entries<L::Acc>,
    ) {
        let mut branches = [0; GROUP];
        if let Some(live) = &self.call.live {
            branches.iter_mut().zip(units).for_each(|(branch, &unit)| *branch = unit / live.branch);
        }
        let nothing = Entry { row: 0, factor: L::Acc::default() };
        entries.list.resize(rows.len() * units.len() + 1, nothing);
        entries.starts.clear();
        let mut end = 0;
        for (t, row) in rows.enumerate() {
            entries.starts.push(end);
            let of_row =
                self.call.live.map(|live| &live.bytes[row * live.branches..(row + 1) * live.branches]);
            for (i, (&unit, &branch)) in units.iter().zip(&branches).enumerate() {
                // SAFETY: a factor of this row; units are columns of h.
                let factor = unsafe { *factors.first.add(t * factors.row + unit) };
                // Written whether it counts or not: a jump that cannot be foreseen costs more.
                entries.list[end] = Entry { row: i as u32, factor };
                end += usize::from(of_row.is_none_or(|live| live[branch] != 0));
            }
        }
        entries.starts.push(end);
    }

    /// Computes some columns of some rows.
    fn strip(
        &self,
        units: &[usize],
        factors: &Factors<L::Elem>,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<(), Error> {
        let call = self.call;
        let width = cols.len().next_multiple_of(L::LANES);
        let sums = Workspace::of(&[rows.len(), width, size_of::<L::Acc>()])?;
        let sums = sums.as_ptr().cast::<L::Acc>();
        let (out, first) = (&call.out, (rows.start, cols.start));
        let held = Rect {
            src: out.at(first.0, first.1),
            rows: rows.len(),
            cols: cols.len(),
            row_stride: out.view.row_stride,
            col_stride: out.view.col_stride,
        };
        // SAFETY: the workspace holds as many values, of which zero bytes are zero; what is added to has their
        // type, which `check` saw to, and these columns of it are the task's own.
        unsafe {
            match call.add {
                true => take_sums(&held, sums, width),
                false => sums.write_bytes(0, rows.len() * width),
            }
        }
        let copy = Workspace::of(&[copied::<L>(), size_of::<L::Acc>()])?;
        let group = if rows.len() == 1 { SINGLE_GROUP } else { GROUP };
        let addresses = |units: &[usize], to: &mut [*const u8; GROUP]| {
            to.iter_mut().zip(units).for_each(|(to, &unit)| *to = call.at(unit, cols.start));
            units.len()
        };
        let mut entries = Entries { list: Vec::new(), starts: Vec::with_capacity(rows.len() + 1) };
        let (mut now, mut next) = ([std::ptr::null(); GROUP], [std::ptr::null(); GROUP]);
        let mut groups = units.chunks(group).peekable();
        addresses(groups.peek().copied().unwrap_or(&[]), &mut now);
        while let Some(units) = groups.next() {
            let next_rows = addresses(groups.peek().copied().unwrap_or(&[]), &mut next);
            self.list(units, factors, rows.clone(), &mut entries);
            let args = CombineArgs::<L> {
                w: now.as_ptr(),
                rows: units.len(),
                next: next.as_ptr(),
                next_rows,
                entries: entries.list.as_ptr(),
                starts: entries.starts.as_ptr(),
                results: rows.len(),
                out: sums,
                out_row: width,
                cols: cols.len(),
                copy: copy.as_ptr().cast(),
            };
            // SAFETY: the level in use has the instruction set; the rows hold these columns, and the sums
            // whole vectors for each row.
            unsafe { (self.kernel)(&args) };
            std::mem::swap(&mut now, &mut next);
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
