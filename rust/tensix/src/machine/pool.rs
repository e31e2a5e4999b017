//! Threads of the host that work on the values of cores, each core's in the order in which it was asked for.
//!
//! What a core's values become does not depend on who works on them or when: its work is a queue, taken from in order
//! under one lock, and nothing in it looks at another core. The machine waits only where it needs bytes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use crate::numerics;
use crate::verbs::CoreId;

use super::work::{Op, Values};

/// Work of a core, in microseconds, for which a thread is called: less is not worth its waking up.
const CALL: u32 = 64;
/// Work that may wait: with more, whoever adds some does some, so that queues and what they hold stay small.
const BACKLOG: usize = 20_000;

/// What others hold while they panic is made good by that panic, which ends the run.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A core: its values, and what is still to be done to them. The values' lock is taken first.
struct Seat {
    values: Mutex<Values>,
    ops: Mutex<VecDeque<Op>>,
}

/// Cores that have work, for threads that have none.
#[derive(Default)]
struct Calls {
    cores: VecDeque<CoreId>,
    idle: usize,
    closed: bool,
}

struct Shared {
    seats: Vec<Seat>,
    calls: Mutex<Calls>,
    wake: Condvar,
    backlog: AtomicUsize,
    /// The first thing that went wrong with values. All that can is checked before, so nothing should.
    failed: Mutex<Option<numerics::Error>>,
}

impl Shared {
    fn apply(&self, values: &mut Values, op: Op) {
        if let Err(error) = values.apply(op) {
            lock(&self.failed).get_or_insert(error);
        }
    }

    /// Does all of a core's work, with its values locked.
    fn work(&self, core: CoreId, values: &mut Values) {
        loop {
            let next = lock(&self.seats[usize::from(core)].ops).pop_front();
            let Some(op) = next else { return };
            let weight = op.weight();
            self.apply(values, op);
            self.backlog.fetch_sub(weight as usize, Ordering::Relaxed);
        }
    }

    /// Works on a core unless another thread does, which then does the rest as well, or leaves it for a later call.
    fn visit(&self, core: CoreId) {
        match self.seats[usize::from(core)].values.try_lock() {
            Ok(mut values) => self.work(core, &mut values),
            Err(TryLockError::Poisoned(values)) => self.work(core, &mut values.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// What a thread does until the pool is closed.
    fn serve(&self) {
        let mut calls = lock(&self.calls);
        loop {
            if let Some(core) = calls.cores.pop_front() {
                drop(calls);
                self.visit(core);
                calls = lock(&self.calls);
            } else if calls.closed {
                return;
            } else {
                calls.idle += 1;
                calls = self.wake.wait(calls).unwrap_or_else(PoisonError::into_inner);
                calls.idle -= 1;
            }
        }
    }
}

/// The values of all cores while a program runs, and the threads that work on them.
pub(super) struct Pool {
    shared: Arc<Shared>,
    /// How many threads may work, with the machine's own; the others are started when there is work.
    threads: usize,
    /// The machine's own thread does all, at once: nothing is ever left for later. Not so where the system gives no more
    /// threads than that one: what was asked for before is still to be done then.
    alone: bool,
    helpers: Vec<JoinHandle<()>>,
    /// Work of each core since a thread was last called for it.
    added: Vec<u32>,
}

impl Pool {
    pub(super) fn new(cores: impl Iterator<Item = Values>, threads: usize) -> Self {
        let seats: Vec<_> =
            cores.map(|values| Seat { values: Mutex::new(values), ops: Mutex::default() }).collect();
        Self {
            threads,
            alone: threads <= 1,
            helpers: Vec::new(),
            added: vec![0; seats.len()],
            shared: Arc::new(Shared {
                seats,
                calls: Mutex::default(),
                wake: Condvar::new(),
                backlog: AtomicUsize::new(0),
                failed: Mutex::default(),
            }),
        }
    }

    /// Has something done to the values of a core, after all that was asked for before.
    pub(super) fn add(&mut self, core: CoreId, op: Op) {
        let seat = &self.shared.seats[usize::from(core)];
        if self.alone {
            self.shared.apply(&mut lock(&seat.values), op);
            return;
        }
        let weight = op.weight();
        lock(&seat.ops).push_back(op);
        let backlog = self.shared.backlog.fetch_add(weight as usize, Ordering::Relaxed);
        self.added[usize::from(core)] += weight;
        if self.added[usize::from(core)] >= CALL {
            self.added[usize::from(core)] = 0;
            self.call(core);
        }
        if backlog > BACKLOG {
            let next = lock(&self.shared.calls).cores.pop_front();
            self.shared.visit(next.unwrap_or(core));
        }
    }

    fn call(&mut self, core: CoreId) {
        while self.helpers.len() + 1 < self.threads {
            let shared = Arc::clone(&self.shared);
            let name = "prunus-tensix".to_owned();
            match std::thread::Builder::new().name(name).spawn(move || shared.serve()) {
                Ok(helper) => self.helpers.push(helper),
                Err(_) => self.no_more_threads(),
            }
        }
        let mut calls = lock(&self.shared.calls);
        calls.cores.push_back(core);
        if calls.idle > 0 {
            self.shared.wake.notify_one();
        }
    }

    /// The system has no thread to give: those that are there do all, the machine's own when it needs it.
    fn no_more_threads(&mut self) {
        self.threads = self.helpers.len() + 1;
    }

    /// A core's values, with all done that was asked for.
    pub(super) fn values(&self, core: CoreId) -> MutexGuard<'_, Values> {
        let mut values = lock(&self.shared.seats[usize::from(core)].values);
        self.shared.work(core, &mut values);
        values
    }

    /// Does what is left, and gives back the bytes of each core's L1.
    ///
    /// # Errors
    /// What should have been found before: values that a step cannot take.
    pub(super) fn finish(&mut self) -> (Vec<Vec<u8>>, Result<(), numerics::Error>) {
        let cores = 0..self.shared.seats.len() as CoreId;
        // Cores that nobody is at first; those that others have begun with are theirs to end.
        cores.clone().for_each(|core| self.shared.visit(core));
        let l1 = cores.map(|core| self.values(core).take()).collect();
        self.close();
        let failed = lock(&self.shared.failed).take();
        (l1, failed.map_or(Ok(()), Err))
    }

    fn close(&mut self) {
        lock(&self.shared.calls).closed = true;
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            if let (Err(panic), false) = (helper.join(), std::thread::panicking()) {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::work::Block;
    use super::*;

    #[test]
    fn work_is_done_in_order_where_the_system_has_no_threads() {
        let mut pool = Pool::new(std::iter::once(Values::new(Vec::new())), 2);
        let put = |byte: u8| Op::Put { address: 0, data: Block::new(&[byte; 4]) };
        pool.add(0, put(1));
        pool.no_more_threads();
        pool.add(0, put(2));
        assert_eq!(pool.values(0).bytes(0, 4), [2; 4]);
        pool.add(0, put(3));
        let (l1, done) = pool.finish();
        assert!(done.is_ok());
        assert_eq!(l1[0][..4], [3; 4]);
    }
}
