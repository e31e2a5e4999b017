//! Reading rows from pages: many requests at a time, rows copied as their pages come.

use std::sync::Arc;
use std::time::Instant;

use prunus_core::{Interrupt, Never};

use super::Segment;
use super::walk::{Accesses, Cursor, Group};
use crate::pool::{Batch, Call, Grab, Outcome, POLL, Patience, copy, launch};
use crate::{Error, Result};

/// Pages looked up with the lock held, at most.
const GROUPS: usize = 256;

/// A page that a call waits for or copies from or to.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    pub(super) group: Group,
    pub(super) id: u32,
    pub(super) frame: u32,
    pub(super) lead: usize,
}

/// Pages that a call has under way, by tag.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn add(&mut self, slot: Slot) -> u32 {
        match self.free.pop() {
            Some(tag) => {
                self.slots[tag as usize] = slot;
                tag
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        }
    }

    pub(super) fn get_mut(&mut self, tag: u32) -> &mut Slot {
        &mut self.slots[tag as usize]
    }

    pub(super) fn take(&mut self, tag: u32) -> Slot {
        self.free.push(tag);
        self.slots[tag as usize]
    }
}

impl Segment {
    /// Pages that one call may have under way.
    pub(super) fn window(&self) -> usize {
        (self.shared().budget / 4 / self.frame).clamp(1, 1 << 16)
    }

    /// Requests that one call may have under way: so many that the engine never waits for the call.
    pub(super) fn requests(&self) -> usize {
        3 * self.file.engine().depth().max(1)
    }

    /// Copies `size` bytes from each offset to the rows of `out`, one after another.
    ///
    /// # Errors
    /// [`Error::Argument`] for offsets outside of the segment or an `out` of another size; what kept a page from
    /// being read ([`Error::Io`], [`Error::Short`]): some rows are then not filled; [`Error::Interrupted`].
    pub fn gather(
        &self,
        offsets: &[u64],
        size: usize,
        out: &mut [u8],
        interrupt: &dyn Interrupt,
    ) -> Result<()> {
        self.check(offsets, size, Some(out.len()))?;
        if size == 0 || offsets.is_empty() {
            return Ok(());
        }
        let shared = self.shared();
        let accesses = Accesses::new(offsets, size, self.page, interrupt)?;
        let call = Arc::new(Call::default());
        let mut batch = Batch::new(self.layout, Some(Arc::clone(&call)));
        let (mut cursor, mut again): (Cursor, Vec<Group>) = Default::default();
        let mut slots = Slots::default();
        let (mut ready, mut unpin, mut arrived): (Vec<Slot>, Vec<u32>, Vec<_>) = Default::default();
        let (mut pages, mut requests) = (0, 0);
        let (most_pages, most_requests) = (self.window(), self.requests());
        let mut failure = None;
        let mut patience = Patience::new();
        let mut looked = Instant::now();
        loop {
            let mut full = false;
            let mut finished = false;
            {
                let mut state = shared.lock();
                if !unpin.is_empty() {
                    for id in unpin.drain(..) {
                        state.unpin(id);
                    }
                    shared.tell(&mut state);
                }
                for _ in 0..GROUPS {
                    if pages + ready.len() >= most_pages || requests + batch.len() >= most_requests {
                        break;
                    }
                    if failure.is_some() {
                        finished = true;
                        break;
                    }
                    let Some(group) = again.pop().or_else(|| accesses.next(&mut cursor)) else {
                        finished = true;
                        break;
                    };
                    let lead = state.layouts[self.layout].lead(group.page);
                    let tag = slots.add(Slot { group, id: 0, frame: 0, lead });
                    let grab = state.grab(self.layout, group.page, &call, tag);
                    let id = match grab {
                        Grab::Ready(id) | Grab::Mine(id) => id,
                        // it is in the table, loading
                        Grab::Coming => state.table.find(self.layout, group.page).unwrap_or(u32::MAX),
                        Grab::Full => {
                            again.push(slots.take(tag).group);
                            full = true;
                            break;
                        }
                    };
                    let slot = slots.get_mut(tag);
                    (slot.id, slot.frame) = (id, state.table.page(id).frame);
                    match grab {
                        Grab::Ready(_) => ready.push(slots.take(tag)),
                        Grab::Mine(_) => {
                            batch.add(shared, &state, id, tag);
                            pages += 1;
                        }
                        _ => pages += 1,
                    }
                }
                requests += batch.len();
                if full && pages == 0 && ready.is_empty() {
                    self.wait_for_room(state, self.frame, &mut patience, interrupt)?;
                    continue;
                }
                if full {
                    let jobs = state.write_back(shared, shared.budget / 8, None, u64::MAX);
                    drop(state);
                    launch(shared, jobs);
                }
            }
            batch.submit(shared, &self.file);
            if looked.elapsed() >= POLL {
                looked = Instant::now();
                if failure.is_none() && interrupt.interrupted() {
                    failure = Some(Error::Interrupted);
                }
            }
            let idle = ready.is_empty();
            for slot in ready.drain(..) {
                self.copy_out(&accesses, slot, size, out);
                unpin.push(slot.id);
            }
            if pages == 0 && finished && unpin.is_empty() && again.is_empty() {
                return failure.map_or(Ok(()), Err);
            }
            if pages == 0 && finished && failure.is_some() && unpin.is_empty() {
                return failure.map_or(Ok(()), Err);
            }
            if pages > 0 {
                // a sleeper is woken for a good part of what is under way: the engine has the rest meanwhile
                let wanted = if idle && unpin.is_empty() { (pages / 4).max(1) } else { 0 };
                requests = requests.saturating_sub(call.collect(&mut arrived, wanted));
                for (tag, outcome) in arrived.drain(..) {
                    let slot = slots.take(tag);
                    pages -= 1;
                    match outcome {
                        Outcome::Ready => {
                            self.copy_out(&accesses, slot, size, out);
                            unpin.push(slot.id);
                        }
                        Outcome::Again => again.push(slot.group),
                        Outcome::Failed(error) => {
                            failure.get_or_insert_with(|| copy(&error));
                        }
                    }
                }
            }
        }
    }

