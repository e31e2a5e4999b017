//! Powers and what is made of them: `2^x`, `exp`, `softplus`, `silu`, on vectors.
//!
//! `2^x = 2^n · 2^r` with n the nearest whole number: a polynomial for `2^r`, the exponent's bits for `2^n`.
//! Subnormal results are rounded once, infinities and NaN are as in C.
//!
//! Largest errors, in units of the last place (held by the tests below): `2^x` 1.5, `exp` 2, `softplus` 4,
//! `silu` 5; without fused multiply-adds (plain Rust) up to two more.

use super::lanes::{Float, Real};

/// `c[0] + c[1] x + c[2] x² + …`
///
/// # Safety
/// The instruction set is present, here and below.
#[inline(always)]
unsafe fn polynomial<R: Real>(x: R::V, c: &'static [R::Elem]) -> R::V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let last = c.len() - 1;
        let mut sum = R::splat(c[last]);
        for k in (0..last).rev() {
            sum = R::mul_add(sum, x, R::splat(c[k]));
        }
        sum
    }
}

/// `2^x`.
#[inline(always)]
pub(crate) unsafe fn exp2<R: Real>(x: R::V) -> R::V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let (n, rest) = R::split(x);
        R::scale(polynomial::<R>(rest, R::Elem::EXP2), n)
    }
}

/// `e^x`.
#[inline(always)]
pub(crate) unsafe fn exp<R: Real>(x: R::V) -> R::V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let limit = R::splat(R::Elem::EXP_LIMIT);
        // In this order NaN comes through.
        let x = R::max(R::splat(-R::Elem::EXP_LIMIT), R::min(limit, x));
        let log2_e = R::splat(R::Elem::LOG2_E);
        let (n, _) = R::split(R::mul(x, log2_e));
        // As Cody and Waite do it: n times the first part of log(2) is exact, so the rest has no error that
        // grows with x.
        let (high, low) = R::Elem::MINUS_LN_2;
        let rest = R::mul_add(n, R::splat(low), R::mul_add(n, R::splat(high), x));
        let rest = R::mul(rest, log2_e);
        R::scale(polynomial::<R>(rest, R::Elem::EXP2), n)
    }
}

