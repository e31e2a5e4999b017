//! The machine: cores, networks and memory, event by event.

mod cb;
mod compute;
mod deadlock;
mod engines;
mod threads;
mod transfers;
mod units;
mod values;

use prunus_core::Interrupt;

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::memory::Memory;
use crate::noc::{self, Noc, Node, Packet};
use crate::numerics::Fidelity;
use crate::program::{Program, Role};
use crate::report::{CoreUse, Run};
use crate::time::{Queue, Time, cycles, ticks};
use crate::verbs::{CoreId, Reply, Verb};
use cb::Cb;
use compute::Compute;
use threads::{Thread, Wait};
use transfers::Load;
use units::Rates;

/// Verbs in a row without any time passing, after which a kernel is taken not to end.
const STILL: u32 = 1 << 20;

/// Events between two looks for signals.
const PATIENCE: u64 = 1 << 16;

/// What happens at a moment.
#[derive(Debug, Clone, Copy)]
enum Event {
    Noc(noc::Event),
    Thread(u32),
    Compute(u32),
    Push {
        core: CoreId,
        cb: u8,
        pages: u32,
    },
    Pop {
        core: CoreId,
        cb: u8,
        pages: u32,
    },
    /// A request has been looked up in L1.
    Turned(u32, Node),
    /// So many packets of a thread are acknowledged.
    Acknowledged(u32, u32),
    /// The path of a core's multicast is its own.
    Reserved(CoreId, u8),
}

impl From<noc::Event> for Event {
    fn from(event: noc::Event) -> Self {
        Self::Noc(event)
    }
}

/// A core's shared state.
struct Core {
    node: Node,
    cbs: Vec<Option<Cb>>,
    semaphores: Vec<u32>,
    threads: Vec<u32>,
    compute: Option<u32>,
    /// Multicasts that wait for their path, for each network: thread, packet, and whether it follows a linked one.
    multicasts: [std::collections::VecDeque<(Packet<Load>, bool)>; 2],
    /// A multicast is on its way out.
    sending: [bool; 2],
    /// Multicasts of data and of flags that have not left, for each network: a command buffer holds one of a kind.
    commands: [[u32; 2]; 2],
}

/// How a run is to be.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Phases of the matrix unit.
    pub fidelity: Fidelity,
    /// Sums in 32 bits (`fp32_dest_acc_en`), which halves the destination registers.
    pub wide: bool,
    /// Cycles after which a program is stopped.
    pub limit: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { fidelity: Fidelity::HiFi4, wide: false, limit: 1e10 }
    }
}

pub(crate) struct Machine<'a> {
    spec: &'a ChipSpec,
    memory: &'a mut Memory,
    interrupt: &'a dyn Interrupt,
    options: Options,
    queue: Queue<Event>,
    noc: Noc<Load>,
    rates: Rates,
    cores: Vec<Core>,
    threads: Vec<Thread>,
    computes: Vec<Compute>,
    node_cores: Vec<Option<CoreId>>,
    costs: Costs,
}

/// Costs of verbs in ticks.
struct Costs {
    read: [Time; 2],
    write: [Time; 2],
    multicast: Time,
    page: Time,
    barrier: Time,
    semaphore_inc: Time,
    semaphore_set: Time,
    semaphore_wait: Time,
    cb_reserve: Time,
    cb_push: Time,
    cb_wait: Time,
    cb_pop: Time,
    tile_regs: Time,
    load: Time,
    store: Time,
    write_turnaround: Time,
    read_turnaround: Time,
    reserve_hop: Time,
}

