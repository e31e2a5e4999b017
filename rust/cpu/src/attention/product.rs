//! The two products: keys times queries, and values times weights. Queries fill the lanes in both.
//!
//! One operand is read element by element from where the caller has it, each element spread over the lanes;
//! the other is a strip of some vectors, packed. Tiles of results stay in registers from the first summand to
//! the last.

use crate::simd::Lanes;
use crate::simd::floats::{Floats, Real};

/// `out = left · x`, or `out += left · x`, for one strip.
pub(crate) struct Product<L: Lanes> {
    /// First element of the left operand, `rows × words`.
    pub left: *const L::Elem,
    pub rows: usize,
    pub words: usize,
    /// Elements from one row to the next, where words are adjacent; from one word to the next, where rows are.
    pub step: usize,
    /// The packed strip: `words` rows of `vectors` vectors.
    pub x: *const L::Elem,
    pub vectors: usize,
    /// `rows` rows of `vectors` vectors.
    pub out: *mut L::Elem,
    pub adds: bool,
    /// What to ask for meanwhile.
    pub ahead: Ahead<L>,
}

/// Memory that will be read soon: rows of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<L: Lanes> {
    pub start: *const L::Elem,
    /// Elements from one row to the next.
    pub row: usize,
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl<L: Lanes> Ahead<L> {
    /// Nothing.
    pub(crate) const NONE: Self = Self { start: std::ptr::null(), row: 0, rows: 0, cols: 0 };
}

/// Most vectors of a strip: with them, a tile has enough rows that its loads stay hidden.
pub(crate) const fn most_vectors(registers: usize) -> usize {
    if registers >= 32 { 4 } else { 3 }
}

/// Runs a product. `ACROSS`: the left operand's rows are adjacent in memory, else its words are.
///
/// # Safety
/// Every pointer must cover what the arguments say; the instruction set must be present.
#[inline(always)]
pub(crate) unsafe fn run<L: Floats, const ACROSS: bool>(args: &Product<L>)
where
    L::Elem: Real,
{
    // Rows × vectors: as many sums as leave registers for the strip's vectors and a spread element.
    // SAFETY: the caller's promise.
    unsafe {
        match (L::REGISTERS >= 32, args.vectors) {
            (true, 1) => rows::<L, 16, 1, ACROSS>(args),
            (true, 2) => rows::<L, 12, 2, ACROSS>(args),
            (true, 3) => rows::<L, 8, 3, ACROSS>(args),
            (true, _) => rows::<L, 6, 4, ACROSS>(args),
            (false, 1) => rows::<L, 8, 1, ACROSS>(args),
            (false, 2) => rows::<L, 6, 2, ACROSS>(args),
            (false, _) => rows::<L, 4, 3, ACROSS>(args),
        }
    }
}

/// All rows of a strip of `V` vectors, `R` at a time.
#[inline(always)]
unsafe fn rows<L: Floats, const R: usize, const V: usize, const ACROSS: bool>(args: &Product<L>)
where
    L::Elem: Real,
{
    let mut row = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while row + R <= args.rows {
            tile::<L, R, V, ACROSS>(args, row);
            row += R;
        }
        while row + 4 <= args.rows {
            tile::<L, 4, V, ACROSS>(args, row);
            row += 4;
        }
        while row < args.rows {
            tile::<L, 1, V, ACROSS>(args, row);
            row += 1;
        }
    }
}

/// Asks for this tile's share of what comes next.
#[inline(always)]
unsafe fn ask<L: Floats>(args: &Product<L>, row: usize, height: usize)
where
    L::Elem: Real,
{
    let ahead = &args.ahead;
    for at in row * ahead.rows / args.rows..(row + height) * ahead.rows / args.rows {
        let start = ahead.start.wrapping_add(at * ahead.row);
        for col in (0..ahead.cols).step_by(64 / size_of::<L::Elem>()) {
            // SAFETY: a hint; never faults.
            unsafe { L::prefetch_far(start.wrapping_add(col)) };
        }
    }
}

#[inline(always)]
unsafe fn tile<L: Floats, const R: usize, const V: usize, const ACROSS: bool>(args: &Product<L>, row: usize)
where
    L::Elem: Real,
{
    let width = V * L::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        ask(args, row, R);
        let out = args.out.add(row * width);
        let mut acc = [[L::zero(); V]; R];
        if args.adds {
            for (r, sums) in acc.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(out.add(r * width + v * L::LANES));
                }
            }
        }
        let mut x = args.x;
        if ACROSS {
            let mut left = args.left.add(row);
            for _ in 0..args.words {
                step::<L, R, V>(&mut acc, |r| left.add(r), x);
                left = left.wrapping_add(args.step);
                x = x.add(width);
            }
        } else {
            let mut left = [args.left; R];
            for (r, left) in left.iter_mut().enumerate() {
                *left = left.add((row + r) * args.step);
            }
            let whole = args.words - args.words % UNROLL;
            for word in (0..whole).step_by(UNROLL) {
                for u in 0..UNROLL {
                    step::<L, R, V>(&mut acc, |r| left[r].add(word + u), x.add(u * width));
                }
                x = x.add(UNROLL * width);
            }
            for word in whole..args.words {
                step::<L, R, V>(&mut acc, |r| left[r].add(word), x);
                x = x.add(width);
            }
        }
        for (r, sums) in acc.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                L::store(out.add(r * width + v * L::LANES), *sum);
            }
        }
    }
}

/// Words that are laid out one after another.
const UNROLL: usize = 4;

/// One word of the sum: `R` spread elements against `V` vectors.
#[inline(always)]
unsafe fn step<L: Floats, const R: usize, const V: usize>(
    acc: &mut [[L::V; V]; R],
    left: impl Fn(usize) -> *const L::Elem,
    x: *const L::Elem,
) where
    L::Elem: Real,
{
    // SAFETY: as in `tile`.
    unsafe {
        let mut vectors = [L::load_x(x); V];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = L::load_x(x.add(v * L::LANES));
        }
        for (r, sums) in acc.iter_mut().enumerate() {
            let spread = L::splat(left(r));
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = L::mul_add(spread, vectors[v], *sum);
            }
        }
    }
}
