//! Unpackers, matrix unit and packer of a core: when each of their steps can begin.
//!
//! Each source register of the matrix unit has two banks. A tile is unpacked into a bank as soon as that is free and
//! the unpacker is; a product begins when both of its operands are there and the product before it is done; a bank is
//! free when the last product that uses it is done (tenstorrent/tt-llk:tt_llk_wormhole_b0/llk_lib/llk_math_matmul.h and
//! llk_unpack_AB_matmul.h). The two unpackers share L1's bandwidth while both work.

use crate::chip::ChipSpec;
use crate::numerics::Fidelity;
use crate::time::{TICKS, Time, ticks};

/// Bytes of the factors that a tile is reduced with: a face of 16 x 16 values of 16 bits.
const FACTORS: u32 = 512;

/// Rates in ticks, for one chip.
#[derive(Debug, Clone)]
pub(crate) struct Rates {
    /// Ticks a byte, alone and beside the other unpacker.
    alone: f64,
    beside: f64,
    tile: Time,
    phase: Time,
    product: Time,
    pub(crate) latency: Time,
    copy: Time,
    pub(crate) vector: Time,
    pairs: bool,
    pack: f64,
    pack_accumulate: f64,
    pack_tile: Time,
    pub(crate) dst_tiles: u32,
}

impl Rates {
    pub(crate) fn new(spec: &ChipSpec) -> Self {
        let tick = TICKS as f64;
        Self {
            alone: tick / spec.unpack.bytes_per_cycle,
            beside: 2.0 * tick / spec.unpack.joint_bytes_per_cycle,
            tile: ticks(spec.matrix.tile_cycles),
            phase: ticks(spec.matrix.phase_cycles),
            product: ticks(spec.matrix.product_cycles),
            latency: ticks(spec.matrix.latency_cycles),
            copy: ticks(spec.matrix.copy_cycles),
            vector: ticks(spec.matrix.vector_cycles),
            pairs: spec.unpack.pairs,
            pack: tick / spec.pack.bytes_per_cycle,
            pack_accumulate: tick / spec.pack.accumulate_bytes_per_cycle,
            pack_tile: ticks(spec.pack.tile_cycles),
            dst_tiles: spec.matrix.dst_tiles,
        }
    }

    /// Ticks of a product of two tiles.
    pub(crate) fn math(&self, fidelity: Fidelity) -> Time {
        fidelity.phases() as u64 * (self.tile + self.phase) + self.product
    }

    /// Ticks to pack a tile of so many bytes.
    pub(crate) fn pack(&self, bytes: u32, accumulate: bool) -> Time {
        let rate = if accumulate { self.pack_accumulate.max(self.pack) } else { self.pack };
        self.pack_tile + (f64::from(bytes) * rate) as Time
    }
}

/// An unpacker, with the two banks that it fills in turn.
#[derive(Debug, Clone, Copy, Default)]
struct Unpacker {
    free_at: Time,
    /// From when on each bank may be filled.
    banks: [Time; 2],
    turn: usize,
}

/// The units of a core.
#[derive(Debug, Clone, Default)]
pub(crate) struct Units {
    /// For SrcA and SrcB.
    unpackers: [Unpacker; 2],
    /// When the matrix unit is done with what it was given.
    pub(crate) math_at: Time,
    /// Ticks of work, of the matrix unit and of the unpackers.
    pub(crate) math_busy: Time,
    pub(crate) unpack_busy: [Time; 2],
    /// When the unpackers and the matrix unit began with the last step.
    pub(crate) unpack_from: Time,
    pub(crate) math_from: Time,
    /// Products of two tiles, and bytes that were unpacked.
    pub(crate) products: u64,
    pub(crate) unpack_bytes: u64,
}

impl Units {
    /// When a tile's transfer can begin, and the bank that it fills.
    fn claim(&mut self, which: usize, from: Time) -> (usize, Time) {
        let own = &mut self.unpackers[which];
        let bank = own.turn;
        own.turn = 1 - bank;
        (bank, from.max(own.free_at).max(own.banks[bank]))
    }

    /// Unpacks a tile not before `from` while the other unpacker rests; returns its bank and when it is there.
    fn unpack(&mut self, rates: &Rates, which: usize, bytes: u32, from: Time) -> (usize, Time) {
        let (bank, start) = self.claim(which, from);
        let work = (f64::from(bytes) * rates.alone) as Time;
        self.unpack_from = self.unpack_from.min(start);
        self.unpack_bytes += u64::from(bytes);
        self.unpackers[which].free_at = start + work;
        self.unpack_busy[which] += work;
        (bank, start + work)
    }

    /// Unpacks a tile for each source register; while both transfers go on, each has half of the joint rate.
    fn unpack_both(&mut self, rates: &Rates, bytes: [u32; 2], from: Time) -> [(usize, Time); 2] {
        let claims = [self.claim(0, from), self.claim(1, from)];
        let starts = [claims[0].1, claims[1].1];
        self.unpack_from = self.unpack_from.min(starts[0]).min(starts[1]);
        self.unpack_bytes += u64::from(bytes[0]) + u64::from(bytes[1]);
        let first = usize::from(starts[1] < starts[0]);
        let second = 1 - first;
        let slow = rates.beside.max(rates.alone);
        // What the earlier one has left when the later one begins, in bytes.
        let gone = (starts[second] - starts[first]) as f64 / rates.alone;
        let mut left = [f64::from(bytes[0]), f64::from(bytes[1])];
        left[first] = (left[first] - gone).max(0.0);
        let both = left[0].min(left[1]);
        let mut ends = [0; 2];
        for (i, end) in ends.iter_mut().enumerate() {
            let shared = if left[first] > 0.0 { both } else { 0.0 };
            *end = starts[second] + (shared * slow + (left[i] - shared) * rates.alone) as Time;
        }
        if left[first] == 0.0 {
            ends[first] = starts[first] + (f64::from(bytes[first]) * rates.alone) as Time;
        }
        for i in 0..2 {
            self.unpackers[i].free_at = ends[i];
            self.unpack_busy[i] += ends[i] - starts[i];
        }
        [(claims[0].0, ends[0]), (claims[1].0, ends[1])]
    }

