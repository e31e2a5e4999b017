//! What a drive gives through this crate's engines: bytes per second, depth reached and processor time, by size
//! of block and depth of queue.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prunus_core::Interrupt;

use crate::io::{Counters, Engines, Kind, Op, Piece};
use crate::{Aligned, DiskFile, Error, Mode, Result, SECTOR};

/// Bytes of the scratch file that is written, where nothing else is said.
const SCRATCH: u64 = 256 << 20;
/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// In which order a file is gone through, and what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads at random places.
    RandomRead,
    /// Reads from the beginning on.
    SequentialRead,
    /// Writes from the beginning on, over bytes that are there.
    SequentialWrite,
    /// At random places, seven reads to three writes.
    Mixed,
}

impl Access {
    /// Its name, as reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RandomRead => "random read",
            Self::SequentialRead => "sequential read",
            Self::SequentialWrite => "sequential write",
            Self::Mixed => "random 70 % read, 30 % write",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::SequentialWrite | Self::Mixed)
    }

    fn random(self) -> bool {
        matches!(self, Self::RandomRead | Self::Mixed)
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which engine; `None` for the one that files get.
    pub kind: Option<Kind>,
    /// Orders; those that write use a scratch file.
    pub accesses: Vec<Access>,
    /// Sizes of blocks in bytes, multiples of 4096.
    pub blocks: Vec<usize>,
    /// Requests under way.
    pub depths: Vec<usize>,
    /// Time of each row.
    pub time: Duration,
    /// File for orders that write; it must not be there, and is removed again. `None` for one beside the file.
    pub scratch: Option<PathBuf>,
    /// Bytes of the scratch file.
    pub scratch_size: u64,
    /// Registers the memory with the engine, where it can.
    pub register: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: None,
            accesses: vec![Access::RandomRead, Access::SequentialRead],
            blocks: vec![4 << 10, 16 << 10, 64 << 10, 128 << 10, 1 << 20],
            depths: vec![1, 4, 16, 64],
            time: Duration::from_millis(500),
            scratch: None,
            scratch_size: SCRATCH,
            register: false,
        }
    }
}

/// What was measured of one order, size and depth.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Engine that served the file.
    pub kind: Kind,
    /// Order.
    pub access: Access,
    /// Bytes of a block.
    pub block: usize,
    /// Requests that were kept under way.
    pub depth: usize,
    /// Bytes moved per second.
    pub rate: f64,
    /// Mean number of requests under way at the engine, when one began.
    pub mean_depth: f64,
    /// Processor time of the process per request, user and system, in microseconds.
    pub cpu: f64,
    /// System calls per request.
    pub calls: f64,
    /// Requests done.
    pub requests: u64,
}

/// Measures a file of some size; every row takes the given time.
///
/// # Errors
/// [`Error::Argument`] for a file smaller than a block, a block that is no multiple of 4096 and a depth of 0, the
/// system's own, and [`Error::Interrupted`].
pub fn measure(path: &Path, options: &Options, interrupt: &dyn Interrupt) -> Result<Vec<Row>> {
    let most = options.depths.iter().copied().max().unwrap_or(1);
    let engines = Engines::new(options.kind, most)?;
    let (reads, writes): (Vec<Access>, Vec<Access>) =
        options.accesses.iter().partition(|access| !access.writes());
    let mut rows = Vec::new();
    if !reads.is_empty() {
        let file = DiskFile::open(path, Mode::Read, &engines)?;
        rows_of(&file, &reads, options, interrupt, &mut rows)?;
    }
    if !writes.is_empty() {
        let beside = || {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".prunus-probe-{}", std::process::id()));
            PathBuf::from(name)
        };
        let place = options.scratch.clone().unwrap_or_else(beside);
        let size = options.scratch_size.next_multiple_of(SECTOR as u64);
        let file = DiskFile::open(&place, Mode::CreateNew { size }, &engines)?;
        let _removed = Removed(&place);
        // Space is found for all of it before any row begins.
        let zeroes = vec![0_u8; 4 << 20];
        for at in (0..size).step_by(zeroes.len()) {
            if interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
            file.write_all(at, &zeroes[..zeroes.len().min((size - at) as usize)])?;
        }
        file.sync()?;
        rows_of(&file, &writes, options, interrupt, &mut rows)?;
    }
    Ok(rows)
}

/// Removes a file at the end.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // It holds nothing of anybody's; where it cannot be removed it stays.
        let _ = std::fs::remove_file(self.0);
    }
}