impl Costs {
    fn new(spec: &ChipSpec) -> Self {
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

impl<'a> Machine<'a> {
    pub(crate) fn new(
        spec: &'a ChipSpec,
        memory: &'a mut Memory,
        interrupt: &'a dyn Interrupt,
        options: Options,
    ) -> Self {
        let noc = Noc::new(spec);
        let mut node_cores = vec![None; noc.torus.nodes()];
        let mut cores = Vec::with_capacity(spec.cores());
        for y in &spec.workers.y {
            for x in &spec.workers.x {
                let node = noc.torus.node(*x, *y);
                node_cores[usize::from(node)] = Some(cores.len() as CoreId);
                cores.push(Core {
                    node,
                    cbs: Vec::new(),
                    semaphores: Vec::new(),
                    threads: Vec::new(),
                    compute: None,
                    multicasts: Default::default(),
                    sending: [false; 2],
                    commands: [[0; 2]; 2],
                });
            }
        }
        Self {
            rates: Rates::new(spec),
            costs: Costs::new(spec),
            queue: Queue::new(),
            threads: Vec::new(),
            computes: Vec::new(),
            spec,
            memory,
            interrupt,
            options,
            noc,
            cores,
            node_cores,
        }
    }

    /// Lays out a program's circular buffers and starts its kernels.
    fn load(&mut self, program: Program) -> Result<(), Error> {
        let mut top = vec![self.spec.l1.reserved; self.cores.len()];
        for buffer in &program.buffers {
            if let Some(missing) = buffer.cores.iter().find(|core| usize::from(**core) >= self.cores.len()) {
                return Err(Error::Misused(format!(
                    "circular buffer {} on core {missing}: {} has {} cores",
                    buffer.id,
                    self.spec.name,
                    self.cores.len()
                )));
            }
            if buffer.id >= 32 || buffer.pages == 0 || buffer.page_bytes == 0 {
                return Err(Error::Misused(format!(
                    "circular buffer {} of {} pages of {} B: there are numbers 0 to 31, and none is empty",
                    buffer.id, buffer.pages, buffer.page_bytes
                )));
            }
            if !self.spec.matrix.formats.iter().any(|known| known == buffer.format.name()) {
                return Err(Error::Unsupported(format!(
                    "circular buffer {} of {}: {} has {}",
                    buffer.id,
                    buffer.format.name(),
                    self.spec.name,
                    self.spec.matrix.formats.join(", ")
                )));
            }
            let free = buffer.cores.iter().map(|core| top[usize::from(*core)]).max().unwrap_or(0);
            // The other buffer's address, if all cores have it at one.
            let shared = buffer.shares.and_then(|id| {
                let place = |core: &CoreId| {
                    let cbs = &self.cores[usize::from(*core)].cbs;
                    cbs.get(usize::from(id))?.as_ref().map(|cb| cb.address)
                };
                let first = place(buffer.cores.first()?)?;
                buffer.cores.iter().all(|core| place(core) == Some(first)).then_some(first)
            });
            if let (Some(id), None) = (buffer.shares, shared) {
                return Err(Error::Misused(format!(
                    "circular buffer {} shares the place of {id}, which does not come before it on all of its cores",
                    buffer.id
                )));
            }
            let address = buffer.address.or(shared).unwrap_or(free.next_multiple_of(64));
            let bytes = u64::from(buffer.page_bytes) * u64::from(buffer.pages);
            let end = u64::from(address) + bytes;
            let placed = buffer.address.is_some() || shared.is_some();
            let limit = if placed { self.spec.l1.bytes } else { self.memory.tensors };
            if !address.is_multiple_of(self.spec.l1.alignment) || address < self.spec.l1.reserved {
                return Err(Error::Misused(format!(
                    "circular buffer {} at {address}: from {} on, a multiple of {}",
                    buffer.id, self.spec.l1.reserved, self.spec.l1.alignment
                )));
            }
            for core in &buffer.cores {
                if end > u64::from(limit) {
                    return Err(Error::Misused(format!(
                        "L1 overflow on core {}: circular buffer {} of {} pages of {} B ends at {end}, {limit} B are \
                         there",
                        self.describe(*core),
                        buffer.id,
                        buffer.pages,
                        buffer.page_bytes
                    )));
                }
                if end <= u64::from(self.memory.tensors) {
                    let top = &mut top[usize::from(*core)];
                    *top = (*top).max(end as u32);
                }
                let cbs = &mut self.cores[usize::from(*core)].cbs;
                if cbs.len() <= usize::from(buffer.id) {
                    cbs.resize(usize::from(buffer.id) + 1, None);
                }
                if cbs[usize::from(buffer.id)].is_some() {
                    let core = self.describe(*core);
                    return Err(Error::Misused(format!(
                        "circular buffer {} is twice on core {core}",
                        buffer.id
                    )));
                }
                cbs[usize::from(buffer.id)] =
                    Some(Cb::new(buffer.format, buffer.page_bytes, buffer.pages, address));
            }
        }
        for core in &mut self.cores {
            core.semaphores.clone_from(&program.semaphores);
        }
        let mut taken = Vec::new();
        for launch in program.launches {
            if usize::from(launch.core) >= self.cores.len() {
                return Err(Error::Misused(format!(
                    "kernel {} on core {}: {} has {} cores",
                    launch.name,
                    launch.core,
                    self.spec.name,
                    self.cores.len()
                )));
            }
            if launch.noc > 1 {
                return Err(Error::Misused(format!(
                    "kernel {}: noc is 0 or 1, got {}",
                    launch.name, launch.noc
                )));
            }
            if taken.contains(&(launch.core, launch.role as u8)) {
                return Err(Error::Misused(format!(
                    "kernel {}: the {:?} thread of core {} has another kernel",
                    launch.name,
                    launch.role,
                    self.describe(launch.core)
                )));
            }
            taken.push((launch.core, launch.role as u8));
            let core = &mut self.cores[usize::from(launch.core)];
            if launch.role == Role::Compute {
                let id = self.computes.len() as u32;
                core.compute = Some(id);
                let Options { fidelity, wide, .. } = self.options;
                self.computes.push(Compute::new(launch.core, launch.name, launch.kernel, fidelity, wide));
                self.queue.at(0, Event::Compute(id));
            } else {
                let id = self.threads.len() as u32;
                core.threads.push(id);
                self.threads.push(Thread::new(launch.core, launch.noc, launch.name, launch.kernel));
                self.queue.at(0, Event::Thread(id));
            }
        }
        Ok(())
    }

    /// A core by its number and its logical coordinates.
    fn describe(&self, core: CoreId) -> String {
        let across = self.spec.workers.x.len() as u16;
        format!("({}, {})", core % across, core / across)
    }

    pub(crate) fn run(mut self, program: Program) -> Result<Run, Error> {
        self.load(program)?;
        let limit = ticks(self.options.limit.min(1e15));
        let mut looked = 0;
        while let Some(event) = self.queue.pop() {
            self.handle(event).map_err(|error| match error {
                Error::Kernel(text) => {
                    Error::Kernel(format!("{text} at cycle {:.0}", cycles(self.queue.now())))
                }
                other => other,
            })?;
            if self.queue.now() > limit {
                return Err(Error::Endless(self.explain(&format!("after {} cycles", self.options.limit))));
            }
            if self.queue.taken() >= looked + PATIENCE {
                looked = self.queue.taken();
                if self.interrupt.interrupted() {
                    return Err(Error::Interrupted);
                }
            }
        }
        if self.threads.iter().any(|t| t.kernel.is_some()) || self.computes.iter().any(|c| !c.done()) {
            return Err(Error::Deadlock(
                self.explain(&format!(
                    "at cycle {:.0} nothing can happen any more",
                    cycles(self.queue.now())
                )),
            ));
        }
        Ok(self.report())
    }

    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Noc(noc::Event::Delivered(packet, node)) => self.delivered(packet, node)?,
            Event::Noc(noc::Event::Departed(packet)) => self.departed(packet),
            Event::Noc(event) => self.noc.wake(&mut self.queue, event),
            Event::Thread(id) => self.advance(id)?,
            Event::Compute(id) => self.compute(id)?,
            Event::Push { core, cb, pages } => {
                if let Some(cb) = self.cb(core, cb) {
                    cb.pushed += u64::from(pages);
                }
                self.stir(core)?;
            }
            Event::Pop { core, cb, pages } => {
                if let Some(cb) = self.cb(core, cb) {
                    cb.popped += u64::from(pages);
                }
                self.stir(core)?;
            }
            Event::Turned(packet, node) => self.respond(packet, node)?,
            Event::Acknowledged(thread, packets) => {
                let thread = &mut self.threads[thread as usize];
                thread.writes -= packets;
                let core = thread.core;
                self.stir(core)?;
            }
            Event::Reserved(core, noc) => self.reserved(core, noc),
        }
        Ok(())
    }

