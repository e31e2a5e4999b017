//! Memory in files' place, with faults on request, for tests of everything above.
//!
//! Its files live as long as it does. Every request goes through the same steps as with a real system: calls
//! that move some bytes, fail, or are interrupted.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::transfer::{Stats, Step, Transfer, finish};
use super::{Counters, Descriptor, Engine, Kind, Op, Piece, Request, system};

/// Something to go wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// With calls of this kind; with all where it is `None`.
    pub op: Option<Op>,
    /// With calls that touch these bytes of a file.
    pub range: Range<u64>,
    /// So many times; `usize::MAX` for ever.
    pub times: usize,
    /// What happens.
    pub what: What,
}

/// What happens at a fault.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// The call fails with this error number of the system's (`libc::EIO`, `ENOSPC`, `EINTR`, `EAGAIN`, ...).
    Error(i32),
    /// The call moves so many bytes at most.
    Short(usize),
    /// The request takes this long.
    Delay(Duration),
    /// The engine gives the request up, as one does that ends, and the bytes move only after
    /// [`Null::move_late`].
    Abandon,
}

/// A request as it was seen, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which file.
    pub fd: Descriptor,
    /// What it was to do.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
    /// Pieces of memory.
    pub pieces: usize,
}

/// The engine. Use [`super::Engines::null`] to open files on it.
pub struct Null {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stats: Stats,
}

#[derive(Default)]
struct State {
    files: HashMap<Descriptor, Vec<u8>>,
    names: HashMap<PathBuf, Descriptor>,
    faults: Vec<Fault>,
    waiting: VecDeque<(Instant, Request)>,
    /// Requests that were given up, without those who asked.
    late: Vec<Request>,
    seen: Vec<Seen>,
    running: bool,
    closed: bool,
    /// Requests that may still be served while it is paused; `None` where it is not.
    allowed: Option<usize>,
    /// State of the generator that chooses the next request; `None` for the order of arrival.
    random: Option<u64>,
}

impl Default for Null {
    fn default() -> Self {
        Self::new()
    }
}

impl Null {
    /// An engine without files.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                stats: Stats::default(),
            }),
        }
    }

    /// Adds a fault. Where several fit a call, the one added first that has times left counts.
    pub fn inject(&self, fault: Fault) {
        self.change(|state| state.faults.push(fault));
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.change(|state| state.faults.clear());
    }

    /// Requests stay where they are from now on.
    pub fn pause(&self) {
        self.change(|state| state.allowed = Some(0));
    }

    /// Lets so many requests of a paused engine through.
    pub fn step(&self, requests: usize) {
        self.change(|state| {
            if let Some(allowed) = &mut state.allowed {
                *allowed += requests;
            }
        });
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.change(|state| state.allowed = None);
    }

    /// Serves requests in an order that depends on `seed` only (and on what is there at a time); `None` for the
    /// order of arrival.
    pub fn shuffle(&self, seed: Option<u64>) {
        self.change(|state| state.random = seed);
    }

    /// Moves the bytes of requests that were given up; tells of how many.
    pub fn move_late(&self) -> usize {
        let late = self.change(|state| std::mem::take(&mut state.late));
        late.into_iter().map(|request| self.shared.serve(request)).count()
    }

    /// Requests that have arrived and are not served yet.
    pub fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    /// Requests since the last call of this, in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.lock().seen)
    }

    /// A copy of a file's bytes; `None` where there is no such file.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.shared.lock();
        state.names.get(path).and_then(|fd| state.files.get(fd)).cloned()
    }

    /// Makes a file, or replaces its bytes.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) -> Descriptor {
        self.change(|state| {
            let next = state.names.len() as Descriptor;
            let fd = *state.names.entry(path.to_owned()).or_insert(next);
            state.files.insert(fd, bytes);
            fd
        })
    }

    /// The file of a name.
    pub(crate) fn find(&self, path: &Path) -> Option<Descriptor> {
        self.shared.lock().names.get(path).copied()
    }

    pub(crate) fn len(&self, fd: Descriptor) -> u64 {
        self.shared.lock().files.get(&fd).map_or(0, |bytes| bytes.len() as u64)
    }

    pub(crate) fn resize(&self, fd: Descriptor, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.change(|state| match state.files.get_mut(&fd) {
            Some(bytes) => {
                bytes.resize(len, 0);
                Ok(())
            }
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.shared.lock());
        self.shared.changed.notify_all();
        result
    }
}

impl Engine for Null {
    fn kind(&self) -> Kind {
        Kind::Null
    }

    fn submit(&self, batch: Vec<Request>) {
        let mut state = self.shared.lock();
        for request in batch {
            let len = request.pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len));
            let Request { fd, op, offset, .. } = request;
            state.seen.push(Seen { fd, op, offset, len, pieces: request.pieces.len() });
            let due = Instant::now() + state.delay(op, offset, len);
            state.waiting.push_back((due, request));
        }
        let mut lost = VecDeque::new();
        if !state.running {
            let shared = Arc::clone(&self.shared);
            match std::thread::Builder::new().name("prunus-null".to_owned()).spawn(move || shared.work()) {
                Ok(_) => state.running = true,
                Err(_) => lost = std::mem::take(&mut state.waiting),
            }
        }
        drop(state);
        self.shared.changed.notify_all();
        for (_, request) in lost {
            finish(request, Err(io::ErrorKind::WouldBlock.into()), &self.shared.stats);
        }
    }

    fn counters(&self) -> Counters {
        self.shared.stats.snapshot()
    }

    fn depth(&self) -> usize {
        64
    }
}

