//! Reading a run of a segment, ahead of whoever uses it.

use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prunus_core::{Interrupt, Never};

use super::{Held, Progress, REQUEST, Shape, let_go};
use crate::io::{Op, Piece, Request};
use crate::pool::{Passage, Phase, Shared, State};
use crate::{Error, Result, SECTOR, Segment};

/// Bytes that the pool has are read again rather than left out of a request, where they are so few.
const GAP: u64 = 16 << 10;

/// A panel that is being read.
struct Flight {
    passage: u64,
    held: Arc<Held>,
    range: Range<u64>,
    progress: Arc<Progress>,
}

/// Panels of a run, in the file's order, read ahead. What the pool has is taken from there; what was read is kept
/// there while there are frames that nobody has. A panel shows all writes that ended before it was asked for.
pub struct Reader {
    segment: Arc<Segment>,
    shape: Shape,
    end: u64,
    /// Where the next panel to be read begins.
    at: u64,
    flights: VecDeque<Flight>,
}

/// A part of a segment in memory, of its own frame.
pub struct Panel {
    held: Arc<Held>,
    lead: usize,
    len: usize,
    offset: u64,
}

impl Panel {
    /// Where it begins, from the segment's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl Deref for Panel {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the frame is held, was filled so far, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.held.ptr().add(self.lead), self.len) }
    }
}

impl Segment {
    /// Reads `begin..end` in panels of `panel` bytes, the last one shorter, `ahead` of them at a time (0: enough to
    /// keep a drive busy). Reading starts at once.
    ///
    /// # Errors
    /// [`Error::Argument`] for a range that is not in the segment and panels that no slab can hold,
    /// [`Error::Budget`] where the budget's slabs are too small for one.
    pub fn reader(self: &Arc<Self>, begin: u64, end: u64, panel: usize, ahead: usize) -> Result<Reader> {
        let shape = Shape::new(self, begin, end, panel, ahead)?;
        let mut reader =
            Reader { segment: Arc::clone(self), shape, end, at: begin, flights: VecDeque::new() };
        reader.fill()?;
        Ok(reader)
    }
}

impl Reader {
    /// Bytes of a panel; the last one may have fewer.
    pub fn panel(&self) -> usize {
        self.shape.panel
    }

