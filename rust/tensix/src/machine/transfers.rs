//! Transfers over the networks: what leaves a core as packets.

use std::sync::Arc;

use crate::error::Error;
use crate::mesh::ChipId;
use crate::noc::{Class, Node, Packet, Target};
use crate::time::{TICKS, Time};
use crate::verbs::{Area, CoreId, Place, Reply, Verb};

use super::fabric::Far;
use super::threads::Wait;
use super::work::Block;
use super::{Event, Machine};

/// What a packet carries; no `data` where values are left out.
#[derive(Debug)]
pub(super) enum Load {
    Write {
        thread: u32,
        to: Place,
        data: Option<Arc<Block>>,
    },
    /// To the same address of all receivers; the latest acknowledgement so far.
    Multicast {
        thread: u32,
        address: u32,
        data: Option<Arc<Block>>,
        last: Time,
    },
    SetSemaphore {
        thread: u32,
        semaphore: u8,
        value: u32,
        last: Time,
    },
    IncrementSemaphore {
        thread: u32,
        semaphore: u8,
        by: u32,
    },
    Request {
        thread: u32,
        from: Place,
        to: u32,
        bytes: u32,
    },
    Reply {
        thread: u32,
        to: u32,
        data: Option<Arc<Block>>,
    },
    /// To an Ethernet tile of the same chip, that sends it on.
    Parcel {
        from: Sender,
        end: u32,
        parcel: u32,
    },
    /// From an Ethernet tile to where it goes.
    /// A flag that came with data has taken no room of its own.
    Unpacked {
        end: u32,
        parcel: u32,
        room: bool,
    },
}

/// Who has a parcel go over the NoC.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sender {
    Thread(u32),
    /// The Ethernet tile of an end of a link, by which it came to the chip.
    End(u32),
}