impl Drop for Null {
    fn drop(&mut self) {
        // Whatever still waits is served.
        self.change(|state| (state.closed, state.allowed) = (true, None));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        system::begin_thread();
        let mut state = self.lock();
        loop {
            if state.closed && state.waiting.is_empty() {
                return;
            }
            let now = Instant::now();
            if let Some(request) = state.next(now) {
                self.stats.begin(state.waiting.len() + 1);
                drop(state);
                self.serve(request);
                state = self.lock();
                continue;
            }
            let due = state.waiting.iter().map(|(due, _)| *due).filter(|due| *due > now).min();
            let rest = due.map_or(Duration::from_secs(3600), |due| due - now);
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn serve(&self, request: Request) {
        let mut transfer = match Transfer::new(request, true) {
            Ok(transfer) => transfer,
            Err((request, error)) => return finish(*request, Err(error), &self.stats),
        };
        if !transfer.aligned() {
            // Real direct I/O refuses it too.
            return transfer.finish(Err(io::ErrorKind::InvalidInput.into()), &self.stats);
        }
        if self.lock().gives_up(transfer.op(), transfer.offset(), transfer.window()) {
            self.lock().late.push(transfer.again());
            return transfer.abandon(io::Error::other("the engine ended"), &self.stats);
        }
        loop {
            let (fd, op, offset) = (transfer.fd(), transfer.op(), transfer.offset());
            self.stats.call();
            let answer = self.lock().call(fd, op, offset, transfer.window());
            match transfer.advance(answer) {
                Step::Again => {}
                Step::Finished(result) => return transfer.finish(result, &self.stats),
            }
        }
    }
}

impl State {
    /// A request that is due and allowed.
    fn next(&mut self, now: Instant) -> Option<Request> {
        if self.allowed == Some(0) {
            return None;
        }
        let due = |(due, _): &(Instant, Request)| *due <= now;
        let count = self.waiting.iter().filter(|entry| due(entry)).count();
        let choice = match &mut self.random {
            _ if count == 0 => return None,
            Some(state) => (xorshift(state) % count as u64) as usize,
            None => 0,
        };
        let place = self.waiting.iter().enumerate().filter(|(_, entry)| due(entry)).nth(choice)?.0;
        if let Some(allowed) = &mut self.allowed {
            *allowed -= 1;
        }
        self.waiting.remove(place).map(|(_, request)| request)
    }

    /// Takes the first fault of a sort that such a call meets.
    fn meets(&mut self, op: Op, offset: u64, len: usize, sort: fn(&What) -> bool) -> Option<What> {
        let end = offset.saturating_add(len as u64);
        let fault = self.faults.iter_mut().find(|fault| {
            let touches = op == Op::Sync || offset < fault.range.end && fault.range.start < end;
            fault.times > 0 && fault.op.is_none_or(|only| only == op) && touches && sort(&fault.what)
        })?;
        if fault.times != usize::MAX {
            fault.times -= 1;
        }
        Some(fault.what)
    }

    fn delay(&mut self, op: Op, offset: u64, len: usize) -> Duration {
        match self.meets(op, offset, len, |what| matches!(what, What::Delay(_))) {
            Some(What::Delay(delay)) => delay,
            _ => Duration::ZERO,
        }
    }

    fn gives_up(&mut self, op: Op, offset: u64, window: &[Piece]) -> bool {
        let len = window.iter().map(|piece| piece.len).sum();
        self.meets(op, offset, len, |what| matches!(what, What::Abandon)).is_some()
    }

    /// One system call, as direct I/O would have it.
    fn call(&mut self, fd: Descriptor, op: Op, offset: u64, window: &[Piece]) -> io::Result<usize> {
        let len: usize = window.iter().map(|piece| piece.len).sum();
        let most = match self.meets(op, offset, len, |what| matches!(what, What::Error(_) | What::Short(_))) {
            Some(What::Error(code)) => return Err(io::Error::from_raw_os_error(code)),
            Some(What::Short(most)) => most,
            _ => len,
        };
        let Some(bytes) = self.files.get_mut(&fd) else { return Err(io::ErrorKind::NotFound.into()) };
        let start = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let len = len.min(most);
        match op {
            Op::Sync => return Ok(0),
            Op::Write if len > 0 && bytes.len() < start + len => bytes.resize(start + len, 0),
            _ => {}
        }
        let mut moved = 0;
        for piece in window {
            let at = start.saturating_add(moved);
            let count = piece.len.min(len - moved).min(bytes.len().saturating_sub(at));
            if count == 0 {
                break;
            }
            // SAFETY: the request's owner keeps the piece's memory, and nobody else uses it meanwhile.
            let memory = unsafe { std::slice::from_raw_parts_mut(piece.ptr, count) };
            match op {
                Op::Read => memory.copy_from_slice(&bytes[at..at + count]),
                _ => bytes[at..at + count].copy_from_slice(memory),
            }
            moved += count;
        }
        Ok(moved)
    }
}

/// Marsaglia's xorshift64; zero is no state of it.
fn xorshift(state: &mut u64) -> u64 {
    *state = (*state).max(1);
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
