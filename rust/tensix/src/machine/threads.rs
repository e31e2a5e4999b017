//! Data-movement threads: what their verbs cost, and what they wait for.

use crate::kernel::Kernel;
use crate::time::Time;
use crate::verbs::Verb;

/// What a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Its own event.
    Timer,
    Front {
        cb: u8,
        pages: u32,
    },
    Back {
        cb: u8,
        pages: u32,
    },
    Reads,
    Writes,
    Departures,
    /// The command buffer of multicasts of data, or of flags, still has the one before.
    Multicast {
        flag: bool,
    },
    Semaphore {
        semaphore: u8,
        value: u32,
        at_least: bool,
    },
}

/// A data-movement thread.
pub(super) struct Thread {
    pub(super) core: u16,
    pub(super) noc: u8,
    pub(super) name: String,
    pub(super) kernel: Option<Box<dyn Kernel>>,
    /// A verb whose cost has been paid when the thread's event comes.
    pub(super) pending: Option<Verb>,
    pub(super) wait: Wait,
    pub(super) waits_since: Time,
    pub(super) waited: Time,
    /// Packets under way: reads, writes that are not acknowledged, and those that have not left.
    pub(super) reads: u32,
    pub(super) writes: u32,
    pub(super) departures: u32,
    /// The path of a multicast is held for the next one.
    pub(super) linked: bool,
    pub(super) end: Time,
}

impl Thread {
    pub(super) fn new(core: u16, noc: u8, name: String, kernel: Box<dyn Kernel>) -> Self {
        Self {
            core,
            noc,
            name,
            kernel: Some(kernel),
            pending: None,
            wait: Wait::Timer,
            waits_since: 0,
            waited: 0,
            reads: 0,
            writes: 0,
            departures: 0,
            linked: false,
            end: 0,
        }
    }
}
