//! Two networks on chip, packet by packet and link by link.
//!
//! A packet is a header flit and data flits that follow each other without a gap. Its head goes from router to
//! router; a link that it was granted is busy for all its flits (virtual cut-through: a packet moves on only where the
//! next router has room for it, so that what waits holds up those behind it, and nothing else). Links serve inputs in
//! turn, one packet each, and are never idle while a packet that could pass waits.

mod channel;
mod route;

use std::collections::HashMap;

use channel::Channel;
pub use route::{Node, Target};
pub(crate) use route::{Torus, port};

use crate::chip::ChipSpec;
use crate::mesh::Mesh;
use crate::time::{Queue, TICKS, Time, ticks};

/// Classes of packets have virtual channels of their own, so that none waits for one of another class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Writes, atomics and requests to read.
    Request = 0,
    Multicast = 1,
    Reply = 2,
}

/// Two channels for each class: before and after the link that closes a ring.
const LANES: usize = 6;
const NOWHERE: u32 = u32::MAX;

/// What the network asks to be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The head of a copy has come to its node's router.
    Head(u32),
    /// A link may be free.
    Free(u32),
    /// A packet has left its source's interface.
    Departed(u32),
    /// A small packet has come to its node's interface.
    Arrived(u32, Node),
    /// All of a packet is at a node, and has been taken.
    Delivered(u32, Node),
}

/// A packet on its way, with what it carries.
#[derive(Debug)]
pub(crate) struct Packet<P> {
    pub(crate) noc: u8,
    pub(crate) class: Class,
    pub(crate) source: Node,
    pub(crate) target: Target,
    /// Bytes of data behind the header.
    pub(crate) bytes: u32,
    /// Bytes that the target's memory moves for it: of a request, those asked for.
    pub(crate) moved: u32,
    /// Ticks from its first flit to its last, where the source is slower than a link.
    pub(crate) length: Time,
    /// Ticks that the source's interface takes for it.
    pub(crate) injection: Time,
    /// Nodes that have still to get it.
    pub(crate) open: u32,
    /// Of a small packet: how many with data went the same way before it.
    pub(crate) after: u64,
    pub(crate) load: P,
}

/// A packet at one router: a multicast has several copies.
struct Copy {
    packet: u32,
    node: Node,
    /// The link it came by, whose far buffer it is in.
    from: u32,
    lane: u8,
    /// Ports by which it has still to leave.
    open: u8,
}

#[derive(Clone, Copy)]
struct Waiting {
    copy: u32,
    /// Input and channel, among which a link takes turns.
    turn: u8,
    lane: u8,
    flits: u32,
}

#[derive(Default, Clone)]
struct Link {
    free_at: Time,
    /// An event will look at this link.
    called: bool,
    waiting: Vec<Waiting>,
    last: u8,
    /// Time that small packets took and that the next one's successor waits for.
    owed: Time,
    /// Flits of packets in the buffers at its far end.
    held: [u32; LANES],
    flits: u64,
    busy: Time,
}

/// What passed a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkUse {
    /// Network, 0 or 1.
    pub noc: u8,
    /// The node whose router the link leaves: nodes of the second chip come behind those of the first.
    pub node: Node,
    /// 0: along x, 1: along y, 2: into the node, 3: out of the node.
    pub port: u8,
    /// Flits that passed.
    pub flits: u64,
    /// Ticks in which it was taken.
    pub busy: Time,
}

/// Packets with data from one node to another, of which small ones that come later must not get ahead.
#[derive(Debug, Default)]
struct Order {
    sent: u64,
    done: u64,
    /// Small packets at the target, and what they wait for.
    waiting: Vec<(u64, u32)>,
}

pub(crate) struct Noc<P> {
    pub(crate) torus: Torus,
    hop: Time,
    interface: Time,
    buffer: u32,
    flit_bytes: u32,
    links: Vec<Link>,
    /// Network, node and port of each link.
    places: Vec<(u8, Node, u8)>,
    copies: Vec<Copy>,
    unused_copies: Vec<u32>,
    packets: Vec<Option<Packet<P>>>,
    unused_packets: Vec<u32>,
    channels: Vec<Option<Channel>>,
    orders: HashMap<(u8, Node, Node), Order>,
    pub(crate) hop_flits: u64,
}

