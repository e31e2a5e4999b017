//! Data-movement threads: what their verbs cost, and what they wait for.

use crate::error::Error;
use crate::kernel::Kernel;
use crate::time::{Time, ticks};
use crate::timeline::Lane;
use crate::verbs::{CoreId, Place, Reply, Verb};

use super::cb::Cb;
use super::work::Block;
use super::{Event, Machine, STILL};

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
    /// An Ethernet tile has no room for a packet.
    Room {
        end: u32,
    },
}

/// A data-movement thread.
pub(super) struct Thread {
    pub(super) core: u16,
    pub(super) noc: u8,
    pub(super) lane: Lane,
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
    /// An Ethernet tile has room for the packet that it waited with.
    pub(super) granted: bool,
    pub(super) end: Time,
}

impl Thread {
    pub(super) fn new(core: u16, noc: u8, lane: Lane, name: String, kernel: Box<dyn Kernel>) -> Self {
        Self {
            core,
            noc,
            lane,
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
            granted: false,
            end: 0,
        }
    }
}

impl Machine<'_> {
    /// Whether what a waiting thread waits for is there; if so, the ticks until it has noticed.
    pub(super) fn satisfied(&self, id: u32) -> Option<Time> {
        let thread = &self.threads[id as usize];
        let core = &self.cores[usize::from(thread.core)];
        let of = |cb: u8| core.cbs.get(usize::from(cb)).and_then(Option::as_ref);
        let costs = &self.costs;
        match thread.wait {
            // Both are told by an event of their own.
            Wait::Timer | Wait::Room { .. } => None,
            Wait::Front { cb, pages } => {
                of(cb).filter(|cb| cb.filled() >= pages).map(|_| costs.semaphore_wait)
            }
            Wait::Back { cb, pages } => of(cb).filter(|cb| cb.free() >= pages).map(|_| costs.semaphore_wait),
            Wait::Reads => (thread.reads == 0).then_some(costs.barrier),
            Wait::Writes => (thread.writes == 0 && thread.departures == 0).then_some(costs.barrier),
            Wait::Multicast { flag } => {
                (core.commands[usize::from(thread.noc)][usize::from(flag)] == 0).then_some(0)
            }
            Wait::Departures => (thread.departures == 0).then_some(costs.barrier),
            Wait::Semaphore { semaphore, value, at_least } => {
                let is = core.semaphores[usize::from(semaphore)];
                (is == value || at_least && is >= value).then_some(costs.semaphore_wait)
            }
        }
    }

    /// Runs a data-movement thread up to its next wait.
    pub(super) fn advance(&mut self, id: u32) -> Result<(), Error> {
        let mut reply = 0;
        for _ in 0..STILL {
            if let Some(verb) = self.threads[id as usize].pending.take() {
                match self.apply(id, verb)? {
                    Some(value) => reply = value,
                    None => return Ok(()),
                }
            }
            let now = self.queue.now();
            let Some(mut kernel) = self.threads[id as usize].kernel.take() else { return Ok(()) };
            let Some(verb) = kernel.step(reply)? else {
                self.threads[id as usize].end = now;
                return Ok(());
            };
            let cost = self.cost(&verb);
            if cost > 0 {
                self.note_verb(id, &verb, cost);
            }
            let thread = &mut self.threads[id as usize];
            thread.kernel = Some(kernel);
            thread.pending = Some(verb);
            if cost > 0 {
                self.queue.at(now + cost, Event::Thread(id));
                return Ok(());
            }
        }
        let whose = self.whose(id);
        Err(Error::Endless(format!("{whose} asks for {STILL} things in a row that take no time")))
    }

    /// Ticks of a thread's own work before a verb has its effect.
    fn cost(&self, verb: &Verb) -> Time {
        let costs = &self.costs;
        let page = |place: &Place| match place {
            Place::Dram { .. } => costs.page,
            Place::L1 { .. } => 0,
        };
        match verb {
            Verb::CbReserveBack { .. } => costs.cb_reserve,
            Verb::CbPushBack { .. } => costs.cb_push,
            Verb::CbWaitFront { .. } => costs.cb_wait,
            Verb::CbPopFront { .. } => costs.cb_pop,
            Verb::NocAsyncRead { from, stateful, .. } => costs.read[usize::from(*stateful)] + page(from),
            Verb::NocAsyncWrite { to, stateful, .. } => costs.write[usize::from(*stateful)] + page(to),
            Verb::NocAsyncWriteMulticast { .. } | Verb::NocSemaphoreSetMulticast { .. } => costs.multicast,
            Verb::NocSemaphoreInc { .. } => costs.semaphore_inc,
            Verb::NocSemaphoreSet { .. } => costs.semaphore_set,
            // The data's write and that of the header that says where it goes; of an increment the header's alone.
            Verb::FabricUnicastNocUnicastWrite { to, .. }
            | Verb::FabricUnicastNocFusedUnicastWithAtomicInc { to, .. } => 2 * costs.write[0] + page(to),
            Verb::FabricUnicastNocUnicastAtomicInc { .. } => costs.write[0],
            Verb::L1Load { .. } => costs.load,
            Verb::L1Store { .. } => costs.store,
            Verb::Cycles(cycles) => ticks(cycles.clamp(0.0, 1e12)),
            _ => 0,
        }
    }

    /// The effect of a verb, now that its cost is paid; `None` if the thread waits or pays on.
    fn apply(&mut self, id: u32, verb: Verb) -> Result<Option<Reply>, Error> {
        let (core, now) = (self.threads[id as usize].core, self.queue.now());
        let wait = match verb {
            Verb::CbReserveBack { cb, pages } | Verb::CbWaitFront { cb, pages } => {
                let all = self.thread_cb(id, cb)?.pages;
                if pages > all {
                    return Err(Error::Misused(format!(
                        "{} asks for {pages} pages of circular buffer {cb}, which has {all}",
                        self.whose(id)
                    )));
                }
                if matches!(verb, Verb::CbWaitFront { .. }) {
                    Wait::Front { cb, pages }
                } else {
                    Wait::Back { cb, pages }
                }
            }
            Verb::CbPushBack { cb, pages } => {
                let buffer = self.thread_cb(id, cb)?;
                let free = buffer.free();
                if pages > free {
                    return Err(Error::Misused(format!(
                        "{} pushes {pages} pages to circular buffer {cb}, which has room for {free}",
                        self.whose(id)
                    )));
                }
                buffer.written += u64::from(pages);
                buffer.pushed += u64::from(pages);
                self.stir(core)?;
                return Ok(Some(0));
            }
            Verb::CbPopFront { cb, pages } => {
                let buffer = self.thread_cb(id, cb)?;
                let filled = buffer.filled();
                if pages > filled {
                    return Err(Error::Misused(format!(
                        "{} pops {pages} pages of circular buffer {cb}, which holds {filled}",
                        self.whose(id)
                    )));
                }
                buffer.read += u64::from(pages);
                buffer.popped += u64::from(pages);
                self.stir(core)?;
                return Ok(Some(0));
            }
            Verb::GetWritePtr { cb } => return Ok(Some(self.thread_cb(id, cb)?.write_address(0))),
            Verb::GetReadPtr { cb } => return Ok(Some(self.thread_cb(id, cb)?.read_address(0))),
            Verb::NocAsyncReadBarrier => Wait::Reads,
            Verb::NocAsyncWriteBarrier => Wait::Writes,
            Verb::NocAsyncWritesFlushed => Wait::Departures,
            Verb::NocSemaphoreSet { semaphore, value } => {
                *self.semaphore(core, semaphore, id)? = value;
                self.stir(core)?;
                return Ok(Some(0));
            }
            Verb::NocSemaphoreWait { semaphore, value, at_least } => {
                self.semaphore(core, semaphore, id)?;
                Wait::Semaphore { semaphore, value, at_least }
            }
            Verb::Cycles(_) => return Ok(Some(0)),
            Verb::L1Load { address } => {
                return self.word_of(|machine| machine.whose(id), core, address).map(Some);
            }
            Verb::L1Store { address, value } => {
                self.check_word(|machine| machine.whose(id), address)?;
                if self.memory.values {
                    self.put(core, address, &Block::new(&value.to_le_bytes()));
                }
                return Ok(Some(0));
            }
            verb if verb.computes() => {
                return Err(Error::Misused(format!(
                    "{} calls {verb:?}, which compute kernels do",
                    self.whose(id)
                )));
            }
            verb => return self.transfer(id, verb),
        };
        let thread = &mut self.threads[id as usize];
        thread.wait = wait;
        thread.waits_since = now;
        if let Some(after) = self.satisfied(id) {
            self.threads[id as usize].wait = Wait::Timer;
            // The look itself; for circular buffers it is paid already.
            let after = if matches!(wait, Wait::Front { .. } | Wait::Back { .. }) { 0 } else { after };
            if after == 0 {
                return Ok(Some(0));
            }
            self.note_wait(id, wait, now, after);
            self.queue.at(now + after, Event::Thread(id));
        }
        Ok(None)
    }

    pub(super) fn semaphore(&mut self, core: CoreId, semaphore: u8, thread: u32) -> Result<&mut u32, Error> {
        let count = self.cores[usize::from(core)].semaphores.len();
        if usize::from(semaphore) >= count {
            let whose = self.whose(thread);
            return Err(Error::Misused(format!(
                "{whose} uses semaphore {semaphore}, the program has {count}"
            )));
        }
        Ok(&mut self.cores[usize::from(core)].semaphores[usize::from(semaphore)])
    }

    /// A circular buffer of a thread's core.
    fn thread_cb(&mut self, id: u32, cb: u8) -> Result<&mut Cb, Error> {
        let core = self.threads[id as usize].core;
        if self.cb(core, cb).is_none() {
            return Err(self.no_cb(&self.whose(id), core, cb));
        }
        self.cb(core, cb).ok_or_else(|| Error::Misused(format!("no circular buffer {cb}")))
    }

    fn check_word(&self, whose: impl Fn(&Self) -> String, address: u32) -> Result<(), Error> {
        if !address.is_multiple_of(4) {
            let whose = whose(self);
            return Err(Error::Misused(format!(
                "{whose} takes a word at {address}, which no multiple of 4 is"
            )));
        }
        if u64::from(address) + 4 > u64::from(self.spec.l1.bytes) {
            let (whose, all) = (whose(self), self.spec.l1.bytes);
            return Err(Error::Misused(format!(
                "{whose} takes a word at {address} of L1, which has {all} B"
            )));
        }
        Ok(())
    }

    /// A word of a core's own L1; 0 where values are left out.
    pub(super) fn word_of(
        &self,
        whose: impl Fn(&Self) -> String,
        core: CoreId,
        address: u32,
    ) -> Result<Reply, Error> {
        self.check_word(&whose, address)?;
        if !self.memory.values {
            return Ok(0);
        }
        self.memory.l1[usize::from(core)].check(address, 4).map_err(|at| {
            Error::Undefined(format!(
                "{} loads a word, nothing was written at {at} of its L1{}",
                whose(self),
                self.buffer_at(core, at)
            ))
        })?;
        let mut word = [0; 4];
        word.copy_from_slice(self.pool.values(core).bytes(address, 4));
        Ok(u32::from_le_bytes(word))
    }
}
