//! What happens to products before they are stored: bias, activation, scale, liveness.

use std::ops::Range;

use prunus_core::Activation;

use super::dots::{Dots, Found, Norm};
use crate::dsd::convert::Element;
use crate::dsd::store::Sum;
use crate::scan::lanes::{PAD, kernels_f32, kernels_f64};

/// What measuring needs of a sum.
pub(crate) trait Magnitude: Copy + Default + PartialOrd {
    fn times(self, factor: Self) -> Self;
    fn magnitude(self) -> Self;
    /// Applies an activation to every value; their number is [`padded`].
    fn activate_all(values: &mut [Self], activation: Activation);
    fn norm(part: &[Self], norm: Norm) -> Self;
    /// The largest value that is at most `limit`: comparing with it is comparing with `limit`.
    fn at_most(limit: f64) -> Self;
}

/// Values that vectors of any level divide.
pub(crate) fn padded(count: usize) -> usize {
    count.next_multiple_of(PAD)
}

/// Finishes the values of some units for some rows, row by row, [`padded`]; what is dead becomes zero.
pub(crate) fn finish<E>(call: &Dots<'_>, rows: Range<usize>, units: Range<usize>, values: &mut [E])
where
    E: Element + Sum + Magnitude,
{
    let width = units.len();
    let bias: Option<Vec<E>> =
        call.bias.as_ref().map(|bias| units.clone().map(|unit| E::bias(bias, unit)).collect());
    if let Some(bias) = &bias {
        for values in values.chunks_exact_mut(width).take(rows.len()) {
            values.iter_mut().zip(bias).for_each(|(value, &bias)| *value = value.add(bias));
        }
    }
    E::activate_all(values, call.activation);
    for (row, values) in rows.zip(values.chunks_exact_mut(width)) {
        if let Some(scale) = &call.scale {
            for (unit, value) in units.clone().zip(values.iter_mut()) {
                // SAFETY: the scale has a value for each unit of each row, of this type.
                let factor = unsafe { scale.at(row, unit).cast::<E>().read_unaligned() };
                *value = value.times(factor);
            }
        }
        if let Some(live) = &call.live {
            // What was computed because other rows of the tile need it, or got a bias.
            let of_row = &live.bytes[row * live.branches..(row + 1) * live.branches];
            clear_dead(values, of_row, units.start, live.branch);
        }
        if let Some(found) = &call.found {
            let first = row * call.w.rows.div_ceil(found.branch) + units.start / found.branch;
            // SAFETY: norms and liveness are rows × branches, and these branches are the task's own: it
            // computes whole ones.
            unsafe { find(found, first, values) };
        }
    }
}

/// Sets dead units to zero, from unit `first` on.
fn clear_dead<E: Copy + Default>(values: &mut [E], live: &[u8], first: usize, branch: usize) {
    if branch == 1 {
        for (value, &live) in values.iter_mut().zip(&live[first..]) {
            *value = if live == 0 { E::default() } else { *value };
        }
        return;
    }
    let (mut at, mut end) = (first / branch, branch - first % branch);
    let mut rest = values;
    while !rest.is_empty() {
        let (part, after) = rest.split_at_mut(end.min(rest.len()));
        if live[at] == 0 {
            part.fill(E::default());
        }
        (rest, at, end) = (after, at + 1, branch);
    }
}

/// Measures branches, and sets those to zero that are dead.
///
/// # Safety
/// From branch `first` on, norms and liveness must have a place for each branch of the values.
unsafe fn find<E: Magnitude>(found: &Found, first: usize, values: &mut [E]) {
    let tau = E::at_most(found.tau);
    let count = values.len().div_ceil(found.branch);
    let norms = found.norms.cast::<E>().wrapping_add(first);
    let decides = !found.live.is_null();
    if found.branch == 1 && norms.is_aligned() {
        // SAFETY: the caller's promise.
        let norms = unsafe { std::slice::from_raw_parts_mut(norms, count) };
        norms.iter_mut().zip(&*values).for_each(|(norm, value)| *norm = value.magnitude());
        if decides {
            // SAFETY: the caller's promise.
            let live = unsafe { std::slice::from_raw_parts_mut(found.live.add(first), count) };
            for ((value, &norm), live) in values.iter_mut().zip(&*norms).zip(live) {
                // NaN is live.
                let dead = norm <= tau;
                *live = u8::from(!dead);
                *value = if dead { E::default() } else { *value };
            }
        }
        return;
    }
    for (b, part) in values.chunks_mut(found.branch).enumerate() {
        let norm = E::norm(part, found.norm);
        let dead = norm <= tau;
        // SAFETY: the caller's promise.
        unsafe {
            norms.add(b).write_unaligned(norm);
            if decides {
                found.live.add(first + b).write(u8::from(!dead));
            }
        }
        if decides && dead {
            part.fill(E::default());
        }
    }
}

macro_rules! magnitude {
    ($t:ty, $kernels:path) => {
        impl Magnitude for $t {
            fn activate_all(values: &mut [Self], activation: Activation) {
                match activation {
                    Activation::Identity => {}
                    // SAFETY: the level in use has the kernel's instruction set; vectors divide the values.
                    Activation::Silu => unsafe { ($kernels().0.silu)(values.as_mut_ptr(), values.len()) },
                    _ => values.iter_mut().for_each(|value| *value = value.activate(activation)),
                }
            }
            #[inline(always)]
            fn times(self, factor: Self) -> Self {
                self * factor
            }
            #[inline(always)]
            fn magnitude(self) -> Self {
                self.abs()
            }
            fn norm(part: &[Self], norm: Norm) -> Self {
                // A comparison with NaN is false: what is not at most the largest takes its place, and stays.
                let most = part.iter().fold(0.0, |most: $t, v| {
                    let v = v.abs();
                    if most.is_nan() || v <= most { most } else { v }
                });
                let is_single = norm == Norm::Max || part.len() == 1;
                if is_single || most == 0.0 || !most.is_finite() {
                    return most;
                }
                let squares = part.iter().fold(0.0, |sum: f64, &v| sum + f64::from(v) * f64::from(v));
                if squares.is_normal() {
                    return squares.sqrt() as $t;
                }
                // Squares that are out of range: of the shares of the largest instead.
                let most = f64::from(most);
                let shares = part.iter().map(|&v| f64::from(v) / most).fold(0.0, |sum, v| sum + v * v);
                (most * shares.sqrt()) as $t
            }
            fn at_most(limit: f64) -> Self {
                let near = limit as $t;
                if f64::from(near) > limit { near.next_down() } else { near }
            }
        }
    };
}
magnitude!(f32, kernels_f32);
magnitude!(f64, kernels_f64);
