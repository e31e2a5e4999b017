//! Writing rows to pages.

use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use prunus_core::Interrupt;

use super::Segment;
use super::gather::{Slot, Slots};
use super::walk::{Accesses, Cursor, Group};
use crate::pool::{Batch, Call, Grab, Outcome, Patience, Phase, State, copy, launch};
use crate::{Error, Result};

/// Pages looked up with the lock held, at most.
const GROUPS: usize = 256;
/// Bytes written around the pool at a time.
const RUN: usize = 1 << 20;

impl Segment {
    /// Copies rows of `values`, `size` bytes each, to the offsets. Of rows for the same offset the last one counts.
    /// The bytes are in the pool afterwards, and in the file after [`flush`](Self::flush) or when they leave.
    ///
    /// # Errors
    /// [`Error::Argument`] for offsets outside of the segment, `values` of another size, and files open for
    /// reading only; what kept a page from being read or room from being made ([`Error::Io`], [`Error::Short`]):
    /// some rows are then not written; [`Error::Interrupted`].
    pub fn scatter(
        &self,
        offsets: &[u64],
        size: usize,
        values: &[u8],
        interrupt: &dyn Interrupt,
    ) -> Result<()> {
        self.check(offsets, size, Some(values.len()))?;
        self.must_be_writable()?;
        if size == 0 || offsets.is_empty() {
            return Ok(());
        }
        if !self.exact {
            return self.write_around(offsets, size, values, interrupt);
        }
        let shared = self.shared();
        let accesses = Accesses::new(offsets, size, self.page, interrupt)?;
        let call = Arc::new(Call::default());
        let mut batch = Batch::new(self.layout, Some(Arc::clone(&call)));
        let (mut cursor, mut again): (Cursor, Vec<Group>) = Default::default();
        let mut slots = Slots::default();
        // pages to copy to: those that are there, and new ones that are filled whole
        let (mut ready, mut fresh): (Vec<Slot>, Vec<Slot>) = Default::default();
        let (mut written, mut filled, mut read): (Vec<u32>, Vec<u32>, Vec<u32>) = Default::default();
        let mut arrived = Vec::new();
        let (mut pages, mut requests) = (0, 0);
        let (most_pages, most_requests) = (self.window(), self.requests());
        let dirty_limit = shared.budget / 2;
        let mut failure = None;
        let mut patience = Patience::new();
        loop {
            let (mut full, mut finished) = (false, false);
            let mut state = shared.lock();
            let quiet = written.is_empty() && filled.is_empty() && read.is_empty();
            for id in filled.drain(..) {
                state.table.page_mut(id).writers += 1;
                state.ready(id);
                state.written(id);
            }
            for id in written.drain(..) {
                state.written(id);
            }
            for id in read.drain(..) {
                state.unpin(id);
            }
            if !quiet {
                shared.tell(&mut state);
            }
            for _ in 0..GROUPS {
                if pages + ready.len() + fresh.len() >= most_pages || requests + batch.len() >= most_requests
                {
                    break;
                }
                if failure.is_some() {
                    finished = true;
                    break;
                }
                if state.dirty_bytes + state.writing_bytes >= dirty_limit {
                    full = true;
                    break;
                }
                let Some(group) = again.pop().or_else(|| accesses.next(&mut cursor)) else {
                    finished = true;
                    break;
                };
                let tag = slots.add(Slot { group, ..Slot::default() });
                let grab = state.grab_to_write(self.layout, group.page, &call, tag);
                let id = match grab {
                    Grab::Ready(id) | Grab::Mine(id) => id,
                    Grab::Coming => {
                        pages += 1;
                        continue;
                    }
                    Grab::Full => {
                        again.push(slots.take(tag).group);
                        full = true;
                        break;
                    }
                };
                let slot = slots.get_mut(tag);
                (slot.id, slot.frame) = (id, state.table.page(id).frame);
                let bytes = state.layouts[self.layout].bytes(group.page);
                match grab {
                    Grab::Ready(_) => ready.push(slots.take(tag)),
                    _ if accesses.cover(group, bytes) => fresh.push(slots.take(tag)),
                    _ => {
                        batch.add(shared, &state, id, tag);
                        pages += 1;
                    }
                }
            }
            requests += batch.len();
            let wait = full && pages == 0 && ready.is_empty() && fresh.is_empty();
            let jobs = if full || state.dirty_bytes > shared.budget / 4 {
                state.write_back(shared, shared.budget / 8, None, u64::MAX)
            } else {
                Vec::new()
            };
            if wait && jobs.is_empty() {
                // also where pages that cannot be written back are all there may be
                self.wait_for_room_to_write(state, &mut patience, interrupt)?;
                continue;
            }
            drop(state);
            launch(shared, jobs);
            batch.submit(shared, &self.file);
            if failure.is_none() && interrupt.interrupted() {
                failure = Some(Error::Interrupted);
            }
            for slot in ready.drain(..) {
                self.copy_in(&accesses, slot, size, values);
                written.push(slot.id);
            }
            for slot in fresh.drain(..) {
                self.copy_in(&accesses, slot, size, values);
                filled.push(slot.id);
            }
            let done = written.is_empty() && filled.is_empty() && read.is_empty();
            if pages == 0 && finished && done && (again.is_empty() || failure.is_some()) {
                return failure.map_or(Ok(()), Err);
            }
            if pages > 0 {
                let wanted = if done { (pages / 4).max(1) } else { 0 };
                requests = requests.saturating_sub(call.collect(&mut arrived, wanted));
                for (tag, outcome) in arrived.drain(..) {
                    let slot = slots.take(tag);
                    pages -= 1;
                    match outcome {
                        // asked for again under the lock that ends its pin: so it is still there
                        Outcome::Ready => {
                            read.push(slot.id);
                            again.push(slot.group);
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

    /// As [`Self::wait_for_room`]; pages that cannot be written back end it where they fill what may be dirty.
    fn wait_for_room_to_write(
        &self,
        mut state: MutexGuard<'_, State>,
        patience: &mut Patience,
        interrupt: &dyn Interrupt,
    ) -> Result<()> {
        let limit = self.shared().budget / 2;
        if state.failed_bytes >= limit && state.writing_bytes == 0 && patience.retry(&mut state)? {
            return Ok(());
        }
        self.wait_for_room(state, self.frame, patience, interrupt)
    }

    fn copy_in(&self, accesses: &Accesses<'_>, slot: Slot, size: usize, values: &[u8]) {
        let base = self.shared().frame(slot.frame);
        for at in slot.group.from..slot.group.to {
            let (row, _) = accesses.get(at);
            let (begin, to, len) = accesses.part(at, slot.group.page);
            let source = &values[row * size + begin..][..len];
            // SAFETY: bytes of a pinned page of an exact layout, which has no lead.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), base.add(to), len) };
        }
    }

    /// Writes rows to the file, and drops the pages that have other bytes.
    fn write_around(
        &self,
        offsets: &[u64],
        size: usize,
        values: &[u8],
        interrupt: &dyn Interrupt,
    ) -> Result<()> {
        let accesses = Accesses::new(offsets, size, self.page, interrupt)?;
        let mut run = Vec::new();
        let mut at = 0;
        while at < offsets.len() {
            if interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
            let (_, begin) = accesses.get(at);
            run.clear();
            while at < offsets.len() {
                let (row, offset) = accesses.get(at);
                let end = begin + run.len() as u64;
                if offset > end || (!run.is_empty() && run.len() + size > RUN) {
                    break;
                }
                // overlapping rows: the later one counts
                run.truncate((offset - begin) as usize);
                run.extend_from_slice(&values[row * size..][..size]);
                at += 1;
            }
            let range = begin..begin + run.len() as u64;
            self.forget(&range, None);
            let result = self.file.write_all(self.start + begin, &run);
            // also what was read meanwhile
            self.forget(&range, result.is_ok().then_some(&run));
            result?;
        }
        Ok(())
    }

    /// Drops pages of an inexact layout that a range of bytes touches. Those being read are read again; those in
    /// use get the new bytes, where these are known.
    fn forget(&self, range: &Range<u64>, data: Option<&[u8]>) {
        let shared = self.shared();
        let mut state = shared.lock();
        state.overtake(self.layout, range);
        if state.layouts[self.layout].pages == 0 {
            return;
        }
        for index in state.layouts[self.layout].touched(range) {
            let Some(id) = state.table.find(self.layout, index) else { continue };
            let page = state.table.page_mut(id);
            if page.phase == Phase::Loading {
                page.stale = true;
            } else if page.pins == 0 {
                state.drop_page(id);
            } else if let Some(data) = data {
                let frame = shared.frame(page.frame);
                let (bytes, lead) = (state.range(self.layout, index), state.layouts[self.layout].lead(index));
                let both = range.start.max(bytes.start)..range.end.min(bytes.end);
                let source = &data[(both.start - range.start) as usize..(both.end - range.start) as usize];
                // SAFETY: bytes of a page in its frame.
                unsafe {
                    let target = frame.add(lead + (both.start - bytes.start) as usize);
                    std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len());
                }
            }
        }
        shared.tell(&mut state);
    }
}
