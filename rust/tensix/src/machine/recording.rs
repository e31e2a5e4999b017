//! What the machine tells a timeline, where one is wanted.

use crate::time::Time;
use crate::timeline::{About, Label, Lane};
use crate::verbs::Verb;

use super::Machine;
use super::compute::{Compute, Step};
use super::threads::Wait;

impl Verb {
    /// Name of the API's call, and what it is about.
    pub(super) fn label(&self) -> (&'static str, About) {
        match *self {
            Self::CbReserveBack { cb, .. } => ("cb_reserve_back", About::Cb(cb)),
            Self::CbPushBack { cb, .. } => ("cb_push_back", About::Cb(cb)),
            Self::CbWaitFront { cb, .. } => ("cb_wait_front", About::Cb(cb)),
            Self::CbPopFront { cb, .. } => ("cb_pop_front", About::Cb(cb)),
            Self::GetWritePtr { cb } => ("get_write_ptr", About::Cb(cb)),
            Self::GetReadPtr { cb } => ("get_read_ptr", About::Cb(cb)),
            Self::NocAsyncRead { .. } => ("noc_async_read", About::None),
            Self::NocAsyncReadBarrier => ("noc_async_read_barrier", About::None),
            Self::NocAsyncWrite { .. } => ("noc_async_write", About::None),
            Self::NocAsyncWriteBarrier => ("noc_async_write_barrier", About::None),
            Self::NocAsyncWritesFlushed => ("noc_async_writes_flushed", About::None),
            Self::NocAsyncWriteMulticast { .. } => ("noc_async_write_multicast", About::None),
            Self::NocSemaphoreInc { semaphore, .. } => ("noc_semaphore_inc", About::Semaphore(semaphore)),
            Self::NocSemaphoreSet { semaphore, .. } => ("noc_semaphore_set", About::Semaphore(semaphore)),
            Self::NocSemaphoreSetMulticast { semaphore, .. } => {
                ("noc_semaphore_set_multicast", About::Semaphore(semaphore))
            }
            Self::NocSemaphoreWait { semaphore, .. } => ("noc_semaphore_wait", About::Semaphore(semaphore)),
            Self::FabricUnicastNocUnicastWrite { .. } => ("fabric_unicast_noc_unicast_write", About::None),
            Self::FabricUnicastNocFusedUnicastWithAtomicInc { semaphore, .. } => {
                ("fabric_unicast_noc_fused_unicast_with_atomic_inc", About::Semaphore(semaphore))
            }
            Self::FabricUnicastNocUnicastAtomicInc { semaphore, .. } => {
                ("fabric_unicast_noc_unicast_atomic_inc", About::Semaphore(semaphore))
            }
            Self::L1Load { .. } => ("l1_load", About::None),
            Self::L1Store { .. } => ("l1_store", About::None),
            Self::Cycles(_) => ("cycles", About::None),
            Self::TileRegsAcquire => ("tile_regs_acquire", About::None),
            Self::TileRegsCommit => ("tile_regs_commit", About::None),
            Self::TileRegsWait => ("tile_regs_wait", About::None),
            Self::TileRegsRelease => ("tile_regs_release", About::None),
            Self::MatmulBlock { .. } => ("matmul_block", About::None),
            Self::CopyTile { cb, .. } => ("copy_tile", About::Cb(cb)),
            Self::BinaryTiles { .. } => ("binary_tiles", About::None),
            Self::BroadcastTile { cb, .. } => ("unary_bcast", About::Cb(cb)),
            Self::ReduceTile { cb, .. } => ("reduce_tile", About::Cb(cb)),
            Self::BinaryDst { .. } => ("binary_tile", About::None),
            Self::MaskTile { .. } => ("mask_tile", About::None),
            Self::UnaryTile { .. } => ("unary_tile", About::None),
            Self::PackTile { cb, .. } => ("pack_tile", About::Cb(cb)),
            Self::PackReconfigL1Acc { .. } => ("pack_reconfig_l1_acc", About::None),
        }
    }
}

impl Wait {
    /// The call that waits; nothing where a thread's own event ends it.
    pub(super) fn label(self) -> Option<(&'static str, About)> {
        Some(match self {
            Self::Timer => return None,
            Self::Front { cb, .. } => ("cb_wait_front", About::Cb(cb)),
            Self::Back { cb, .. } => ("cb_reserve_back", About::Cb(cb)),
            Self::Reads => ("noc_async_read_barrier", About::None),
            Self::Writes => ("noc_async_write_barrier", About::None),
            Self::Departures => ("noc_async_writes_flushed", About::None),
            Self::Multicast { flag: false } => ("noc_async_write_multicast", About::None),
            Self::Multicast { flag: true } => ("noc_semaphore_set_multicast", About::None),
            Self::Room { .. } => ("wait_for_empty_write_slot", About::None),
            Self::Semaphore { semaphore, .. } => ("noc_semaphore_wait", About::Semaphore(semaphore)),
        })
    }
}