impl Machine<'_> {
    pub(super) fn whose(&self, id: u32) -> String {
        let thread = &self.threads[id as usize];
        format!("kernel {} on core {}", thread.name, self.describe(thread.core))
    }

    /// Counts a core of a chip over all chips.
    pub(super) fn core_of(&self, id: u32, chip: ChipId, core: CoreId) -> Result<CoreId, Error> {
        let each = self.spec.cores();
        if usize::from(core) >= each {
            return Err(Error::Misused(format!(
                "{}: core {core}, {} has {each}",
                self.whose(id),
                self.spec.name
            )));
        }
        Ok(chip * each as CoreId + core)
    }

    /// The same of a core that a kernel names, which is on its own chip.
    fn near(&self, id: u32, core: CoreId) -> Result<CoreId, Error> {
        self.core_of(id, self.cores[usize::from(self.threads[id as usize].core)].chip, core)
    }

    pub(super) fn check_l1(&self, id: u32, core: CoreId, address: u32, bytes: u32) -> Result<(), Error> {
        if u64::from(address) + u64::from(bytes) > u64::from(self.spec.l1.bytes) {
            return Err(Error::Misused(format!(
                "{}: {bytes} B at {address} of core {}'s L1, which has {} B",
                self.whose(id),
                self.describe(core),
                self.spec.l1.bytes
            )));
        }
        Ok(())
    }

    /// The bytes of a range of L1, which must have been written.
    pub(super) fn read_l1(
        &self,
        id: u32,
        core: CoreId,
        address: u32,
        bytes: u32,
    ) -> Result<Arc<Block>, Error> {
        self.check_l1(id, core, address, bytes)?;
        self.memory.l1[usize::from(core)].check(address, bytes).map_err(|at| {
            Error::Undefined(format!(
                "{} reads {bytes} B at {address} of core {}'s L1, nothing was written at {at}{}",
                self.whose(id),
                self.describe(core),
                self.buffer_at(core, at)
            ))
        })?;
        Ok(Block::new(self.pool.values(core).bytes(address, bytes)))
    }

    /// Which circular buffer an address is in, for messages.
    pub(super) fn buffer_at(&self, core: CoreId, address: u32) -> String {
        let cbs = &self.cores[usize::from(core)].cbs;
        let inside = cbs.iter().enumerate().find_map(|(id, cb)| {
            let cb = cb.as_ref()?;
            (cb.address..cb.address + cb.pages * cb.page_bytes).contains(&address).then_some(id)
        });
        inside.map_or(String::new(), |id| format!(" (in circular buffer {id})"))
    }

    fn check_dram(&self, id: u32, buffer: u16, page: u32, offset: u32, bytes: u32) -> Result<(), Error> {
        let Some(found) = self.memory.buffers.get(usize::from(buffer)) else {
            return Err(Error::Misused(format!("{}: there is no buffer {buffer} in DRAM", self.whose(id))));
        };
        if page >= found.pages || u64::from(offset) + u64::from(bytes) > u64::from(found.page_bytes) {
            return Err(Error::Misused(format!(
                "{}: {bytes} B at {offset} of page {page}, buffer {buffer} has {} pages of {} B",
                self.whose(id),
                found.pages,
                found.page_bytes
            )));
        }
        Ok(())
    }

    fn dram_node(&self, buffer: u16, page: u32) -> Node {
        let channels = &self.spec.dram.channels;
        let found = &self.memory.buffers[usize::from(buffer)];
        let [x, y] = channels[found.channel.map_or(page as usize % channels.len(), usize::from)];
        self.noc.torus.node_of(found.chip, x, y)
    }

    /// Checks a place on the own chip, and that it and an address of the own L1 may be ends of one transfer. Returns its
    /// node, and the place with the core's number over all chips.
    fn resolve(&self, id: u32, place: Place, own: u32, bytes: u32) -> Result<(Node, Place), Error> {
        self.resolve_on(id, self.cores[usize::from(self.threads[id as usize].core)].chip, place, own, bytes)
    }

    /// The same of a place on any chip.
    pub(super) fn resolve_on(
        &self,
        id: u32,
        chip: ChipId,
        place: Place,
        own: u32,
        bytes: u32,
    ) -> Result<(Node, Place), Error> {
        let (node, place, address, alignment, what) = match place {
            Place::L1 { core, address } => {
                let core = self.core_of(id, chip, core)?;
                self.check_l1(id, core, address, bytes)?;
                let place = Place::L1 { core, address };
                (self.cores[usize::from(core)].node, place, address, self.spec.l1.alignment, "L1")
            }
            Place::Dram { buffer, page, offset } => {
                self.check_dram(id, buffer, page, offset, bytes)?;
                let there = self.memory.buffers[usize::from(buffer)].chip;
                if there != chip {
                    return Err(self.elsewhere(id, buffer, there, chip));
                }
                (self.dram_node(buffer, page), place, offset, self.spec.dram.alignment, "DRAM")
            }
        };
        self.check_l1(id, self.threads[id as usize].core, own, bytes)?;
        if address % alignment != own % alignment {
            return Err(Error::Undefined(format!(
                "{} moves {bytes} B between {what} address {address} and its own {own}: they must agree modulo \
                 {alignment}",
                self.whose(id)
            )));
        }
        Ok((node, place))
    }

    #[cold]
    fn elsewhere(&self, id: u32, buffer: u16, there: ChipId, chip: ChipId) -> Error {
        Error::Misused(format!(
            "{}: buffer {buffer} is in the DRAM{}, not{}: to another chip data goes by              fabric_unicast_noc_unicast_write",
            self.whose(id),
            self.of_chip(there),
            self.of_chip(chip)
        ))
    }

    /// The first packet of a transfer; what is left of it is paid for and sent next.
    pub(super) fn transfer(&mut self, id: u32, verb: Verb) -> Result<Option<Reply>, Error> {
        let most = self.spec.packet_bytes();
        if matches!(verb, Verb::NocAsyncWriteMulticast { .. } | Verb::NocSemaphoreSetMulticast { .. }) {
            let flag = matches!(verb, Verb::NocSemaphoreSetMulticast { .. });
            let now = self.queue.now();
            let thread = &mut self.threads[id as usize];
            let commands = &self.cores[usize::from(thread.core)].commands[usize::from(thread.noc)];
            if commands[usize::from(flag)] > 0 {
                thread.wait = Wait::Multicast { flag };
                thread.waits_since = now;
                thread.pending = Some(verb);
                return Ok(None);
            }
        }
        let rest = match verb {
            Verb::NocAsyncRead { from, to, bytes, stateful } => {
                let now = bytes.min(most);
                self.request(id, from, to, now)?;
                (bytes > now).then(|| Verb::NocAsyncRead {
                    from: later(from, now),
                    to: to + now,
                    bytes: bytes - now,
                    stateful,
                })
            }
            Verb::NocAsyncWrite { from, to, bytes, stateful } => {
                let now = bytes.min(most);
                self.write(id, from, to, now)?;
                (bytes > now).then(|| Verb::NocAsyncWrite {
                    from: from + now,
                    to: later(to, now),
                    bytes: bytes - now,
                    stateful,
                })
            }
            Verb::NocAsyncWriteMulticast { from, area, to, bytes, linked } => {
                let now = bytes.min(most);
                self.multicast(id, from, area, to, now, linked)?;
                (bytes > now).then(|| Verb::NocAsyncWriteMulticast {
                    from: from + now,
                    area,
                    to: to + now,
                    bytes: bytes - now,
                    linked,
                })
            }
            Verb::NocSemaphoreSetMulticast { from, semaphore, area } => {
                let core = self.threads[id as usize].core;
                self.semaphore(core, semaphore, id)?;
                let value = *self.semaphore(core, from, id)?;
                let load = |thread| Load::SetSemaphore { thread, semaphore, value, last: 0 };
                self.spread(id, area, 4, false, load)?;
                None
            }
            Verb::NocSemaphoreInc { core, semaphore, by } => {
                let core = self.near(id, core)?;
                self.semaphore(core, semaphore, id)?;
                let target = self.cores[usize::from(core)].node;
                self.post(id, target, 4, Load::IncrementSemaphore { thread: id, semaphore, by });
                None
            }
            Verb::FabricUnicastNocUnicastWrite { from, chip, to, bytes, link } => {
                let now = bytes.min(self.fabric.packet_bytes);
                if !self.send_far(id, chip, link, Far::Write { from, to, bytes: now, then: None })? {
                    self.threads[id as usize].pending = Some(verb);
                    return Ok(None);
                }
                (bytes > now).then(|| Verb::FabricUnicastNocUnicastWrite {
                    from: from + now,
                    chip,
                    to: later(to, now),
                    bytes: bytes - now,
                    link,
                })
            }
            Verb::FabricUnicastNocFusedUnicastWithAtomicInc {
                from,
                chip,
                to,
                bytes,
                core,
                semaphore,
                by,
                link,
            } => {
                let now = bytes.min(self.fabric.packet_bytes);
                // Checked with each packet, told with the last one.
                let flag = self.flag(id, chip, (core, semaphore, by))?;
                let then = (bytes == now).then_some(flag);
                if !self.send_far(id, chip, link, Far::Write { from, to, bytes: now, then })? {
                    self.threads[id as usize].pending = Some(verb);
                    return Ok(None);
                }
                (bytes > now).then(|| Verb::FabricUnicastNocFusedUnicastWithAtomicInc {
                    from: from + now,
                    chip,
                    to: later(to, now),
                    bytes: bytes - now,
                    core,
                    semaphore,
                    by,
                    link,
                })
            }
            Verb::FabricUnicastNocUnicastAtomicInc { chip, core, semaphore, by, link } => {
                let flag = self.flag(id, chip, (core, semaphore, by))?;
                if !self.send_far(id, chip, link, Far::Increment(flag))? {
                    self.threads[id as usize].pending = Some(verb);
                    return Ok(None);
                }
                None
            }
            other => {
                return Err(Error::Unsupported(format!("{}: {other:?} on this thread", self.whose(id))));
            }
        };
        let Some(rest) = rest else { return Ok(Some(0)) };
        let cost = match &rest {
            Verb::NocAsyncRead { stateful, .. } => self.costs.read[usize::from(*stateful)],
            Verb::NocAsyncWrite { stateful, .. } => self.costs.write[usize::from(*stateful)],
            Verb::FabricUnicastNocUnicastWrite { .. }
            | Verb::FabricUnicastNocFusedUnicastWithAtomicInc { .. } => 2 * self.costs.write[0],
            _ => self.costs.multicast,
        };
        self.note_verb(id, &rest, cost);
        self.threads[id as usize].pending = Some(rest);
        self.queue.at(self.queue.now() + cost, Event::Thread(id));
        Ok(None)
    }

    pub(super) fn injection(&self, bytes: u32, rate: f64) -> Time {
        (f64::from(self.noc.flits(bytes)) * TICKS as f64 / rate) as Time
    }

    fn request(&mut self, id: u32, from: Place, to: u32, bytes: u32) -> Result<(), Error> {
        if bytes == 0 {
            return Err(Error::Misused(format!("{} reads 0 bytes", self.whose(id))));
        }
        let (target, from) = self.resolve(id, from, to, bytes)?;
        let thread = &mut self.threads[id as usize];
        thread.reads += 1;
        let packet = Packet {
            noc: thread.noc,
            class: Class::Request,
            source: self.cores[usize::from(thread.core)].node,
            target: Target::One(target),
            bytes: 0,
            moved: bytes,
            length: 0,
            injection: 0,
            open: 1,
            after: 0,
            load: Load::Request { thread: id, from, to, bytes },
        };
        self.noc.send(&mut self.queue, packet);
        Ok(())
    }

    pub(super) fn own_bytes(&self, id: u32, from: u32, bytes: u32) -> Result<Option<Arc<Block>>, Error> {
        let core = self.threads[id as usize].core;
        self.memory.values.then(|| self.read_l1(id, core, from, bytes)).transpose()
    }

    fn write(&mut self, id: u32, from: u32, to: Place, bytes: u32) -> Result<(), Error> {
        if bytes == 0 {
            return Err(Error::Misused(format!("{} writes 0 bytes", self.whose(id))));
        }
        let (target, to) = self.resolve(id, to, from, bytes)?;
        let data = self.own_bytes(id, from, bytes)?;
        self.post(id, target, bytes, Load::Write { thread: id, to, data });
        Ok(())
    }

    /// Sends a packet that will be acknowledged by one node.
    pub(super) fn post(&mut self, id: u32, target: Node, bytes: u32, load: Load) {
        let injection = self.injection(bytes, self.spec.noc.write_rate);
        let thread = &mut self.threads[id as usize];
        thread.writes += 1;
        thread.departures += 1;
        let packet = Packet {
            noc: thread.noc,
            class: Class::Request,
            source: self.cores[usize::from(thread.core)].node,
            target: Target::One(target),
            bytes,
            moved: bytes,
            length: injection,
            injection,
            open: 1,
            after: 0,
            load,
        };
        self.noc.send(&mut self.queue, packet);
    }

    fn multicast(
        &mut self,
        id: u32,
        from: u32,
        area: Area,
        to: u32,
        bytes: u32,
        linked: bool,
    ) -> Result<(), Error> {
        let core = self.threads[id as usize].core;
        self.check_l1(id, core, from, bytes)?;
        self.check_l1(id, core, to, bytes)?;
        if bytes == 0 {
            return Err(Error::Misused(format!("{} multicasts 0 bytes", self.whose(id))));
        }
        let alignment = self.spec.l1.alignment;
        if from % alignment != to % alignment {
            return Err(Error::Undefined(format!(
                "{} multicasts from {from} to {to}: they must agree modulo {alignment}",
                self.whose(id)
            )));
        }
        let data = self.own_bytes(id, from, bytes)?;
        let load = |thread| Load::Multicast { thread, address: to, data, last: 0 };
        self.spread(id, area, bytes, linked, load)
    }

    /// Queues a packet to many nodes behind the multicasts that its core has on the way.
    fn spread(
        &mut self,
        id: u32,
        area: Area,
        bytes: u32,
        linked: bool,
        load: impl FnOnce(u32) -> Load,
    ) -> Result<(), Error> {
        let Area { from, to, own } = area;
        let core = self.threads[id as usize].core;
        let source = self.cores[usize::from(core)].node;
        if from.0 > to.0 || from.1 > to.1 || to.0 >= self.spec.grid.columns || to.1 >= self.spec.grid.rows {
            return Err(Error::Misused(format!(
                "{}: multicast to {from:?} - {to:?}, the grid is {} x {}",
                self.whose(id),
                self.spec.grid.columns,
                self.spec.grid.rows
            )));
        }
        let receivers = self.noc.torus.receivers(source, from, to, own).len() as u32;
        if receivers == 0 {
            return Err(Error::Misused(format!(
                "{}: nobody receives a multicast to {from:?} - {to:?}",
                self.whose(id)
            )));
        }
        let injection = self.injection(bytes, self.spec.noc.write_rate);
        let thread = &mut self.threads[id as usize];
        thread.writes += 1;
        thread.departures += 1;
        let (noc, follows) = (thread.noc, thread.linked);
        thread.linked = linked;
        let packet = Packet {
            noc,
            class: Class::Multicast,
            source,
            target: Target::Many { from, to, own },
            bytes,
            moved: bytes,
            length: injection,
            injection,
            open: receivers,
            after: 0,
            load: load(id),
        };
        let flag = matches!(packet.load, Load::SetSemaphore { .. });
        let core_state = &mut self.cores[usize::from(core)];
        core_state.commands[usize::from(noc)][usize::from(flag)] += 1;
        core_state.multicasts[usize::from(noc)].push_back((packet, follows));
        if !core_state.sending[usize::from(noc)] {
            self.reserve(core, noc);
        }
        Ok(())
    }

    /// Has the path of a core's next multicast reserved.
    fn reserve(&mut self, core: CoreId, noc: u8) {
        let state = &mut self.cores[usize::from(core)];
        let Some((packet, follows)) = state.multicasts[usize::from(noc)].front() else { return };
        // Products read one tile a request and send blocks of several packets: each packet costs them a reservation
        // more, linked or not (gemm_n150_tuned, rows that in1 binds), and only the flag behind the data does not.
        let rings = if *follows && packet.bytes <= 4 {
            0
        } else {
            self.noc.torus.rings(noc, packet.source, packet.target)
        };
        state.sending[usize::from(noc)] = true;
        let after = Time::from(rings) * self.costs.reserve_hop;
        self.queue.at(self.queue.now() + after, Event::Reserved(core, noc));
    }

    pub(super) fn reserved(&mut self, core: CoreId, noc: u8) {
        if let Some((packet, _)) = self.cores[usize::from(core)].multicasts[usize::from(noc)].pop_front() {
            self.noc.send(&mut self.queue, packet);
        }
    }

    /// A packet has left its core.
    pub(super) fn departed(&mut self, packet: u32) {
        let Some(packet) = self.noc.packet(packet) else { return };
        let (noc, multicast) = (packet.noc, packet.class == Class::Multicast);
        let flag = matches!(packet.load, Load::SetSemaphore { .. });
        let thread = match packet.load {
            Load::Write { thread, .. }
            | Load::Multicast { thread, .. }
            | Load::SetSemaphore { thread, .. }
            | Load::IncrementSemaphore { thread, .. }
            | Load::Parcel { from: Sender::Thread(thread), .. } => thread,
            Load::Parcel { from: Sender::End(end), .. } | Load::Unpacked { end, room: true, .. } => {
                return self.passed(end);
            }
            Load::Request { .. } | Load::Reply { .. } | Load::Unpacked { .. } => return,
        };
        let state = &mut self.threads[thread as usize];
        state.departures -= 1;
        let core = state.core;
        if multicast {
            let state = &mut self.cores[usize::from(core)];
            state.sending[usize::from(noc)] = false;
            state.commands[usize::from(noc)][usize::from(flag)] -= 1;
            self.reserve(core, noc);
            self.queue.at(self.queue.now(), Event::Stir(core));
            return;
        }
        if self.threads[thread as usize].departures == 0 {
            self.queue.at(self.queue.now(), Event::Stir(core));
        }
    }
}

/// The place so many bytes behind another one.
fn later(place: Place, bytes: u32) -> Place {
    match place {
        Place::L1 { core, address } => Place::L1 { core, address: address + bytes },
        Place::Dram { buffer, page, offset } => Place::Dram { buffer, page, offset: offset + bytes },
    }
}
