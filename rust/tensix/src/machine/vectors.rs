//! What the vector unit, and the matrix unit without products, do to values, where a chip keeps them.

use crate::error::Error;
use crate::numerics::{TILE, Tile, to_tf32};
use crate::verbs::{Along, Binary, Broadcast, Unary};

use super::Machine;
use super::compute::{Kind, Step};
use super::work::{EMPTY, Source};

/// Bytes of a tile's beginning, in which its first value is.
const FIRST: u32 = 16;

/// The Gaussian error function to float32's precision: the series near 0, and the continued fraction further out
/// (Abramowitz and Stegun, 7.1.5 and 7.1.14), in double precision.
fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size < 2.5 {
        let (mut term, mut sum) = (size, size);
        for n in 1..60 {
            term *= -size * size / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return (std::f64::consts::FRAC_2_SQRT_PI * sum).copysign(x);
    }
    let fraction = (1..40).rev().fold(size, |below, n| size + f64::from(n) / 2.0 / below);
    (1.0 - (-size * size).exp() / (std::f64::consts::PI.sqrt() * fraction)).copysign(x)
}

fn unary(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Relu if x.is_nan() => x,
        Unary::Relu => x.max(0.0),
        Unary::Gelu => {
            let x = f64::from(x);
            (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
        }
        Unary::Silu => (f64::from(x) / (1.0 + (-f64::from(x)).exp())) as f32,
        Unary::Exp => f64::from(x).exp() as f32,
        Unary::Recip => 1.0 / x,
        Unary::Abs => x.abs(),
        Unary::Sqrt => x.sqrt(),
        Unary::Square => x * x,
        Unary::Softplus => softplus(f64::from(x)) as f32,
        Unary::Scale(factor) => x * f32::from_bits(factor),
        Unary::Offset(term) => x + f32::from_bits(term),
    }
}

fn binary(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Max if a.is_nan() || b.is_nan() => f32::NAN,
        Binary::Max => a.max(b),
    }
}

/// log(1 + exp(x)), without an overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The sum, saturated as the registers do it.
fn add_integers(a: f32, b: f32) -> f32 {
    let sum = (a.to_bits() as i32).saturating_add(b.to_bits() as i32);
    f32::from_bits(sum as u32)
}

/// A tile of whose values some stand for all.
fn spread(tile: &Tile, broadcast: Broadcast) -> Tile {
    let mut all = *tile;
    for (at, value) in all.iter_mut().enumerate() {
        let (row, column) = (at / TILE, at % TILE);
        *value = match broadcast {
            Broadcast::None => continue,
            Broadcast::Row => tile[column],
            Broadcast::Column => tile[row * TILE],
            Broadcast::Scalar => tile[0],
        };
    }
    all
}

/// Sums, or the largest values; NaN wins.
fn reduce(op: Binary, along: Along, tile: &Tile) -> Tile {
    let start = if op == Binary::Add { 0.0 } else { f32::NEG_INFINITY };
    let mut all = EMPTY;
    let mut to = |at: usize, values: &mut dyn Iterator<Item = f32>| {
        all[at] = values.map(to_tf32).fold(start, |sum, value| binary(op, sum, value));
    };
    match along {
        Along::Row => (0..TILE).for_each(|i| to(i * TILE, &mut tile[i * TILE..][..TILE].iter().copied())),
        Along::Column => (0..TILE).for_each(|j| to(j, &mut tile[j..].iter().step_by(TILE).copied())),
        Along::Both => to(0, &mut tile.iter().copied()),
    }
    all
}

