//! The steps between the two products: scores become weights, and older sums follow a new maximum.
//!
//! Scores lie with the queries of a strip in the lanes and one key a row, so that maxima and sums over keys
//! are plain vector operations: nothing is reduced across lanes.

use crate::simd::Lanes;
use crate::simd::floats::{Floats, Real, exp2};

/// A strip of scores in base 2 and the state of its queries, which a chunk of keys moves on.
pub(crate) struct Soften<L: Lanes> {
    /// Scores on entry, weights on return; one key a row.
    pub scores: *mut L::Elem,
    /// Elements from one key to the next.
    pub row: usize,
    /// Keys in the chunk.
    pub keys: usize,
    /// Vectors of queries in the strip.
    pub vectors: usize,
    /// Largest score so far, one a query; starts as the most negative finite value.
    pub max: *mut L::Elem,
    /// Sum of the weights so far, one a query.
    pub sum: *mut L::Elem,
    /// Weighted sums of values so far: one feature a row, queries in the lanes.
    pub out: *mut L::Elem,
    /// Elements from one feature to the next.
    pub out_row: usize,
    /// Features of a value.
    pub features: usize,
}

/// Rows of vectors to be multiplied lane by lane.
pub(crate) struct Rescale<L: Lanes> {
    pub data: *mut L::Elem,
    /// Elements from one row to the next.
    pub row: usize,
    pub rows: usize,
    pub vectors: usize,
    /// One vector, or `vectors` of them.
    pub by: *const L::Elem,
    /// Elements from one vector of `by` to the next: 0 where there is one.
    pub by_step: usize,
}

/// Keys whose maxima are found side by side: as many as hide the latency of one.
const SIDE_BY_SIDE: usize = 4;

/// Turns scores into weights `2^(score - max)`; the maximum, the sum of weights and the sums of values follow
/// (Milakov and Gimelshein, *Online normalizer calculation for softmax*, 2018).
///
/// Weights are summed key by key, in order.
///
/// # Safety
/// Every pointer must cover what the arguments say; the instruction set must be present.
#[inline(always)]
pub(crate) unsafe fn soften<L: Floats>(args: &Soften<L>)
where
    L::Elem: Real,
{
    // SAFETY: the caller vouches for the pointers and the instruction set.
    unsafe {
        for v in 0..args.vectors {
            let at = v * L::LANES;
            let scores = args.scores.add(at);
            let before = L::load(args.max.add(at));
            let mut most = [before; SIDE_BY_SIDE];
            let whole = args.keys - args.keys % SIDE_BY_SIDE;
            for key in (0..whole).step_by(SIDE_BY_SIDE) {
                for (i, most) in most.iter_mut().enumerate() {
                    *most = L::max(*most, L::load(scores.add((key + i) * args.row)));
                }
            }
            for key in whole..args.keys {
                most[0] = L::max(most[0], L::load(scores.add(key * args.row)));
            }
            let max = L::max(L::max(most[0], most[1]), L::max(most[2], most[3]));
            let mut sum = L::load(args.sum.add(at));
            if !L::all_equal(before, max) {
                let factor = exp2::<L>(L::sub(before, max));
                sum = L::mul(sum, factor);
                for feature in 0..args.features {
                    let out = args.out.add(feature * args.out_row + at);
                    L::store(out, L::mul(L::load(out), factor));
                }
            }
            for key in 0..args.keys {
                let score = scores.add(key * args.row);
                let weight = exp2::<L>(L::sub(L::load(score), max));
                sum = L::add(sum, weight);
                L::store(score, weight);
            }
            L::store(args.max.add(at), max);
            L::store(args.sum.add(at), sum);
        }
    }
}

/// Multiplies rows of vectors lane by lane.
///
/// # Safety
/// As [`soften`].
#[inline(always)]
pub(crate) unsafe fn rescale<L: Floats>(args: &Rescale<L>)
where
    L::Elem: Real,
{
    // SAFETY: the caller vouches for the pointers and the instruction set.
    unsafe {
        for v in 0..args.vectors {
            let by = L::load(args.by.add(v * args.by_step));
            for row in 0..args.rows {
                let at = args.data.add(row * args.row + v * L::LANES);
                L::store(at, L::mul(L::load(at), by));
            }
        }
    }
}