    /// Has more panels read, as far as there is room.
    fn fill(&mut self) -> Result<()> {
        while self.at < self.end && self.flights.len() < self.shape.ahead {
            match self.start(false, &Never) {
                Ok(true) => {}
                // that it was cut off is said when it is its turn
                Ok(false) | Err(Error::Changed { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Starts the next panel; with `wait` a frame is waited for.
    fn start(&mut self, wait: bool, interrupt: &dyn Interrupt) -> Result<bool> {
        let range = self.at..self.end.min(self.at + self.shape.panel as u64);
        self.segment.check_limit(range.end)?;
        let Some(held) = self.shape.take(&self.segment, wait, interrupt)? else { return Ok(false) };
        let flight = self.launch(Arc::new(held), range.clone(), interrupt)?;
        self.at = range.end;
        self.flights.push_back(flight);
        Ok(true)
    }

    /// Has a range read into a frame.
    fn launch(&self, held: Arc<Held>, range: Range<u64>, interrupt: &dyn Interrupt) -> Result<Flight> {
        let (shared, segment) = (self.segment.shared(), &self.segment);
        let mut state = shared.lock();
        while state.is_going(segment.layout(), &segment.widened(&range)) {
            // no frame is waited for, so this ends
            state = shared.pause(state, interrupt)?;
        }
        // under the lock: a cut from now on makes the panel stale
        segment.check_limit(range.end)?;
        let (pages, runs) = plan(&mut state, segment.layout(), &range);
        state.clock += 1;
        let passage = state.clock;
        let (layout, out, stale) = (segment.layout(), false, false);
        state.passages.push(Passage { id: passage, layout, range: range.clone(), out, stale });
        let flight = Flight { passage, held, range, progress: Arc::default() };
        let requests: Vec<Request> = runs.iter().flat_map(|run| self.requests(&flight, run)).collect();
        state.reading += usize::from(!requests.is_empty());
        drop(state);
        flight.progress.add(requests.len());
        if !requests.is_empty() {
            segment.file().submit(requests);
        }
        // What is read meanwhile beside or across these bytes is the same, as only clean pages are read across.
        // Whoever changes one from now on makes the panel stale.
        self.copy(&flight, &pages, true);
        if !pages.is_empty() {
            let mut state = shared.lock();
            for &id in &pages {
                state.unpin(id);
            }
            shared.tell(&mut state);
        }
        Ok(flight)
    }

    /// Requests for a run of bytes of a panel.
    fn requests(&self, flight: &Flight, run: &Range<u64>) -> Vec<Request> {
        let (file, start) = (self.segment.file(), self.segment.start());
        let sector = SECTOR as u64;
        let base = (start + flight.range.start) / sector * sector;
        let end = start + run.end;
        let mut at = (start + run.start) / sector * sector;
        let mut requests = Vec::new();
        while at < end {
            let offset = at;
            let bytes = ((end - at).next_multiple_of(sector)).min(REQUEST as u64) as usize;
            at += bytes as u64;
            // SAFETY: the frame holds the panel's sectors from `base` on.
            let ptr = unsafe { flight.held.ptr().add((offset - base) as usize) };
            let (held, progress, owner) =
                (Arc::clone(&flight.held), Arc::clone(&flight.progress), Arc::clone(file));
            let pool = Arc::clone(self.segment.shared());
            let need = (end - offset).min(bytes as u64);
            let done = Box::new(move |result: io::Result<usize>| {
                let_go(held, &result);
                let fault = match result {
                    Ok(got) if got as u64 >= need => None,
                    Ok(got) => Some(Error::Short {
                        path: owner.path().to_owned(),
                        offset,
                        expected: need,
                        got: got as u64,
                    }),
                    Err(source) => Some(owner.error(format!("read {bytes} bytes at {offset}"), source)),
                };
                if progress.end(fault.map(Arc::new)) && pool.is_ours() {
                    let mut state = pool.lock();
                    state.reading -= 1;
                    pool.tell(&mut state);
                }
            });
            let shared = Arc::clone(self.segment.shared());
            requests.push(file.request(Op::Read, offset, vec![Piece { ptr, len: bytes }], shared, done));
        }
        requests
    }

    /// The next panel; `None` after the last one.
    ///
    /// # Errors
    /// What kept the panel from being read, [`Error::Changed`] where it was cut off: the one after it can be asked
    /// for. [`Error::Interrupted`]: the same
    /// panel can be asked for again. [`Error::Budget`] where other panels and guards hold all memory.
    pub fn next(&mut self, interrupt: &dyn Interrupt) -> Result<Option<Panel>> {
        self.segment.shared().check_process()?;
        self.fill()?;
        if self.flights.is_empty() {
            if self.at >= self.end {
                return Ok(None);
            }
            if let Err(error) = self.start(true, interrupt) {
                if matches!(error, Error::Changed { .. }) {
                    self.at = self.end.min(self.at + self.shape.panel as u64);
                }
                return Err(error);
            }
        }
        loop {
            let Some(flight) = self.flights.front() else { return Ok(None) };
            while !flight.progress.wait(0) {
                if interrupt.interrupted() {
                    return Err(Error::Interrupted);
                }
            }
            let Some(flight) = self.flights.pop_front() else { return Ok(None) };
            if let Err(error) = self.segment.check_limit(flight.range.end) {
                self.abandon(flight);
                return Err(error);
            }
            let kept = match flight.progress.fault() {
                None => self.land(&flight),
                // It was cut under the read and has grown again. No request has the frame any more.
                Some(Error::Short { .. })
                    if self.is_stale(&flight) && Arc::strong_count(&flight.held) == 1 =>
                {
                    None
                }
                Some(fault) => {
                    self.abandon(flight);
                    return Err(fault);
                }
            };
            let Some(kept) = kept else {
                // the file was changed under it
                let (held, range) = (Arc::clone(&flight.held), flight.range.clone());
                self.abandon(flight);
                // only writes under way are waited for
                let again = self.launch(held, range, &Never)?;
                self.flights.push_front(again);
                continue;
            };
            return Ok(Some(self.finish(flight, &kept)));
        }
    }

    /// Whether the file was changed under a panel that was being read.
    fn is_stale(&self, flight: &Flight) -> bool {
        self.segment.shared().lock().is_stale(flight.passage)
    }

    /// Takes a panel that has been read off the list, and finds frames for pages of it that can be
    /// kept. `None` where it must be read again.
    fn land(&self, flight: &Flight) -> Option<Vec<u32>> {
        let segment = &self.segment;
        let mut state = segment.shared().lock();
        if state.is_stale(flight.passage) {
            return None;
        }
        state.passages.retain(|passage| passage.id != flight.passage);
        let layout = segment.layout();
        let (class, page) = (state.layouts[layout].class, segment.page() as u64);
        // slabs for the panels that this stream will have, one of them in use, or that others had
        let most = state.panels_peak.max((self.shape.ahead + 2) * self.shape.frame);
        let spare = most.saturating_sub(state.panels).div_ceil(state.frames.largest());
        // pages are not kept where the file is about to be cut
        let end = flight.range.end.min(state.layouts[layout].limit.load(Ordering::Acquire));
        let mut kept = Vec::new();
        for index in flight.range.start.div_ceil(page)..flight.range.end.div_ceil(page) {
            let bytes = state.range(layout, index);
            if !state.frames.has_free(class) && state.frames.empty() <= spare {
                break;
            }
            if bytes.is_empty() || bytes.end > end || state.table.find(layout, index).is_some() {
                continue;
            }
            let Some(frame) = state.take_free(class) else { break };
            let id = state.place(layout, index, frame);
            state.admit(id);
            kept.push(id);
        }
        Some(kept)
    }

    /// Copies pinned pages into a panel, or out of it.
    fn copy(&self, flight: &Flight, pages: &[u32], into: bool) {
        if pages.is_empty() {
            return;
        }
        let shared = self.segment.shared();
        let lead = ((self.segment.start() + flight.range.start) % SECTOR as u64) as usize;
        let target = flight.held.ptr();
        let places: Vec<(u32, usize, Range<u64>)> = {
            let state = shared.lock();
            let place = |&id: &u32| {
                let page = state.table.page(id);
                let lead = state.layouts[page.layout].lead(page.index);
                (page.frame, lead, state.range(page.layout, page.index))
            };
            pages.iter().map(place).collect()
        };
        for (frame, page_lead, bytes) in places {
            let both = bytes.start.max(flight.range.start)..bytes.end.min(flight.range.end);
            let len = both.end.saturating_sub(both.start) as usize;
            // SAFETY: both lie in their frames, of which one is the panel's own and the other one pinned.
            unsafe {
                let page = shared.frame(frame).add(page_lead + (both.start - bytes.start) as usize);
                let here = target.add(lead + (both.start - flight.range.start) as usize);
                let (from, to) = if into { (page, here) } else { (here, page) };
                std::ptr::copy_nonoverlapping(from, to, len);
            }
        }
    }

    /// Copies out of a panel what the pool is to keep of it.
    fn finish(&self, flight: Flight, kept: &[u32]) -> Panel {
        let (shared, segment) = (self.segment.shared(), &self.segment);
        self.copy(&flight, kept, false);
        if !kept.is_empty() {
            let mut state = shared.lock();
            for &id in kept {
                if state.table.page(id).stale {
                    state.drop_page(id);
                } else {
                    state.ready(id);
                    state.unpin(id);
                }
            }
            shared.tell(&mut state);
        }
        let lead = ((segment.start() + flight.range.start) % SECTOR as u64) as usize;
        let len = (flight.range.end - flight.range.start) as usize;
        Panel { held: flight.held, lead, len, offset: flight.range.start }
    }

    fn abandon(&self, flight: Flight) {
        let mut state = self.segment.shared().lock();
        state.passages.retain(|passage| passage.id != flight.passage);
        self.segment.shared().tell(&mut state);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if Shared::is_ours(self.segment.shared()) {
            while let Some(flight) = self.flights.pop_front() {
                self.abandon(flight);
            }
        }
    }
}

/// Pages of a range that the pool has, pinned, and the runs of bytes to read for the others.
fn plan(state: &mut State, layout: u32, range: &Range<u64>) -> (Vec<u32>, Vec<Range<u64>>) {
    let touched = state.layouts[layout].touched(range);
    let count = touched.end - touched.start;
    if state.layouts[layout].pages == 0 {
        state.counts.misses += count;
        return (Vec::new(), vec![range.clone()]);
    }
    let (mut pages, mut runs): (Vec<u32>, Vec<Range<u64>>) = Default::default();
    // whether the last run may go on across what the pool has
    let mut open = false;
    for index in touched {
        let resident =
            state.table.find(layout, index).filter(|&id| state.table.page(id).phase != Phase::Loading);
        if let Some(id) = resident {
            state.counts.hits += 1;
            state.use_page(id);
            state.table.page_mut(id).pins += 1;
            pages.push(id);
            open &= state.table.page(id).phase == Phase::Clean;
            continue;
        }
        state.counts.misses += 1;
        let bytes = state.range(layout, index);
        let (begin, end) = (bytes.start.max(range.start), bytes.end.min(range.end));
        match runs.last_mut() {
            Some(run) if open && begin <= run.end + GAP => run.end = end,
            _ => runs.push(begin..end),
        }
        open = true;
    }
    (pages, runs)
}
