//! Ethernet links between chips: packets that tiles of theirs hand from chip to chip.
//!
//! A thread has room for a packet reserved in the tile whose link leads its way, writes it there over the NoC, and the tile
//! sends it. The tile at the other end writes it to where it goes, or to the next tile of its chip. Tiles send only
//! what the one at the other end has room for, and room for what passes through is apart from that for what begins on
//! the chip: what is full holds up who sends there, and nothing is lost. As ways lead along columns first, nothing can
//! wait for itself.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::mesh::{ChipId, Mesh, Way};
use crate::noc::{Class, Node, Packet, Target, Torus};
use crate::report::EthernetUse;
use crate::time::{Time, ticks};
use crate::verbs::{CoreId, Place};

use super::Machine;
use super::threads::Wait;
use super::transfers::{Load, Sender};
use super::work::Block;

/// What happens at an end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Its tile may send.
    Free(u32),
    /// A packet has left it: there is room, for one of its own chip's or for one that passes through.
    Room(u32, bool),
    /// A packet has come by its link.
    Landed(u32, u32),
    /// The tile at the other end has room for one more.
    Credit(u32),
    /// What its tile wrote to a node is acknowledged.
    Written(u32, Node),
}

/// What a thread sends to another chip.
#[derive(Debug, Clone, Copy)]
pub(super) enum Far {
    Write { from: u32, to: Place, bytes: u32, then: Option<Flag> },
    Increment(Flag),
}

/// A semaphore of a core, counted over all chips, and by how much it is to grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    core: CoreId,
    semaphore: u8,
    by: u32,
}

/// What a packet is for.
#[derive(Debug)]
enum What {
    Write {
        to: Place,
        data: Option<Arc<Block>>,
        then: Option<Flag>,
    },
    /// Once all is written that came before it.
    Increment(Flag),
}

/// A packet on its way to another chip.
#[derive(Debug)]
struct Parcel {
    chip: ChipId,
    /// Where it goes there.
    node: Node,
    /// Which of the links to a neighbour it takes.
    link: u8,
    bytes: u32,
    /// It is in the tile that is to send it.
    here: bool,
    /// It takes room of its own.
    room: bool,
    what: What,
}

/// An end of a link: its tile, what that has to send, and what came.
#[derive(Debug, Default)]
struct End {
    node: Node,
    chip: ChipId,
    way: usize,
    /// The other end, where there is a neighbour.
    peer: Option<u32>,
    /// To be sent, of its own chip and what passes through, in the order in which room was given: packets may still be on
    /// their way there. And packets for which there is room.
    queues: [VecDeque<u32>; 2],
    room: [u32; 2],
    /// Which of the two was served last.
    last: usize,
    free_at: Time,
    called: bool,
    /// Packets that the other end has room for.
    credits: u32,
    /// Threads that wait for room, in order.
    waiting: VecDeque<u32>,
    /// Ends of other links of the chip whose first packet waits for room to pass through.
    blocked: VecDeque<u32>,
    /// What came, in order.
    inbox: VecDeque<u32>,
    /// It is in `blocked` of another one.
    held: bool,
    /// Where the tile's writes go that are not acknowledged.
    unwritten: Vec<Node>,
    packets: u64,
    bytes: u64,
    wire_bytes: u64,
    busy: Time,
}

/// All links of a mesh.
pub(super) struct Fabric {
    ends: Vec<End>,
    /// Ends of each chip and way.
    ways: Vec<[Vec<u32>; 4]>,
    parcels: Vec<Option<Parcel>>,
    unused: Vec<u32>,
    pub(super) packet_bytes: u32,
    header: u32,
    payload: u32,
    overhead: u32,
    /// Ticks of a byte on the wire.
    byte: f64,
    packet: Time,
    latency: Time,
}

