//! The recurrence over a few steps of a chunk of channels, in registers and the first cache.

use super::exp;
use super::lanes::{Float, Real};

/// Steps of a chunk of channels: everything in the type that is computed in, channels side by side.
///
/// `u`, `delta`, `z` and `y` are (steps, width), `b` and `c` (steps, states), `a` and `h` (states, width), the
/// rest (width,); `width` is a multiple of [`PAD`](super::lanes::PAD).
pub(crate) struct Tile<E> {
    pub steps: usize,
    pub width: usize,
    pub states: usize,
    pub u: *const E,
    /// Read, and overwritten by the step sizes after bias and softplus.
    pub delta: *mut E,
    pub b: *const E,
    pub c: *const E,
    /// Null where there is no gate.
    pub z: *const E,
    /// Rates of decay, already times log2(e).
    pub a: *const E,
    /// The state: read and written.
    pub h: *mut E,
    /// What is added of the input itself; null for nothing.
    pub skip: *const E,
    /// Added to `delta`; null for nothing.
    pub bias: *const E,
    pub softplus: bool,
    /// (steps, width) bytes, 0 where an output is dead; null where none is.
    pub live: *const u8,
    /// (width,): how many of the steps each channel needs.
    pub ends: *const usize,
    /// Written.
    pub y: *mut E,
}

/// Runs the steps.
///
/// # Safety
/// The tile's arrays are as it says, apart from each other, and the instruction set is present.
#[inline(always)]
pub(crate) unsafe fn run<R: Real>(tile: &Tile<R::Elem>) {
    // SAFETY: the caller's promise; every offset is within the arrays that the tile describes.
    unsafe {
        step_sizes::<R>(tile);
        for v in (0..tile.width).step_by(R::LANES) {
            let end = (0..R::LANES).map(|i| *tile.ends.add(v + i)).max().unwrap_or(0);
            for s in 0..end {
                let any = |live: *const u8| (0..R::LANES).fold(0, |any, i| any | *live.add(i)) != 0;
                if tile.live.is_null() || any(tile.live.add(s * tile.width + v)) {
                    step::<R, true>(tile, s, v);
                } else {
                    step::<R, false>(tile, s, v);
                }
            }
            for s in end..tile.steps {
                R::store(tile.y.add(s * tile.width + v), R::splat(R::Elem::ZERO));
            }
        }
        if !tile.live.is_null() {
            // What shared a vector with a live channel.
            for i in 0..tile.steps * tile.width {
                let y = tile.y.add(i);
                *y = if *tile.live.add(i) == 0 { R::Elem::ZERO } else { *y };
            }
        }
    }
}

/// `delta = softplus(delta + bias)`.
#[inline(always)]
unsafe fn step_sizes<R: Real>(tile: &Tile<R::Elem>) {
    if tile.bias.is_null() && !tile.softplus {
        return;
    }
    for s in 0..tile.steps {
        for v in (0..tile.width).step_by(R::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let at = tile.delta.add(s * tile.width + v);
                let mut delta = R::load(at);
                if !tile.bias.is_null() {
                    delta = R::add(delta, R::load(tile.bias.add(v)));
                }
                if tile.softplus {
                    delta = exp::softplus::<R>(delta);
                }
                R::store(at, delta);
            }
        }
    }
}

/// One step of one vector of channels; without an output only the state moves on, by the same arithmetic.
#[inline(always)]
unsafe fn step<R: Real, const OUTPUT: bool>(tile: &Tile<R::Elem>, s: usize, v: usize) {
    let (width, states) = (tile.width, tile.states);
    let at = s * width + v;
    // SAFETY: the caller's promise.
    unsafe {
        let u = R::load(tile.u.add(at));
        let delta = R::load(tile.delta.add(at));
        let input = R::mul(delta, u);
        let mut y = R::splat(R::Elem::ZERO);
        for n in 0..states {
            let h = tile.h.add(n * width + v);
            let decay = exp::exp2::<R>(R::mul(delta, R::load(tile.a.add(n * width + v))));
            let gain = R::mul(input, R::splat(*tile.b.add(s * states + n)));
            let state = R::mul_add(decay, R::load(h), gain);
            R::store(h, state);
            if OUTPUT {
                y = R::mul_add(state, R::splat(*tile.c.add(s * states + n)), y);
            }
        }
        if OUTPUT && !tile.skip.is_null() {
            y = R::mul_add(R::load(tile.skip.add(v)), u, y);
        }
        if OUTPUT && !tile.z.is_null() {
            y = R::mul(y, exp::silu::<R>(R::load(tile.z.add(at))));
        }
        R::store(tile.y.add(at), y);
    }
}

/// Replaces `n` values, a multiple of the lanes, by their `silu`.
///
/// # Safety
/// The values may be read and written, and the instruction set is present.
#[inline(always)]
pub(crate) unsafe fn silu<R: Real>(values: *mut R::Elem, n: usize) {
    for i in (0..n).step_by(R::LANES) {
        // SAFETY: the caller's promise.
        unsafe { R::store(values.add(i), exp::silu::<R>(R::load(values.add(i)))) };
    }
}
