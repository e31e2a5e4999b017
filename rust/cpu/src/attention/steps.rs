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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prunus_core::{DType, Error};

    use super::*;
    use crate::dispatch::with_floats;
    use crate::level;

    /// `2^x` of as many scores as there are, which have a maximum of 0 behind them.
    fn weights<L: Floats>(scores: &[f64]) -> Result<Vec<f64>, Error>
    where
        L::Elem: Real + Into<f64>,
    {
        let keys = scores.len();
        let mut data = vec![L::Elem::default(); keys * L::LANES];
        for (row, &score) in data.chunks_exact_mut(L::LANES).zip(scores) {
            row.fill(L::Elem::narrow(score));
        }
        let (mut max, mut sum) = (vec![L::Elem::default(); L::LANES], vec![L::Elem::default(); L::LANES]);
        let args = Soften::<L> {
            scores: data.as_mut_ptr(),
            row: L::LANES,
            keys,
            vectors: 1,
            max: max.as_mut_ptr(),
            sum: sum.as_mut_ptr(),
            out: std::ptr::null_mut(),
            out_row: 0,
            features: 0,
        };
        // SAFETY: one vector a key, and `with_floats` chose a level that is there.
        unsafe { L::soften()(&args) };
        Ok(data.chunks_exact(L::LANES).map(|row| row[L::LANES - 1].into()).collect())
    }

    fn powers(compute: DType, scores: &[f64]) -> Vec<f64> {
        let mut found = Vec::new();
        let run = with_floats!(
            "test",
            Some(compute),
            L => weights::<L>(scores).map(|weights| found = weights),
            else Err(Error::Bug("no level".to_owned()))
        );
        run.unwrap();
        found
    }

    /// Checks powers of two at every level; `ulp` is the spacing of numbers in [1, 2).
    fn check(compute: DType, scores: &[f64], ulp: f64, smallest: f64) {
        level::each(|level| {
            for (&x, got) in scores.iter().zip(powers(compute, scores)) {
                let exact = libm::exp2(x);
                if exact < smallest {
                    assert!((0.0..=smallest).contains(&got), "2^{x} gave {got:e} on {}", level.name());
                    continue;
                }
                let spacing = ulp * 2f64.powi(exact.log2().floor() as i32);
                // libm's own error counts where it is no narrower than ours.
                let error = (got - exact).abs() / spacing;
                assert!(error < 2.0, "2^{x} is off by {error} units on {}", level.name());
            }
        });
    }

    proptest! {
        #[test]
        fn powers_of_two_are_within_two_units(x in proptest::collection::vec(-140.0f32..=0.0, 1..40)) {
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            check(DType::F32, &x, f64::from(f32::EPSILON), f64::from(f32::MIN_POSITIVE));
        }

        #[test]
        fn powers_of_two_in_double_precision(x in proptest::collection::vec(-1030.0f64..=0.0, 1..40)) {
            check(DType::F64, &x, f64::EPSILON, f64::MIN_POSITIVE);
        }
    }

    #[test]
    fn powers_of_two_over_the_whole_range() {
        let some: Vec<f64> = (0..400_000).map(|i| f64::from(-(i as f32) * 3.15e-4)).collect();
        check(DType::F32, &some, f64::from(f32::EPSILON), f64::from(f32::MIN_POSITIVE));
        let near: Vec<f64> = (0..=1000)
            .flat_map(|i| [-0.5, -1.0, -1.5].map(|at| f64::from(at + i as f32 * 5e-7 - 2.5e-4)))
            .collect();
        check(DType::F32, &near, f64::from(f32::EPSILON), f64::from(f32::MIN_POSITIVE));
    }

    #[test]
    fn powers_at_the_ends() {
        level::each(|level| {
            for compute in [DType::F32, DType::F64] {
                let lowest = if compute == DType::F32 { f64::from(f32::MIN) } else { f64::MIN };
                let found = powers(compute, &[0.0, f64::NEG_INFINITY, lowest, -1.0]);
                assert_eq!(found, [1.0, 0.0, 0.0, 0.5], "{}", level.name());
                // NaN is no maximum that would hide itself.
                assert!(powers(compute, &[-1.0, f64::NAN, -2.0])[1].is_nan(), "{}", level.name());
            }
        });
    }
}