    fn copy_out(&self, accesses: &Accesses<'_>, slot: Slot, size: usize, out: &mut [u8]) {
        let base = self.shared().frame(slot.frame);
        for at in slot.group.from..slot.group.to {
            let (row, _) = accesses.get(at);
            let (begin, from, len) = accesses.part(at, slot.group.page);
            let target = &mut out[row * size + begin..][..len];
            // SAFETY: bytes of a pinned page, which lie in its frame after the lead.
            unsafe { std::ptr::copy_nonoverlapping(base.add(slot.lead + from), target.as_mut_ptr(), len) };
        }
    }

    /// Has pages read that will be asked for soon, as far as there is room, and returns at once. Pages that are
    /// not asked for before others need their frames are read in vain.
    ///
    /// # Errors
    /// [`Error::Argument`] for offsets outside of the segment. Errors of reads are left to who asks for the page.
    pub fn prefetch(&self, offsets: &[u64], size: usize) -> Result<()> {
        self.check(offsets, size, None)?;
        if size == 0 || offsets.is_empty() {
            return Ok(());
        }
        let shared = self.shared();
        let accesses = Accesses::new(offsets, size, self.page, &Never)?;
        let mut batch = Batch::new(self.layout, None);
        let mut cursor = Cursor::default();
        let mut open = true;
        while open {
            let mut state = shared.lock();
            for _ in 0..GROUPS {
                let Some(group) = accesses.next(&mut cursor) else {
                    open = false;
                    break;
                };
                match state.grab_ahead(self.layout, group.page) {
                    Some(Grab::Mine(id)) => batch.add(shared, &state, id, 0),
                    Some(_) => {
                        open = false;
                        break;
                    }
                    None => {}
                }
            }
            drop(state);
            batch.submit(shared, &self.file);
        }
        Ok(())
    }
}
