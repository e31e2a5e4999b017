//! Steps that fill destination registers: what they may use, and when the units are done with them.

use crate::error::Error;
use crate::verbs::Unary;

use super::compute::Step;
use super::{Machine, reduce};

/// How often as long as the simplest one a function takes the vector unit: assumed, by the instructions that its
/// polynomial and its special cases need for each vector (tenstorrent/tt-llk:tt_llk_wormhole_b0/common/inc/sfpu).
fn passes(op: Unary) -> u64 {
    match op {
        Unary::Relu | Unary::Abs | Unary::Square | Unary::Scale(_) | Unary::Offset(_) => 1,
        Unary::Recip | Unary::Sqrt => 3,
        Unary::Exp => 4,
        Unary::Silu | Unary::Gelu | Unary::Softplus => 7,
    }
}

impl Machine<'_> {
    /// Steps that fill destination registers.
    pub(super) fn calculate(&mut self, id: u32, step: &Step) -> Result<(), Error> {
        if !self.computes[id as usize].acquired {
            let who = self.who(id);
            return Err(Error::Misused(format!("{who} computes into registers that it has not acquired")));
        }
        let tiles = self.rates.dst_tiles / if self.computes[id as usize].wide { 2 } else { 1 };
        let last = match step {
            Step::Matmul { dst, h, w, .. } => u64::from(*dst) + u64::from(*h) * u64::from(*w),
            Step::Copy { dst, .. }
            | Step::Binary { dst, .. }
            | Step::Broadcast { dst, .. }
            | Step::Reduce { dst, .. }
            | Step::Unary { dst, .. } => u64::from(*dst) + 1,
            Step::Registers { dst, other, .. } | Step::Mask { dst, mask: other } => {
                u64::from(*dst.max(other)) + 1
            }
            _ => 0,
        };
        if matches!(step, Step::Matmul { h: 0, .. } | Step::Matmul { w: 0, .. }) {
            let who = self.who(id);
            return Err(Error::Misused(format!("{who} multiplies a block of no tiles")));
        }
        if last > u64::from(tiles) {
            let who = self.who(id);
            return Err(Error::Misused(format!(
                "{who} uses {last} tiles of destination registers, half of them holds {tiles}"
            )));
        }
        match *step {
            Step::Matmul { in0_cb, in1_cb, in0, in1, h, w, in0_stride, .. } => {
                let below = u64::from(h - 1) * u64::from(in0_stride);
                self.check_tile(id, in0_cb, u64::from(in0) + below)?;
                self.check_tile(id, in1_cb, u64::from(in1) + u64::from(w - 1))?;
            }
            Step::Binary { in0_cb, in1_cb, in0, in1, .. } => {
                self.check_tile(id, in0_cb, u64::from(in0))?;
                self.check_tile(id, in1_cb, u64::from(in1))?;
            }
            Step::Copy { cb, tile, .. }
            | Step::Broadcast { cb, tile, .. }
            | Step::Reduce { cb, tile, .. } => {
                self.check_tile(id, cb, u64::from(tile))?;
            }
            _ => {}
        }
        let bytes = match step {
            Step::Matmul { in0_cb, in1_cb, .. } | Step::Binary { in0_cb, in1_cb, .. } => {
                (self.page_bytes(id, *in0_cb)?, self.page_bytes(id, *in1_cb)?)
            }
            Step::Copy { cb, .. } | Step::Broadcast { cb, .. } | Step::Reduce { cb, .. } => {
                (self.page_bytes(id, *cb)?, 0)
            }
            _ => (0, 0),
        };
        let before = self.clocks(id);
        let rates = &self.rates;
        let compute = &mut self.computes[id as usize];
        let (from, ready) = (compute.unpack_at, compute.math_at);
        match step {
            Step::Matmul { h, w, .. } => {
                let math = rates.math(compute.fidelity);
                compute.units.matmul(rates, (*h, *w), bytes, math, from, ready);
            }
            Step::Copy { .. } | Step::Broadcast { .. } => compute.units.copy(rates, bytes.0, from, ready, 1),
            Step::Reduce { op, along, .. } => {
                let work = reduce::cycles(*op, *along, compute.fidelity, rates.latency);
                compute.units.reduce(rates, bytes.0, work, from, ready);
            }
            Step::Binary { .. } => compute.units.binary(rates, bytes, from, ready),
            Step::Unary { op, .. } => compute.units.vector(rates, ready, passes(*op)),
            _ => compute.units.vector(rates, ready, 1),
        }
        compute.unpack_at = compute.unpack_at.max(compute.units.unpacked_at());
        compute.math_at = compute.units.math_at;
        self.note_step(id, step, before);
        if self.memory.values { self.calculate_values(id, step) } else { Ok(()) }
    }

    /// Checks that a tile of a circular buffer has been pushed, and lies before the buffer's end: an index does not go on
    /// at its start.
    fn check_tile(&mut self, id: u32, cb: u8, tile: u64) -> Result<(), Error> {
        let buffer = self.compute_cb(id, cb)?;
        let (filled, all) = (u64::from(buffer.filled()), u64::from(buffer.pages));
        let end = buffer.read % all + tile;
        if tile >= filled {
            let who = self.who(id);
            return Err(Error::Misused(format!(
                "{who} uses tile {tile} of circular buffer {cb}, which holds {filled}"
            )));
        }
        if end >= all {
            let who = self.who(id);
            return Err(Error::Undefined(format!(
                "{who} uses tile {tile} of circular buffer {cb}, which is behind the buffer's end: tiles that are used by \
                 their numbers must not be pushed across it"
            )));
        }
        Ok(())
    }
}
