//! Writing a run of a segment, panel by panel, without waiting for the drive.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use prunus_core::Interrupt;

use super::{Held, Progress, REQUEST, Shape, let_go};
use crate::io::{Op, Piece};
use crate::pool::{Passage, Phase};
use crate::{Error, Result, SECTOR, Segment};

/// Writes a run in panels, in the file's order. The bytes of a panel are seen by others after [`put`](Self::put),
/// but for those of a sector that the next one shares: these after the next one. They are the file's, not durable,
/// after [`close`](Self::close).
pub struct Writer {
    segment: Arc<Segment>,
    shape: Shape,
    end: u64,
    /// Where the panel at hand begins.
    at: u64,
    current: Option<Arc<Held>>,
    /// First bytes of the sector in which the panel at hand begins.
    carry: Vec<u8>,
    /// Panels under way.
    progress: Arc<Progress>,
}

/// Keeps the memory of a writer's panel from other uses, also after the panel was put.
pub struct Kept {
    _held: Arc<Held>,
}

impl Segment {
    /// Writes `begin..end` in panels of `panel` bytes, the last one shorter, `ahead` of them at a time (0: enough to
    /// keep a drive busy).
    ///
    /// # Errors
    /// As [`Self::reader`], and [`Error::Argument`] where the file is open for reading only.
    pub fn writer(self: &Arc<Self>, begin: u64, end: u64, panel: usize, ahead: usize) -> Result<Writer> {
        self.must_be_writable()?;
        Ok(Writer {
            segment: Arc::clone(self),
            shape: Shape::new(self, begin, end, panel, ahead)?,
            end,
            at: begin,
            current: None,
            carry: Vec::new(),
            progress: Arc::default(),
        })
    }
}

impl Writer {
    /// Where the panel at hand begins, from the segment's start.
    pub fn offset(&self) -> u64 {
        self.at
    }

    fn lead(&self) -> usize {
        ((self.segment.start() + self.at) % SECTOR as u64) as usize
    }

    fn len(&self) -> usize {
        (self.end - self.at).min(self.shape.panel as u64) as usize
    }

    /// Memory for the panel at hand, to be filled: what is in it before is of no meaning. Empty after the last one.
    ///
    /// # Errors
    /// An earlier panel's error, which ends the writing; [`Error::Interrupted`]; [`Error::Budget`] where guards and
    /// panels hold all memory.
    pub fn panel(&mut self, interrupt: &dyn Interrupt) -> Result<&mut [u8]> {
        if self.at >= self.end {
            return Ok(&mut []);
        }
        if self.current.is_none() {
            self.segment.shared().check_process()?;
            while !self.progress.wait(self.shape.ahead - 1) {
                if interrupt.interrupted() {
                    return Err(Error::Interrupted);
                }
            }
            self.raise()?;
            // without a frame that nobody has, wait for one of our own
            let held = loop {
                if let Some(held) = self.shape.take(&self.segment, false, interrupt)? {
                    break held;
                }
                if self.progress.wait(0)
                    && let Some(held) = self.shape.take(&self.segment, true, interrupt)?
                {
                    break held;
                }
                if interrupt.interrupted() {
                    return Err(Error::Interrupted);
                }
            };
            // SAFETY: a frame of ours, and a carry that is shorter than a sector.
            unsafe { std::ptr::copy_nonoverlapping(self.carry.as_ptr(), held.ptr(), self.carry.len()) };
            self.current = Some(Arc::new(held));
        }
        let (lead, len) = (self.lead(), self.len());
        let Some(held) = &self.current else { return Ok(&mut []) };
        // SAFETY: the frame holds the panel after its lead, nobody else has it, and it is initialised memory.
        Ok(unsafe { std::slice::from_raw_parts_mut(held.ptr().add(lead), len) })
    }

    /// Keeps the memory of the panel at hand, for who goes on to look at it in ways that cannot be borrowed. It
    /// counts as a panel's until this is dropped.
    pub fn keep(&self) -> Option<Kept> {
        self.current.clone().map(|held| Kept { _held: held })
    }