impl Fabric {
    /// The links of a mesh; none of a chip alone.
    pub(super) fn new(spec: &ChipSpec, mesh: Mesh, torus: &Torus) -> Self {
        let mut fabric = Self {
            ends: Vec::new(),
            ways: Vec::new(),
            parcels: Vec::new(),
            unused: Vec::new(),
            packet_bytes: 1,
            header: 0,
            payload: 1,
            overhead: 0,
            byte: 0.0,
            packet: 0,
            latency: 0,
        };
        let Some(ethernet) = spec.ethernet.as_ref().filter(|_| mesh.chips() > 1) else { return fabric };
        let nanoseconds = |time: f64| ticks(time * spec.clock_ghz);
        fabric.packet_bytes = ethernet.packet_bytes;
        fabric.header = ethernet.header_bytes;
        (fabric.payload, fabric.overhead) = (ethernet.payload_bytes, ethernet.overhead_bytes);
        fabric.byte = crate::time::TICKS as f64 * spec.clock_ghz / ethernet.gb_per_s;
        (fabric.packet, fabric.latency) = (nanoseconds(ethernet.packet_ns), nanoseconds(ethernet.latency_ns));
        let slots = ethernet.buffer_bytes / ethernet.packet_bytes;
        for chip in 0..mesh.chips() {
            let mut ways: [Vec<u32>; 4] = Default::default();
            for way in Way::ALL {
                if mesh.next(chip, way).is_none() {
                    continue;
                }
                for [x, y] in ethernet.tiles(way) {
                    ways[way as usize].push(fabric.ends.len() as u32);
                    let node = torus.node_of(chip, *x, *y);
                    let room = [slots; 2];
                    fabric.ends.push(End {
                        node,
                        chip,
                        way: way as usize,
                        room,
                        credits: slots,
                        ..End::default()
                    });
                }
            }
            fabric.ways.push(ways);
        }
        for chip in 0..mesh.chips() {
            for way in Way::ALL {
                let Some(next) = mesh.next(chip, way) else { continue };
                let there = fabric.ways[usize::from(next)][way.opposite() as usize].clone();
                for (end, peer) in fabric.ways[usize::from(chip)][way as usize].iter().zip(there) {
                    fabric.ends[*end as usize].peer = Some(peer);
                }
            }
        }
        fabric
    }

    /// Bytes on the wire of a packet with so many bytes of data.
    fn wire_bytes(&self, bytes: u32) -> u64 {
        let data = u64::from(bytes.max(self.header));
        data + data.div_ceil(u64::from(self.payload)) * u64::from(self.overhead)
    }

    fn parcel(&self, id: u32) -> Option<&Parcel> {
        self.parcels.get(id as usize)?.as_ref()
    }

    fn keep(&mut self, parcel: Parcel) -> u32 {
        match self.unused.pop() {
            Some(id) => {
                self.parcels[id as usize] = Some(parcel);
                id
            }
            None => {
                self.parcels.push(Some(parcel));
                (self.parcels.len() - 1) as u32
            }
        }
    }

    /// Use of every link that was used, one way.
    pub(super) fn uses(&self, mesh: Mesh) -> Vec<EthernetUse> {
        let used = self.ends.iter().filter(|end| end.packets > 0);
        used.filter_map(|end| {
            let peer = &self.ends[end.peer? as usize];
            let link = self.ways[usize::from(end.chip)][end.way]
                .iter()
                .position(|at| self.ends[*at as usize].node == end.node)?;
            debug_assert_eq!(mesh.next(end.chip, Way::ALL[end.way]), Some(peer.chip));
            Some(EthernetUse {
                nodes: (end.node, peer.node),
                chips: (end.chip, peer.chip),
                link: link as u8,
                packets: end.packets,
                bytes: end.bytes,
                wire_bytes: end.wire_bytes,
                busy: end.busy,
            })
        })
        .collect()
    }
}

