//! The machine: cores, networks, links between chips and memory, event by event.

mod arrivals;
mod calculate;
mod cb;
mod compute;
mod costs;
mod deadlock;
mod engines;
mod fabric;
mod loading;
mod pool;
mod recording;
mod reduce;
mod threads;
mod transfers;
mod units;
mod values;
mod vectors;
mod work;

use prunus_core::Interrupt;

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::memory::Memory;
use crate::mesh::{ChipId, Mesh};
use crate::noc::{self, Noc, Node, Packet};
use crate::numerics::Fidelity;
use crate::program::Program;
use crate::report::{CoreUse, Run};
use crate::time::{Queue, cycles, ticks};
use crate::timeline::Timeline;
use crate::verbs::CoreId;
use cb::Cb;
use compute::Compute;
use costs::Costs;
use fabric::Fabric;
use pool::Pool;
use threads::{Thread, Wait};
use transfers::Load;
use units::Rates;
use work::Values;

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
    /// A packet of a thread is acknowledged.
    Acknowledged(u32),
    /// Something changed that a core's threads may wait for.
    Stir(CoreId),
    /// The path of a core's multicast is its own.
    Reserved(CoreId, u8),
    /// Something has happened at an end of an Ethernet link.
    Fabric(fabric::Event),
}

impl From<noc::Event> for Event {
    fn from(event: noc::Event) -> Self {
        Self::Noc(event)
    }
}

/// A core's shared state.
struct Core {
    node: Node,
    chip: ChipId,
    cbs: Vec<Option<Cb>>,
    semaphores: Vec<u32>,
    threads: Vec<u32>,
    compute: Option<u32>,
    /// Multicasts that wait for their path, for each network, and whether each follows a linked one.
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
    /// Intervals of threads' time that are recorded at most; 0 records nothing.
    pub timeline: u32,
    /// Threads that may work on values; none of what a run gives depends on their number.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { fidelity: Fidelity::HiFi4, wide: false, limit: 1e10, timeline: 0, threads: 1 }
    }
}

pub(crate) struct Machine<'a> {
    spec: &'a ChipSpec,
    mesh: Mesh,
    memory: &'a mut Memory,
    interrupt: &'a dyn Interrupt,
    options: Options,
    queue: Queue<Event>,
    noc: Noc<Load>,
    /// Links between chips.
    fabric: Fabric,
    rates: Rates,
    /// Of all chips, one behind the other.
    cores: Vec<Core>,
    threads: Vec<Thread>,
    computes: Vec<Compute>,
    node_cores: Vec<Option<CoreId>>,
    costs: Costs,
    timeline: Option<Box<Timeline>>,
    /// What values become, where they are kept.
    pool: Pool,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        spec: &'a ChipSpec,
        mesh: Mesh,
        memory: &'a mut Memory,
        interrupt: &'a dyn Interrupt,
        options: Options,
    ) -> Self {
        let noc = Noc::new(spec, mesh);
        let mut node_cores = vec![None; noc.torus.nodes()];
        let mut cores = Vec::with_capacity(memory.l1.len());
        let places = spec.workers.y.iter().flat_map(|y| spec.workers.x.iter().map(move |x| (*x, *y)));
        for chip in 0..mesh.chips() {
            for (x, y) in places.clone() {
                let node = noc.torus.node_of(chip, x, y);
                node_cores[usize::from(node)] = Some(cores.len() as CoreId);
                cores.push(Core {
                    node,
                    chip,
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
        let lent = memory.l1.iter_mut().map(|l1| Values::new(l1.lend()));
        let pool = Pool::new(lent, options.threads);
        Self {
            rates: Rates::new(spec),
            costs: Costs::new(spec),
            queue: Queue::new(),
            threads: Vec::new(),
            computes: Vec::new(),
            timeline: (options.timeline > 0).then(|| Box::new(Timeline::new(options.timeline, cores.len()))),
            fabric: Fabric::new(spec, mesh, &noc.torus),
            spec,
            mesh,
            memory,
            interrupt,
            options,
            noc,
            cores,
            node_cores,
            pool,
        }
    }

    /// A core by its logical coordinates, and its chip where there are several.
    fn describe(&self, core: CoreId) -> String {
        let across = self.spec.workers.x.len() as u16;
        let (chip, core) = Mesh::split(self.spec, core);
        format!("({}, {}){}", core % across, core / across, self.of_chip(chip))
    }

    /// Which chip something is on, where there are several.
    fn of_chip(&self, chip: ChipId) -> String {
        if self.mesh.chips() == 1 {
            return String::new();
        }
        let (row, column) = self.mesh.place(chip);
        format!(" of chip ({row}, {column})")
    }

    pub(crate) fn run(mut self, program: Program) -> Result<Run, Error> {
        let ended = self.events(program);
        let (l1, values) = self.pool.finish();
        self.memory.l1.iter_mut().zip(l1).for_each(|(memory, l1)| memory.restore(l1));
        ended?;
        values.map_err(|error| Error::Misused(error.to_string()))?;
        Ok(self.report())
    }

    fn events(&mut self, program: Program) -> Result<(), Error> {
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
        Ok(())
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
            Event::Acknowledged(thread) => {
                let thread = &mut self.threads[thread as usize];
                thread.writes -= 1;
                let core = thread.core;
                self.stir(core)?;
            }
            Event::Stir(core) => self.stir(core)?,
            Event::Reserved(core, noc) => self.reserved(core, noc),
            Event::Fabric(event) => self.fabric_event(event),
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
                let (wait, since) = (thread.wait, thread.waits_since);
                thread.waited += now - since;
                thread.wait = Wait::Timer;
                self.note_wait(id, wait, since, after);
                self.queue.at(now + after, Event::Thread(id));
            }
        }
        match self.cores[usize::from(core)].compute {
            Some(id) if self.can_go_on(id) => self.compute(id),
            _ => Ok(()),
        }
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
                products: compute.map_or(0, |c| c.units.products),
                unpack_bytes: compute.map_or(0, |c| c.units.unpack_bytes),
                pack_bytes: compute.map_or(0, |c| c.pack_bytes),
                lanes: core.threads.iter().map(|id| self.threads[*id as usize].lane).collect(),
                computes: compute.is_some(),
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
            ethernet: self.fabric.uses(self.mesh),
            hop_flits: self.noc.hop_flits,
            fidelity: self.options.fidelity,
            timeline: self.timeline.map(|timeline| *timeline),
        }
    }
}