    /// Sends the panel at hand off; the next one is at hand then.
    ///
    /// # Errors
    /// As [`Self::panel`]; [`Error::Argument`] where there is none; what kept the panel's edges from being written.
    /// After an error others see what the file has of the panel, and nothing else of it.
    pub fn put(&mut self, interrupt: &dyn Interrupt) -> Result<()> {
        self.raise()?;
        let Some(held) = self.current.clone() else {
            let expected = "a panel that was filled".to_owned();
            return Err(Error::Argument { what: "put", expected, got: "none".to_owned() });
        };
        let sector = SECTOR as u64;
        let begin = self.segment.start() + self.at;
        let end = begin + self.len() as u64;
        let base = begin / sector * sector;
        let last = self.at + self.len() as u64 == self.end;
        // whole sectors go straight from the frame; a carry makes the first one whole
        let first = if self.carry.len() == self.lead() { base } else { begin };
        let whole = first.next_multiple_of(sector)..(end / sector * sector);
        let aside = whole.start > whole.end || last;
        let until = if aside { end } else { whole.end };
        // SAFETY: bytes of the frame that were filled.
        let bytes = |range: Range<u64>| unsafe {
            let ptr = held.ptr().add((range.start - base) as usize);
            std::slice::from_raw_parts(ptr.cast_const(), (range.end - range.start) as usize)
        };
        let start = self.segment.start();
        // a carry may begin before the segment does
        let from = first.max(start);
        self.segment.check_limit(until - start)?;
        let passage = self.announce(from - start..until - start, interrupt)?;
        let file = self.segment.file();
        let edges = if whole.start > whole.end {
            [first..end, end..end]
        } else {
            [first..whole.start, if last { whole.end..end } else { end..end }]
        };
        // The pool gets what is in the file or goes there, not what could not be written.
        let mut result = Ok(());
        for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
            result = file.write_all(edge.start, bytes(edge.clone()));
            if result.is_err() {
                break;
            }
            let edge = edge.start.max(start)..edge.end;
            self.displace(edge.start - start..edge.end - start, bytes(edge));
        }
        if result.is_ok() {
            self.displace(from - start..until - start, bytes(from..until));
        }
        self.carry.clear();
        if !aside {
            self.carry.extend_from_slice(bytes(whole.end..end));
        }
        let whole = if result.is_ok() && whole.start < whole.end { whole } else { 0..0 };
        self.submit(&held, base, whole, passage);
        self.current = None;
        self.at += end - begin;
        result
    }

    /// Sends whole sectors off; the passage ends with the last of them.
    fn submit(&self, held: &Arc<Held>, base: u64, whole: Range<u64>, passage: u64) {
        let (file, shared) = (self.segment.file(), self.segment.shared());
        let end = {
            let (shared, layout) = (Arc::clone(shared), self.segment.layout());
            let start = self.segment.start();
            // a carry may begin before the segment does
            let range = whole.start.max(start) - start..whole.end.max(start) - start;
            move |failed: bool| {
                let mut state = shared.lock();
                if failed {
                    state.disown(layout, &range);
                }
                state.passages.retain(|other| other.id != passage);
                shared.tell(&mut state);
            }
        };
        if whole.is_empty() {
            end(false);
            return;
        }
        self.progress.add(1);
        let parts = Arc::new(Progress::default());
        let mut requests = Vec::new();
        let mut at = whole.start;
        while at < whole.end {
            let offset = at;
            let len = (whole.end - at).min(REQUEST as u64) as usize;
            at += len as u64;
            parts.add(1);
            // SAFETY: bytes of the frame.
            let ptr = unsafe { held.ptr().add((offset - base) as usize) };
            let (owner, held, end) = (Arc::clone(file), Arc::clone(held), end.clone());
            let (progress, parts) = (Arc::clone(&self.progress), Arc::clone(&parts));
            let done = Box::new(move |result: io::Result<usize>| {
                let what = || format!("write {len} bytes at {offset}");
                let_go(held, &result);
                let fault = match result {
                    Ok(written) if written == len => None,
                    Ok(_) => Some(owner.error(what(), io::ErrorKind::WriteZero.into())),
                    Err(source) => Some(owner.error(what(), source)),
                };
                if parts.end(fault.map(Arc::new)) {
                    let fault = parts.fault().map(Arc::new);
                    end(fault.is_some());
                    progress.end(fault);
                }
            });
            let pieces = vec![Piece { ptr, len }];
            requests.push(file.request(Op::Write, offset, pieces, Arc::clone(shared) as _, done));
        }
        file.submit(requests);
    }

    /// Keeps others from reading bytes from the file that are about to be written, until the passage ends that is
    /// returned.
    fn announce(&self, range: Range<u64>, interrupt: &dyn Interrupt) -> Result<u64> {
        let (shared, layout) = (self.segment.shared(), self.segment.layout());
        let widened = self.segment.widened(&range);
        let mut state = shared.lock();
        loop {
            let writing = state.layouts[layout].pages > 0
                && state.layouts[layout].touched(&range).any(|index| {
                    state
                        .table
                        .find(layout, index)
                        .is_some_and(|id| state.table.page(id).phase == Phase::Writing)
                });
            // our own earlier panels end before this one's first sector
            if !writing && !state.is_going(layout, &range) {
                break;
            }
            state = shared.pause(state, interrupt)?;
        }
        // under the lock: a cut from now on waits for the panel
        self.segment.check_limit(range.end)?;
        state.overtake(layout, &range);
        state.clock += 1;
        let id = state.clock;
        state.passages.push(Passage { id, layout, range: widened, out: true, stale: false });
        shared.tell(&mut state);
        Ok(id)
    }

    /// Makes the pool agree with bytes that are written or on their way.
    fn displace(&self, range: Range<u64>, data: &[u8]) {
        let (shared, layout) = (self.segment.shared(), self.segment.layout());
        let mut state = shared.lock();
        if state.layouts[layout].pages > 0 {
            for index in state.layouts[layout].touched(&range) {
                let Some(id) = state.table.find(layout, index) else { continue };
                let bytes = state.range(layout, index);
                let lead = state.layouts[layout].lead(index);
                let page = state.table.page_mut(id);
                if page.phase == Phase::Loading {
                    page.stale = true;
                    continue;
                }
                let covered = range.start <= bytes.start && bytes.end <= range.end;
                if covered && page.pins == 0 {
                    state.drop_page(id);
                    continue;
                }
                let both = range.start.max(bytes.start)..range.end.min(bytes.end);
                let source = &data[(both.start - range.start) as usize..(both.end - range.start) as usize];
                let frame = shared.frame(page.frame);
                // SAFETY: bytes of a page in its frame.
                unsafe {
                    let target = frame.add(lead + (both.start - bytes.start) as usize);
                    std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len());
                }
            }
        }
        state.overtake(layout, &range);
        shared.tell(&mut state);
    }

    fn raise(&self) -> Result<()> {
        self.progress.fault().map_or(Ok(()), Err)
    }

    /// Waits until all panels are in the file.
    ///
    /// # Errors
    /// What kept some panel from it.
    pub fn close(&mut self, interrupt: &dyn Interrupt) -> Result<()> {
        self.segment.shared().check_process()?;
        self.current = None;
        while !self.progress.wait(0) {
            if interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
        }
        self.raise()?;
        if !self.carry.is_empty() {
            // closed before its end; kept until it is written, as a close that fails may be tried again
            let carry = self.carry.clone();
            let start = self.segment.start();
            let end = start + self.at;
            let begin = (end - carry.len() as u64).max(start);
            let carry = &carry[carry.len() - (end - begin) as usize..];
            self.segment.check_limit(self.at)?;
            let passage = self.announce(begin - start..self.at, interrupt)?;
            let result = self.segment.file().write_all(begin, carry);
            if result.is_ok() {
                self.displace(begin - start..self.at, carry);
            }
            let mut state = self.segment.shared().lock();
            state.passages.retain(|other| other.id != passage);
            self.segment.shared().tell(&mut state);
            drop(state);
            result?;
            self.carry.clear();
        }
        self.end = self.at;
        Ok(())
    }
}
