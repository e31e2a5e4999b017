//! A pager: a pool of pages with its budget, and the engines that fill it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use prunus_core::Interrupt;

use crate::io::Engines;
use crate::pool::{Phase, Shared, launch};
use crate::{DiskFile, Mode, Result};

/// A fixed budget of memory that caches parts of files, for any number of threads.
pub struct Pager {
    pub(crate) shared: Arc<Shared>,
    engines: Engines,
    /// Files that are open and may be written.
    written: Mutex<Vec<Weak<DiskFile>>>,
}

/// What a pager has and did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Bytes of frames in use, and at most so far.
    pub resident: usize,
    /// Bytes of frames in use at most so far.
    pub peak: usize,
    /// Pages that were asked for and there.
    pub hits: u64,
    /// Pages that were asked for and had to be read.
    pub misses: u64,
    /// Pages that left for others.
    pub evictions: u64,
    /// Requests to engines.
    pub requests: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Bytes written to files.
    pub bytes_written: u64,
    /// System calls for that.
    pub calls: u64,
    /// Mean number of requests under way when one began.
    pub mean_depth: f64,
    /// Bytes that are newer than their files.
    pub dirty: usize,
    /// Pages and panels' bytes that users hold.
    pub pinned: usize,
}

impl Pager {
    /// A pager of `budget` bytes, all of them for pages and streams; tables take up to 1 % more.
    ///
    /// # Errors
    /// [`crate::Error::Budget`] where that is less than eight sectors, [`crate::Error::Memory`] where there is less.
    pub fn new(budget: usize, engines: Engines) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { shared: Arc::new(Shared::new(budget)?), engines, written: Mutex::default() }))
    }

    /// Bytes that were given.
    pub fn budget(&self) -> usize {
        self.shared.budget
    }

    /// Sees whether this process made the pager. What a forked child's parent was doing never ends there.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] in a forked child.
    pub fn check_process(&self) -> Result<()> {
        self.shared.check_process()
    }

    /// The engines.
    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Opens a file. One that this pager has open to write is handed out again, also to who only reads: what is
    /// newer than the file is seen by all.
    ///
    /// # Errors
    /// As [`DiskFile::open`].
    pub fn open(&self, path: &Path, mode: Mode) -> Result<Arc<DiskFile>> {
        self.shared.check_process()?;
        let file = DiskFile::open(path, mode, &self.engines)?;
        let same = |other: &Arc<DiskFile>| file.identity().is_some() && other.identity() == file.identity();
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|file| file.strong_count() > 0);
        if matches!(mode, Mode::Read | Mode::ReadWrite)
            && let Some(open) = written.iter().rev().filter_map(Weak::upgrade).find(same)
        {
            drop(written);
            // Somebody else may have written to it since: who opens a file sees what is in it now.
            self.release(&open, &prunus_core::Never)?;
            let now = open.as_it_is(|| DiskFile::open(path, mode, &self.engines))?;
            if let Some(now) = now {
                if now.writable() {
                    let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                    written.push(Arc::downgrade(&now));
                }
                return Ok(now);
            }
            return Ok(open);
        }
        if file.writable() {
            written.push(Arc::downgrade(&file));
        }
        Ok(file)
    }

    /// Writes back what is newer than its file, of all files, and makes it durable.
    ///
    /// # Errors
    /// What kept pages from being written, now or since the last flush: they stay dirty. Interruption.
    pub fn flush(&self, interrupt: &dyn Interrupt) -> Result<()> {
        let files: Vec<_> = {
            self.shared.check_process()?;
            let state = self.shared.lock();
            let mut files: Vec<Arc<DiskFile>> = Vec::new();
            for layout in state.layouts.iter() {
                let known = files.iter().any(|file| Arc::ptr_eq(file, &layout.file));
                if layout.file.writable() && !known {
                    files.push(Arc::clone(&layout.file));
                }
            }
            files
        };
        let results: Vec<_> = files.iter().map(|file| self.flush_file(file, interrupt)).collect();
        results.into_iter().collect()
    }

    /// Writes back what is newer than one file, and makes it durable.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn flush_file(&self, file: &Arc<DiskFile>, interrupt: &dyn Interrupt) -> Result<()> {
        self.write_back(file, interrupt)?;
        file.sync()
    }

    /// Writes back what is newer than the file, without making it durable.
    pub(crate) fn write_back(&self, file: &Arc<DiskFile>, interrupt: &dyn Interrupt) -> Result<()> {
        let shared = &self.shared;
        shared.check_process()?;
        let mut state = shared.lock();
        let kept = Shared::kept_fault(&state, Some(file));
        for layout in state.layouts.iter_mut() {
            if Arc::ptr_eq(&layout.file, file) {
                layout.fault = None;
            }
        }
        // those that failed before are tried again, once
        state.forgive(Some(file));
        let until = state.clock;
        loop {
            let jobs = state.write_back(shared, usize::MAX, Some(file), until);
            if !jobs.is_empty() {
                drop(state);
                launch(shared, jobs);
                state = shared.lock();
            }
            let open = state.table.numbers().any(|id| {
                let page = state.table.page(id);
                let open = match page.phase {
                    Phase::Writing => true,
                    Phase::Dirty => !page.failed && page.dirtied <= until,
                    _ => false,
                };
                open && Arc::ptr_eq(&state.layouts[page.layout].file, file)
            });
            if !open {
                break;
            }
            state = shared.pause(state, interrupt)?;
        }
        let fault = kept.or_else(|| Shared::kept_fault(&state, Some(file)));
        for layout in state.layouts.iter_mut() {
            if Arc::ptr_eq(&layout.file, file) {
                layout.fault = None;
            }
        }
        if cfg!(debug_assertions) {
            state.check();
        }
        fault.map_or(Ok(()), Err)
    }

    /// Makes a file so many bytes long; new ones are zero. What was to be written beyond a new end is forgotten; what
    /// is under way there is waited for.
    ///
    /// # Errors
    /// As [`DiskFile::resize`]; interruption. Nothing was forgotten or cut off then.
    pub fn resize(&self, file: &Arc<DiskFile>, size: u64, interrupt: &dyn Interrupt) -> Result<()> {
        self.shared.check_process()?;
        if file.writable() && size < file.size() {
            let mut state = self.shared.lock();
            // The file is cut under the lock, so that nothing is read or written beyond its end meanwhile, and what
            // was to be written there is forgotten only once the system has cut it.
            loop {
                let paused = match state.cut(file, size, || file.resize(size)) {
                    Ok(true) => break,
                    Ok(false) => self.shared.pause(state, interrupt),
                    Err(error) => {
                        state.uncut(file);
                        return Err(error);
                    }
                };
                state = match paused {
                    Ok(state) => state,
                    Err(error) => {
                        self.shared.lock().uncut(file);
                        return Err(error);
                    }
                };
            }
            self.shared.tell(&mut state);
            let closed = state.retire();
            drop(state);
            drop(closed);
            return Ok(());
        }
        file.resize(size)
    }

    /// Writes back what is newer than the file and drops its pages from the pool. Its segments can be used
    /// afterwards; they read again.
    ///
    /// # Errors
    /// What kept pages from being written: these stay, and stay dirty. Interruption.
    pub fn release(&self, file: &Arc<DiskFile>, interrupt: &dyn Interrupt) -> Result<()> {
        let result = if file.writable() { self.write_back(file, interrupt) } else { Ok(()) };
        self.shared.check_process()?;
        let mut state = self.shared.lock();
        for id in state.table.numbers() {
            let page = *state.table.page(id);
            if page.phase == Phase::Clean
                && page.pins == 0
                && Arc::ptr_eq(&state.layouts[page.layout].file, file)
            {
                state.drop_page(id);
            }
        }
        self.shared.tell(&mut state);
        let closed = state.retire();
        drop(state);
        drop(closed);
        result
    }

    /// What there is, and what was done so far.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        if !self.shared.is_ours() {
            return stats;
        }
        let mut depth = 0;
        for engine in self.engines.in_use() {
            let counters = engine.counters();
            stats.requests += counters.requests;
            stats.bytes_read += counters.read;
            stats.bytes_written += counters.written;
            stats.calls += counters.calls;
            depth += counters.depth;
        }
        if stats.requests > 0 {
            stats.mean_depth = depth as f64 / stats.requests as f64;
        }
        let state = self.shared.lock();
        (stats.resident, stats.peak) = state.frames.in_use();
        stats.hits = state.counts.hits;
        stats.misses = state.counts.misses;
        stats.evictions = state.counts.evictions;
        stats.dirty = state.dirty_bytes + state.writing_bytes;
        stats.pinned = state.held + state.panels;
        stats
    }
}

impl Drop for Pager {
    /// Writes back what nobody flushed. Errors are lost here: flush first where that matters.
    fn drop(&mut self) {
        if self.shared.is_ours() {
            drop(self.flush(&prunus_core::Never));
        }
    }
}
