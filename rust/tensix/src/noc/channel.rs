//! A channel of DRAM behind its node: requests one after the other, at its rate.

use crate::chip::Dram;
use crate::time::{TICKS, Time, ticks};

/// A channel and what it has done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    free_at: Time,
    read_ticks: f64,
    write_ticks: f64,
    latency: Time,
    /// Work that it takes before packets wait in the network.
    queue: Time,
    /// Ticks of work, and bytes moved.
    pub(super) busy: Time,
    pub(super) bytes: u64,
}

impl Channel {
    pub(super) fn new(dram: &Dram) -> Self {
        let write_ticks = TICKS as f64 / dram.write_bytes_per_cycle;
        Self {
            free_at: 0,
            read_ticks: TICKS as f64 / dram.read_bytes_per_cycle,
            write_ticks,
            latency: ticks(dram.latency_cycles),
            queue: (f64::from(dram.queue_bytes) * write_ticks) as Time,
            busy: 0,
            bytes: 0,
        }
    }

    /// Takes a packet of `bytes` of data that has it move `moved`, more of them if it asks for data. Its head may be
    /// looked at from `start` on and all of it is there at `last`. Returns when that is done, and for how long after
    /// `now` the next packet is held up.
    pub(super) fn accept(
        &mut self,
        (bytes, moved): (u32, u32),
        now: Time,
        start: Time,
        last: Time,
    ) -> (Time, Time) {
        let reads = moved > bytes;
        let rate = if reads { self.read_ticks } else { self.write_ticks };
        let work = (f64::from(moved) * rate).ceil() as Time;
        let start = start.max(self.free_at);
        self.free_at = start + work;
        self.busy += work;
        self.bytes += u64::from(moved);
        let done = if reads { start + self.latency } else { last.max(start + work) };
        (done, (self.free_at - now).saturating_sub(self.queue))
    }
}
