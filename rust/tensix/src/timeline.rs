//! What every thread of every core did, and what it waited for, from when to when.

use std::collections::HashMap;

use crate::time::Time;
use crate::verbs::CoreId;

/// A thread of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The first RISC-V core for data movement.
    DataMovement0 = 0,
    /// The second one.
    DataMovement1 = 1,
    /// The compute kernel's part that has tiles unpacked.
    Unpack = 2,
    /// Its part that has the matrix and the vector unit compute.
    Math = 3,
    /// Its part that has tiles packed.
    Pack = 4,
}

impl Lane {
    /// Lanes of a core.
    pub const COUNT: usize = 5;
}

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum About {
    /// Nothing that has a number.
    None,
    /// A circular buffer.
    Cb(u8),
    /// A semaphore.
    Semaphore(u8),
}

/// What a thread did or waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label {
    /// The call of the kernel API; of waits inside the compute side, what is not there yet.
    pub name: &'static str,
    /// Which circular buffer or semaphore.
    pub about: About,
    /// The thread waited.
    pub waits: bool,
}

/// A stretch of a thread's time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The core.
    pub core: CoreId,
    /// Its thread.
    pub lane: Lane,
    /// Number of what happened, in [`Timeline::labels`].
    pub label: u16,
    /// Equal calls in a row that it stands for.
    pub calls: u32,
    /// When it began.
    pub start: Time,
    /// When it ended.
    pub end: Time,
    /// Ticks in which the thread or its unit worked.
    pub busy: Time,
}

/// The threads of a run, up to a number of intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// Intervals of each thread in order; those of one thread do not overlap.
    pub intervals: Vec<Interval>,
    /// What happened in them.
    pub labels: Vec<Label>,
    /// Kernels: core, first lane, name.
    pub kernels: Vec<(CoreId, Lane, String)>,
    /// Intervals that there was no room for.
    pub dropped: u64,
    room: usize,
    numbers: HashMap<Label, u16>,
    /// The latest interval of each lane of each core.
    last: Vec<Option<u32>>,
}

impl Timeline {
    /// Room for so many intervals of so many cores.
    pub(crate) fn new(room: u32, cores: usize) -> Self {
        Self {
            intervals: Vec::new(),
            labels: Vec::new(),
            kernels: Vec::new(),
            dropped: 0,
            room: room as usize,
            numbers: HashMap::new(),
            last: vec![None; cores * Lane::COUNT],
        }
    }

    /// Adds a stretch of a thread's time; equal ones without a gap become one.
    pub(crate) fn add(
        &mut self,
        (core, lane): (CoreId, Lane),
        label: Label,
        (start, end): (Time, Time),
        busy: Time,
    ) {
        if end <= start {
            return;
        }
        let next = self.labels.len() as u16;
        let number = *self.numbers.entry(label).or_insert(next);
        if number == next {
            self.labels.push(label);
        }
        let last = &mut self.last[usize::from(core) * Lane::COUNT + lane as usize];
        if let Some(before) = last.and_then(|at| self.intervals.get_mut(at as usize))
            && before.label == number
            && before.end == start
        {
            before.end = end;
            before.busy += busy;
            before.calls += 1;
            return;
        }
        if self.intervals.len() >= self.room {
            self.dropped += 1;
            // What follows must not be joined to what lies before the gap.
            *last = None;
            return;
        }
        *last = Some(self.intervals.len() as u32);
        self.intervals.push(Interval { core, lane, label: number, calls: 1, start, end, busy });
    }
}

impl Label {
    /// Work on a call.
    pub(crate) fn work(name: &'static str, about: About) -> Self {
        Self { name, about, waits: false }
    }

    /// Time in which a call, or a part, waits.
    pub(crate) fn wait(name: &'static str, about: About) -> Self {
        Self { name, about, waits: true }
    }
}