    /// The circular buffer of a number on a core.
    fn cb(&mut self, core: CoreId, cb: u8) -> Option<&mut Cb> {
        self.cores[usize::from(core)].cbs.get_mut(usize::from(cb))?.as_mut()
    }

    /// What to say of a circular buffer that is not there.
    fn no_cb(&self, who: &str, core: CoreId, cb: u8) -> Error {
        Error::Misused(format!(
            "{who} uses circular buffer {cb}, which the program has not on core {}",
            self.describe(core)
        ))
    }

    /// Lets those of a core's threads go on whose conditions hold now.
    fn stir(&mut self, core: CoreId) -> Result<(), Error> {
        for i in 0..self.cores[usize::from(core)].threads.len() {
            let id = self.cores[usize::from(core)].threads[i];
            if let Some(after) = self.satisfied(id) {
                let now = self.queue.now();
                let thread = &mut self.threads[id as usize];
                thread.waited += now - thread.waits_since;
                thread.wait = Wait::Timer;
                self.queue.at(now + after, Event::Thread(id));
            }
        }
        match self.cores[usize::from(core)].compute {
            Some(id) if self.can_go_on(id) => self.compute(id),
            _ => Ok(()),
        }
    }

    /// Whether what a waiting thread waits for is there; if so, the ticks until it has noticed.
    fn satisfied(&self, id: u32) -> Option<Time> {
        let thread = &self.threads[id as usize];
        let core = &self.cores[usize::from(thread.core)];
        let of = |cb: u8| core.cbs.get(usize::from(cb)).and_then(Option::as_ref);
        let costs = &self.costs;
        match thread.wait {
            Wait::Timer => None,
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
    fn advance(&mut self, id: u32) -> Result<(), Error> {
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
        let page = |place: &crate::verbs::Place| match place {
            crate::verbs::Place::Dram { .. } => costs.page,
            crate::verbs::Place::L1 { .. } => 0,
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
            Verb::L1Load { address } => return self.load_word(id, address).map(Some),
            Verb::L1Store { address, value } => {
                self.check_word(id, core, address)?;
                if self.memory.values {
                    self.put(core, address, &value.to_le_bytes());
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
            self.queue.at(now + after, Event::Thread(id));
        }
        Ok(None)
    }

    fn semaphore(&mut self, core: CoreId, semaphore: u8, thread: u32) -> Result<&mut u32, Error> {
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

    fn check_word(&self, id: u32, core: CoreId, address: u32) -> Result<(), Error> {
        if !address.is_multiple_of(4) {
            let whose = self.whose(id);
            return Err(Error::Misused(format!(
                "{whose} takes a word at {address}, which no multiple of 4 is"
            )));
        }
        self.check_l1(id, core, address, 4)
    }

    fn load_word(&mut self, id: u32, address: u32) -> Result<Reply, Error> {
        let core = self.threads[id as usize].core;
        self.check_word(id, core, address)?;
        if !self.memory.values {
            return Ok(0);
        }
        let bytes = self.read_l1(id, core, address, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn report(self) -> Run {
        let compute_end = |id: Option<u32>| id.map(|id| &self.computes[id as usize]);
        let cores = self.cores.iter().map(|core| {
            let compute = compute_end(core.compute);
            CoreUse {
                math_end: compute.map_or(0, |c| c.math_at.max(c.units.math_at)),
                math_busy: compute.map_or(0, |c| c.units.math_busy),
                unpack_busy: compute.map_or([0; 2], |c| c.units.unpack_busy),
                pack_busy: compute.map_or(0, |c| c.pack_busy),
                waits: compute.map_or([0; 3], |c| c.waits),
                thread_ends: core.threads.iter().map(|id| self.threads[*id as usize].end).collect(),
                thread_waits: core.threads.iter().map(|id| self.threads[*id as usize].waited).collect(),
                took_part: !core.threads.is_empty() || core.compute.is_some(),
            }
        });
        let computed = self.computes.iter().map(Compute::end).max().unwrap_or(0);
        Run {
            end: self.threads.iter().map(|t| t.end).max().unwrap_or(0).max(computed),
            events: self.queue.taken(),
            cores: cores.collect(),
            links: self.noc.uses(),
            channels: self.noc.channel_uses().collect(),
            hop_flits: self.noc.hop_flits,
        }
    }
}
