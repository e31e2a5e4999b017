//! Long runs of a segment in the file's order, in panels: contiguous frames of the pool's memory.

mod reader;
mod writer;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

pub use reader::{Panel, Reader};
pub use writer::{Kept, Writer};

use crate::pool::{Frames, LARGEST, POLL, Patience, Shared, copy, launch};
use crate::{Error, Result, SECTOR, Segment};

/// Largest request.
const REQUEST: usize = 1 << 20;
/// Bytes under way where nothing else is said and the budget allows it.
const AHEAD: usize = 12 << 20;

/// A frame that a stream has; it goes back when nobody has this any more, requests included.
struct Held {
    shared: Arc<Shared>,
    frame: u32,
    size: usize,
    /// What it takes of its slab.
    share: usize,
    /// Frames of its stream.
    mine: Arc<AtomicUsize>,
}

impl Held {
    fn ptr(&self) -> *mut u8 {
        self.shared.frame(self.frame)
    }
}

/// Lets go of a panel's memory after a request, but for one that the system may still move bytes of.
fn let_go(held: Arc<Held>, result: &std::io::Result<usize>) {
    if result.as_ref().is_err_and(crate::io::is_abandoned) {
        std::mem::forget(held);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.shared.is_ours() {
            let mut state = self.shared.lock();
            state.give(self.frame);
            state.panels -= self.size;
            state.panels_share -= self.share;
            self.mine.fetch_sub(1, Ordering::Relaxed);
            self.shared.tell(&mut state);
        }
    }
}

/// Requests of one panel, or panels of one writer, that are under way.
#[derive(Default)]
struct Progress {
    state: Mutex<(usize, Option<Arc<Error>>)>,
    changed: Condvar,
}

impl Progress {
    fn add(&self, count: usize) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 += count;
    }

    /// One ended; the first fault is kept. Returns whether it was the last.
    fn end(&self, fault: Option<Arc<Error>>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        if state.1.is_none() {
            state.1 = fault;
        }
        self.changed.notify_all();
        state.0 == 0
    }

    /// Waits a moment unless there are at most so many. Returns whether there are.
    fn wait(&self, most: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 > most {
            state = self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.0 <= most
    }

    /// Takes the fault out.
    fn fault(&self) -> Option<Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1.take().map(|error| copy(&error))
    }
}

/// Size of a stream's panels and their frames, and how many at a time.
#[derive(Debug)]
struct Shape {
    panel: usize,
    frame: usize,
    class: usize,
    ahead: usize,
    /// Frames that the stream has, its users' included. Changed under the pool's lock.
    mine: Arc<AtomicUsize>,
}

impl Shape {
    fn new(segment: &Segment, begin: u64, end: u64, panel: usize, ahead: usize) -> Result<Self> {
        let shared = segment.shared();
        shared.check_process()?;
        let wrong = |what, expected: String, got: String| Err(Error::Argument { what, expected, got });
        if begin > end || end > segment.len() {
            let expected = format!("a range within the segment's {} bytes", segment.len());
            return wrong("stream", expected, format!("{begin}..{end}"));
        }
        segment.check_limit(end)?;
        if panel == 0 {
            return wrong("panel", "at least one byte".to_owned(), "0".to_owned());
        }
        let panel = panel.min((end - begin).max(1) as usize);
        let frame = segment.frame_for(segment.start() + begin, panel);
        let mut state = shared.lock();
        let largest = state.frames.largest();
        if frame > largest {
            if frame > LARGEST {
                let expected = format!("at most {} bytes", LARGEST - SECTOR);
                return wrong("panel", expected, panel.to_string());
            }
            let what = format!("a panel of {panel} bytes");
            return Err(Error::Budget { budget: shared.budget, what, least: Frames::least(frame) });
        }
        let class = state.class(frame);
        let room = (shared.budget / 4 / frame).max(1);
        let ahead = if ahead == 0 { AHEAD.div_ceil(frame).max(2) } else { ahead };
        Ok(Self { panel, frame, class, ahead: ahead.min(room), mine: Arc::default() })
    }

    /// A frame for a panel; with `wait` it is waited for.
    fn take(
        &self,
        segment: &Segment,
        wait: bool,
        interrupt: &dyn prunus_core::Interrupt,
    ) -> Result<Option<Held>> {
        let shared = segment.shared();
        let mut patience = Patience::new();
        loop {
            let mut state = shared.lock();
            let share = state.frames.share(self.class);
            // Streams leave half of the budget to pages: what is read ahead may lie there for long. Who is waited for
            // may have a panel beyond, so that the others' cannot keep it from going on. It may come back for the
            // next one while it still holds that, so the last quarter is for these: some of them always goes on.
            let most = match (wait, self.mine.load(Ordering::Relaxed)) {
                (true, 0) => shared.budget / 4 * 3,
                (true, 1) => shared.budget,
                _ => shared.budget / 2,
            };
            let allowed = state.panels == 0 || state.panels_share + share <= most;
            if allowed && let Some(frame) = state.take(self.class) {
                state.panels += self.frame;
                state.panels_share += share;
                self.mine.fetch_add(1, Ordering::Relaxed);
                state.panels_peak = state.panels_peak.max(state.panels);
                let (shared, mine) = (Arc::clone(shared), Arc::clone(&self.mine));
                return Ok(Some(Held { shared, frame, size: self.frame, share, mine }));
            }
            if !wait {
                if allowed {
                    let jobs = state.write_back(shared, shared.budget / 8, None, u64::MAX);
                    drop(state);
                    launch(shared, jobs);
                }
                return Ok(None);
            }
            segment.wait_for_room(state, self.frame, &mut patience, interrupt)?;
        }
    }
}

impl Segment {
    /// Bytes of a frame that holds any panel of `panel` bytes, where one begins at `begin` in the file.
    fn frame_for(&self, begin: u64, panel: usize) -> usize {
        let sector = SECTOR as u64;
        let step = crate::segment::gcd(panel as u64, sector);
        // the furthest into a sector that a panel can begin
        let lead = (sector - step + begin % step) as usize;
        let lead = if begin.is_multiple_of(sector) && step == sector { 0 } else { lead };
        lead.saturating_add(panel).checked_next_multiple_of(SECTOR).unwrap_or(usize::MAX)
    }

    /// A good size for panels: the largest multiple of `unit` bytes (a row) of which two fit a slab, so about 1 MiB,
    /// or one unit where that is larger.
    pub fn panel_size(&self, unit: usize) -> usize {
        let unit = unit.max(1);
        let largest = self.shared().lock().frames.largest();
        let most = (largest / 2).max(2 * SECTOR) - SECTOR;
        let exact = self.start().is_multiple_of(SECTOR as u64) && (most + SECTOR).is_multiple_of(unit);
        if exact && unit.is_power_of_two() { most + SECTOR } else { (most / unit).max(1) * unit }
    }
}
