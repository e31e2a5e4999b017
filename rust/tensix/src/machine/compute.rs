//! The compute side of a core: one kernel feeds two queues, unpack-and-math and pack.
//!
//! The kernel is one text that three RISC-V cores run, each its own part of it. Here it is read once, ahead of time,
//! and its verbs are dealt to a queue for unpacking and math, and one for packing. Each has a clock of its own; what
//! concerns other threads (circular buffers) happens as an event at its own time.

use std::collections::VecDeque;

use crate::kernel::Kernel;
use crate::numerics::{Accumulate, Fidelity};
use crate::time::Time;
use crate::verbs::{Along, Binary, Broadcast, Reply, Unary, Verb};

use super::units::Units;

/// A step of one of the two queues.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    WaitFront {
        cb: u8,
        pages: u32,
    },
    PopFront {
        cb: u8,
        pages: u32,
    },
    Acquire,
    Commit,
    Matmul {
        in0_cb: u8,
        in1_cb: u8,
        in0: u32,
        in1: u32,
        dst: u32,
        h: u32,
        w: u32,
        in0_stride: u32,
    },
    Copy {
        cb: u8,
        tile: u32,
        dst: u32,
    },
    Binary {
        op: Binary,
        broadcast: Broadcast,
        in0_cb: u8,
        in1_cb: u8,
        in0: u32,
        in1: u32,
        dst: u32,
    },
    Broadcast {
        broadcast: Broadcast,
        cb: u8,
        tile: u32,
        dst: u32,
    },
    Reduce {
        op: Binary,
        along: Along,
        cb: u8,
        tile: u32,
        dst: u32,
    },
    /// Of two tiles of the destination registers, to the first one.
    Registers {
        op: Binary,
        dst: u32,
        other: u32,
    },
    Mask {
        dst: u32,
        mask: u32,
    },
    Unary {
        op: Unary,
        dst: u32,
    },
    /// Work of the RISC-V core of the queue.
    Cycles(Time),
    /// A word of L1, on which the rest of the text depends.
    Load {
        address: u32,
    },
    // Steps of the pack queue.
    Wait,
    Release,
    ReserveBack {
        cb: u8,
        pages: u32,
    },
    PushBack {
        cb: u8,
        pages: u32,
    },
    Pack {
        dst: u32,
        cb: u8,
        tile: u32,
        tiles: u32,
    },
    Accumulate(bool),
}

/// What destination registers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Floats,
    /// The bits of `i32`.
    Integers,
}

/// What a queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// Nothing: it can go on.
    None,
    /// An event of its own.
    Timer,
    /// Pages of a circular buffer to use, or room in one.
    Front {
        cb: u8,
        pages: u32,
    },
    Back {
        cb: u8,
        pages: u32,
    },
    /// The other queue.
    Registers,
}

/// The compute side of a core.
pub(super) struct Compute {
    pub(super) core: u16,
    pub(super) name: String,
    pub(super) kernel: Option<Box<dyn Kernel>>,
    pub(super) fidelity: Fidelity,
    pub(super) wide: bool,
    pub(super) units: Units,
    pub(super) math: VecDeque<Step>,
    pub(super) pack: VecDeque<Step>,
    pub(super) math_pause: Pause,
    pub(super) pack_pause: Pause,
    /// Clocks of the unpack thread, of the math thread's own work, and of the pack thread.
    pub(super) unpack_at: Time,
    pub(super) math_at: Time,
    pub(super) pack_at: Time,
    /// When halves of the destination registers were handed over, and given back.
    pub(super) commits: VecDeque<Time>,
    pub(super) committed: u64,
    pub(super) released: u64,
    pub(super) releases: VecDeque<Time>,
    pub(super) acquired: bool,
    pub(super) waited: bool,
    pub(super) accumulate: bool,
    pub(super) pack_busy: Time,
    pub(super) pack_bytes: u64,
    /// Ticks that each thread waited: unpack for pages, math for registers, pack for room.
    pub(super) waits: [Time; 3],
    /// What the values of each half of the destination registers are, once there are some.
    pub(super) kinds: [Option<Kind>; 2],
    /// The kernel waits for a word: its text goes on when that is known. The word, once it is.
    pub(super) asked: bool,
    pub(super) reply: Reply,
    /// Verbs in a row in which no clock went on.
    pub(super) idle: u32,
    pub(super) clock: Time,
}

