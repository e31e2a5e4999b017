//! The two inner loops: dot products of table rows with rows of x, and sums of table rows.
//!
//! A value is summed in the same order whatever tile it is computed in, so that it does not depend on
//! what is computed beside it. Rows of the table are given by their addresses: which ones take part is
//! decided while a program runs.

use std::mem::MaybeUninit;

use crate::simd::Lanes;

/// Bytes by which a row of the table is asked for ahead of its use.
const AHEAD: usize = 1024;
/// Vectors of a result row that are summed together: their sums stay in registers.
const SUMS: usize = 8;
/// From how many result rows on columns of the table are copied, and of how many rows at most.
const COPY_RESULTS: usize = 6;
const COPY_ROWS: usize = 32;

/// Lanes that can be loaded from values of another type, widened on their way.
pub(crate) trait Reads<S>: Lanes {
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// As for [`Lanes::load_x`].
    unsafe fn read(from: *const S) -> Self::X;
}

/// Rows of the table, and rows of x, whose dot products are wanted.
pub(crate) struct DotArgs<L: Lanes> {
    /// Addresses of rows of the table, at the first value to multiply.
    pub w: *const *const u8,
    pub rows: usize,
    /// As many rows that will be wanted next: their beginnings are asked for. May be the same rows.
    pub next: *const *const u8,
    /// Addresses of rows of x, and how many.
    pub x: *const *const L::Elem,
    pub cols: usize,
    /// Values to multiply. Past them, rows of x hold zeros up to a whole vector.
    pub len: usize,
    /// Vectors of partial sums, `cols` for each row: where they wait between parts of the rows.
    pub sums: *mut L::Acc,
    /// Begin with zeros.
    pub starts: bool,
    /// Add up the partial sums and write the products to `out`.
    pub ends: bool,
    /// For each row of x where its products go, and for each row of the table at which position.
    pub out: *const *mut L::Acc,
    pub at: *const usize,
}

/// A compiled form of [`dots`].
pub(crate) type DotFn<L> = unsafe fn(&DotArgs<L>);

/// `out[c][at[r]] = w[r, :] · x[c, :]`, part by part of the rows.
///
/// # Safety
/// Every pointer must cover what the arguments say.
#[inline(always)]
pub(crate) unsafe fn dots<L: RowLanes + Reads<S>, S: Copy>(a: &DotArgs<L>) {
    let mut row = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while a.rows - row >= 4 {
            band::<L, S, 4>(a, row);
            row += 4;
        }
        // Each width of a band is another ten tiles to compile, for every type and level: there are two.
        while row < a.rows {
            band::<L, S, 1>(a, row);
            row += 1;
        }
    }
}

/// `R` rows of the table against all rows of x.
#[inline(always)]
unsafe fn band<L: RowLanes + Reads<S>, S: Copy, const R: usize>(a: &DotArgs<L>, row: usize) {
    let mut col = 0;
    while col < a.cols {
        let left = a.cols - col;
        // SAFETY: the caller's promise.
        unsafe {
            col += if const { L::REGISTERS >= 32 } && left >= 4 {
                dot_tiles::<L, S, R, 4>(a, row, col)
            } else if left >= 2 {
                dot_tiles::<L, S, R, 2>(a, row, col)
            } else {
                dot_tiles::<L, S, R, 1>(a, row, col)
            };
        }
    }
}

/// The first tile of a band asks for what comes next; a band of one row asks again and again, which does no harm.
#[inline(always)]
unsafe fn dot_tiles<L: RowLanes + Reads<S>, S: Copy, const R: usize, const C: usize>(
    a: &DotArgs<L>,
    row: usize,
    col: usize,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        if const { R == 1 } || col == 0 {
            dot_tile::<L, S, R, C, true>(a, row, col)
        } else {
            dot_tile::<L, S, R, C, false>(a, row, col)
        }
    }
}