    /// A step begins: when its parts begin is not known yet.
    fn begin(&mut self) {
        (self.unpack_from, self.math_from) = (Time::MAX, Time::MAX);
    }

    /// When the unpack thread's last transfer ends: what it pops then is free.
    pub(crate) fn unpacked_at(&self) -> Time {
        self.unpackers[0].free_at.max(self.unpackers[1].free_at)
    }

    /// One `matmul_block` of h x w products whose tiles may be read from `from` on, and whose math may begin at
    /// `ready`. `bytes` are those of a tile of in0 and of in1.
    pub(crate) fn matmul(
        &mut self,
        rates: &Rates,
        (h, w): (u32, u32),
        bytes: (u32, u32),
        math: Time,
        from: Time,
        ready: Time,
    ) {
        self.begin();
        self.products += u64::from(h) * u64::from(w);
        self.math_at = self.math_at.max(ready);
        // The operand with fewer tiles is held: in0 in SrcB, or in1 in SrcA. The other one streams through.
        let (held, stream, groups, steps, held_bytes, stream_bytes) =
            if w >= h { (1, 0, h, w, bytes.0, bytes.1) } else { (0, 1, w, h, bytes.1, bytes.0) };
        let mut left = groups;
        while left > 0 {
            let together = if rates.pairs && left > 1 { 2 } else { 1 };
            left -= together;
            // Held tiles come beside the first tiles of the stream.
            let mut bytes = [0; 2];
            (bytes[held], bytes[stream]) = (held_bytes, stream_bytes);
            let both = self.unpack_both(rates, bytes, from);
            let (mut kept, mut early) = ([both[held]; 2], [Some(both[stream]), None]);
            if together == 2 && steps == 1 {
                kept[1] = self.unpack(rates, held, held_bytes, from);
            } else if together == 2 {
                let both = self.unpack_both(rates, bytes, from);
                (kept[1], early[1]) = (both[held], Some(both[stream]));
            }
            for step in 0..steps {
                let here = early.get_mut(step as usize).and_then(Option::take);
                let (bank, there) = here.unwrap_or_else(|| self.unpack(rates, stream, stream_bytes, from));
                for (held_bank, held_there) in kept.iter().take(together as usize) {
                    let start = self.math_at.max(there).max(*held_there);
                    self.math_from = self.math_from.min(start);
                    self.math_at = start + math;
                    self.math_busy += math;
                    if step + 1 == steps {
                        self.unpackers[held].banks[*held_bank] = self.math_at + rates.latency;
                    }
                }
                self.unpackers[stream].banks[bank] = self.math_at + rates.latency;
            }
        }
    }

    /// A tile from L1 by SrcA to the destination registers, which takes the matrix unit so many passes.
    pub(crate) fn copy(&mut self, rates: &Rates, bytes: u32, from: Time, ready: Time, passes: u64) {
        self.begin();
        let (bank, there) = self.unpack(rates, 0, bytes, from);
        self.math_from = self.math_at.max(ready).max(there + rates.latency);
        self.math_at = self.math_from + passes * rates.copy;
        self.math_busy += passes * rates.copy;
        self.unpackers[0].banks[bank] = self.math_at + rates.latency;
    }

    /// Two tiles, one by each source register, to one of the destination.
    pub(crate) fn binary(&mut self, rates: &Rates, bytes: (u32, u32), from: Time, ready: Time) {
        self.begin();
        let [(a, first), (b, second)] = self.unpack_both(rates, [bytes.0, bytes.1], from);
        self.math_from = self.math_at.max(ready).max(first).max(second);
        self.math_at = self.math_from + rates.copy;
        self.math_busy += rates.copy;
        self.unpackers[0].banks[a] = self.math_at + rates.latency;
        self.unpackers[1].banks[b] = self.math_at + rates.latency;
    }

    /// A tile by SrcA, and beside it the face of factors by SrcB, reduced in `work` ticks.
    pub(crate) fn reduce(&mut self, rates: &Rates, bytes: u32, work: Time, from: Time, ready: Time) {
        self.begin();
        let [(a, first), (b, second)] = self.unpack_both(rates, [bytes, FACTORS], from);
        self.math_from = self.math_at.max(ready).max(first).max(second);
        self.math_at = self.math_from + work;
        self.math_busy += work;
        self.unpackers[0].banks[a] = self.math_at + rates.latency;
        self.unpackers[1].banks[b] = self.math_at + rates.latency;
    }

    /// Work of the vector unit on destination registers, of so many passes.
    pub(crate) fn vector(&mut self, rates: &Rates, ready: Time, passes: u64) {
        self.begin();
        self.math_from = self.math_at.max(ready);
        self.math_at = self.math_from + passes * rates.vector;
        self.math_busy += passes * rates.vector;
    }
}