impl Machine<'_> {
    /// Steps that are neither products nor copies; `keep` rounds to what the registers hold.
    pub(super) fn vector_values(
        &mut self,
        id: u32,
        step: &Step,
        keep: impl Fn(f32) -> f32 + Copy + Send + 'static,
    ) -> Result<(), Error> {
        match *step {
            Step::Binary { op, broadcast, in0_cb, in1_cb, in0, in1, dst } => {
                let a = self.floats(id, in0_cb, in0, &format!("{op:?}"))?;
                let b = self.floats(id, in1_cb, in1, &format!("{op:?}"))?;
                self.later(id, [a, b], dst, move |[a, b], to| {
                    for ((to, a), b) in to.iter_mut().zip(a).zip(&spread(b, broadcast)) {
                        *to = keep(binary(op, to_tf32(*a), to_tf32(*b)));
                    }
                });
            }
            Step::Broadcast { broadcast, cb, tile, dst } => {
                // Of a tile whose first value stands for all, only the beginning needs to be there.
                let only = if broadcast == Broadcast::Scalar { FIRST } else { u32::MAX };
                let source = self.tile_from(id, cb, tile, only)?;
                let float = source.format.is_float();
                self.holds(id, if float { Kind::Floats } else { Kind::Integers })?;
                let at = self.register(id, dst);
                self.on_values(id, move |values| {
                    let all = match broadcast {
                        Broadcast::Scalar => values.beginning(source, FIRST)?,
                        _ => values.tile(source)?,
                    };
                    let all = spread(&all, broadcast);
                    *values.register(at) = if float { all.map(keep) } else { all };
                    Ok(())
                });
            }
            Step::Reduce { op, along, cb, tile, dst } => {
                let source = self.floats(id, cb, tile, &format!("reduce by {op:?}"))?;
                if !matches!(op, Binary::Add | Binary::Max) {
                    let who = self.who(id);
                    return Err(Error::Unsupported(format!("{who} reduces by {op:?}: expected Add or Max")));
                }
                self.later(id, [source], dst, move |[tile], to| *to = reduce(op, along, tile).map(keep));
            }
            Step::Registers { op, dst, other } => {
                let integers = self.held(id) == Some(Kind::Integers);
                if integers && op != Binary::Add {
                    let who = self.who(id);
                    return Err(Error::Unsupported(format!("{who}: {op:?} of integers")));
                }
                let (at, other) = (self.register(id, dst), self.register(id, other));
                self.on_values(id, move |values| {
                    let other = *values.register(other);
                    for (to, b) in values.register(at).iter_mut().zip(&other) {
                        *to = if integers { add_integers(*to, *b) } else { keep(binary(op, *to, *b)) };
                    }
                    Ok(())
                });
            }
            Step::Mask { dst, mask } => {
                let (at, mask) = (self.register(id, dst), self.register(id, mask));
                self.on_values(id, move |values| {
                    let mask = *values.register(mask);
                    for (to, mask) in values.register(at).iter_mut().zip(&mask) {
                        if *mask == 0.0 {
                            *to = 0.0;
                        }
                    }
                    Ok(())
                });
            }
            // Registers that nothing was put into hold zeros, of either kind.
            Step::Unary { op: Unary::Relu, dst } if self.held(id) != Some(Kind::Floats) => {
                self.later(id, [], dst, |[], to| {
                    for value in to {
                        *value = f32::from_bits((value.to_bits() as i32).max(0) as u32);
                    }
                });
            }
            Step::Unary { op, dst } => {
                self.holds(id, Kind::Floats)?;
                self.later(id, [], dst, move |[], to| {
                    for value in to {
                        *value = keep(unary(op, *value));
                    }
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// A tile of floats; the registers are to hold such.
    fn floats(&mut self, id: u32, cb: u8, tile: u32, what: &str) -> Result<Source, Error> {
        let source = self.tile(id, cb, tile)?;
        if !source.format.is_float() {
            let who = self.who(id);
            return Err(Error::Unsupported(format!("{who}: {what} of {} tiles", source.format.name())));
        }
        self.holds(id, Kind::Floats)?;
        Ok(source)
    }

    /// What the registers that math has hold, if anything.
    fn held(&self, id: u32) -> Option<Kind> {
        let compute = &self.computes[id as usize];
        compute.kinds[(compute.committed % 2) as usize]
    }
}