impl Compute {
    pub(super) fn new(
        core: u16,
        name: String,
        kernel: Box<dyn Kernel>,
        fidelity: Fidelity,
        wide: bool,
    ) -> Self {
        Self {
            core,
            name,
            kernel: Some(kernel),
            fidelity,
            wide,
            units: Units::default(),
            math: VecDeque::new(),
            pack: VecDeque::new(),
            math_pause: Pause::None,
            pack_pause: Pause::None,
            unpack_at: 0,
            math_at: 0,
            pack_at: 0,
            commits: VecDeque::new(),
            committed: 0,
            released: 0,
            releases: VecDeque::new(),
            acquired: false,
            waited: false,
            accumulate: false,
            pack_busy: 0,
            pack_bytes: 0,
            waits: [0; 3],
            kinds: [None; 2],
            asked: false,
            reply: 0,
            idle: 0,
            clock: 0,
        }
    }

    /// Deals a verb to its queue; gives back one that no compute kernel has.
    pub(super) fn deal(&mut self, verb: Verb) -> Result<(), Verb> {
        let step = match verb {
            Verb::CbWaitFront { cb, pages } => Step::WaitFront { cb, pages },
            Verb::CbPopFront { cb, pages } => Step::PopFront { cb, pages },
            Verb::TileRegsAcquire => Step::Acquire,
            Verb::TileRegsCommit => Step::Commit,
            Verb::MatmulBlock { in0_cb, in1_cb, in0, in1, dst, h, w, in0_stride } => {
                Step::Matmul { in0_cb, in1_cb, in0, in1, dst, h, w, in0_stride }
            }
            Verb::CopyTile { cb, tile, dst } => Step::Copy { cb, tile, dst },
            Verb::BinaryTiles { op, broadcast, in0_cb, in1_cb, in0, in1, dst } => {
                Step::Binary { op, broadcast, in0_cb, in1_cb, in0, in1, dst }
            }
            Verb::BroadcastTile { broadcast, cb, tile, dst } => Step::Broadcast { broadcast, cb, tile, dst },
            Verb::ReduceTile { op, along, cb, tile, dst } => Step::Reduce { op, along, cb, tile, dst },
            Verb::BinaryDst { op, dst, other } => Step::Registers { op, dst, other },
            Verb::MaskTile { dst, mask } => Step::Mask { dst, mask },
            Verb::UnaryTile { op, dst } => Step::Unary { op, dst },
            Verb::L1Load { address } => {
                self.asked = true;
                Step::Load { address }
            }
            Verb::Cycles(cycles) => Step::Cycles(crate::time::ticks(cycles)),
            Verb::TileRegsWait => return self.deal_pack(Step::Wait),
            Verb::TileRegsRelease => return self.deal_pack(Step::Release),
            Verb::CbReserveBack { cb, pages } => return self.deal_pack(Step::ReserveBack { cb, pages }),
            Verb::CbPushBack { cb, pages } => return self.deal_pack(Step::PushBack { cb, pages }),
            Verb::PackTile { dst, cb, tile, tiles } => {
                return self.deal_pack(Step::Pack { dst, cb, tile, tiles });
            }
            Verb::PackReconfigL1Acc { on } => return self.deal_pack(Step::Accumulate(on)),
            other => return Err(other),
        };
        self.math.push_back(step);
        Ok(())
    }

    fn deal_pack(&mut self, step: Step) -> Result<(), Verb> {
        self.pack.push_back(step);
        Ok(())
    }

    /// What the destination registers hold.
    pub(super) fn sums(&self) -> Accumulate {
        if self.wide { Accumulate::Float32 } else { Accumulate::Bfloat16 }
    }

    pub(super) fn done(&self) -> bool {
        self.kernel.is_none() && self.math.is_empty() && self.pack.is_empty()
    }

    /// The moment up to which all its threads' work is known.
    pub(super) fn end(&self) -> Time {
        self.unpack_at.max(self.math_at).max(self.pack_at).max(self.units.math_at)
    }
}
