//! The engine's own threads: a pool that survives `fork`, and the loop that runs tasks on it.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use prunus_core::{Error, Interrupt};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::team;

/// How a call may run: on how many threads, and who may stop it.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Threads to use, the calling one included.
    pub threads: usize,
    /// Asked between tasks by the calling thread.
    pub interrupt: &'a dyn Interrupt,
}

/// `PRUNUS_NUM_THREADS`, else what a library that is followed uses here, else the number of CPUs this process may use.
///
/// # Errors
/// [`Error::Choice`] where the variable is set to anything but a positive number.
pub fn default_threads() -> Result<usize, Error> {
    static ASKED: OnceLock<Result<Option<usize>, Error>> = OnceLock::new();
    static CPUS: OnceLock<usize> = OnceLock::new();
    let asked = ASKED.get_or_init(|| match std::env::var("PRUNUS_NUM_THREADS") {
        Ok(text) if !text.is_empty() => match text.parse() {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => Err(Error::Choice {
                what: "PRUNUS_NUM_THREADS",
                expected: "a positive number".to_owned(),
                got: text,
            }),
        },
        _ => Ok(None),
    });
    let cpus = || *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    Ok(asked.clone()?.or_else(team::followed).unwrap_or_else(cpus))
}

/// The pool of one process: how many workers, and the workers. A child process has none of its
/// parent's threads, and a lock that another thread held at the fork stays locked there for ever; so
/// each process has a slot of its own.
struct Slot {
    process: u32,
    pool: Mutex<Option<(usize, Arc<ThreadPool>)>>,
    /// Helpers that calls have asked for and that have not come yet.
    awaited: AtomicUsize,
}

/// How long a helper looks for the next call before it sleeps, and a call for its last helper. To wake a thread takes
/// tens of microseconds, in virtual machines more, and of small products one follows the other.
const LINGER: Duration = Duration::from_micros(100);

/// Waits until something is so, without sleeping, and no longer than [`LINGER`]; who else wants the processor has it.
fn linger(until: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        for _ in 0..16 {
            if until() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() >= LINGER {
            return false;
        }
        std::thread::yield_now();
    }
}

static SLOT: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

/// This process's slot. A parent's is left behind untouched: dropping its pool would wait for threads
/// that only the parent has.
fn slot() -> &'static Slot {
    let process = std::process::id();
    loop {
        let current = SLOT.load(Ordering::Acquire);
        // SAFETY: slots are never freed once they can be seen.
        if let Some(slot) = unsafe { current.as_ref() }
            && slot.process == process
        {
            return slot;
        }
        let fresh =
            Box::into_raw(Box::new(Slot { process, pool: Mutex::new(None), awaited: AtomicUsize::new(0) }));
        if SLOT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// The pool of this process with at least `threads` workers.
fn pool(threads: usize) -> Result<Arc<ThreadPool>, Error> {
    let mut slot = lock(&slot().pool);
    if let Some((held, pool)) = slot.as_ref()
        && *held >= threads
    {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("prunus-{i}"))
        .build()
        .map_err(|error| Error::Threads(error.to_string()))?;
    let pool = Arc::new(pool);
    *slot = Some((threads, Arc::clone(&pool)));
    Ok(pool)
}

/// Locks what no panic can leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|held| held.into_inner())
}

/// The helpers of one call. A helper that comes when the call is over (its worker was busy with another
/// call) leaves at once; the call waits only for those that have begun.
struct Crew {
    /// Whether the call is over.
    over: Mutex<bool>,
    /// Helpers at work; it grows under the lock.
    busy: AtomicUsize,
    left: Condvar,
    work: *const (dyn Fn() + Sync),
}

// SAFETY: `work` is called only between a helper's entry and its leaving, which the call outlives.
unsafe impl Send for Crew {}
// SAFETY: as above; what it points to may be shared.
unsafe impl Sync for Crew {}

impl Crew {
    fn help(&self) {
        {
            let over = lock(&self.over);
            if *over {
                return;
            }
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the call that owns the work waits in `close` until this helper has left. The work
        // catches panics of its tasks.
        unsafe { (*self.work)() };
        self.busy.fetch_sub(1, Ordering::Release);
        // Who saw it busy with the lock held is asleep once the lock can be had.
        drop(lock(&self.over));
        self.left.notify_all();
    }

    fn is_left(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0
    }

    /// Ends the call: waits for the helpers at work, asking `poll` now and then.
    fn close(&self, mut poll: impl FnMut()) {
        *lock(&self.over) = true;
        if self.is_left() || linger(|| self.is_left()) {
            return;
        }
        let mut over = lock(&self.over);
        while !self.is_left() {
            let (held, _) = self
                .left
                .wait_timeout(over, Duration::from_millis(20))
                .unwrap_or_else(|held| held.into_inner());
            drop(held);
            poll();
            over = lock(&self.over);
        }
    }
}

/// Closes the crew even where the calling thread's own work unwinds.
struct Closing<'a>(&'a Crew);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close(|| {});
    }
}

/// Runs one task; a panic in it, which is a defect, becomes an error.
fn guarded(task: &(impl Fn(usize) -> Result<(), Error> + Sync), i: usize) -> Result<(), Error> {
    std::panic::catch_unwind(AssertUnwindSafe(|| task(i))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::Bug(text.unwrap_or("a task panicked").to_owned()))
    })
}