impl<P> Noc<P> {
    pub(crate) fn new(spec: &ChipSpec, mesh: Mesh) -> Self {
        let workers = &spec.workers;
        let torus = Torus::new(spec.grid.columns, spec.grid.rows, &workers.x, &workers.y, mesh.chips());
        let mut channels = vec![None; torus.nodes()];
        for chip in 0..mesh.chips() {
            for [x, y] in &spec.dram.channels {
                channels[usize::from(torus.node_of(chip, *x, *y))] = Some(Channel::new(&spec.dram));
            }
        }
        let nodes = torus.nodes() as Node;
        let ports = |noc, node| (0..port::COUNT as u8).map(move |out| (noc, node, out));
        let places = (0..2).flat_map(|noc| (0..nodes).flat_map(move |node| ports(noc, node))).collect();
        Self {
            links: vec![Link::default(); 2 * torus.nodes() * port::COUNT],
            places,
            hop: ticks(spec.noc.hop_cycles),
            interface: ticks(spec.noc.interface_cycles),
            buffer: spec.noc.buffer_flits,
            flit_bytes: spec.noc.flit_bytes,
            copies: Vec::new(),
            unused_copies: Vec::new(),
            packets: Vec::new(),
            unused_packets: Vec::new(),
            channels,
            orders: HashMap::new(),
            torus,
            hop_flits: 0,
        }
    }

    /// Flits of a packet with so many bytes of data, with its header.
    pub(crate) fn flits(&self, bytes: u32) -> u32 {
        1 + bytes.div_ceil(self.flit_bytes)
    }

    /// Ticks that a network's acknowledgement is under way: one flit, which never waits long enough to matter.
    pub(crate) fn acknowledgement(&self, noc: u8, from: Node, to: Node) -> Time {
        let (dx, dy) = self.torus.distance(noc, from, to);
        2 * self.interface + Time::from(dx + dy) * self.hop
    }

    fn link(&self, noc: u8, node: Node, out: usize) -> u32 {
        ((usize::from(noc) * self.torus.nodes() + usize::from(node)) * port::COUNT + out) as u32
    }

    fn place(&self, link: u32) -> (u8, Node, usize) {
        let (noc, node, out) = self.places[link as usize];
        (noc, node, usize::from(out))
    }

    /// Sends a packet of a flit or two to one node. Its flits go between those of others, as virtual channels let
    /// them: it waits for no link, and the links that it passes have that much less time for the others.
    fn slip<E: From<Event>>(&mut self, queue: &mut Queue<E>, id: u32, packet: &Packet<P>, to: Node) {
        let (noc, flits) = (packet.noc, self.flits(packet.bytes));
        let (mut node, mut out, mut when) = (packet.source, port::INJECT, queue.now());
        loop {
            let link = self.link(noc, node, out);
            let link = &mut self.links[link as usize];
            let through = Time::from(flits) * TICKS;
            link.owed += through;
            link.busy += through;
            link.flits += u64::from(flits);
            match out {
                port::EJECT => break,
                port::INJECT => when += self.interface,
                _ => {
                    self.hop_flits += u64::from(flits);
                    node = self.torus.next(noc, node, out);
                    when += self.hop;
                }
            }
            let (dx, dy) = self.torus.distance(noc, node, to);
            out = match (noc, dx, dy) {
                (_, 0, 0) => port::EJECT,
                (0, 1.., _) | (_, _, 0) => port::X,
                _ => port::Y,
            };
        }
        queue.at(when, Event::Arrived(id, node).into());
    }

    /// When a node has taken a packet whose head is at its interface at `now` and whose tail at `last`, and for how long
    /// the next packet is held up.
    fn accept(&mut self, node: Node, bytes: u32, moved: u32, now: Time, last: Time) -> (Time, Time) {
        match &mut self.channels[usize::from(node)] {
            None => (last, 0),
            Some(channel) => channel.accept((bytes, moved), now, now + self.interface, last),
        }
    }

    /// Queues a packet at its source's interface. It must have someone to go to.
    pub(crate) fn send<E: From<Event>>(&mut self, queue: &mut Queue<E>, mut packet: Packet<P>) -> u32 {
        let (noc, node, bytes, class) = (packet.noc, packet.source, packet.bytes, packet.class);
        if let (Target::One(to), Class::Request) = (packet.target, class) {
            if bytes > 4 {
                self.orders.entry((noc, node, to)).or_default().sent += 1;
            } else if let Some(order) = self.orders.get(&(noc, node, to)) {
                packet.after = order.sent;
            }
        }
        let small = match packet.target {
            Target::One(to) if bytes <= 4 && class == Class::Request => Some(to),
            _ => None,
        };
        let id = match self.unused_packets.pop() {
            Some(id) => {
                self.packets[id as usize] = Some(packet);
                id
            }
            None => {
                self.packets.push(Some(packet));
                (self.packets.len() - 1) as u32
            }
        };
        if let Some(to) = small {
            if let Some(packet) = self.packets[id as usize].take() {
                self.slip(queue, id, &packet, to);
                if bytes > 0 {
                    let injected = Time::from(self.flits(bytes)) * TICKS;
                    queue.at(queue.now() + injected, Event::Departed(id).into());
                }
                self.packets[id as usize] = Some(packet);
            }
            return id;
        }
        let lane = class as u8 * 2;
        let copy = self.copy(Copy { packet: id, node, from: NOWHERE, lane, open: 1 });
        let link = self.link(noc, node, port::INJECT);
        let flits = self.flits(bytes);
        self.links[link as usize].waiting.push(Waiting { copy, turn: 0, lane, flits });
        self.serve(queue, link);
        id
    }