/// Clocks of a compute side's threads before a step.
#[derive(Clone, Copy)]
pub(super) struct Clocks {
    unpack: Time,
    math: Time,
    busy: (Time, Time),
}

impl Clocks {
    pub(super) fn of(compute: &Compute) -> Self {
        let [left, right] = compute.units.unpack_busy;
        Self {
            unpack: compute.unpack_at,
            math: compute.math_at.max(compute.units.math_at),
            busy: (left.max(right), compute.units.math_busy),
        }
    }
}

// Nothing of a record may cost a run that has none: the question is asked in place, and all else is elsewhere.
impl Machine<'_> {
    /// A data-movement thread works on a verb for so many ticks.
    #[inline(always)]
    pub(super) fn note_verb(&mut self, id: u32, verb: &Verb, cost: Time) {
        if self.timeline.is_some() {
            self.record_verb(id, verb, cost);
        }
    }

    /// A data-movement thread waited since a moment, and takes so many ticks to notice that it need not any more.
    #[inline(always)]
    pub(super) fn note_wait(&mut self, id: u32, wait: Wait, since: Time, after: Time) {
        if self.timeline.is_some() {
            self.record_wait(id, wait, since, after);
        }
    }

    /// A thread of the compute side waited, and then worked, from when to when.
    #[inline(always)]
    pub(super) fn note_compute(
        &mut self,
        id: u32,
        lane: Lane,
        what: (&'static str, About),
        (since, start, end): (Time, Time, Time),
    ) {
        if self.timeline.is_some() {
            self.record_compute(id, lane, what, (since, start, end));
        }
    }

    /// Both threads of the first queue did a step that fills destination registers.
    #[inline(always)]
    pub(super) fn note_step(&mut self, id: u32, step: &Step, before: Option<Clocks>) {
        if let Some(before) = before {
            self.record_step(id, step, before);
        }
    }

    /// The clocks of a core's compute side, where they are recorded.
    #[inline(always)]
    pub(super) fn clocks(&self, id: u32) -> Option<Clocks> {
        self.timeline.as_ref().map(|_| Clocks::of(&self.computes[id as usize]))
    }

    #[cold]
    fn record_verb(&mut self, id: u32, verb: &Verb, cost: Time) {
        let Some(timeline) = &mut self.timeline else { return };
        let (thread, now, (name, about)) = (&self.threads[id as usize], self.queue.now(), verb.label());
        timeline.add((thread.core, thread.lane), Label::work(name, about), (now, now + cost), cost);
    }

    #[cold]
    fn record_wait(&mut self, id: u32, wait: Wait, since: Time, after: Time) {
        let Some(timeline) = &mut self.timeline else { return };
        let Some((name, about)) = wait.label() else { return };
        let (thread, now) = (&self.threads[id as usize], self.queue.now());
        let at = (thread.core, thread.lane);
        timeline.add(at, Label::wait(name, about), (since, now), 0);
        timeline.add(at, Label::work(name, about), (now, now + after), after);
    }

    #[cold]
    fn record_compute(
        &mut self,
        id: u32,
        lane: Lane,
        (name, about): (&'static str, About),
        (since, start, end): (Time, Time, Time),
    ) {
        let Some(timeline) = &mut self.timeline else { return };
        let at = (self.computes[id as usize].core, lane);
        timeline.add(at, Label::wait(name, about), (since, start), 0);
        timeline.add(at, Label::work(name, about), (start, end), end.saturating_sub(start));
    }

    #[cold]
    fn record_step(&mut self, id: u32, step: &Step, before: Clocks) {
        let Some(timeline) = &mut self.timeline else { return };
        let compute = &self.computes[id as usize];
        let after = Clocks::of(compute);
        let (name, about) = match step {
            Step::Matmul { .. } => ("matmul_block", About::None),
            Step::Copy { cb, .. } => ("copy_tile", About::Cb(*cb)),
            Step::Binary { .. } => ("binary_tiles", About::None),
            Step::Broadcast { cb, .. } => ("unary_bcast", About::Cb(*cb)),
            Step::Reduce { cb, .. } => ("reduce_tile", About::Cb(*cb)),
            Step::Registers { .. } => ("binary_tile", About::None),
            Step::Mask { .. } => ("mask_tile", About::None),
            _ => ("unary_tile", About::None),
        };
        let work = Label::work(name, about);
        // Unpackers wait for a bank of a source register, math for what is unpacked.
        if after.unpack > before.unpack {
            let (at, from) = ((compute.core, Lane::Unpack), compute.units.unpack_from);
            timeline.add(at, Label::wait("source registers", About::None), (before.unpack, from), 0);
            timeline.add(at, work, (from, after.unpack), after.busy.0 - before.busy.0);
        }
        let (at, from) = ((compute.core, Lane::Math), compute.units.math_from);
        timeline.add(at, Label::wait("operands", About::None), (before.math, from), 0);
        timeline.add(at, work, (from, after.math), after.busy.1 - before.busy.1);
    }
}
