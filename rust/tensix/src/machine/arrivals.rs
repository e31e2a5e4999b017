//! Where packets arrive: what is written, counted, answered and acknowledged.

use std::sync::Arc;

use crate::error::Error;
use crate::noc::{Class, Node, Packet, Target};
use crate::time::{TICKS, Time};
use crate::verbs::{CoreId, Place};

use super::transfers::{Load, Sender};
use super::work::{Block, Op};
use super::{Event, Machine};

impl Machine<'_> {
    /// All of a packet is at a node.
    pub(super) fn delivered(&mut self, id: u32, node: Node) -> Result<(), Error> {
        let now = self.queue.now();
        let Some(packet) = self.noc.packet(id) else { return Ok(()) };
        let (noc, source) = (packet.noc, packet.source);
        let receiver = self.node_cores[usize::from(node)];
        if matches!(packet.load, Load::Request { .. }) {
            if receiver.is_some() {
                self.queue.at(now + self.costs.read_turnaround, Event::Turned(id, node));
                return Ok(());
            }
            return self.respond(id, node);
        }
        let back = now + self.costs.write_turnaround + self.noc.acknowledgement(noc, node, source);
        let Some(packet) = self.noc.packet(id) else { return Ok(()) };
        let (mut set, mut landed) = (None, None);
        match &mut packet.load {
            Load::Multicast { address, data, last, .. } => {
                *last = (*last).max(back);
                if let (Some(core), Some(data)) = (receiver, data) {
                    landed = Some((core, *address, Arc::clone(data)));
                }
            }
            Load::SetSemaphore { semaphore, value, last, .. } => {
                *last = (*last).max(back);
                set = Some((*semaphore, *value));
            }
            _ => {}
        }
        if let Some((core, address, data)) = landed {
            self.put(core, address, &data);
        }
        if let (Some((semaphore, value)), Some(core)) = (set, receiver) {
            self.cores[usize::from(core)].semaphores[usize::from(semaphore)] = value;
            self.stir(core)?;
        }
        let Some(packet) = self.noc.receive(id) else { return Ok(()) };
        match packet.load {
            Load::Write { thread, to, data } => {
                self.noc.settle(&mut self.queue, noc, source, node);
                if let Some(data) = data {
                    self.store(to, &data);
                }
                self.queue.at(back, Event::Acknowledged(thread));
            }
            Load::Multicast { thread, last, .. } | Load::SetSemaphore { thread, last, .. } => {
                self.queue.at(last, Event::Acknowledged(thread));
            }
            Load::IncrementSemaphore { thread, semaphore, by } => {
                self.queue.at(back, Event::Acknowledged(thread));
                if let Some(core) = receiver {
                    let value = &mut self.cores[usize::from(core)].semaphores[usize::from(semaphore)];
                    *value = value.wrapping_add(by);
                    self.stir(core)?;
                }
            }
            Load::Reply { thread, to, data } => {
                let state = &mut self.threads[thread as usize];
                state.reads -= 1;
                let (core, left) = (state.core, state.reads);
                if let Some(data) = data {
                    self.put(core, to, &data);
                }
                if left == 0 {
                    self.stir(core)?;
                }
            }
            Load::Parcel { from, end, parcel } => {
                self.noc.settle(&mut self.queue, noc, source, node);
                if let Sender::Thread(thread) = from {
                    self.queue.at(back, Event::Acknowledged(thread));
                }
                self.collected(end, parcel);
            }
            Load::Unpacked { end, parcel, .. } => {
                if packet.bytes > 4 {
                    self.noc.settle(&mut self.queue, noc, source, node);
                }
                self.unpacked(end, parcel, back)?;
            }
            Load::Request { .. } => {}
        }
        Ok(())
    }

    pub(super) fn store(&mut self, to: Place, data: &Arc<Block>) {
        match to {
            Place::L1 { core, address } => self.put(core, address, data),
            Place::Dram { buffer, page, offset } => {
                let buffer = &mut self.memory.buffers[usize::from(buffer)];
                let range = buffer.range(page, offset, data.bytes.len() as u32);
                if let Some((bytes, written)) = &mut buffer.data {
                    bytes[range].copy_from_slice(&data.bytes);
                    written[page as usize] = true;
                }
            }
        }
    }

    /// Sends what a request asked for.
    pub(super) fn respond(&mut self, id: u32, node: Node) -> Result<(), Error> {
        let Some(packet) = self.noc.receive(id) else { return Ok(()) };
        let Load::Request { thread, from, to, bytes } = packet.load else { return Ok(()) };
        let mut data = None;
        let mut injection = self.injection(bytes, self.spec.noc.read_rate);
        if self.memory.values {
            data = Some(match from {
                Place::L1 { core, address } => self.read_l1(thread, core, address, bytes)?,
                Place::Dram { buffer, page, offset } => {
                    let found = &self.memory.buffers[usize::from(buffer)];
                    let range = found.range(page, offset, bytes);
                    match &found.data {
                        Some((all, written)) if written[page as usize] => Block::new(&all[range]),
                        _ => {
                            return Err(Error::Undefined(format!(
                                "{} reads page {page} of buffer {buffer} in DRAM, which was never written",
                                self.whose(thread)
                            )));
                        }
                    }
                }
            });
        }
        let mut length = injection;
        if matches!(from, Place::Dram { .. }) {
            injection = Time::from(self.noc.flits(bytes)) * TICKS;
            let rate = self.spec.dram.read_bytes_per_cycle;
            length = injection.max((f64::from(bytes) * TICKS as f64 / rate) as Time);
        }
        let reply = Packet {
            noc: packet.noc,
            class: Class::Reply,
            source: node,
            target: Target::One(packet.source),
            bytes,
            moved: bytes,
            length,
            injection,
            open: 1,
            after: 0,
            load: Load::Reply { thread, to, data },
        };
        self.noc.send(&mut self.queue, reply);
        Ok(())
    }

    /// Writes to a core's L1.
    pub(super) fn put(&mut self, core: CoreId, address: u32, data: &Arc<Block>) {
        self.memory.l1[usize::from(core)].mark(address, data.bytes.len() as u32);
        self.pool.add(core, Op::Put { address, data: Arc::clone(data) });
    }
}
