//! Positioned reads and writes from a few threads, with or without the system's page cache.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::process::PerProcess;
use super::transfer::{Stats, Step, Transfer, finish};
use super::{Counters, Engine, Kind, Request, system};

/// Threads where nothing else is said: as many as keep a drive busy at 64 KiB.
pub const THREADS: usize = 16;
/// Bytes of stack; completions do little.
const STACK: usize = 512 << 10;

/// An engine of threads. They are started as requests need them, and end when the engine is dropped and has
/// nothing left to do.
pub struct Threads {
    kind: Kind,
    most: usize,
    stats: Arc<Stats>,
    home: PerProcess<Home>,
}

/// The threads of one process.
struct Home(Arc<Shared>);

struct Shared {
    direct: bool,
    stats: Arc<Stats>,
    /// Requests that threads are at, up to the moment when somebody is told that they are done.
    busy: AtomicUsize,
    queue: Mutex<Queue>,
    ready: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Threads {
    /// An engine of at most `most` threads (at least one). Files of [`Kind::Buffered`] may be read at any
    /// alignment; anything else means direct I/O.
    pub fn new(kind: Kind, most: usize) -> Self {
        let stats = Arc::new(Stats::default());
        let home = Home::new(kind, &stats);
        Self { kind, most: most.max(1), stats, home: PerProcess::new(home) }
    }
}

impl Engine for Threads {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn submit(&self, batch: Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        let shared = &self.home.get(|| Home::new(self.kind, &self.stats)).0;
        let (lost, error) = shared.enqueue(batch, self.most);
        for request in lost {
            finish(request, Err(repeat(&error)), &self.stats);
        }
    }

    fn counters(&self) -> Counters {
        self.stats.snapshot()
    }

    fn depth(&self) -> usize {
        self.most
    }
}

impl Home {
    fn new(kind: Kind, stats: &Arc<Stats>) -> Self {
        Self(Arc::new(Shared {
            direct: kind != Kind::Buffered,
            stats: Arc::clone(stats),
            busy: AtomicUsize::new(0),
            queue: Mutex::default(),
            ready: Condvar::new(),
        }))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Not joined: the last owner may be a completion on one of the threads.
        self.0.lock().closed = true;
        self.0.ready.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch and sees to it that threads take it. Returns what nobody will take, as no thread can be
    /// had, and why.
    fn enqueue(self: &Arc<Self>, batch: Vec<Request>, most: usize) -> (Vec<Request>, io::Error) {
        let mut queue = self.lock();
        let count = batch.len();
        queue.waiting.extend(batch);
        while queue.waiting.len() > queue.idle && queue.threads < most {
            let shared = Arc::clone(self);
            let builder = std::thread::Builder::new().name("prunus-io".to_owned()).stack_size(STACK);
            match builder.spawn(move || shared.work()) {
                // It counts as idle until it has a request, so that not too many are started.
                Ok(_) => (queue.threads, queue.idle) = (queue.threads + 1, queue.idle + 1),
                Err(error) if queue.threads == 0 => return (queue.waiting.drain(..).collect(), error),
                Err(_) => break,
            }
        }
        drop(queue);
        if count == 1 {
            self.ready.notify_one()
        } else {
            self.ready.notify_all()
        }
        (Vec::new(), io::ErrorKind::Other.into())
    }

    fn work(&self) {
        system::begin_thread();
        let mut queue = self.lock();
        loop {
            if let Some(request) = queue.waiting.pop_front() {
                queue.idle -= 1;
                drop(queue);
                self.stats.begin(self.busy.fetch_add(1, Ordering::Relaxed) + 1);
                self.serve(request);
                queue = self.lock();
                queue.idle += 1;
            } else if queue.closed {
                return;
            } else {
                queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn serve(&self, request: Request) {
        let mut transfer = match Transfer::new(request, self.direct) {
            Ok(transfer) => transfer,
            Err((request, error)) => {
                self.busy.fetch_sub(1, Ordering::Relaxed);
                return finish(*request, Err(error), &self.stats);
            }
        };
        loop {
            let (fd, op, offset) = (transfer.fd(), transfer.op(), transfer.offset());
            self.stats.call();
            let answer = system::transfer(fd, op, offset, transfer.window());
            match transfer.advance(answer) {
                Step::Again => {}
                Step::Finished(result) => {
                    self.busy.fetch_sub(1, Ordering::Relaxed);
                    return transfer.finish(result, &self.stats);
                }
            }
        }
    }
}

/// The same error once more.
pub(super) fn repeat(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
