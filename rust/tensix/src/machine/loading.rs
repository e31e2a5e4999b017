//! Lays a program out: where its circular buffers are, and which kernel runs where.

use std::collections::HashSet;

use crate::error::Error;
use crate::program::{Program, Role};
use crate::timeline::Lane;
use crate::verbs::CoreId;

use super::cb::Cb;
use super::compute::Compute;
use super::threads::Thread;
use super::{Event, Machine, Options};

impl Machine<'_> {
    /// Lays out a program's circular buffers and starts its kernels.
    pub(super) fn load(&mut self, program: Program) -> Result<(), Error> {
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
        let mut taken = HashSet::new();
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
            if !taken.insert((launch.core, launch.role as u8)) {
                return Err(Error::Misused(format!(
                    "kernel {}: the {:?} thread of core {} has another kernel",
                    launch.name,
                    launch.role,
                    self.describe(launch.core)
                )));
            }
            let lane = match launch.role {
                Role::DataMovement0 => Lane::DataMovement0,
                Role::DataMovement1 => Lane::DataMovement1,
                Role::Compute => Lane::Unpack,
            };
            if let Some(timeline) = &mut self.timeline {
                timeline.kernels.push((launch.core, lane, launch.name.clone()));
            }
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
                self.threads.push(Thread::new(launch.core, launch.noc, lane, launch.name, launch.kernel));
                self.queue.at(0, Event::Thread(id));
            }
        }
        Ok(())
    }
}
