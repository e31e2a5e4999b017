//! What a run used.

use crate::mesh::ChipId;
use crate::noc::{LinkUse, Node};
use crate::numerics::Fidelity;
use crate::time::{Time, cycles};
use crate::timeline::{Lane, Timeline};

/// What a core did.
#[derive(Debug, Clone, PartialEq)]
pub struct CoreUse {
    /// When its math thread ended.
    pub math_end: Time,
    /// Ticks of work of the matrix unit.
    pub math_busy: Time,
    /// The same of the unpackers.
    pub unpack_busy: [Time; 2],
    /// The same of the packer.
    pub pack_busy: Time,
    /// Ticks that unpack waited for pages, math for registers, pack for room.
    pub waits: [Time; 3],
    /// Products of two tiles.
    pub products: u64,
    /// Bytes of L1 that were unpacked.
    pub unpack_bytes: u64,
    /// Bytes that were packed to L1.
    pub pack_bytes: u64,
    /// It has a compute kernel.
    pub computes: bool,
    /// Its data-movement threads that have a kernel, as the next two list them.
    pub lanes: Vec<Lane>,
    /// When its data-movement threads ended.
    pub thread_ends: Vec<Time>,
    /// Ticks that they waited.
    pub thread_waits: Vec<Time>,
    /// Some kernel ran on it.
    pub took_part: bool,
}

/// What passed an Ethernet link, one way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EthernetUse {
    /// Nodes of the tile that sends and of the one that receives.
    pub nodes: (Node, Node),
    /// Their chips.
    pub chips: (ChipId, ChipId),
    /// Which of the links between these chips.
    pub link: u8,
    /// Packets that tiles sent.
    pub packets: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// Bytes on the wire, with what its packets carry beside data.
    pub wire_bytes: u64,
    /// Ticks in which the link, or the tile that sends, was taken.
    pub busy: Time,
}

/// A program's run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// When the last thread ended.
    pub end: Time,
    /// Events of the simulation.
    pub events: u64,
    /// Each core's part, in order of their numbers: those of the first chip, then those of the second.
    pub cores: Vec<CoreUse>,
    /// Each link that was used.
    pub links: Vec<LinkUse>,
    /// Node, bytes and busy ticks of each channel of DRAM.
    pub channels: Vec<(Node, u64, Time)>,
    /// Each Ethernet link that was used, one way.
    pub ethernet: Vec<EthernetUse>,
    /// Flits times hops.
    pub hop_flits: u64,
    /// Phases of the matrix unit.
    pub fidelity: Fidelity,
    /// What threads did, if that was recorded.
    pub timeline: Option<Timeline>,
}

impl Run {
    /// Cycles from the first kernel's start to the last one's end.
    #[must_use]
    pub fn cycles(&self) -> f64 {
        cycles(self.end)
    }

    /// Mean over cores of the cycles that the math thread took.
    #[must_use]
    pub fn math_cycles(&self) -> f64 {
        let ends: Vec<_> = self.cores.iter().filter(|c| c.math_end > 0).map(|c| cycles(c.math_end)).collect();
        if ends.is_empty() { 0.0 } else { ends.iter().sum::<f64>() / ends.len() as f64 }
    }
}