impl Machine<'_> {
    /// An Ethernet tile, for messages.
    pub(super) fn tile_of(&self, end: u32) -> String {
        let End { node, chip, .. } = &self.fabric.ends[end as usize];
        let (x, y) = self.noc.torus.xy(*node);
        format!("the Ethernet tile at ({x}, {y}){}", self.of_chip(*chip))
    }

    /// What tiles still have, for messages.
    pub(super) fn stuck(&self) -> impl Iterator<Item = String> + '_ {
        let full = (0..self.fabric.ends.len() as u32).filter(|end| {
            let End { queues, inbox, .. } = &self.fabric.ends[*end as usize];
            !inbox.is_empty() || queues.iter().any(|queue| !queue.is_empty())
        });
        full.map(|end| {
            let End { queues, inbox, .. } = &self.fabric.ends[end as usize];
            let out = queues[0].len() + queues[1].len();
            format!("{} has {out} packets to send and {} to hand on", self.tile_of(end), inbox.len())
        })
    }

    /// The end of the link that a thread's packet to another chip takes.
    fn way_out(&self, id: u32, from: ChipId, to: ChipId, link: u8) -> Result<u32, Error> {
        let Some(way) = self.mesh.way(from, to).filter(|_| to < self.mesh.chips()) else {
            return Err(self.no_chip(id, to));
        };
        let links = &self.fabric.ways[usize::from(from)][way as usize];
        links.get(usize::from(link)).copied().ok_or_else(|| {
            Error::Misused(format!(
                "{}: link {link}, {} has {} to each neighbour there",
                self.whose(id),
                self.spec.name,
                links.len()
            ))
        })
    }

    /// Links to each neighbour on the way from a chip to another one.
    fn links(&self, from: ChipId, to: ChipId) -> usize {
        let way = self.mesh.way(from, to).filter(|_| to < self.mesh.chips());
        way.map_or(1, |way| self.fabric.ways[usize::from(from)][way as usize].len().max(1))
    }

    /// A semaphore of a core of another chip, if there is one.
    pub(super) fn flag(
        &mut self,
        id: u32,
        chip: ChipId,
        (core, semaphore, by): (CoreId, u8, u32),
    ) -> Result<Flag, Error> {
        if chip >= self.mesh.chips() {
            return Err(self.no_chip(id, chip));
        }
        let core = self.core_of(id, chip, core)?;
        self.semaphore(core, semaphore, id)?;
        Ok(Flag { core, semaphore, by })
    }

    fn no_chip(&self, id: u32, to: ChipId) -> Error {
        Error::Misused(format!(
            "{}: chip {to} of {}, another one than its own: on a chip data goes by noc_async_write, flags by \
             noc_semaphore_inc",
            self.whose(id),
            self.mesh.chips()
        ))
    }

    /// Has a packet go to another chip; false if the thread waits for room.
    pub(super) fn send_far(
        &mut self,
        id: u32,
        chip: ChipId,
        link: Option<u8>,
        far: Far,
    ) -> Result<bool, Error> {
        let core = self.threads[id as usize].core;
        let (from, local) = Mesh::split(self.spec, core);
        // Without a choice cores take links in turn, so that what one of them sends stays in order.
        let link = link.unwrap_or_else(|| (usize::from(local) % self.links(from, chip)) as u8);
        let end = self.way_out(id, from, chip, link)?;
        // What is wrong is told before the thread waits for room.
        let (node, bytes, place) = match far {
            Far::Write { bytes: 0, .. } => {
                return Err(Error::Misused(format!("{} writes 0 bytes", self.whose(id))));
            }
            Far::Write { from, to, bytes, .. } => {
                let (node, to) = self.resolve_on(id, chip, to, from, bytes)?;
                (node, bytes, Some(to))
            }
            Far::Increment(Flag { core, .. }) => (self.cores[usize::from(core)].node, 0, None),
        };
        let state = &mut self.fabric.ends[end as usize];
        let granted = std::mem::take(&mut self.threads[id as usize].granted);
        if !granted {
            if state.room[0] == 0 || !state.waiting.is_empty() {
                state.waiting.push_back(id);
                let thread = &mut self.threads[id as usize];
                (thread.wait, thread.waits_since) = (Wait::Room { end }, self.queue.now());
                return Ok(false);
            }
            state.room[0] -= 1;
        }
        let what = match (far, place) {
            (Far::Write { from, bytes, then, .. }, Some(to)) => {
                What::Write { to, data: self.own_bytes(id, from, bytes)?, then }
            }
            (Far::Increment(flag), _) => What::Increment(flag),
            (Far::Write { .. }, None) => return Ok(true),
        };
        let parcel = self.fabric.keep(Parcel { chip, node, link, bytes, here: false, room: true, what });
        self.fabric.ends[end as usize].queues[0].push_back(parcel);
        let (target, from) = (self.fabric.ends[end as usize].node, Sender::Thread(id));
        self.post(id, target, bytes + self.fabric.header, Load::Parcel { from, end, parcel });
        Ok(true)
    }

    pub(super) fn fabric_event(&mut self, event: Event) {
        match event {
            Event::Free(end) => {
                self.fabric.ends[end as usize].called = false;
                self.serve(end);
            }
            Event::Room(end, passes) => self.vacate(end, passes),
            Event::Landed(end, parcel) => {
                self.fabric.ends[end as usize].inbox.push_back(parcel);
                self.hand_on(end);
            }
            Event::Credit(end) => {
                self.fabric.ends[end as usize].credits += 1;
                self.serve(end);
            }
            Event::Written(end, node) => {
                let unwritten = &mut self.fabric.ends[end as usize].unwritten;
                if let Some(at) = unwritten.iter().position(|other| *other == node) {
                    unwritten.swap_remove(at);
                }
                self.hand_on(end);
            }
        }
    }

    /// A packet has come to a tile over the NoC, to be sent.
    pub(super) fn collected(&mut self, end: u32, parcel: u32) {
        if let Some(Some(parcel)) = self.fabric.parcels.get_mut(parcel as usize) {
            parcel.here = true;
        }
        self.serve(end);
    }

    /// Sends the next packet that a tile has, of its own chip and of others in turn.
    fn serve(&mut self, id: u32) {
        let now = self.queue.now();
        let fabric = &mut self.fabric;
        let end = &mut fabric.ends[id as usize];
        let here = |queue: &VecDeque<u32>| {
            let first = queue.front().and_then(|first| fabric.parcels.get(*first as usize)?.as_ref());
            first.is_some_and(|parcel| parcel.here)
        };
        let ready = [here(&end.queues[0]), here(&end.queues[1])];
        if end.credits == 0 || ready == [false; 2] {
            return;
        }
        if end.free_at > now {
            if !end.called {
                end.called = true;
                self.queue.at(end.free_at, super::Event::Fabric(Event::Free(id)));
            }
            return;
        }
        let which = if ready[1 - end.last] { 1 - end.last } else { end.last };
        let (Some(parcel), Some(peer)) = (end.queues[which].pop_front(), end.peer) else { return };
        let bytes = fabric.parcel(parcel).map_or(0, |parcel| parcel.bytes);
        let wire_bytes = fabric.wire_bytes(bytes);
        let wire = (wire_bytes as f64 * fabric.byte).ceil() as Time;
        let taken = wire.max(fabric.packet);
        let arrives = now + wire + fabric.latency;
        let end = &mut fabric.ends[id as usize];
        (end.last, end.free_at) = (which, now + taken);
        end.credits -= 1;
        end.packets += 1;
        end.bytes += u64::from(bytes);
        end.wire_bytes += wire_bytes;
        end.busy += taken;
        self.queue.at(now + taken, super::Event::Fabric(Event::Room(id, which == 1)));
        self.queue.at(arrives, super::Event::Fabric(Event::Landed(peer, parcel)));
        self.serve(id);
    }

    /// There is room in a tile for a packet: of the chip's first thread that waits, or of the first tile that does.
    fn vacate(&mut self, id: u32, passes: bool) {
        let end = &mut self.fabric.ends[id as usize];
        if passes {
            end.room[1] += 1;
            if let Some(other) = end.blocked.pop_front() {
                self.fabric.ends[other as usize].held = false;
                self.hand_on(other);
            }
            return;
        }
        let Some(thread) = end.waiting.pop_front() else {
            end.room[0] += 1;
            return;
        };
        let (now, after) = (self.queue.now(), self.costs.semaphore_wait);
        let state = &mut self.threads[thread as usize];
        state.granted = true;
        let (wait, since) = (state.wait, state.waits_since);
        state.waited += now - since;
        state.wait = Wait::Timer;
        self.note_wait(thread, wait, since, after);
        self.queue.at(now + after, super::Event::Thread(thread));
    }

    /// Has a tile write what came by its link to where it goes, in order.
    fn hand_on(&mut self, id: u32) {
        loop {
            let end = &self.fabric.ends[id as usize];
            if end.held {
                return;
            }
            let Some(first) = end.inbox.front().copied() else { return };
            let (chip, node) = (end.chip, end.node);
            let Some(parcel) = self.fabric.parcel(first) else { return };
            let (bytes, target) = (parcel.bytes, parcel.node);
            let (bytes, target, load) = match self.mesh.way(chip, parcel.chip) {
                None => {
                    let (flag, room) = (matches!(parcel.what, What::Increment(_)), parcel.room);
                    // Behind data for the same node it stays by itself.
                    if flag && end.unwritten.iter().any(|other| *other != target) {
                        return;
                    }
                    if !flag {
                        self.fabric.ends[id as usize].unwritten.push(target);
                    }
                    (if flag { 4 } else { bytes }, target, Load::Unpacked { end: id, parcel: first, room })
                }
                Some(way) => {
                    let links = &self.fabric.ways[usize::from(chip)][way as usize];
                    // Where a neighbour has fewer links, they share what comes.
                    let Some(next) = links.get(usize::from(parcel.link) % links.len().max(1)).copied() else {
                        return;
                    };
                    let through = &mut self.fabric.ends[next as usize];
                    if through.room[1] == 0 {
                        through.blocked.push_back(id);
                        self.fabric.ends[id as usize].held = true;
                        return;
                    }
                    through.room[1] -= 1;
                    through.queues[1].push_back(first);
                    let load = Load::Parcel { from: Sender::End(id), end: next, parcel: first };
                    (bytes + self.fabric.header, through.node, load)
                }
            };
            if let Some(Some(parcel)) = self.fabric.parcels.get_mut(first as usize) {
                parcel.here = false;
            }
            self.fabric.ends[id as usize].inbox.pop_front();
            if matches!(load, Load::Unpacked { .. }) {
                self.split(id, first);
            }
            let injection = self.injection(bytes, self.spec.noc.write_rate);
            let packet = Packet {
                noc: 0,
                class: Class::Request,
                source: node,
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
    }

    /// A flag that came with data is the next thing that the tile hands on.
    fn split(&mut self, id: u32, parcel: u32) {
        let Some(Some(Parcel { chip, link, what: What::Write { then, .. }, .. })) =
            self.fabric.parcels.get_mut(parcel as usize)
        else {
            return;
        };
        let Some(flag) = then.take() else { return };
        let (node, what) = (self.cores[usize::from(flag.core)].node, What::Increment(flag));
        let flag = Parcel { chip: *chip, node, link: *link, bytes: 0, here: false, room: false, what };
        let flag = self.fabric.keep(flag);
        self.fabric.ends[id as usize].inbox.push_front(flag);
    }

    /// What a tile got by its link has left it: the tile at the other end is told that there is room.
    pub(super) fn passed(&mut self, end: u32) {
        let Some(peer) = self.fabric.ends[end as usize].peer else { return };
        self.queue.at(self.queue.now() + self.fabric.latency, super::Event::Fabric(Event::Credit(peer)));
    }

    /// What a tile wrote is where it goes; `back` is when the tile knows.
    pub(super) fn unpacked(&mut self, end: u32, parcel: u32, back: Time) -> Result<(), Error> {
        let Some(found) = self.fabric.parcels.get_mut(parcel as usize).and_then(Option::take) else {
            return Ok(());
        };
        self.fabric.unused.push(parcel);
        match found.what {
            What::Write { to, data, .. } => {
                self.queue.at(back, super::Event::Fabric(Event::Written(end, found.node)));
                if let Some(data) = data {
                    self.store(to, &data);
                }
                Ok(())
            }
            What::Increment(Flag { core, semaphore, by }) => {
                let value = &mut self.cores[usize::from(core)].semaphores[usize::from(semaphore)];
                *value = value.wrapping_add(by);
                self.stir(core)
            }
        }
    }
}
