//! One request under way: which bytes the next system call moves, and what its answer means.
//!
//! All engines share this, so that short transfers, interruptions and the ends of files are understood once.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counters, Op, Piece, Request};
use crate::SECTOR;

/// Most pieces that one system call takes (IOV_MAX of Linux and macOS).
const MOST_PIECES: usize = 1024;
/// Most bytes in one system call: below every system's limit, and whole sectors.
const MOST_BYTES: usize = 1 << 30;
/// The smallest sector of any drive: direct reads that stop elsewhere stopped at the end of the file.
const LEAST_SECTOR: usize = 512;
/// How often in a row a system may say "try again".
const MOST_AGAIN: u32 = 1000;

/// What to do after a system call.
pub(super) enum Step {
    /// Another call, for the rest.
    Again,
    /// Nothing: this is the request's result.
    Finished(io::Result<usize>),
}

/// The error of a request whose engine ended while the system may still move its bytes.
#[derive(Debug)]
struct Abandoned(io::Error);

impl std::fmt::Display for Abandoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; its memory is given up, as the system may still move bytes", self.0)
    }
}

impl std::error::Error for Abandoned {}

/// The error of a request that was given up while the system may still move its bytes.
pub(super) fn give_up(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), Abandoned(error))
}

/// Whether the system may still move bytes of the request that ended so: then its memory must never serve anything
/// else, and never be freed.
pub(crate) fn is_abandoned(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Abandoned>())
}

/// One request under way.
pub(super) struct Transfer {
    request: Request,
    /// Sectors must be kept whole.
    direct: bool,
    total: usize,
    /// Bytes moved so far.
    moved: usize,
    again: u32,
    window: Vec<Piece>,
}

impl Transfer {
    /// # Errors
    /// The request and why it cannot be: more bytes than addresses.
    pub(super) fn new(request: Request, direct: bool) -> Result<Self, (Box<Request>, io::Error)> {
        let total = request.pieces.iter().try_fold(0_usize, |sum, piece| sum.checked_add(piece.len));
        let end = total.and_then(|total| request.offset.checked_add(u64::try_from(total).ok()?));
        match (total, end) {
            (Some(total), Some(end)) if i64::try_from(end).is_ok() => {
                Ok(Self { request, direct, total, moved: 0, again: 0, window: Vec::new() })
            }
            _ => Err((Box::new(request), io::Error::from(io::ErrorKind::InvalidInput))),
        }
    }

    pub(super) fn fd(&self) -> super::Descriptor {
        self.request.fd
    }

    /// Whether it keeps to whole sectors of file and memory.
    pub(super) fn aligned(&self) -> bool {
        let pieces = &self.request.pieces;
        self.request.offset.is_multiple_of(SECTOR as u64)
            && pieces.iter().all(|piece| (piece.ptr as usize | piece.len).is_multiple_of(SECTOR))
    }

    pub(super) fn op(&self) -> Op {
        self.request.op
    }

    /// Place in the file where the next call starts.
    pub(super) fn offset(&self) -> u64 {
        self.request.offset + self.moved as u64
    }

    /// Memory of the next call. It stays where it is until the next call of this.
    pub(super) fn window(&mut self) -> &[Piece] {
        self.window.clear();
        let (mut skip, mut room) = (self.moved, MOST_BYTES);
        for piece in &self.request.pieces {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let len = (piece.len - skip).min(room);
            if len == 0 || self.window.len() == MOST_PIECES {
                break;
            }
            self.window.push(Piece { ptr: piece.ptr.wrapping_add(skip), len });
            room -= len;
            skip = 0;
        }
        &self.window
    }

    /// Takes the answer of a call.
    pub(super) fn advance(&mut self, answer: io::Result<usize>) -> Step {
        let moved = match answer {
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Step::Again,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.again < MOST_AGAIN => {
                self.again += 1;
                return Step::Again;
            }
            // A drive with larger sectors than the one that a read stopped in: it stopped at the end of the file.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && self.stopped_inside_sector() => {
                return Step::Finished(Ok(self.moved));
            }
            Err(error) => return Step::Finished(Err(error)),
        };
        if self.request.op == Op::Sync {
            return Step::Finished(Ok(0));
        }
        self.again = 0;
        self.moved = self.moved.saturating_add(moved).min(self.total);
        if self.moved == self.total {
            return Step::Finished(Ok(self.total));
        }
        let reading = self.request.op == Op::Read;
        let inside_sector = self.direct && !self.moved.is_multiple_of(LEAST_SECTOR);
        match reading {
            true if moved == 0 || inside_sector => Step::Finished(Ok(self.moved)),
            false if moved == 0 => Step::Finished(Err(io::Error::from(io::ErrorKind::WriteZero))),
            _ => Step::Again,
        }
    }

    /// The same bytes once more, for nobody.
    pub(super) fn again(&self) -> Request {
        let Request { fd, op, offset, ref pieces, ref owner, .. } = self.request;
        let (pieces, owner) = (pieces.clone(), Arc::clone(owner));
        Request { fd, op, offset, pieces, owner, done: Box::new(|_| ()) }
    }

    fn stopped_inside_sector(&self) -> bool {
        self.direct && self.request.op == Op::Read && !self.moved.is_multiple_of(SECTOR)
    }

    /// Tells who asked.
    pub(super) fn finish(self, result: io::Result<usize>, stats: &Stats) {
        finish(self.request, result, stats);
    }

    /// Tells who asked that the engine failed, and keeps the memory for good: the system may still move bytes.
    pub(super) fn abandon(self, error: io::Error, stats: &Stats) {
        std::mem::forget(Arc::clone(&self.request.owner));
        finish(self.request, Err(give_up(error)), stats);
    }
}

/// Ends a request: counts it, tells who asked, and only then lets go of its memory.
pub(super) fn finish(request: Request, result: io::Result<usize>, stats: &Stats) {
    let Request { op, owner, done, .. } = request;
    stats.requests.fetch_add(1, Ordering::Relaxed);
    if let Ok(bytes) = result {
        match op {
            Op::Read => stats.read.fetch_add(bytes as u64, Ordering::Relaxed),
            Op::Write => stats.written.fetch_add(bytes as u64, Ordering::Relaxed),
            Op::Sync => 0,
        };
    }
    // A caller's defect must not end the thread that everybody else's requests wait for. The panic's message
    // has been printed by then.
    let _ = catch_unwind(AssertUnwindSafe(|| done(result)));
    let _ = catch_unwind(AssertUnwindSafe(|| drop(owner)));
}

/// Counters that threads share.
#[derive(Debug, Default)]
pub(super) struct Stats {
    requests: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    calls: AtomicU64,
    depth: AtomicU64,
}

impl Stats {
    /// One more system call.
    pub(super) fn call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// A request begins, and so many are under way with it.
    pub(super) fn begin(&self, under_way: usize) {
        self.depth.fetch_add(under_way as u64, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            requests: get(&self.requests),
            read: get(&self.read),
            written: get(&self.written),
            calls: get(&self.calls),
            depth: get(&self.depth),
        }
    }
}
