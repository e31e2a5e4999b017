//! What compute kernels do to values, where a chip keeps them: what is wrong with a step is told here and now, and what
//! is right with it goes to the [`pool`](super::pool).

use crate::error::Error;
use crate::numerics::{self, Accumulate, Tile, round_bf16};

use super::Machine;
use super::compute::{Kind, Step};
use super::work::{EMPTY, Op, Register, Source, Tiles, Values};

impl Machine<'_> {
    /// A tile of a circular buffer, counted from its front, that has been written.
    pub(super) fn tile(&mut self, id: u32, cb: u8, tile: u32) -> Result<Source, Error> {
        self.tile_from(id, cb, tile, u32::MAX)
    }

    /// The same, of which at least the first `most` bytes have been written.
    pub(super) fn tile_from(&mut self, id: u32, cb: u8, tile: u32, most: u32) -> Result<Source, Error> {
        let found = self.compute_cb(id, cb)?;
        let (format, bytes, address) = (found.format, found.page_bytes, found.read_address(tile));
        if bytes as usize != format.tile_bytes() {
            return Err(Error::Misused(format!(
                "{} takes a tile of {} from circular buffer {cb}, whose pages have {bytes} B",
                self.who(id),
                format.name()
            )));
        }
        let core = self.computes[id as usize].core;
        self.memory.l1[usize::from(core)].check(address, bytes.min(most)).map_err(|at| {
            Error::Undefined(format!(
                "{} reads tile {tile} of circular buffer {cb}, nothing was written at {at} of its L1",
                self.who(id)
            ))
        })?;
        Ok(Source { cb, format, address })
    }

    /// The same of several tiles, `stride` pages apart.
    fn tiles(&mut self, id: u32, cb: u8, first: u32, stride: u32, count: u32) -> Result<Tiles, Error> {
        let source = self.tile(id, cb, first)?;
        for i in 1..count {
            self.tile(id, cb, first + i * stride)?;
        }
        Ok(Tiles { first: source, step: stride * source.format.tile_bytes() as u32, count })
    }

    /// Has something done to a tile of the registers that math has, with tiles of circular buffers.
    pub(super) fn later<const N: usize>(
        &mut self,
        id: u32,
        sources: [Source; N],
        dst: u32,
        work: impl FnOnce([&Tile; N], &mut Tile) + Send + 'static,
    ) {
        let at = self.register(id, dst);
        self.on_values(id, move |values| {
            let mut tiles = [EMPTY; N];
            for (tile, source) in tiles.iter_mut().zip(sources) {
                *tile = values.tile(source)?;
            }
            work(tiles.each_ref(), values.register(at));
            Ok(())
        });
    }

    /// Has something done to the values of a core.
    pub(super) fn on_values(
        &mut self,
        id: u32,
        work: impl FnOnce(&mut Values) -> Result<(), numerics::Error> + Send + 'static,
    ) {
        self.work_on(id, Op::Apply(Box::new(work)));
    }

    pub(super) fn work_on(&mut self, id: u32, op: Op) {
        self.pool.add(self.computes[id as usize].core, op);
    }

    /// A tile of the registers that math has.
    pub(super) fn register(&self, id: u32, tile: u32) -> Register {
        Register { half: (self.computes[id as usize].committed % 2) as usize, tile }
    }

    pub(super) fn clear_registers(&mut self, id: u32) {
        if self.memory.values {
            let tiles = self.rates.dst_tiles;
            let compute = &mut self.computes[id as usize];
            let half = (compute.committed % 2) as usize;
            compute.kinds[half] = None;
            self.work_on(id, Op::Clear { half, tiles });
        }
    }

    /// Pages of a circular buffer have been used.
    pub(super) fn popped_values(&mut self, id: u32, cb: u8) {
        if self.memory.values {
            self.work_on(id, Op::Drop { cb });
        }
    }

    pub(super) fn calculate_values(&mut self, id: u32, step: &Step) -> Result<(), Error> {
        let sums = self.computes[id as usize].sums();
        let keep = move |value: f32| if sums == Accumulate::Bfloat16 { round_bf16(value) } else { value };
        match *step {
            Step::Matmul { in0_cb, in1_cb, in0, in1, dst, h, w, in0_stride } => {
                let integers = [self.compute_cb(id, in0_cb)?.format, self.compute_cb(id, in1_cb)?.format]
                    .map(|f| !f.is_float());
                self.holds(id, if integers[0] { Kind::Integers } else { Kind::Floats })?;
                if integers[0] != integers[1] {
                    let who = self.who(id);
                    return Err(Error::Unsupported(format!("{who} multiplies integers by floats")));
                }
                let in0 = self.tiles(id, in0_cb, in0, in0_stride, h)?;
                let in1 = self.tiles(id, in1_cb, in1, 1, w)?;
                let (to, fidelity) = (self.register(id, dst), self.computes[id as usize].fidelity);
                self.work_on(id, Op::Multiply { in0, in1, to, fidelity, sums });
            }
            Step::Copy { cb, tile, dst } => {
                let source = self.tile(id, cb, tile)?;
                let float = source.format.is_float();
                self.holds(id, if float { Kind::Floats } else { Kind::Integers })?;
                // Without 32-bit registers a tile comes by SrcA, which has the range of tf32 and more bits than they.
                self.later(id, [source], dst, move |[tile], to| {
                    *to = if float { tile.map(keep) } else { *tile };
                });
            }
            _ => self.vector_values(id, step, keep)?,
        }
        Ok(())
    }

    /// Notes what the registers that math has hold, which is all of one kind.
    pub(super) fn holds(&mut self, id: u32, kind: Kind) -> Result<(), Error> {
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

    pub(super) fn pack_values(&mut self, id: u32, step: &Step) -> Result<(), Error> {
        let Step::Pack { dst, cb, tile, tiles } = *step else { return Ok(()) };
        if tiles == 0 {
            return Ok(());
        }
        let found = self.compute_cb(id, cb)?;
        let (format, bytes, address) = (found.format, found.page_bytes, found.write_address(tile));
        if bytes as usize != format.tile_bytes() {
            return Err(Error::Misused(format!(
                "{} packs tiles of {} to circular buffer {cb}, whose pages have {bytes} B",
                self.who(id),
                format.name()
            )));
        }
        let compute = &self.computes[id as usize];
        let (core, add, half) = (compute.core, compute.accumulate, (compute.released % 2) as usize);
        let wanted = if format.is_float() { Kind::Floats } else { Kind::Integers };
        let kind = compute.kinds[half].unwrap_or(wanted);
        if kind != wanted || add && wanted == Kind::Integers {
            let (who, name) = (self.who(id), format.name());
            return Err(Error::Unsupported(format!(
                "{who} packs {kind:?} to {name}: they are not converted, and only floats are added in L1"
            )));
        }
        if add {
            self.memory.l1[usize::from(core)].check(address, tiles * bytes).map_err(|at| {
                Error::Undefined(format!(
                    "{} packs onto what was never written at {at} of L1{}",
                    self.who(id),
                    self.buffer_at(core, at)
                ))
            })?;
        }
        self.memory.l1[usize::from(core)].mark(address, tiles * bytes);
        let to = Tiles { first: Source { cb, format, address }, step: bytes, count: tiles };
        self.work_on(id, Op::Pack { from: Register { half, tile: dst }, to, add });
        Ok(())
    }
}