    /// A packet that has not been delivered everywhere.
    pub(crate) fn packet(&mut self, id: u32) -> Option<&mut Packet<P>> {
        self.packets.get_mut(id as usize)?.as_mut()
    }

    /// A packet with data is at its node: small ones that came behind it may be taken.
    pub(crate) fn settle<E: From<Event>>(&mut self, queue: &mut Queue<E>, noc: u8, from: Node, to: Node) {
        let Some(order) = self.orders.get_mut(&(noc, from, to)) else { return };
        order.done += 1;
        let done = order.done;
        order.waiting.retain(|(after, id)| {
            if *after <= done {
                queue.at(queue.now(), Event::Arrived(*id, to).into());
            }
            *after > done
        });
    }

    /// Takes one delivery off a packet's account; the packet itself with the last one.
    pub(crate) fn receive(&mut self, id: u32) -> Option<Packet<P>> {
        let packet = self.packets.get_mut(id as usize)?;
        packet.as_mut()?.open -= 1;
        if packet.as_ref()?.open > 0 {
            return None;
        }
        self.unused_packets.push(id);
        packet.take()
    }

    fn copy(&mut self, copy: Copy) -> u32 {
        match self.unused_copies.pop() {
            Some(id) => {
                self.copies[id as usize] = copy;
                id
            }
            None => {
                self.copies.push(copy);
                (self.copies.len() - 1) as u32
            }
        }
    }

    /// What happens when an event of the network is due; deliveries and departures are the machine's.
    pub(crate) fn wake<E: From<Event>>(&mut self, queue: &mut Queue<E>, event: Event) {
        match event {
            Event::Head(copy) => self.arrive(queue, copy),
            Event::Free(link) => {
                self.links[link as usize].called = false;
                self.serve(queue, link);
            }
            Event::Arrived(id, node) => {
                let Some(packet) = self.packet(id) else { return };
                let (noc, source, after) = (packet.noc, packet.source, packet.after);
                let (bytes, moved, now) = (packet.bytes, packet.moved, queue.now());
                if let Some(order) = self.orders.get_mut(&(noc, source, node)).filter(|o| o.done < after) {
                    order.waiting.push((after, id));
                    return;
                }
                let last = now + self.interface + Time::from(self.flits(bytes)) * TICKS;
                let (done, _) = self.accept(node, bytes, moved, now, last);
                queue.at(done, Event::Delivered(id, node).into());
            }
            Event::Departed(_) | Event::Delivered(..) => {}
        }
    }

    /// A head has come to a router: it joins those that wait for the links it needs.
    fn arrive<E: From<Event>>(&mut self, queue: &mut Queue<E>, id: u32) {
        let Copy { packet, node, from, lane, .. } = self.copies[id as usize];
        let Some(about) = &self.packets[packet as usize] else { return };
        let (noc, flits) = (about.noc, 1 + about.bytes.div_ceil(self.flit_bytes));
        let came = self.place(from).2;
        let out = self.torus.outputs(noc, about.source, about.target, node, came);
        // Every branch of a multicast ends at a receiver, so a copy always has somewhere to go.
        let count = out.iter().filter(|go| **go).count() as u8;
        self.copies[id as usize].open = count;
        for (to, goes) in out.iter().enumerate() {
            if *goes {
                let turned = to != came && to != port::EJECT;
                let before = if turned { lane & !1 } else { lane };
                let next = if self.torus.wraps(noc, node, to) { before | 1 } else { before };
                let link = self.link(noc, node, to);
                let turn = came as u8 * LANES as u8 + lane;
                self.links[link as usize].waiting.push(Waiting { copy: id, turn, lane: next, flits });
                self.serve(queue, link);
            }
        }
    }