/// `log(1 + e^x)`, as `max(x, 0) + log(1 + e^-|x|)`.
#[inline(always)]
pub(crate) unsafe fn softplus<R: Real>(x: R::V) -> R::V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let zero = R::splat(R::Elem::ZERO);
        let minus = R::sub(zero, x);
        let w = exp::<R>(R::min(x, minus));
        // log(1 + w) = 2 atanh(s) with s = w / (2 + w), at most 1/3: no reduction of the range.
        let s = R::div(w, R::add(R::splat(R::Elem::TWO), w));
        let log = R::mul(s, polynomial::<R>(R::mul(s, s), R::Elem::ATANH));
        R::add(R::max(zero, x), log)
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) unsafe fn silu<R: Real>(x: R::V) -> R::V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let zero = R::splat(R::Elem::ZERO);
        let minus = R::sub(zero, x);
        // By the half's square: far below 0, e^x alone would have lost digits, or all.
        let half = exp::<R>(R::mul(R::splat(R::Elem::HALF), R::min(x, minus)));
        let below = R::mul(R::min(zero, x), half);
        let numerator = R::mul_add(below, half, R::max(zero, x));
        R::div(numerator, R::mul_add(half, half, R::splat(R::Elem::ONE)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::{PAD, Plain, kernels_f32, kernels_f64};
    use super::*;
    use crate::level;

    type Function<R> = unsafe fn(<R as Real>::V) -> <R as Real>::V;

    /// Applies one of the functions to every value, in one vector type.
    ///
    /// # Safety
    /// The instruction set is present.
    unsafe fn apply<R: Real>(function: Function<R>, values: &[R::Elem]) -> Vec<R::Elem> {
        let mut padded = values.to_vec();
        padded.resize(values.len().next_multiple_of(PAD), R::Elem::ZERO);
        for i in (0..padded.len()).step_by(R::LANES) {
            // SAFETY: whole vectors of the padded values.
            unsafe {
                let at = padded.as_mut_ptr().add(i);
                R::store(at, function(R::load(at)));
            }
        }
        padded.truncate(values.len());
        padded
    }

    /// The four functions in every vector type of one element that this machine has.
    #[allow(clippy::type_complexity)]
    fn every_f32(values: &[f32]) -> Vec<(&'static str, bool, [Vec<f32>; 4])> {
        // SAFETY: the levels are asked for.
        unsafe fn all<R: Real<Elem = f32>>(values: &[f32]) -> [Vec<f32>; 4] {
            // SAFETY: the caller has asked for the level.
            unsafe {
                [exp2::<R>, exp::<R>, softplus::<R>, silu::<R>].map(|f: Function<R>| apply::<R>(f, values))
            }
        }
        // SAFETY: plain Rust, or asked for.
        unsafe {
            let mut found = vec![("scalar", false, all::<Plain<f32>>(values))];
            #[cfg(target_arch = "x86_64")]
            if level::Level::Avx2.is_available() {
                found.push(("avx2", true, all::<super::super::x86::F32x8>(values)));
            }
            #[cfg(target_arch = "x86_64")]
            if level::Level::Avx512.is_available() {
                found.push(("avx512", true, all::<super::super::x86::F32x16>(values)));
            }
            #[cfg(target_arch = "aarch64")]
            found.push(("neon", true, all::<super::super::neon::F32x4>(values)));
            found
        }
    }

    #[allow(clippy::type_complexity)]
    fn every_f64(values: &[f64]) -> Vec<(&'static str, bool, [Vec<f64>; 4])> {
        // SAFETY: the levels are asked for.
        unsafe fn all<R: Real<Elem = f64>>(values: &[f64]) -> [Vec<f64>; 4] {
            // SAFETY: the caller has asked for the level.
            unsafe {
                [exp2::<R>, exp::<R>, softplus::<R>, silu::<R>].map(|f: Function<R>| apply::<R>(f, values))
            }
        }
        // SAFETY: plain Rust, or asked for.
        unsafe {
            let mut found = vec![("scalar", false, all::<Plain<f64>>(values))];
            #[cfg(target_arch = "x86_64")]
            if level::Level::Avx2.is_available() {
                found.push(("avx2", true, all::<super::super::x86::F64x4>(values)));
            }
            #[cfg(target_arch = "x86_64")]
            if level::Level::Avx512.is_available() {
                found.push(("avx512", true, all::<super::super::x86::F64x8>(values)));
            }
            #[cfg(target_arch = "aarch64")]
            found.push(("neon", true, all::<super::super::neon::F64x2>(values)));
            found
        }
    }

    /// What the functions are, by the system's library in double precision.
    fn exact(x: f64) -> [f64; 4] {
        let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
        // Far below 0 by the half's square: e^-x overflows before the result is 0.
        let half = (x / 2.0).exp();
        let silu = if x < 0.0 { x * half / (1.0 + x.exp()) * half } else { x / (1.0 + (-x).exp()) };
        [x.exp2(), x.exp(), softplus, silu]
    }

    const NAMES: [&str; 4] = ["exp2", "exp", "softplus", "silu"];
    /// The documented errors in units of the last place, with fused multiply-adds and without.
    const LIMITS: [(f64, f64); 4] = [(1.5, 2.5), (2.0, 3.5), (4.0, 6.0), (5.0, 6.0)];

    #[test]
    fn single_precision_is_as_good_as_documented() {
        // Every 97th bit pattern up to the magnitude where all is 0 or infinite, of both signs.
        let top = 200f32.to_bits();
        let values: Vec<f32> =
            (0..=top).step_by(997).flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)]).collect();
        for (level, fused, results) in every_f32(&values) {
            for (k, result) in results.iter().enumerate() {
                let mut worst = (0.0, 0.0);
                for (&x, &got) in values.iter().zip(result) {
                    let want = exact(f64::from(x))[k];
                    if (want as f32).is_infinite() {
                        assert_eq!(got, want as f32, "{} of {x} at {level}", NAMES[k]);
                        continue;
                    }
                    let near = (want as f32).abs().max(f32::MIN_POSITIVE);
                    let place = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
                    let error = (f64::from(got) - want).abs() / place;
                    assert!(!error.is_nan(), "{} of {x} at {level} is {got}", NAMES[k]);
                    if error > worst.0 {
                        worst = (error, f64::from(x));
                    }
                }
                println!("f32 {level} {}: {:.2} units at {}", NAMES[k], worst.0, worst.1);
                let limit = if fused { LIMITS[k].0 } else { LIMITS[k].1 };
                assert!(worst.0 <= limit, "{} at {level}: {} units at {}", NAMES[k], worst.0, worst.1);
            }
        }
    }

    #[test]
    fn double_precision_is_as_good_as_documented() {
        let values: Vec<f64> = (0..200_000)
            .map(|i| f64::from(i) / 200_000.0)
            .flat_map(|t| [1e-300f64.powf(t), 20.0 * t, 1500.0 * t])
            .flat_map(|x| [x, -x])
            .collect();
        for (level, fused, results) in every_f64(&values) {
            for (k, result) in results.iter().enumerate() {
                let mut worst = (0.0, 0.0);
                for (&x, &got) in values.iter().zip(result) {
                    let want = exact(x)[k];
                    if want.is_infinite() {
                        assert_eq!(got, want, "{} of {x} at {level}", NAMES[k]);
                        continue;
                    }
                    let near = want.abs().max(f64::MIN_POSITIVE);
                    let place = f64::from_bits(near.to_bits() + 1) - near;
                    let error = (got - want).abs() / place;
                    assert!(!error.is_nan(), "{} of {x} at {level} is {got}", NAMES[k]);
                    if error > worst.0 {
                        worst = (error, x);
                    }
                }
                println!("f64 {level} {}: {:.2} units at {}", NAMES[k], worst.0, worst.1);
                // What this is held against is itself off by up to two units.
                let limit = if fused { LIMITS[k].0 } else { LIMITS[k].1 } + 2.0;
                assert!(worst.0 <= limit, "{} at {level}: {} units at {}", NAMES[k], worst.0, worst.1);
            }
        }
    }

    #[test]
    fn special_values() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for (level, _, [exp2, exp, softplus, silu]) in every_f32(&[0.0, -0.0, inf, -inf, nan, 1e30, -1e30]) {
            assert_eq!(exp2[..4], [1.0, 1.0, inf, 0.0], "{level}");
            assert_eq!(exp[..4], [1.0, 1.0, inf, 0.0], "{level}");
            assert_eq!(softplus[2..4], [inf, 0.0], "{level}");
            assert_eq!((silu[0], silu[2]), (0.0, inf), "{level}");
            assert!([exp2[4], exp[4], softplus[4], silu[4]].iter().all(|v| v.is_nan()), "{level}");
            assert_eq!([exp2[5], exp[5], softplus[5], silu[5]], [inf, inf, 1e30, 1e30], "{level}");
            assert_eq!([exp2[6], exp[6], softplus[6], silu[6]], [0.0; 4], "{level}");
        }
    }

    #[test]
    fn the_tables_have_the_same_functions() {
        level::each(|level| {
            let mut values = [1.0f32; PAD];
            let mut wide = [1.0f64; PAD];
            // SAFETY: PAD values; the kernels are of the level in use.
            unsafe {
                (kernels_f32().0.silu)(values.as_mut_ptr(), PAD);
                (kernels_f64().0.silu)(wide.as_mut_ptr(), PAD);
            }
            assert!(values.iter().all(|v| (v - 0.731_058_6).abs() < 1e-6), "{}", level.name());
            assert!(wide.iter().all(|v| (v - 0.731_058_578_630_004_9).abs() < 1e-14), "{}", level.name());
        });
    }
}
