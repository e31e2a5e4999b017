//! A range of a file's bytes, cut into pages that the pool caches: random access.

mod gather;
mod scatter;
mod walk;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prunus_core::Interrupt;

use crate::pool::{
    Batch, Call, Frames, Grab, LARGEST, Layout, Outcome, Patience, Room, Shared, State, copy, launch,
};
use crate::{DiskFile, Error, Pager, Result, SECTOR};

/// A range of a file's bytes, cut into pages.
///
/// Offsets count from the segment's start. Segments of the same file with the same start and page size share
/// their pages. Bytes that one thread writes while another one reads or writes the same are undefined, as with
/// mapped memory; everything else may be done at the same time from any thread.
pub struct Segment {
    pager: Arc<Pager>,
    file: Arc<DiskFile>,
    layout: u32,
    start: u64,
    len: u64,
    /// Where its layout ends: before the segment does where the file was cut.
    limit: Arc<AtomicU64>,
    page: usize,
    frame: usize,
    exact: bool,
}

impl Segment {
    /// Bytes `start..start + len` of a file, in pages of `page` bytes. Where `start` and `page` are whole sectors
    /// pages are written in their frames; otherwise a page is read with the sectors around it and writes go
    /// around the pool.
    ///
    /// # Errors
    /// [`Error::Argument`] for a page of no bytes, or a range that is not in the file, or that overlaps another
    /// segment in use with other pages where the file can be written; [`Error::Budget`] where no slab holds a page.
    pub fn new(pager: &Arc<Pager>, file: &Arc<DiskFile>, start: u64, len: u64, page: usize) -> Result<Self> {
        let shared = &pager.shared;
        shared.check_process()?;
        let wrong = |what, expected: &str, got: String| {
            Err(Error::Argument { what, expected: expected.to_owned(), got })
        };
        if page == 0 {
            return wrong("page", "at least one byte", "0".to_owned());
        }
        match start.checked_add(len) {
            Some(end) if end <= file.size() => {}
            _ => {
                let expected = format!("a range within the file's {} bytes", file.size());
                return wrong("segment", &expected, format!("{len} bytes from {start}"));
            }
        }
        let sector = SECTOR as u64;
        let exact = start.is_multiple_of(sector) && page.is_multiple_of(SECTOR);
        let frame = if exact {
            page
        } else {
            // the furthest into a sector that a page can begin
            let step = gcd(page as u64, sector);
            let lead = sector - step + start % step;
            (lead as usize).saturating_add(page).checked_next_multiple_of(SECTOR).unwrap_or(usize::MAX)
        };
        let mut state = shared.lock();
        if frame > state.frames.largest() {
            let least = Frames::least(frame.min(1 << 40));
            let what = format!("a page of {page} bytes");
            return match frame > LARGEST {
                true => wrong("page", "at most 2 MiB less a sector", page.to_string()),
                false => Err(Error::Budget { budget: shared.budget, what, least }),
            };
        }
        let class = state.class(frame);
        let mut tries = 0;
        let layout = loop {
            match state.room(file, start, len, page) {
                Room::Join(number) => {
                    state.layouts[number].users += 1;
                    break number;
                }
                Room::New => {
                    let file = Arc::clone(file);
                    let limit = Arc::new(AtomicU64::new(len));
                    let (users, pages, fault) = (1, 0, None);
                    let new = Layout { file, start, len, limit, page, exact, class, users, pages, fault };
                    break state.layouts.add(new);
                }
                Room::Later if tries < 20 => {
                    tries += 1;
                    drop(state);
                    pager.write_back(file, &prunus_core::Never)?;
                    state = shared.sleep(shared.lock());
                }
                Room::Later | Room::Taken => {
                    let expected = "bytes that no other segment in use has in other pages";
                    return wrong("segment", expected, format!("pages of {page} bytes from {start}"));
                }
            }
        };
        let limit = Arc::clone(&state.layouts[layout].limit);
        drop(state);
        let (pager, file) = (Arc::clone(pager), Arc::clone(file));
        Ok(Self { pager, file, layout, start, len, limit, page, frame, exact })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins in the file.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes of a page.
    pub fn page(&self) -> usize {
        self.page
    }

    /// The file.
    pub fn file(&self) -> &Arc<DiskFile> {
        &self.file
    }

    /// The pager.
    pub fn pager(&self) -> &Arc<Pager> {
        &self.pager
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.pager.shared
    }

    pub(crate) fn layout(&self) -> u32 {
        self.layout
    }

    /// A range with the sectors around it, as far as they are the segment's.
    pub(crate) fn widened(&self, range: &Range<u64>) -> Range<u64> {
        let sector = SECTOR as u64;
        let begin = (self.start + range.start) / sector * sector;
        let end = (self.start + range.end).next_multiple_of(sector);
        begin.saturating_sub(self.start)..(end - self.start)
    }

    pub(crate) fn must_be_writable(&self) -> Result<()> {
        if self.file.writable() {
            return Ok(());
        }
        Err(Error::Argument {
            what: "segment",
            expected: "a file that is open for writing".to_owned(),
            got: format!("{}, open for reading", self.file.path().display()),
        })
    }

    fn check(&self, offsets: &[u64], size: usize, have: Option<usize>) -> Result<()> {
        self.shared().check_process()?;
        if let Some(have) = have {
            let need = offsets.len().checked_mul(size);
            if need != Some(have) {
                return Err(Error::Argument {
                    what: "values",
                    expected: format!("{} times {size} bytes", offsets.len()),
                    got: format!("{have} bytes"),
                });
            }
        }
        let fits = |offset: &u64| offset.checked_add(size as u64).is_some_and(|end| end <= self.len);
        match offsets.iter().find(|offset| !fits(offset)) {
            None => self.check_limit(offsets.iter().max().map_or(0, |offset| offset + size as u64)),
            Some(offset) => Err(Error::Argument {
                what: "offset",
                expected: format!("{size} bytes within the segment's {}", self.len),
                got: offset.to_string(),
            }),
        }
    }

    /// Sees whether the file still has the segment's bytes up to `end`.
    ///
    /// # Errors
    /// [`Error::Changed`] where it was cut.
    pub(crate) fn check_limit(&self, end: u64) -> Result<()> {
        let limit = self.limit.load(Ordering::Acquire);
        if end.min(self.len) <= limit {
            return Ok(());
        }
        let fault = format!("it was cut to {} bytes, and {} are used", self.start + limit, self.start + end);
        Err(Error::Changed { path: self.file.path().to_owned(), fault })
    }

    /// Writes back what is newer than the file, and makes it durable.
    ///
    /// # Errors
    /// What kept pages of the file from being written, now or since the last flush: they stay dirty.
    pub fn flush(&self, interrupt: &dyn Interrupt) -> Result<()> {
        self.pager.flush_file(&self.file, interrupt)
    }

    /// A page's part in memory, for as long as the guard lives.
    ///
    /// # Errors
    /// [`Error::Argument`] where it is not within one page of the segment; what kept the page from being read;
    /// [`Error::Budget`] where other guards hold all frames.
    pub fn pin(&self, offset: u64, size: usize, interrupt: &dyn Interrupt) -> Result<Pinned> {
        self.check(&[offset], size, None)?;
        let (index, at) = (offset / self.page as u64, (offset % self.page as u64) as usize);
        if at + size > self.page {
            return Err(Error::Argument {
                what: "size",
                expected: format!("at most {} bytes, to the end of the page", self.page - at),
                got: size.to_string(),
            });
        }
        if size == 0 {
            return Ok(Pinned {
                shared: Arc::clone(self.shared()),
                page: None,
                ptr: std::ptr::null(),
                len: 0,
            });
        }
        let id = self.fetch(index, interrupt)?;
        let mut state = self.shared().lock();
        state.held += 1;
        let lead = state.layouts[self.layout].lead(index);
        // SAFETY: within the frame, which holds the page after its lead.
        let ptr = unsafe { self.shared().frame(state.table.page(id).frame).add(lead + at) };
        drop(state);
        Ok(Pinned { shared: Arc::clone(self.shared()), page: Some(id), ptr, len: size })
    }

    /// Brings one page and pins it.
    fn fetch(&self, index: u64, interrupt: &dyn Interrupt) -> Result<u32> {
        let shared = self.shared();
        let call = Arc::new(Call::default());
        let mut patience = Patience::new();
        let mut arrived = Vec::new();
        loop {
            let mut batch = Batch::new(self.layout, Some(Arc::clone(&call)));
            let mut state = shared.lock();
            let id = match state.grab(self.layout, index, &call, 0) {
                Grab::Ready(id) => return Ok(id),
                Grab::Mine(id) => {
                    batch.add(shared, &state, id, 0);
                    Some(id)
                }
                Grab::Coming => state.table.find(self.layout, index),
                Grab::Full => None,
            };
            let Some(id) = id else {
                self.wait_for_room(state, self.frame, &mut patience, interrupt)?;
                continue;
            };
            drop(state);
            batch.submit(shared, &self.file);
            while arrived.is_empty() {
                // an interruption waits for the read: its frame is ours until then
                call.collect(&mut arrived, 1);
            }
            match arrived.pop() {
                Some((_, Outcome::Ready)) => return Ok(id),
                Some((_, Outcome::Failed(error))) => return Err(copy(&error)),
                _ => {}
            }
        }
    }

    /// No frame of `size` bytes can be had, and the call holds nothing: has dirty pages written, and waits for a
    /// change.
    pub(crate) fn wait_for_room(
        &self,
        mut state: std::sync::MutexGuard<'_, State>,
        size: usize,
        patience: &mut Patience,
        interrupt: &dyn Interrupt,
    ) -> Result<()> {
        let shared = self.shared();
        let jobs = state.write_back(shared, shared.budget / 4, None, u64::MAX);
        if jobs.is_empty() {
            let stuck = state.failed_bytes > 0 && state.writing_bytes == 0 && state.loading == 0;
            if stuck && patience.retry(&mut state)? {
                return Ok(());
            }
            patience.check(&state, shared.budget, size)?;
            drop(shared.pause(state, interrupt)?);
        } else {
            drop(state);
            launch(shared, jobs);
        }
        Ok(())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.shared().is_ours() {
            let mut state = self.shared().lock();
            state.layouts[self.layout].users -= 1;
            let closed = state.retire();
            drop(state);
            drop(closed);
        }
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { start, len, page, exact, .. } = self;
        f.debug_struct("Segment")
            .field("file", &self.file.path())
            .field("start", start)
            .field("len", len)
            .field("page", page)
            .field("exact", exact)
            .finish_non_exhaustive()
    }
}

/// Bytes of a page that stays in memory while this lives.
pub struct Pinned {
    shared: Arc<Shared>,
    page: Option<u32>,
    ptr: *const u8,
    len: usize,
}

// SAFETY: it only reads memory of the pool's, which any thread may.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl std::ops::Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.page {
            None => &[],
            // SAFETY: bytes of a frame that is pinned.
            Some(_) => unsafe { std::slice::from_raw_parts(self.ptr, self.len) },
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(id) = self.page
            && self.shared.is_ours()
        {
            let mut state = self.shared.lock();
            state.unpin(id);
            state.held -= 1;
            self.shared.tell(&mut state);
        }
    }
}

pub(crate) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