fn rows_of(
    file: &Arc<DiskFile>,
    accesses: &[Access],
    options: &Options,
    interrupt: &dyn Interrupt,
    rows: &mut Vec<Row>,
) -> Result<()> {
    for &access in accesses {
        for &block in &options.blocks {
            let wrong = |expected: &str, got: String| {
                Err(Error::Argument { what: "block", expected: expected.to_owned(), got })
            };
            if block == 0 || !block.is_multiple_of(SECTOR) {
                return wrong("a multiple of 4096 bytes", block.to_string());
            }
            if (block as u64) > file.size() {
                return wrong("no more bytes than the file has", format!("{block} of {}", file.size()));
            }
            for &depth in &options.depths {
                if depth == 0 {
                    return Err(Error::Argument {
                        what: "depth",
                        expected: "at least one request".to_owned(),
                        got: depth.to_string(),
                    });
                }
                rows.push(row(file, access, block, depth, options, interrupt)?);
            }
        }
    }
    Ok(())
}

/// A row under way. Every completion starts the next request in the same memory.
struct Course {
    file: Arc<DiskFile>,
    access: Access,
    block: usize,
    memory: Arc<Aligned>,
    end: Instant,
    next: AtomicU64,
    stop: AtomicBool,
    left: Mutex<Left>,
    over: Condvar,
}

struct Left {
    slots: usize,
    error: Option<io::Error>,
}

fn row(
    file: &Arc<DiskFile>,
    access: Access,
    block: usize,
    depth: usize,
    options: &Options,
    interrupt: &dyn Interrupt,
) -> Result<Row> {
    let memory = Arc::new(Aligned::new(block.checked_mul(depth).ok_or(Error::Memory(usize::MAX))?)?);
    // SAFETY: nobody else has the memory yet. Written, so that it is backed before time is taken.
    unsafe { memory.as_ptr().write_bytes(1, memory.len()) };
    if options.register {
        file.engine().register(&memory).map_err(|source| file.error("register memory", source))?;
    }
    let (counters, cpu, start) = (file.engine().counters(), cpu_time(), Instant::now());
    let course = Arc::new(Course {
        file: Arc::clone(file),
        access,
        block,
        memory,
        end: start + options.time,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        left: Mutex::new(Left { slots: depth, error: None }),
        over: Condvar::new(),
    });
    for slot in 0..depth {
        launch(&course, slot);
    }
    let mut left = course.left.lock().unwrap_or_else(PoisonError::into_inner);
    while left.slots > 0 {
        left = course.over.wait_timeout(left, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        if !course.stop.load(Ordering::Relaxed) && interrupt.interrupted() {
            course.stop.store(true, Ordering::Relaxed);
        }
    }
    if let Some(error) = left.error.take() {
        return Err(file.error(format!("{} blocks of {block} bytes", access.name()), error));
    }
    if course.stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let (elapsed, used) = (start.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
    let done = since(file.engine().counters(), counters);
    let each = |sum: f64| sum / (done.requests.max(1) as f64);
    Ok(Row {
        kind: file.kind(),
        access,
        block,
        depth,
        rate: (done.read + done.written) as f64 / elapsed,
        mean_depth: done.mean_depth(),
        cpu: each(used.as_secs_f64() * 1e6),
        calls: each(done.calls as f64),
        requests: done.requests,
    })
}

fn since(now: Counters, then: Counters) -> Counters {
    Counters {
        requests: now.requests - then.requests,
        read: now.read - then.read,
        written: now.written - then.written,
        calls: now.calls - then.calls,
        depth: now.depth - then.depth,
    }
}

fn launch(course: &Arc<Course>, slot: usize) {
    if course.stop.load(Ordering::Relaxed) || Instant::now() >= course.end {
        return course.leave(None);
    }
    let number = course.next.fetch_add(1, Ordering::Relaxed);
    let blocks = course.file.size() / course.block as u64;
    let place = if course.access.random() { mixed(number) % blocks } else { number % blocks };
    let op = match course.access {
        Access::RandomRead | Access::SequentialRead => Op::Read,
        Access::SequentialWrite => Op::Write,
        Access::Mixed if mixed(!number) % 10 < 3 => Op::Write,
        Access::Mixed => Op::Read,
    };
    let piece = Piece { ptr: course.memory.as_ptr().wrapping_add(slot * course.block), len: course.block };
    let then = Arc::clone(course);
    let done = Box::new(move |result: io::Result<usize>| match result {
        Ok(_) => launch(&then, slot),
        Err(error) => then.leave(Some(error)),
    });
    let owner = Arc::clone(&course.memory);
    let request = course.file.request(op, place * course.block as u64, vec![piece], owner, done);
    course.file.submit(vec![request]);
}

impl Course {
    fn leave(&self, error: Option<io::Error>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.slots -= 1;
        if error.is_some() {
            left.error = error;
            self.stop.store(true, Ordering::Relaxed);
        }
        drop(left);
        self.over.notify_all();
    }
}

/// The finisher of SplitMix64 (Steele, Lea, Flood 2014): places that look random, the same in every run.
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Processor time of this process so far; none where the system does not tell.
fn cpu_time() -> Duration {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the answer fits; zeroes are a valid one where the call fails.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init()
        };
        let time = |time: libc::timeval| {
            Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
                + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
        };
        time(usage.ru_utime) + time(usage.ru_stime)
    }
    #[cfg(not(unix))]
    Duration::ZERO
}
