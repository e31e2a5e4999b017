//! What verbs cost a thread, in ticks.

use crate::chip::ChipSpec;
use crate::time::{Time, ticks};

/// Costs of verbs in ticks.
pub(super) struct Costs {
    pub(super) read: [Time; 2],
    pub(super) write: [Time; 2],
    pub(super) multicast: Time,
    pub(super) page: Time,
    pub(super) barrier: Time,
    pub(super) semaphore_inc: Time,
    pub(super) semaphore_set: Time,
    pub(super) semaphore_wait: Time,
    pub(super) cb_reserve: Time,
    pub(super) cb_push: Time,
    pub(super) cb_wait: Time,
    pub(super) cb_pop: Time,
    pub(super) tile_regs: Time,
    pub(super) load: Time,
    pub(super) store: Time,
    pub(super) write_turnaround: Time,
    pub(super) read_turnaround: Time,
    pub(super) reserve_hop: Time,
}

impl Costs {
    pub(super) fn new(spec: &ChipSpec) -> Self {
        let software = &spec.software;
        Self {
            read: [ticks(software.read), ticks(software.read_stateful)],
            write: [ticks(software.write), ticks(software.write_stateful)],
            multicast: ticks(software.multicast),
            page: ticks(software.page_address),
            barrier: ticks(software.barrier),
            semaphore_inc: ticks(software.semaphore_inc),
            semaphore_set: ticks(software.semaphore_set),
            semaphore_wait: ticks(software.semaphore_wait),
            cb_reserve: ticks(software.cb_reserve),
            cb_push: ticks(software.cb_push),
            cb_wait: ticks(software.cb_wait),
            cb_pop: ticks(software.cb_pop),
            tile_regs: ticks(software.tile_regs),
            load: ticks(software.l1_load),
            store: ticks(software.l1_store),
            write_turnaround: ticks(spec.noc.write_turnaround_cycles),
            read_turnaround: ticks(spec.noc.read_turnaround_cycles),
            reserve_hop: ticks(spec.noc.multicast_reserve_hop_cycles),
        }
    }
}