/// `R × C` dot products; with `FETCH` also asks for what comes next of the table.
#[inline(always)]
unsafe fn dot_tile<L: RowLanes + Reads<S>, S: Copy, const R: usize, const C: usize, const FETCH: bool>(
    a: &DotArgs<L>,
    row: usize,
    col: usize,
) -> usize {
    // SAFETY: rows and columns are inside what the arguments list.
    unsafe {
        let w: [*const S; R] = std::array::from_fn(|r| (*a.w.add(row + r)).cast());
        let x: [*const L::Elem; C] = std::array::from_fn(|c| *a.x.add(col + c));
        let sums = |r: usize, c: usize| a.sums.add(((row + r) * a.cols + col + c) * L::LANES);
        let mut acc = [[L::zero(); C]; R];
        if !a.starts {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (c, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(sums(r, c));
                }
            }
        }
        let whole = a.len / L::LANES * L::LANES;
        let ahead = AHEAD / size_of::<S>();
        // What is asked for lies ahead in the row, and near its end at the beginning of the next one.
        let turn = if FETCH { whole.saturating_sub(ahead) / L::LANES * L::LANES } else { whole };
        let mut fetch: [*const S; R] = std::array::from_fn(|r| w[r].wrapping_add(ahead));
        for (from, to) in [(0, turn), (turn, whole)] {
            for k in (from..to).step_by(L::LANES) {
                let xs: [L::X; C] = std::array::from_fn(|c| L::load_x(x[c].add(k)));
                for (r, acc) in acc.iter_mut().enumerate() {
                    if FETCH {
                        L::prefetch(fetch[r].wrapping_add(k).cast());
                    }
                    let w = <L as Reads<S>>::read(w[r].add(k));
                    for (acc, &x) in acc.iter_mut().zip(&xs) {
                        *acc = L::mul_add(w, x, *acc);
                    }
                }
            }
            if FETCH {
                fetch = std::array::from_fn(|r| (*a.next.add(row + r)).cast::<S>().wrapping_sub(turn));
            }
        }
        if whole < a.len {
            for (r, acc) in acc.iter_mut().enumerate() {
                let w = read_some::<L, S>(w[r].add(whole), a.len - whole);
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = L::mul_add(w, L::load_x(x.add(whole)), *acc);
                }
            }
        }
        if !a.ends {
            for (r, acc) in acc.iter().enumerate() {
                for (c, &acc) in acc.iter().enumerate() {
                    L::store(sums(r, c), acc);
                }
            }
            return C;
        }
        // Four at a time; where fewer are left, some are added up twice.
        for first in (0..R * C).step_by(4) {
            let place = |i: usize| ((first + i) % (R * C) / C, (first + i) % C);
            let totals = L::totals(std::array::from_fn(|i| acc[place(i).0][place(i).1]));
            for (i, &total) in totals.iter().enumerate().take(R * C) {
                let (r, c) = place(i);
                (*a.out.add(col + c)).add(*a.at.add(row + r)).write(total);
            }
        }
    }
    C
}

/// Reads fewer values than a vector has; zeros take the place of the rest.
#[inline(always)]
unsafe fn read_some<L: Reads<S>, S: Copy>(from: *const S, count: usize) -> L::X {
    // Zero bytes are zero in every floating-point type; no vector has more than 16 lanes.
    let mut held = [const { MaybeUninit::<S>::zeroed() }; 16];
    assert!(count <= L::LANES && L::LANES <= held.len());
    // SAFETY: the caller provides `count` values, fewer than the buffer has. Copied as bytes: they lie at any
    // alignment, as a vector's do.
    unsafe {
        from.cast::<u8>().copy_to_nonoverlapping(held.as_mut_ptr().cast(), count * size_of::<S>());
        <L as Reads<S>>::read(held.as_ptr().cast())
    }
}

/// A row of the table that takes part in one result row: which, and its factor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<A> {
    pub row: u32,
    pub factor: A,
}

/// Rows of the table, and what each result row takes of them.
pub(crate) struct CombineArgs<L: Lanes> {
    /// Addresses of rows of the table, at the first column.
    pub w: *const *const u8,
    pub rows: usize,
    /// Rows that will be wanted next, as many or fewer.
    pub next: *const *const u8,
    pub next_rows: usize,
    /// Entries of result row `t`: `entries[starts[t]..starts[t + 1]]`.
    pub entries: *const Entry<L::Acc>,
    pub starts: *const usize,
    pub results: usize,
    pub out: *mut L::Acc,
    /// Values from one result row to the next: whole vectors.
    pub out_row: usize,
    /// Columns; `out` has room for whole vectors.
    pub cols: usize,
    /// Room for [`copied`] values. (Not on the stack: the compiler's probe of a frame of several pages was
    /// seen to overwrite a register that held an argument.)
    pub copy: *mut L::Acc,
}

/// Values that a copy of the table's columns takes.
pub(crate) fn copied<L: Lanes>() -> usize {
    COPY_ROWS * SUMS * L::LANES
}

/// A compiled form of [`combine`].
pub(crate) type CombineFn<L> = unsafe fn(&CombineArgs<L>);

