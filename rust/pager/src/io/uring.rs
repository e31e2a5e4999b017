//! One thread that owns an io_uring ring and keeps it full.
//!
//! Requests arrive in an inbox. The thread moves as many into the ring as its depth allows, keeps the rest in
//! a queue of its own, and waits in the kernel for the next completion; a read of an eventfd that is always in
//! the ring lets the inbox wake it there. No ring, and so no completion queue, is ever asked to hold more than
//! it has room for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode};

use super::process::PerProcess;
use super::threads::repeat;
use super::transfer::{Stats, Step, Transfer, finish};
use super::{Counters, Engine, Kind, Op, Request, system};
use crate::Aligned;

mod registered;

use registered::Registered;

/// Most requests that a ring may be asked to keep under way.
const MOST_DEPTH: usize = 4096;
/// Marks completions of the wake-up read.
const WAKE: u64 = u64::MAX;
/// How long a ring may say that it has no memory before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to look for late completions of a dead ring.
const GRACE: Duration = Duration::from_secs(1);

/// Where wake-up reads go. What they read is the same for all rings, and nobody looks at it; being static it
/// outlives every ring.
static WOKEN: AtomicU64 = AtomicU64::new(0);

/// An engine of one ring and one thread.
pub struct Uring {
    depth: usize,
    stats: Arc<Stats>,
    home: PerProcess<Home>,
}

/// The ring of one process, or why there is none.
struct Home(io::Result<Arc<Shared>>);

struct Shared {
    inbox: Mutex<Inbox>,
    /// For the time after a ring's death.
    posted: Condvar,
    wake: File,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<Request>,
    memory: Vec<(Arc<Aligned>, SyncSender<io::Result<()>>)>,
    /// The thread waits in the kernel, and has room for more requests.
    asleep: bool,
    closed: bool,
    dead: bool,
}

impl Uring {
    /// A ring that keeps up to `depth` requests under way (1 to 4096).
    ///
    /// # Errors
    /// What the system says where it has no io_uring (`ENOSYS`), does not allow it (`EPERM`, as containers do),
    /// or has no locked memory left for it (`ENOMEM`).
    pub fn new(depth: usize) -> io::Result<Self> {
        let depth = depth.clamp(1, MOST_DEPTH);
        let stats = Arc::new(Stats::default());
        let home = Home(Shared::start(depth, &stats));
        match home.0 {
            Ok(_) => Ok(Self { depth, stats, home: PerProcess::new(home) }),
            Err(ref error) => Err(repeat(error)),
        }
    }

    fn shared(&self) -> &io::Result<Arc<Shared>> {
        &self.home.get(|| Home(Shared::start(self.depth, &self.stats))).0
    }
}

impl Engine for Uring {
    fn kind(&self) -> Kind {
        Kind::Uring
    }

    fn submit(&self, batch: Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        match self.shared() {
            Ok(shared) => shared.post(batch),
            Err(error) => fail(batch, error, &self.stats),
        }
    }

    fn counters(&self) -> Counters {
        self.stats.snapshot()
    }

