//! Threads that another library brought: an OpenMP runtime's, where calls alternate with that library's.
//!
//! Threads of an OpenMP team look for their next region for milliseconds before they sleep. Ours would want the
//! same processors meanwhile, and calls that follow each other would wait for each other's threads. So tasks
//! run as a region of that runtime: its team is there, awake, and nobody else's.

use std::ffi::{c_int, c_uint, c_void};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::ThreadId;

use prunus_core::Error;

/// `GOMP_parallel`: runs a function on so many threads, the calling one included, and waits for them. libgomp has
/// it, and for its sake LLVM's and Intel's runtimes have it as well.
pub type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Says how many threads another library would use for a call on this thread.
pub type Count = unsafe extern "C" fn() -> c_int;

static ENTRY: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// The process it was lent in: a forked child has none of the team's threads.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Takes a runtime's threads from now on, or our own again.
///
/// # Safety
/// What is lent must be `GOMP_parallel` of a library that stays loaded.
pub unsafe fn lend(parallel: Option<Parallel>) {
    ENTRY.store(0, Ordering::Release);
    PROCESS.store(std::process::id(), Ordering::Release);
    ENTRY.store(parallel.map_or(0, |entry| entry as usize), Ordering::Release);
}

/// Uses as many threads as another library does from now on, or as many as there are CPUs again.
///
/// # Safety
/// What is asked must belong to a library that stays loaded, and be callable from any thread.
pub unsafe fn follow(count: Option<Count>) {
    COUNT.store(count.map_or(0, |count| count as usize), Ordering::Release);
}

/// How many threads the library that is followed would use here, if one is.
pub(crate) fn followed() -> Option<usize> {
    let count = COUNT.load(Ordering::Acquire);
    if count == 0 {
        return None;
    }
    // SAFETY: it was stored from a function of this type.
    let count = unsafe { std::mem::transmute::<usize, Count>(count) };
    // SAFETY: by what is asked of who calls `follow`.
    usize::try_from(unsafe { count() }).ok().filter(|&count| count > 0)
}

/// The team that is there to run tasks, if any.
pub(crate) fn lent() -> Option<Team> {
    let entry = ENTRY.load(Ordering::Acquire);
    if entry == 0 || PROCESS.load(Ordering::Acquire) != std::process::id() {
        return None;
    }
    // SAFETY: it was stored from a function of this type.
    Some(Team(unsafe { std::mem::transmute::<usize, Parallel>(entry) }))
}

/// Threads of a runtime.
#[derive(Clone, Copy)]
pub(crate) struct Team(Parallel);

/// What a region is given.
struct Region<'a> {
    caller: ThreadId,
    /// Only for the calling thread.
    own: &'a dyn Fn(),
    help: &'a (dyn Fn() + Sync),
    panicked: AtomicBool,
}

extern "C" fn enter(region: *mut c_void) {
    // SAFETY: `run` passes a region that outlives the call; `own` is touched by the thread that it belongs to.
    let region = unsafe { &*region.cast_const().cast::<Region<'_>>() };
    // No panic may pass through the runtime's frames.
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| {
        if std::thread::current().id() == region.caller { (region.own)() } else { (region.help)() }
    }));
    if done.is_err() {
        region.panicked.store(true, Ordering::Relaxed);
    }
}

impl Team {
    /// Calls `own` on the calling thread and `help` on at most `threads - 1` others, and returns when all are
    /// through. The runtime may give fewer, within another region none.
    ///
    /// # Errors
    /// [`Error::Bug`] if one panicked.
    pub(crate) fn run(self, threads: usize, own: &dyn Fn(), help: &(dyn Fn() + Sync)) -> Result<(), Error> {
        let caller = std::thread::current().id();
        let mut region = Region { caller, own, help, panicked: AtomicBool::new(false) };
        let threads = c_uint::try_from(threads).unwrap_or(c_uint::MAX);
        // SAFETY: the runtime calls `enter` with this region, on this and other threads, and waits for them.
        unsafe { (self.0)(enter, (&raw mut region).cast(), threads, 0) };
        match region.panicked.into_inner() {
            false => Ok(()),
            true => Err(Error::Bug("a thread of a team panicked".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads of our own in place of a runtime's.
    unsafe extern "C" fn two(
        work: extern "C" fn(*mut c_void),
        data: *mut c_void,
        threads: c_uint,
        _: c_uint,
    ) {
        assert_eq!(threads, 3);
        let data = data as usize;
        std::thread::scope(|scope| {
            scope.spawn(move || work(data as *mut c_void));
            work(data as *mut c_void);
        });
    }

    #[test]
    fn the_caller_and_others_have_work_of_their_own() {
        let (own, helped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let count = |at: &AtomicUsize| {
            at.fetch_add(1, Ordering::Relaxed);
        };
        Team(two).run(3, &|| count(&own), &|| count(&helped)).unwrap();
        assert_eq!((own.load(Ordering::Relaxed), helped.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn panics_come_back_as_errors() {
        let none = || {};
        for (own, help) in [(true, false), (false, true)] {
            let fails = |fails: bool| move || assert!(!fails, "within a region");
            let (own, help) = (fails(own), fails(help));
            assert!(matches!(Team(two).run(3, &own, &help), Err(Error::Bug(_))));
        }
        Team(two).run(3, &none, &none).unwrap();
    }
}