/// `out[t, :] += Σ factor · w[row, :]` over the entries of each result row, in their order.
///
/// # Safety
/// Every pointer must cover what the arguments say.
#[inline(always)]
pub(crate) unsafe fn combine<L: RowLanes + Reads<S>, S: Copy>(a: &CombineArgs<L>) {
    let copies = a.results >= COPY_RESULTS && a.rows <= COPY_ROWS;
    let mut col = 0;
    while col < a.cols {
        let left = a.cols - col;
        // SAFETY: the caller's promise; columns stay below `cols`, but for the last vector of `out`.
        unsafe {
            if col.is_multiple_of(SUMS * L::LANES) {
                fetch_columns::<L, S>(a, col);
            }
            col += match (left / L::LANES, copies) {
                (SUMS.., true) => copied_columns::<L, S, SUMS>(a, col),
                (4.., true) => copied_columns::<L, S, 4>(a, col),
                (2.., true) => copied_columns::<L, S, 2>(a, col),
                (SUMS.., false) => columns::<L, S, SUMS>(a, col),
                (4.., false) => columns::<L, S, 4>(a, col),
                (2.., false) => columns::<L, S, 2>(a, col),
                (1, _) => columns::<L, S, 1>(a, col),
                (0, _) => last_columns::<L, S>(a, col, left),
            };
        }
    }
}

/// Asks for the columns that will be read after these.
#[inline(always)]
unsafe fn fetch_columns<L: Lanes, S: Copy>(a: &CombineArgs<L>, col: usize) {
    let line = 64 / size_of::<S>();
    let ahead = col + AHEAD / size_of::<S>();
    let width = SUMS * L::LANES;
    // Past the end of these rows, the next ones begin.
    let (rows, count, first) = match ahead < a.cols {
        true => (a.w, a.rows, ahead),
        false => (a.next, a.next_rows, ahead - a.cols),
    };
    for r in 0..count {
        for c in (0..width).step_by(line) {
            // SAFETY: the list has `count` addresses; asking never faults.
            unsafe { L::prefetch((*rows.add(r)).cast::<S>().wrapping_add(first + c).cast()) };
        }
    }
}

#[inline(always)]
unsafe fn columns<L: RowLanes + Reads<S>, S: Copy, const V: usize>(a: &CombineArgs<L>, col: usize) -> usize {
    for t in 0..a.results {
        // SAFETY: the caller's promise; `V` whole vectors are left.
        unsafe {
            let out = a.out.add(t * a.out_row + col);
            let (mut e, end) = (*a.starts.add(t), *a.starts.add(t + 1));
            if e == end {
                continue;
            }
            let mut acc: [L::V; V] = std::array::from_fn(|v| L::load(out.add(v * L::LANES)));
            while e < end {
                let entry = &*a.entries.add(e);
                let row = (*a.w.add(entry.row as usize)).cast::<S>().add(col);
                let factor = L::splat(&raw const entry.factor);
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::mul_add(factor, <L as Reads<S>>::read(row.add(v * L::LANES)), *acc);
                }
                e += 1;
            }
            for (v, &acc) in acc.iter().enumerate() {
                L::store(out.add(v * L::LANES), acc);
            }
        }
    }
    V * L::LANES
}

/// The same for several result rows: the table's columns are copied together and widened first, since rows of
/// a table are often a multiple of the cache's period apart and would push each other out.
#[inline(always)]
unsafe fn copied_columns<L: RowLanes + Reads<S>, S: Copy, const V: usize>(
    a: &CombineArgs<L>,
    col: usize,
) -> usize {
    let width = V * L::LANES;
    // SAFETY: the caller's promise: `SUMS` whole vectors are left; the copy has room for every row.
    unsafe {
        let copy = a.copy;
        for r in 0..a.rows {
            let row = (*a.w.add(r)).cast::<S>().add(col);
            for c in (0..width).step_by(L::LANES) {
                L::store(copy.add(r * width + c), <L as Reads<S>>::read(row.add(c)));
            }
        }
        for t in 0..a.results {
            let out = a.out.add(t * a.out_row + col);
            let (first, end) = (*a.starts.add(t), *a.starts.add(t + 1));
            let mut acc: [L::V; V] = std::array::from_fn(|v| L::load(out.add(v * L::LANES)));
            for e in first..end {
                let entry = &*a.entries.add(e);
                let row = copy.cast_const().add(entry.row as usize * width);
                let factor = L::splat(&raw const entry.factor);
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::mul_add(factor, L::load_x(row.add(v * L::LANES)), *acc);
                }
            }
            for (v, &acc) in acc.iter().enumerate() {
                L::store(out.add(v * L::LANES), acc);
            }
        }
    }
    width
}

