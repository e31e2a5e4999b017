//! Reading and writing small things at any alignment, waiting for them.

use std::any::Any;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};

use super::DiskFile;
use crate::io::{Op, Piece, Request};
use crate::{Aligned, Error, Result, SECTOR};

/// Bytes of one request.
const STEP: usize = 1 << 20;
/// Bytes under way at a time.
const WINDOW: usize = 4 << 20;

/// What keeps memory while the system may use it.
type Owner = Arc<dyn Any + Send + Sync>;

/// The owner of a caller's memory.
fn nobody() -> Owner {
    Arc::new(())
}

impl DiskFile {
    /// Fills `out` with the file's bytes at `offset`, at any alignment, and waits for them.
    ///
    /// # Errors
    /// [`Error::Short`] where the file ends before, and the system's own.
    pub fn read_exact(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let (size, len) = (self.size(), out.len() as u64);
        let short = |got| Error::Short { path: self.path.clone(), offset, expected: len, got };
        let end = offset.checked_add(len).filter(|end| *end <= size);
        let end = end.ok_or_else(|| short(size.saturating_sub(offset)))?;
        let fault = |source| self.error(format!("read {len} bytes at {offset}"), source);
        if !self.direct {
            // SAFETY: `out` outlives the call, which waits, and threads always end what they have begun.
            let got = unsafe { self.transfer(Op::Read, offset, out.as_mut_ptr(), out.len(), &nobody()) }
                .map_err(fault)?;
            return if got == out.len() { Ok(()) } else { Err(short(got as u64)) };
        }
        let (begin, stop) = widen(offset, end);
        let bounce = Arc::new(Aligned::new(WINDOW.min((stop - begin) as usize))?);
        let owner = Arc::clone(&bounce) as Owner;
        let mut at = begin;
        while at < stop {
            let count = bounce.len().min((stop - at) as usize);
            // SAFETY: the memory is that long and outlives the call.
            let got =
                unsafe { self.transfer(Op::Read, at, bounce.as_ptr(), count, &owner) }.map_err(fault)?;
            let (from, to) = (at.max(offset), (at + count as u64).min(end));
            if at + (got as u64) < to {
                return Err(short((at + got as u64).saturating_sub(offset)));
            }
            // SAFETY: nothing is under way in the memory any more.
            let bytes = unsafe { std::slice::from_raw_parts(bounce.as_ptr(), count) };
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
            at += count as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`, at any alignment, and waits for it. Sectors that it covers in part are read
    /// first, under a lock that all calls of this take; requests that are submitted to the same sectors meanwhile
    /// are the caller's to avoid. The file grows where it must.
    ///
    /// # Errors
    /// [`Error::Argument`] where the file is open for reading only, and the system's own.
    pub fn write_all(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.must_be_writable()?;
        let fault = |source| self.error(format!("write {} bytes at {offset}", data.len()), source);
        let end = offset.checked_add(data.len() as u64);
        let end = end.ok_or_else(|| fault(io::ErrorKind::FileTooLarge.into()))?;
        if data.is_empty() {
            return Ok(());
        }
        let _lock = self.sectors.lock().unwrap_or_else(PoisonError::into_inner);
        // What was padded must be gone before the file grows past it.
        if end > self.size() {
            self.trim()?;
        }
        if !self.direct {
            // SAFETY: the engine only reads from `data`, which outlives the call, and threads end what they begin.
            unsafe { self.transfer(Op::Write, offset, data.as_ptr().cast_mut(), data.len(), &nobody()) }
                .map_err(fault)?;
            self.grown(end, end);
            return Ok(());
        }
        let (begin, stop) = widen(offset, end);
        let bounce = Arc::new(Aligned::new(WINDOW.min((stop - begin) as usize))?);
        let owner = Arc::clone(&bounce) as Owner;
        let mut at = begin;
        while at < stop {
            let count = bounce.len().min((stop - at) as usize);
            let (from, to) = (at.max(offset), (at + count as u64).min(end));
            let last = count - SECTOR;
            if from > at {
                self.fetch_sector(at, &bounce, 0).map_err(fault)?;
            }
            if to < at + count as u64 && (last > 0 || from == at) {
                self.fetch_sector(at + last as u64, &bounce, last).map_err(fault)?;
            }
            // SAFETY: the memory is that long, and nothing is under way in it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(bounce.as_ptr(), count) };
            bytes[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            // SAFETY: as above.
            unsafe { self.transfer(Op::Write, at, bounce.as_ptr(), count, &owner) }.map_err(fault)?;
            at += count as u64;
        }
        self.grown(end, stop);
        self.trim()
    }

    /// Reads one sector to a place in `memory`; zeroes past the end of the file.
    fn fetch_sector(&self, at: u64, memory: &Arc<Aligned>, place: usize) -> io::Result<()> {
        let ptr = memory.as_ptr().wrapping_add(place);
        // SAFETY: the place is a whole sector of the memory, and nothing is under way in it.
        let got = unsafe { self.transfer(Op::Read, at, ptr, SECTOR, &(Arc::clone(memory) as Owner)) }?;
        // SAFETY: as above.
        unsafe { ptr.add(got).write_bytes(0, SECTOR - got) };
        Ok(())
    }

    /// Moves bytes in requests of [`STEP`] and waits for all. Returns how many bytes came without a gap.
    ///
    /// # Safety
    /// So many bytes at `ptr` must be there, and for reading be nobody else's, until this returns and, where the
    /// engine may end with requests under way (a ring), for as long as `owner` lives.
    unsafe fn transfer(
        &self,
        op: Op,
        offset: u64,
        ptr: *mut u8,
        len: usize,
        owner: &Owner,
    ) -> io::Result<usize> {
        let mut moved = 0;
        for start in (0..len).step_by(WINDOW) {
            let window = WINDOW.min(len - start);
            let (tell, told) = channel();
            let batch: Vec<Request> = (0..window)
                .step_by(STEP)
                .map(|at| {
                    let (tell, count) = (tell.clone(), STEP.min(window - at));
                    Request {
                        fd: self.descriptor(),
                        op,
                        offset: offset + (start + at) as u64,
                        pieces: vec![Piece { ptr: ptr.wrapping_add(start + at), len: count }],
                        owner: Arc::clone(owner),
                        // The receiver waits for all answers, or has no use for them.
                        done: Box::new(move |result| drop(tell.send((at, result)))),
                    }
                })
                .collect();
            drop(tell);
            let expected = batch.len();
            self.engine.submit(batch);
            // All answers before any error: the memory must be nobody's on return.
            let mut answers: Vec<_> = told.iter().collect();
            if answers.len() != expected {
                return Err(io::Error::other("the I/O engine lost a request"));
            }
            answers.sort_by_key(|(at, _)| *at);
            for (at, answer) in answers {
                let got = answer?;
                moved += got;
                if got < STEP.min(window - at) {
                    return Ok(moved);
                }
            }
        }
        Ok(moved)
    }
}

/// The whole sectors around a range.
fn widen(begin: u64, end: u64) -> (u64, u64) {
    let sector = SECTOR as u64;
    (begin / sector * sector, end.div_ceil(sector) * sector)
}
