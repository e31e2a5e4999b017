//! The engine's own threads: a pool that survives `fork`, and the loop that runs tasks on it.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use prunus_core::{Error, Interrupt};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// How a call may run: on how many threads, and who may stop it.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Threads to use, the calling one included.
    pub threads: usize,
    /// Asked between tasks by the calling thread.
    pub interrupt: &'a dyn Interrupt,
}

/// `PRUNUS_NUM_THREADS`, else the number of CPUs this process may use.
///
/// # Errors
/// [`Error::Choice`] where the variable is set to anything but a positive number.
pub fn default_threads() -> Result<usize, Error> {
    static DEFAULT: OnceLock<Result<usize, Error>> = OnceLock::new();
    DEFAULT
        .get_or_init(|| match std::env::var("PRUNUS_NUM_THREADS") {
            Ok(text) if !text.is_empty() => match text.parse() {
                Ok(n) if n > 0 => Ok(n),
                _ => Err(Error::Choice {
                    what: "PRUNUS_NUM_THREADS",
                    expected: "a positive number".to_owned(),
                    got: text,
                }),
            },
            _ => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        })
        .clone()
}

struct Pool {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// The pool of this process with at least `threads` workers. A child process gets a pool of its own:
/// the parent's threads do not exist there, and the parent's pool is left behind untouched.
fn pool(threads: usize) -> Option<Arc<ThreadPool>> {
    let process = std::process::id();
    // Another thread may have held the lock when this process was forked off; after a while of
    // waiting for nobody, work without helpers rather than hang.
    let mut slot = lock_with_patience()?;
    if let Some(found) = slot.as_ref()
        && found.process == process
        && found.threads >= threads
    {
        return Some(Arc::clone(&found.pool));
    }
    let built =
        ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("prunus-{i}")).build().ok()?;
    let built = Arc::new(built);
    let old = slot.replace(Pool { process, threads, pool: Arc::clone(&built) });
    if let Some(old) = old
        && old.process != process
    {
        // Dropping it would wait for threads that only the parent has.
        std::mem::forget(old);
    }
    Some(built)
}

fn lock_with_patience() -> Option<std::sync::MutexGuard<'static, Option<Pool>>> {
    for attempt in 0..1000 {
        match POOL.try_lock() {
            Ok(guard) => return Some(guard),
            Err(std::sync::TryLockError::Poisoned(guard)) => return Some(guard.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) if attempt < 100 => std::thread::yield_now(),
            Err(std::sync::TryLockError::WouldBlock) => {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        }
    }
    None
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
            task(i)
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
            let result = if interrupted() { Err(Error::Interrupted) } else { task(i) };
            if let Err(error) = result {
                stop.store(true, Ordering::Relaxed);
                fault.lock().unwrap_or_else(|held| held.into_inner()).get_or_insert(error);
            }
        }
    };
    let run_ref = &run;
    // Only the calling thread asks: a binding's answer may need the interpreter's lock.
    let ask = || context.interrupt.interrupted();
    match pool(threads - 1) {
        Some(pool) => pool.in_place_scope(|scope| {
            for _ in 1..threads {
                scope.spawn(move |_| run_ref(&|| false));
            }
            run(&ask);
        }),
        None => run(&ask),
    }
    match fault.into_inner().unwrap_or_else(|held| held.into_inner()) {
        Some(error) => Err(error),
        None => Ok(()),
    }
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
    fn a_panic_in_a_task_reaches_the_caller_and_leaves_the_pool_alive() {
        let caught = std::panic::catch_unwind(|| {
            for_each(&context(3), 50, |i| {
                assert!(i != 7, "task 7");
                Ok(())
            })
        });
        assert!(caught.is_err());
        for_each(&context(3), 50, |_| Ok(())).unwrap();
    }
}
