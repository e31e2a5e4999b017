//! I/O engines, side by side behind one trait: who moves bytes between files and memory, and how many
//! requests are under way at a time.

use std::any::Any;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

mod choose;
mod null;
mod process;
mod system;
mod threads;
mod transfer;
#[cfg(target_os = "linux")]
mod uring;

pub use choose::{DEPTH, Engines};
pub use null::{Fault, Null, Seen, What};
pub(crate) use process::PerProcess;
pub(crate) use system::on_engine_thread;
pub use threads::{THREADS, Threads};
pub(crate) use transfer::is_abandoned;
#[cfg(target_os = "linux")]
pub use uring::Uring;

use crate::{Aligned, Error};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// From the file to memory.
    Read,
    /// From memory to the file.
    Write,
    /// Make what was written durable (`fdatasync`).
    Sync,
}

/// Some memory of a request, laid out as the system's own `iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Piece {
    /// First byte; a whole number of sectors from address 0 where the file is open for direct I/O.
    pub ptr: *mut u8,
    /// Bytes.
    pub len: usize,
}

// SAFETY: the request that holds it also holds the memory's owner.
unsafe impl Send for Piece {}

/// Called once, on a thread of the engine's: bytes moved, or what kept them. Fewer bytes than were asked for:
/// the file ends there. After an error the memory is free for other uses, unless the engine itself ended while the
/// request was under way; its owner is then kept for good. It should do little, as other requests wait for that thread. Where an engine can have no
/// thread (the system refuses one, a program closed its ring) it is called inside `submit`: so hold no lock
/// there that it takes.
pub type Done = Box<dyn FnOnce(io::Result<usize>) + Send>;

/// A run of a file's bytes to move. Its memory may be scattered.
pub struct Request {
    /// The open file.
    pub fd: Descriptor,
    /// What to do.
    pub op: Op,
    /// First byte in the file; a whole number of sectors where the file is open for direct I/O.
    pub offset: u64,
    /// Where the bytes go to or come from, in the file's order.
    pub pieces: Vec<Piece>,
    /// Keeps the memory and the descriptor until the request is done.
    pub owner: Arc<dyn Any + Send + Sync>,
    /// Who wants to know.
    pub done: Done,
}

/// The system's handle of an open file.
#[cfg(unix)]
pub type Descriptor = std::os::fd::RawFd;
/// The system's handle of an open file.
#[cfg(windows)]
pub type Descriptor = usize;

/// What an engine has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests finished.
    pub requests: u64,
    /// Bytes read, and written.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// System calls made to submit, wait for and retry requests.
    pub calls: u64,
    /// Sum over finished requests of how many were under way when each began: divided by their number it is
    /// the mean depth of the queue.
    pub depth: u64,
}

impl Counters {
    /// Mean number of requests under way when one began; 0 where there were none.
    pub fn mean_depth(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.depth as f64 / self.requests as f64 }
    }
}

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Linux io_uring, direct I/O.
    Uring,
    /// Direct I/O from threads.
    Direct,
    /// Through the system's page cache, from threads.
    Buffered,
    /// Memory in a file's place, with faults on request: for tests.
    Null,
}

impl Kind {
    /// Its name, as `PRUNUS_IO` and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Direct => "direct",
            Self::Buffered => "buffered",
            Self::Null => "null",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    /// Kinds that a user can ask for; not `null`.
    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::Uring, Self::Direct, Self::Buffered].into_iter().find(|kind| kind.name() == name).ok_or_else(
            || Error::Argument {
                what: "I/O engine (PRUNUS_IO, or io=)",
                expected: "io_uring, direct or buffered".to_owned(),
                got: format!("{name:?}"),
            },
        )
    }
}

/// Moves bytes. Requests are independent and may finish in any order; engines go on after a failed one.
pub trait Engine: Send + Sync {
    /// Which one this is.
    fn kind(&self) -> Kind;
    /// Takes requests as one batch. Short reads and interrupted calls are continued inside; each request's
    /// `done` is called exactly once, also where the engine itself fails.
    fn submit(&self, batch: Vec<Request>);
    /// What was done so far.
    fn counters(&self) -> Counters;
    /// Whether it can still serve requests.
    fn is_alive(&self) -> bool {
        true
    }
    /// Requests that it keeps under way at most.
    fn depth(&self) -> usize;
    /// Registers memory that requests will often name, where that saves the system work on each of them.
    /// The engine keeps the memory until it is dropped itself. The memory is backed and pinned as a whole.
    ///
    /// # Errors
    /// `Unsupported` where the engine gains nothing by it, and the system's error where it refuses (`ENOMEM`:
    /// the limit on locked memory). Requests work all the same.
    fn register(&self, memory: &Arc<Aligned>) -> io::Result<()> {
        let _ = memory;
        Err(io::ErrorKind::Unsupported.into())
    }
}