    fn is_alive(&self) -> bool {
        self.shared().as_ref().is_ok_and(|shared| !shared.lock().dead)
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn register(&self, memory: &Arc<Aligned>) -> io::Result<()> {
        let shared = self.shared().as_ref().map_err(repeat)?;
        let (tell, told) = sync_channel(1);
        let mut inbox = shared.lock();
        if inbox.dead {
            return Err(dead());
        }
        inbox.memory.push((Arc::clone(memory), tell));
        shared.wake(inbox).map_err(|(_, error)| error)?;
        told.recv().unwrap_or_else(|_| Err(dead()))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Not joined: the last owner may be a completion on the ring's own thread.
        if let Ok(shared) = &self.0 {
            let mut inbox = shared.lock();
            inbox.closed = true;
            inbox.asleep = true;
            // Where the thread cannot be woken there is nothing more to be done about it.
            let _ = shared.wake(inbox);
            shared.posted.notify_all();
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the io_uring ring of this process is dead; open the file again")
}

fn fail(batch: Vec<Request>, error: &io::Error, stats: &Stats) {
    for request in batch {
        finish(request, Err(repeat(error)), stats);
    }
}

impl Shared {
    /// Makes a ring and its thread.
    fn start(depth: usize, stats: &Arc<Stats>) -> io::Result<Arc<Self>> {
        // SAFETY: a call without memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let wake = unsafe { File::from_raw_fd(fd) };
        let shared = Arc::new(Self {
            inbox: Mutex::default(),
            posted: Condvar::new(),
            wake,
            stats: Arc::clone(stats),
        });
        let (tell, told) = sync_channel(1);
        let theirs = Arc::clone(&shared);
        // The thread makes the ring itself, as the kernel works less for rings that one thread uses alone.
        std::thread::Builder::new().name("prunus-io".to_owned()).spawn(move || {
            system::begin_thread();
            match ring(depth) {
                Ok(ring) => {
                    // The receiver waits for this.
                    let _ = tell.send(Ok(()));
                    Worker::new(ring, depth, theirs).run();
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        })?;
        told.recv().unwrap_or_else(|_| Err(dead()))?;
        Ok(shared)
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, batch: Vec<Request>) {
        let mut inbox = self.lock();
        inbox.requests.extend(batch);
        if inbox.dead {
            drop(inbox);
            return self.posted.notify_all();
        }
        if let Err((lost, error)) = self.wake(inbox) {
            fail(lost, &error, &self.stats);
        }
    }

    /// Wakes the thread if it sleeps. Where that fails, what is in the inbox comes back.
    fn wake(&self, mut inbox: MutexGuard<'_, Inbox>) -> Result<(), (Vec<Request>, io::Error)> {
        if !std::mem::take(&mut inbox.asleep) {
            return Ok(());
        }
        drop(inbox);
        self.stats.call();
        (&self.wake).write_all(&1_u64.to_ne_bytes()).map_err(|error| {
            let mut inbox = self.lock();
            // Nobody was woken: the next one must not rely on it.
            inbox.asleep = true;
            inbox.memory.clear();
            (std::mem::take(&mut inbox.requests), error)
        })
    }
}

/// A ring with the cheapest of the ways to complete requests that this kernel knows.
fn ring(depth: usize) -> io::Result<IoUring> {
    let entries = u32::try_from(depth + 1).unwrap_or(u32::MAX).next_power_of_two();
    let ways: [fn(&mut io_uring::Builder); 3] = [
        |builder| {
            builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun();
        },
        |builder| {
            builder.setup_submit_all().setup_coop_taskrun();
        },
        |_| {},
    ];
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for way in ways {
        let mut builder = IoUring::builder();
        builder.dontfork();
        way(&mut builder);
        match builder.build(entries) {
            Ok(ring) => return checked(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn checked(ring: IoUring) -> io::Result<IoUring> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Readv::CODE, opcode::Writev::CODE];
    if needed.into_iter().chain([opcode::Fsync::CODE]).all(|code| probe.is_supported(code)) {
        Ok(ring)
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

/// The thread's own side.
struct Worker {
    ring: IoUring,
    depth: usize,
    shared: Arc<Shared>,
    /// Requests in the ring, by number.
    flights: Vec<Option<Transfer>>,
    free: Vec<usize>,
    /// Numbers of requests that need another call.
    again: Vec<usize>,
    /// Requests that the ring has no room for yet.
    waiting: VecDeque<Request>,
    /// The wake-up read is in the ring.
    armed: bool,
    registered: Registered,
    answers: Vec<(u64, i32)>,
    /// Requests that have ended, whose owners do not know it yet.
    ended: Vec<(Transfer, io::Result<usize>)>,
}

impl Worker {
    fn new(ring: IoUring, depth: usize, shared: Arc<Shared>) -> Self {
        Self {
            ring,
            depth,
            shared,
            flights: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            again: Vec::new(),
            waiting: VecDeque::new(),
            armed: false,
            registered: Registered::default(),
            answers: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn under_way(&self) -> usize {
        self.depth - self.free.len()
    }

    fn run(mut self) {
        let mut trouble: Option<Instant> = None;
        loop {
            if self.take_inbox() && self.waiting.is_empty() && self.under_way() == 0 && self.ended.is_empty()
            {
                return;
            }
            let free = self.free.len();
            self.fill();
            if !self.ended.is_empty() {
                if self.free.len() < free {
                    // The drive has its next requests while the owners of the last ones are told. What cannot be
                    // sent now is when this thread sleeps, which sees to errors.
                    self.shared.stats.call();
                    let _ = self.ring.submit();
                }
                self.tell();
                continue;
            }
            if !self.may_sleep() {
                continue;
            }
            self.shared.stats.call();
            let waited = self.ring.submit_and_wait(1);
            self.shared.lock().asleep = false;
            let progress = self.collect();
            match waited {
                Ok(_) => trouble = None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Short of memory: what is under way must complete first.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) =>
                {
                    if progress {
                        trouble = None;
                    } else if trouble.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        return self.die(&error);
                    } else {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                Err(error) => return self.die(&error),
            }
        }
    }

    /// Empties the inbox; tells whether the engine was dropped.
    fn take_inbox(&mut self) -> bool {
        let mut inbox = self.shared.lock();
        self.waiting.extend(inbox.requests.drain(..));
        let (memory, closed) = (std::mem::take(&mut inbox.memory), inbox.closed);
        drop(inbox);
        for (memory, tell) in memory {
            // Where nobody wants to know, it is registered all the same.
            let _ = tell.send(self.registered.add(&self.ring, &memory));
        }
        closed
    }

    /// Says that a wake-up is wanted, unless something has arrived meanwhile.
    fn may_sleep(&self) -> bool {
        let mut inbox = self.shared.lock();
        let empty = inbox.requests.is_empty() && inbox.memory.is_empty();
        // With a full ring a wake-up would be of no use: a completion comes first.
        inbox.asleep = empty && !self.free.is_empty();
        let ended = inbox.closed && self.waiting.is_empty() && self.under_way() == 0;
        empty && !ended || self.free.is_empty()
    }

    /// Puts into the ring what there is room for.
    fn fill(&mut self) {
        if !self.armed {
            let wake = Fd(self.shared.wake.as_raw_fd());
            let read = opcode::Read::new(wake, WOKEN.as_ptr().cast(), 8).build().user_data(WAKE);
            self.armed = self.push(&read);
        }
        while let Some(slot) = self.again.pop() {
            if !self.launch(slot) {
                self.again.push(slot);
                return;
            }
        }
        while !self.free.is_empty() {
            let Some(request) = self.waiting.pop_front() else { return };
            let transfer = match Transfer::new(request, true) {
                Ok(transfer) => transfer,
                Err((request, error)) => {
                    finish(*request, Err(error), &self.shared.stats);
                    continue;
                }
            };
            let Some(slot) = self.free.pop() else { return };
            self.shared.stats.begin(self.under_way());
            self.flights[slot] = Some(transfer);
            if !self.launch(slot) {
                self.again.push(slot);
                return;
            }
        }
    }

    /// Puts the next call of a request into the ring; false where the ring is full.
    fn launch(&mut self, slot: usize) -> bool {
        let Some(transfer) = self.flights[slot].as_mut() else { return true };
        let (fd, op, offset) = (Fd(transfer.fd()), transfer.op(), transfer.offset());
        let window = transfer.window();
        let entry = match (op, window) {
            (Op::Sync, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            (Op::Read, [one]) => match self.registered.find(one.ptr as usize, one.len) {
                Some(part) => {
                    opcode::ReadFixed::new(fd, one.ptr, one.len as u32, part).offset(offset).build()
                }
                None => opcode::Read::new(fd, one.ptr, one.len as u32).offset(offset).build(),
            },
            (Op::Write, [one]) => match self.registered.find(one.ptr as usize, one.len) {
                Some(part) => {
                    opcode::WriteFixed::new(fd, one.ptr, one.len as u32, part).offset(offset).build()
                }
                None => opcode::Write::new(fd, one.ptr, one.len as u32).offset(offset).build(),
            },
            (Op::Read, many) => {
                opcode::Readv::new(fd, many.as_ptr().cast(), many.len() as u32).offset(offset).build()
            }
            (Op::Write, many) => {
                opcode::Writev::new(fd, many.as_ptr().cast(), many.len() as u32).offset(offset).build()
            }
        };
        self.push(&entry.user_data(slot as u64))
    }

    fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: the entry names memory of a request that is kept in `flights` until its completion has been
        // seen, a window that stays where it is until then, or static memory.
        unsafe { self.ring.submission().push(entry).is_ok() }
    }

    /// Takes the completions that have arrived; tells whether there were any.
    fn collect(&mut self) -> bool {
        let mut answers = std::mem::take(&mut self.answers);
        answers.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        let any = !answers.is_empty();
        for (number, result) in answers.drain(..) {
            if number == WAKE {
                self.armed = false;
                continue;
            }
            let slot = number as usize;
            let Some(transfer) = self.flights.get_mut(slot).and_then(Option::as_mut) else { continue };
            let answer = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            match transfer.advance(answer) {
                Step::Again => self.again.push(slot),
                Step::Finished(result) => {
                    if let Some(transfer) = self.flights[slot].take() {
                        self.free.push(slot);
                        self.ended.push((transfer, result));
                    }
                }
            }
        }
        self.answers = answers;
        any
    }

    /// Tells the owners of requests that have ended.
    fn tell(&mut self) {
        for (transfer, result) in self.ended.drain(..) {
            transfer.finish(result, &self.shared.stats);
        }
    }

    /// The ring works no more: every request, also later ones, gets an error.
    fn die(mut self, why: &io::Error) {
        let start = Instant::now();
        while self.under_way() > 0 && start.elapsed() < GRACE {
            // Completions may still appear in the ring's memory.
            if !self.collect() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.tell();
        let stats = &self.shared.stats;
        for transfer in self.flights.iter_mut().filter_map(Option::take) {
            transfer.abandon(repeat(why), stats);
        }
        fail(self.waiting.drain(..).collect(), why, stats);
        let mut inbox = self.shared.lock();
        inbox.dead = true;
        loop {
            inbox.memory.clear();
            let batch = std::mem::take(&mut inbox.requests);
            if !batch.is_empty() {
                drop(inbox);
                fail(batch, why, stats);
                inbox = self.shared.lock();
            } else if inbox.closed {
                return;
            } else {
                inbox = self.shared.posted.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