    /// Grants a link to the next of those that wait and can go.
    fn serve<E: From<Event>>(&mut self, queue: &mut Queue<E>, id: u32) {
        let now = queue.now();
        let (noc, node, out) = self.place(id);
        let link = &mut self.links[id as usize];
        if link.waiting.is_empty() {
            return;
        }
        if link.free_at > now {
            if !link.called {
                link.called = true;
                queue.at(link.free_at, Event::Free(id).into());
            }
            return;
        }
        let room = |w: &Waiting| {
            let held = link.held[usize::from(w.lane)];
            out == port::EJECT || held == 0 || held + w.flits <= self.buffer
        };
        // The first input after the one served last; within an input, the order of arrival.
        let turns = port::COUNT as u8 * LANES as u8;
        let rank = |w: &Waiting| (w.turn + turns - link.last - 1) % turns;
        let chosen = (0..link.waiting.len())
            .filter(|i| room(&link.waiting[*i]))
            .min_by_key(|i| rank(&link.waiting[*i]));
        let Some(chosen) = chosen else { return };
        let Waiting { copy, turn, lane, flits } = link.waiting.remove(chosen);
        link.last = turn;
        self.grant(queue, id, (noc, node, out), copy, lane, flits);
        self.serve(queue, id);
    }

    fn grant<E: From<Event>>(
        &mut self,
        queue: &mut Queue<E>,
        id: u32,
        (noc, node, out): (u8, Node, usize),
        copy: u32,
        lane: u8,
        flits: u32,
    ) {
        let now = queue.now();
        let packet = self.copies[copy as usize].packet;
        let Some(about) = &self.packets[packet as usize] else { return };
        let through = Time::from(flits) * TICKS;
        let mut taken = if out == port::INJECT { about.injection.max(through) } else { through };
        match out {
            port::EJECT => {
                let last = now + self.interface + about.length.max(through);
                let (bytes, moved) = (about.bytes, about.moved);
                let (done, held) = self.accept(node, bytes, moved, now, last);
                taken = taken.max(held);
                queue.at(done, Event::Delivered(packet, node).into());
            }
            port::INJECT => {
                // Of what was asked for nobody waits until it has left.
                if about.class != Class::Reply {
                    queue.at(now + taken, Event::Departed(packet).into());
                }
                let next = self.copy(Copy { packet, node, from: id, lane, open: 0 });
                queue.at(now + self.interface, Event::Head(next).into());
            }
            _ => {
                self.hop_flits += u64::from(flits);
                let to = self.torus.next(noc, node, out);
                let next = self.copy(Copy { packet, node: to, from: id, lane, open: 0 });
                queue.at(now + self.hop, Event::Head(next).into());
            }
        }
        let link = &mut self.links[id as usize];
        link.free_at = now + taken + link.owed;
        link.owed = 0;
        link.busy += taken;
        link.flits += u64::from(flits);
        if out != port::EJECT {
            link.held[usize::from(lane)] += flits;
        }
        self.copies[copy as usize].open -= 1;
        if self.copies[copy as usize].open == 0 {
            self.leave(queue, copy);
        }
    }

    /// A copy has begun to leave by all its ports: what comes behind it may take its room, as fast as it goes.
    fn leave<E: From<Event>>(&mut self, queue: &mut Queue<E>, id: u32) {
        let Copy { packet, from, lane, .. } = self.copies[id as usize];
        self.unused_copies.push(id);
        if from == NOWHERE {
            return;
        }
        let flits =
            self.packets[packet as usize].as_ref().map_or(0, |p| 1 + p.bytes.div_ceil(self.flit_bytes));
        let link = &mut self.links[from as usize];
        link.held[usize::from(lane)] -= flits;
        if !link.called && !link.waiting.is_empty() {
            link.called = true;
            let when = link.free_at.max(queue.now());
            queue.at(when, Event::Free(from).into());
        }
    }

    /// Use of every link that was used.
    pub(crate) fn uses(&self) -> Vec<LinkUse> {
        let used = self.links.iter().enumerate().filter(|(_, link)| link.flits > 0);
        used.map(|(id, link)| {
            let (noc, node, out) = self.place(id as u32);
            LinkUse { noc, node, port: out as u8, flits: link.flits, busy: link.busy }
        })
        .collect()
    }

    /// Node, bytes and busy ticks of each channel of memory.
    pub(crate) fn channel_uses(&self) -> impl Iterator<Item = (Node, u64, Time)> + '_ {
        self.channels
            .iter()
            .enumerate()
            .filter_map(|(node, channel)| channel.map(|channel| (node as Node, channel.bytes, channel.busy)))
    }
}
