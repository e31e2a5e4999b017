//! What compute kernels do to values, where a chip keeps them.
//!
//! Destination registers hold `f32`; of integer products they hold the bits of `i32`.

use crate::error::Error;
use crate::numerics::{
    self, Accumulate, Format, SrcA, SrcB, SrcInt8, Tile, decode_tile, encode_tile, matmul_block,
    matmul_block_i8, round_bf16, to_tf32,
};
use crate::verbs::{Binary, Unary};

use super::Machine;
use super::compute::{Kind, Step};

const EMPTY: Tile = [0.0; 1024];

fn internal(error: &numerics::Error) -> Error {
    Error::Misused(error.to_string())
}

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

impl Machine<'_> {
    /// A tile of a circular buffer, counted from its front, with its format.
    fn tile(&mut self, id: u32, cb: u8, tile: u32) -> Result<(Format, Tile), Error> {
        let found = self.compute_cb(id, cb)?;
        let (format, bytes, address) = (found.format, found.page_bytes, found.read_address(tile));
        let core = self.computes[id as usize].core;
        if bytes as usize != format.tile_bytes() {
            return Err(Error::Misused(format!(
                "{} takes a tile of {} from circular buffer {cb}, whose pages have {bytes} B",
                self.who(id),
                format.name()
            )));
        }
        let memory = &self.memory.l1[usize::from(core)];
        let read = memory.read(address, bytes).map_err(|at| {
            Error::Undefined(format!(
                "{} reads tile {tile} of circular buffer {cb}, nothing was written at {at} of its L1",
                self.who(id)
            ))
        })?;
        let mut values = EMPTY;
        if format.is_float() {
            decode_tile(format, read, &mut values).map_err(|error| internal(&error))?;
        } else {
            let mut integers = [0_i32; 1024];
            decode_tile(format, read, &mut integers).map_err(|error| internal(&error))?;
            values = integers.map(|value| f32::from_bits(value as u32));
        }
        Ok((format, values))
    }

    pub(super) fn clear_registers(&mut self, id: u32) {
        if self.memory.values {
            let tiles = self.rates.dst_tiles as usize;
            let compute = &mut self.computes[id as usize];
            let half = &mut compute.registers[(compute.committed % 2) as usize];
            half.clear();
            half.resize(tiles, EMPTY);
            compute.kinds[(compute.committed % 2) as usize] = None;
        }
    }

    pub(super) fn calculate_values(&mut self, id: u32, step: &Step) -> Result<(), Error> {
        let sums = self.computes[id as usize].sums();
        let keep = |value: f32| if sums == Accumulate::Bfloat16 { round_bf16(value) } else { value };
        match *step {
            Step::Matmul { in0_cb, in1_cb, .. } => {
                let integers = [self.compute_cb(id, in0_cb)?.format, self.compute_cb(id, in1_cb)?.format]
                    .map(|f| !f.is_float());
                self.holds(id, if integers[0] { Kind::Integers } else { Kind::Floats })?;
                match integers {
                    [false, false] => self.multiply(id, step)?,
                    [true, true] => self.multiply_integers(id, step)?,
                    _ => {
                        let who = self.who(id);
                        return Err(Error::Unsupported(format!("{who} multiplies integers by floats")));
                    }
                }
            }
            Step::Copy { cb, tile, dst } => {
                let (format, values) = self.tile(id, cb, tile)?;
                self.holds(id, if format.is_float() { Kind::Floats } else { Kind::Integers })?;
                // Without 32-bit registers a tile comes by SrcA, which has the range of tf32 and more bits than they.
                let values = if format.is_float() { values.map(keep) } else { values };
                *self.register(id, dst) = values;
            }
            Step::Binary { op, in0_cb, in1_cb, in0, in1, dst } => {
                let (format, a) = self.tile(id, in0_cb, in0)?;
                let (other, b) = self.tile(id, in1_cb, in1)?;
                if !format.is_float() || !other.is_float() {
                    let who = self.who(id);
                    return Err(Error::Unsupported(format!("{who}: {op:?} of {} tiles", format.name())));
                }
                self.holds(id, Kind::Floats)?;
                let to = self.register(id, dst);
                for ((to, a), b) in to.iter_mut().zip(&a).zip(&b) {
                    *to = keep(binary(op, to_tf32(*a), to_tf32(*b)));
                }
            }
            Step::Unary { op, dst } => {
                self.holds(id, Kind::Floats)?;
                for value in self.register(id, dst) {
                    *value = keep(unary(op, *value));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A block of products of floats; tiles are made ready for the matrix unit once for all that use them.
    fn multiply(&mut self, id: u32, step: &Step) -> Result<(), Error> {
        let Step::Matmul { in0_cb, in1_cb, in0, in1, dst, h, w, in0_stride } = *step else { return Ok(()) };
        let mut rows = Vec::with_capacity(h as usize);
        for row in 0..h {
            let tile = in0 + row * in0_stride;
            let key = (in0_cb, self.compute_cb(id, in0_cb)?.read_address(tile));
            if !self.computes[id as usize].left.contains_key(&key) {
                let ready = SrcB::new(&self.tile(id, in0_cb, tile)?.1);
                self.computes[id as usize].left.insert(key, ready);
            }
            rows.push(key);
        }
        let mut columns = Vec::with_capacity(w as usize);
        for tile in in1..in1 + w {
            let key = (in1_cb, self.compute_cb(id, in1_cb)?.read_address(tile));
            if !self.computes[id as usize].right.contains_key(&key) {
                let ready = SrcA::new(&self.tile(id, in1_cb, tile)?.1);
                self.computes[id as usize].right.insert(key, ready);
            }
            columns.push(key);
        }
        let compute = &mut self.computes[id as usize];
        let sums = compute.sums();
        let half = &mut compute.registers[(compute.committed % 2) as usize];
        let left: Vec<&SrcB> = rows.iter().filter_map(|key| compute.left.get(key)).collect();
        let right: Vec<&SrcA> = columns.iter().filter_map(|key| compute.right.get(key)).collect();
        let (h, w, dst) = (h as usize, w as usize, dst as usize);
        matmul_block(&left, &right, &mut half[dst..dst + h * w], h, w, compute.fidelity, sums)
            .map_err(|error| internal(&error))
    }

    /// The same of integers.
    fn multiply_integers(&mut self, id: u32, step: &Step) -> Result<(), Error> {
        let Step::Matmul { in0_cb, in1_cb, in0, in1, dst, h, w, in0_stride } = *step else { return Ok(()) };
        let bits = |tile: &Tile| tile.map(|value| value.to_bits() as i32);
        let mut left = Vec::with_capacity(h as usize);
        for row in 0..h {
            left.push(SrcInt8::new(&bits(&self.tile(id, in0_cb, in0 + row * in0_stride)?.1)));
        }
        let mut right = Vec::with_capacity(w as usize);
        for column in 0..w {
            right.push(SrcInt8::new(&bits(&self.tile(id, in1_cb, in1 + column)?.1)));
        }
        let compute = &mut self.computes[id as usize];
        let half = &mut compute.registers[(compute.committed % 2) as usize];
        let (h, w, dst) = (h as usize, w as usize, dst as usize);
        let into = &mut half[dst..dst + h * w];
        let mut whole: Vec<_> = into.iter().map(bits).collect();
        matmul_block_i8(&left, &right, &mut whole, h, w).map_err(|error| internal(&error))?;
        for (to, from) in into.iter_mut().zip(whole) {
            *to = from.map(|value| f32::from_bits(value as u32));
        }
        Ok(())
    }

    /// Notes what the registers that math has hold, which is all of one kind.
    fn holds(&mut self, id: u32, kind: Kind) -> Result<(), Error> {
        let compute = &mut self.computes[id as usize];
        let held = &mut compute.kinds[(compute.committed % 2) as usize];
        if held.is_some_and(|held| held != kind) {
            let who = self.who(id);
            return Err(Error::Unsupported(format!(
                "{who} mixes integers and floats in destination registers"
            )));
        }
        *held = Some(kind);
        Ok(())
    }

    /// A tile of the registers that math has.
    fn register(&mut self, id: u32, dst: u32) -> &mut Tile {
        let compute = &mut self.computes[id as usize];
        &mut compute.registers[(compute.committed % 2) as usize][dst as usize]
    }

    pub(super) fn pack_values(&mut self, id: u32, step: &Step) -> Result<(), Error> {
        let Step::Pack { dst, cb, tile, tiles } = *step else { return Ok(()) };
        for i in 0..tiles {
            let found = self.compute_cb(id, cb)?;
            let (format, bytes, address) = (found.format, found.page_bytes, found.write_address(tile + i));
            let compute = &self.computes[id as usize];
            let half = &compute.registers[(compute.released % 2) as usize];
            let Some(values) = half.get((dst + i) as usize) else {
                let who = self.who(id);
                return Err(Error::Misused(format!("{who} packs tile {} of its registers", dst + i)));
            };
            if bytes as usize != format.tile_bytes() {
                return Err(Error::Misused(format!(
                    "{} packs tiles of {} to circular buffer {cb}, whose pages have {bytes} B",
                    self.who(id),
                    format.name()
                )));
            }
            let memory = &self.memory.l1[usize::from(compute.core)];
            let mut packed = vec![0; bytes as usize];
            let kind = compute.kinds[(compute.released % 2) as usize];
            let wanted = if format.is_float() { Kind::Floats } else { Kind::Integers };
            let kind = kind.unwrap_or(wanted);
            if kind != wanted || compute.accumulate && wanted == Kind::Integers {
                let (who, name) = (self.who(id), format.name());
                return Err(Error::Unsupported(format!(
                    "{who} packs {kind:?} to {name}: they are not converted, and only floats are added in L1"
                )));
            }
            let core = compute.core;
            if !format.is_float() {
                let integers = values.map(|value| value.to_bits() as i32);
                encode_tile(format, &integers, &mut packed).map_err(|error| internal(&error))?;
            } else if compute.accumulate {
                let mut sum = EMPTY;
                let before = memory.read(address, bytes).map_err(|at| {
                    Error::Undefined(format!("packs onto what was never written at {at} of L1"))
                })?;
                decode_tile(format, before, &mut sum).map_err(|error| internal(&error))?;
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += value;
                }
                encode_tile(format, &sum, &mut packed).map_err(|error| internal(&error))?;
            } else {
                encode_tile(format, values, &mut packed).map_err(|error| internal(&error))?;
            }
            self.put(core, address, &packed);
        }
        Ok(())
    }
}