/// Runs `task(0) … task(count - 1)`, each once, on the calling thread and on as many others as the
/// context allows. Which thread runs a task is left open, so tasks must not depend on each other.
///
/// # Errors
/// The first task's error met, or [`Error::Interrupted`]; the tasks not begun by then are left out.
pub fn for_each<F>(context: &Context<'_>, count: usize, task: F) -> Result<(), Error>
where
    F: Fn(usize) -> Result<(), Error> + Sync,
{
    let threads = context.threads.min(count).max(1);
    if threads == 1 {
        return (0..count).try_for_each(|i| {
            if context.interrupt.interrupted() {
                return Err(Error::Interrupted);
            }
            guarded(&task, i)
        });
    }
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let fault: Mutex<Option<Error>> = Mutex::new(None);
    let run = |interrupted: &dyn Fn() -> bool| {
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            let result = if interrupted() { Err(Error::Interrupted) } else { guarded(&task, i) };
            if let Err(error) = result {
                stop.store(true, Ordering::Relaxed);
                lock(&fault).get_or_insert(error);
            }
        }
    };
    // Only the calling thread asks: a binding's answer may need the interpreter's lock.
    let ask = || context.interrupt.interrupted();
    let help = || run(&|| false);
    if let Some(team) = team::lent() {
        team.run(threads, &|| run(&ask), &help)?;
        return fault.into_inner().unwrap_or_else(|held| held.into_inner()).map_or(Ok(()), Err);
    }
    let work: &(dyn Fn() + Sync) = &help;
    // SAFETY: only the lifetime changes; `Crew::close` below ends every use before `help` goes.
    let work: &'static (dyn Fn() + Sync) = unsafe { std::mem::transmute(work) };
    let (over, busy, left) = (Mutex::new(false), AtomicUsize::new(0), Condvar::new());
    let crew = Arc::new(Crew { over, busy, left, work });
    let pool = pool(threads - 1)?;
    let closing = Closing(&crew);
    let awaited = &slot().awaited;
    for _ in 1..threads {
        let crew = Arc::clone(&crew);
        awaited.fetch_add(1, Ordering::Relaxed);
        pool.spawn(move || {
            awaited.fetch_sub(1, Ordering::Relaxed);
            crew.help();
            drop(crew);
            linger(|| awaited.load(Ordering::Relaxed) > 0);
        });
    }
    run(&ask);
    crew.close(|| {
        if ask() {
            stop.store(true, Ordering::Relaxed);
            lock(&fault).get_or_insert(Error::Interrupted);
        }
    });
    drop(closing);
    fault.into_inner().unwrap_or_else(|held| held.into_inner()).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use prunus_core::Never;

    use super::*;

    fn context(threads: usize) -> Context<'static> {
        Context { threads, interrupt: &Never }
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 9] {
            for count in [0, 1, 2, 100] {
                let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                let task = |i: usize| {
                    runs[i].fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                for_each(&context(threads), count, task).unwrap();
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_callers_at_once_and_calls_inside_tasks() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for caller in 0..16 {
                let total = &total;
                scope.spawn(move || {
                    for _ in 0..20 {
                        for_each(&context(1 + caller % 5), 8, |_| {
                            for_each(&context(3), 4, |_| {
                                total.fetch_add(1, Ordering::Relaxed);
                                Ok(())
                            })
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 16 * 20 * 8 * 4);
    }

    #[test]
    fn an_error_comes_back_and_stops_what_has_not_begun() {
        for threads in [1, 2, 4] {
            let begun = Mutex::new(HashSet::new());
            let result = for_each(&context(threads), 10_000, |i| {
                begun.lock().unwrap().insert(i);
                if i == 5 { Err(Error::Pattern("task 5".to_owned())) } else { Ok(()) }
            });
            assert_eq!(result, Err(Error::Pattern("task 5".to_owned())));
            let begun = begun.into_inner().unwrap();
            assert!((0..=5).all(|i| begun.contains(&i)));
            assert!(threads > 1 || begun.len() == 6);
        }
    }

    #[test]
    fn an_error_inside_a_call_inside_a_task_comes_back() {
        let inner = |i: usize| {
            for_each(&context(2), 5, move |j| match (i, j) {
                (3, 4) => Err(Error::Interrupted),
                _ => Ok(()),
            })
        };
        assert_eq!(for_each(&context(3), 6, inner), Err(Error::Interrupted));
        // The pool works on after it.
        for_each(&context(3), 6, |_| Ok(())).unwrap();
    }

    #[test]
    fn only_the_caller_is_asked_about_interrupts() {
        struct Asks(std::thread::ThreadId);
        impl Interrupt for Asks {
            fn interrupted(&self) -> bool {
                assert_eq!(std::thread::current().id(), self.0);
                false
            }
        }
        let interrupt = Asks(std::thread::current().id());
        for_each(&Context { threads: 4, interrupt: &interrupt }, 1000, |_| Ok(())).unwrap();
    }

    #[test]
    fn a_panic_in_a_task_is_an_error_and_leaves_the_pool_alive() {
        for threads in [1, 3] {
            let caught = for_each(&context(threads), 50, |i| {
                assert!(i != 7, "task 7");
                Ok(())
            });
            assert!(matches!(caught, Err(Error::Bug(text)) if text.contains("task 7")));
            for_each(&context(threads), 50, |_| Ok(())).unwrap();
        }
    }

    #[test]
    fn a_short_call_does_not_wait_for_the_workers_of_a_long_one() {
        let hold = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let long = scope.spawn(|| {
                for_each(&context(2), 2, |_| {
                    while hold.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    Ok(())
                })
            });
            // Both of the long call's tasks spin until this one is through.
            for_each(&context(2), 100, |_| Ok(())).unwrap();
            hold.store(false, Ordering::Release);
            long.join().unwrap().unwrap();
        });
    }
}