/// The columns past the last whole vector.
#[inline(always)]
unsafe fn last_columns<L: RowLanes + Reads<S>, S: Copy>(
    a: &CombineArgs<L>,
    col: usize,
    left: usize,
) -> usize {
    for t in 0..a.results {
        // SAFETY: the caller's promise; `out` has room for a whole vector.
        unsafe {
            let out = a.out.add(t * a.out_row + col);
            let mut acc = L::load(out);
            for e in *a.starts.add(t)..*a.starts.add(t + 1) {
                let entry = &*a.entries.add(e);
                let row = (*a.w.add(entry.row as usize)).cast::<S>().add(col);
                acc = L::mul_add(L::splat(&raw const entry.factor), read_some::<L, S>(row, left), acc);
            }
            L::store(out, acc);
        }
    }
    left
}

/// Adds up the lanes of vectors.
pub(crate) trait Totals: Lanes {
    /// Returns the total of each vector: the upper half of the lanes is added to the lower one until one
    /// lane is left.
    ///
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn totals(vectors: [Self::V; 4]) -> [Self::Acc; 4];
}

/// Adds up values, a power of two of them: the upper half is added to the lower one until one is left.
#[inline(always)]
pub(crate) fn fold<T: Copy + std::ops::AddAssign, const N: usize>(mut held: [T; N]) -> T {
    const { assert!(N.is_power_of_two()) };
    let mut left = N;
    while left > 1 {
        left /= 2;
        for i in 0..left {
            held[i] += held[i + left];
        }
    }
    held[0]
}

/// Implements [`Totals`] value by value.
macro_rules! totals_by_halves {
    ($lane:ty) => {
        impl crate::rows::kernel::Totals for $lane {
            #[inline(always)]
            unsafe fn totals(vectors: [Self::V; 4]) -> [Self::Acc; 4] {
                const LANES: usize = <$lane as crate::simd::Lanes>::LANES;
                vectors.map(|vector| {
                    let mut held = [Self::Acc::default(); LANES];
                    // SAFETY: the array holds a vector.
                    unsafe { <$lane as crate::simd::Lanes>::store(held.as_mut_ptr(), vector) };
                    crate::rows::kernel::fold(held)
                })
            }
        }
    };
}
pub(crate) use totals_by_halves;

/// Vector types whose sums are of their elements' type, and their compiled kernels.
pub(crate) trait RowLanes:
    Totals + Lanes<Elem = <Self as Lanes>::Acc, V = <Self as Lanes>::X>
{
    /// The kernels for a table of `dtype`; None where there are none.
    fn kernels(dtype: prunus_core::DType) -> Option<(DotFn<Self>, CombineFn<Self>)>;
}

/// Implements [`RowLanes`] for a vector type: kernels compiled with the given features for each storage type.
macro_rules! row_kernels {
    ($lane:ty, [$($feature:meta)?], { $($dtype:ident => $s:ty),+ $(,)? }) => {
        impl crate::rows::kernel::RowLanes for $lane {
            fn kernels(
                dtype: prunus_core::DType,
            ) -> Option<(crate::rows::kernel::DotFn<Self>, crate::rows::kernel::CombineFn<Self>)> {
                $(#[$feature])?
                unsafe fn dots<S: Copy>(args: &crate::rows::kernel::DotArgs<$lane>)
                where
                    $lane: crate::rows::kernel::Reads<S>,
                {
                    // SAFETY: the caller vouches for the pointers, and that the features are present.
                    unsafe { crate::rows::kernel::dots::<$lane, S>(args) }
                }
                $(#[$feature])?
                unsafe fn combine<S: Copy>(args: &crate::rows::kernel::CombineArgs<$lane>)
                where
                    $lane: crate::rows::kernel::Reads<S>,
                {
                    // SAFETY: as above.
                    unsafe { crate::rows::kernel::combine::<$lane, S>(args) }
                }
                match dtype {
                    $(prunus_core::DType::$dtype => Some((dots::<$s>, combine::<$s>)),)+
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use row_kernels;

/// Implements [`Reads`] value by value.
macro_rules! reads_values {
    ($lane:ty, $elem:ty, [$($s:ty),+]) => {
        $(impl crate::rows::kernel::Reads<$s> for $lane {
            #[inline(always)]
            unsafe fn read(from: *const $s) -> Self::X {
                use crate::dsd::convert::Cast;
                const LANES: usize = <$lane as crate::simd::Lanes>::LANES;
                // SAFETY: the caller provides a vector's worth of values, at any alignment.
                unsafe {
                    let values: [$elem; LANES] = std::array::from_fn(|i| from.add(i).read_unaligned().cast());
                    <$lane as crate::simd::Lanes>::load_x(values.as_ptr())
                }
            }
        })+
    };
}
pub(crate) use reads_values;
