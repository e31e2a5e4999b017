//! The pool as calls have it: its lock, and waiting for changes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prunus_core::Interrupt;

use super::call::POLL;
use super::frames::Frames;
use super::state::State;
use crate::{Aligned, Error, Result, SECTOR};

/// How long a call that holds nothing waits for others to let go of frames while nothing moves at all.
const GRACE: Duration = Duration::from_secs(2);

/// The pool, as everybody has it.
pub(crate) struct Shared {
    arena: Arc<Aligned>,
    pub(crate) budget: usize,
    state: Mutex<State>,
    changed: Condvar,
    process: u32,
}

impl Shared {
    pub(crate) fn new(budget: usize) -> Result<Self> {
        let frames = Frames::new(budget)?;
        let arena = Arc::clone(frames.arena());
        let state = State::new(frames);
        let process = std::process::id();
        Ok(Self { arena, budget, state: Mutex::new(state), changed: Condvar::new(), process })
    }

    /// Whether this process made the pool. In a forked child nobody will ever let go of what the parent's
    /// threads held.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// # Errors
    /// [`Error::Argument`] in a forked child.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(Error::Argument {
            what: "pager",
            expected: "one made by this process".to_owned(),
            got: "one made before a fork; open the file again".to_owned(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// First byte of a frame.
    pub(crate) fn frame(&self, frame: u32) -> *mut u8 {
        // SAFETY: frames lie in the arena.
        unsafe { self.arena.as_ptr().add(frame as usize * SECTOR) }
    }

    /// Tells everybody who waits for frames or phases. Called with the lock held.
    pub(crate) fn tell(&self, state: &mut State) {
        state.moves += 1;
        if state.sleepers > 0 {
            self.changed.notify_all();
        }
    }

    /// Waits until something changed, or a moment.
    pub(crate) fn sleep<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.sleepers += 1;
        let mut state = self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
        state.sleepers -= 1;
        state
    }

    /// As [`Self::sleep`], for work that may be interrupted. The caller is asked without the lock: to answer it may
    /// use the pool itself, or wait for a thread that does (Python's lock, signal handlers).
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(crate) fn pause<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        interrupt: &dyn Interrupt,
    ) -> Result<MutexGuard<'a, State>> {
        drop(self.sleep(state));
        if interrupt.interrupted() {
            return Err(Error::Interrupted);
        }
        Ok(self.lock())
    }
}

/// Patience of a call that cannot go on.
pub(crate) struct Patience {
    since: Instant,
    moves: u64,
    retried: bool,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), moves: 0, retried: false }
    }

    /// Pages that could not be written back are in the way: they may be tried again, once.
    ///
    /// # Errors
    /// What kept them, after that.
    pub(crate) fn retry(&mut self, state: &mut State) -> Result<bool> {
        if std::mem::replace(&mut self.retried, true) {
            return Shared::kept_fault(state, None).map_or(Ok(false), Err);
        }
        state.forgive(None);
        Ok(true)
    }

    /// Says after each wait whether to go on.
    ///
    /// # Errors
    /// [`Error::Budget`] where nothing has moved for long and nothing is under way: then all frames are held by
    /// guards and panels.
    pub(crate) fn check(&mut self, state: &State, budget: usize, size: usize) -> Result<()> {
        let busy = state.loading > 0
            || state.reading > 0
            || state.writing_bytes > 0
            || state.passages.iter().any(|p| p.out);
        if busy || state.moves != self.moves {
            (self.since, self.moves) = (Instant::now(), state.moves);
        } else if self.since.elapsed() > GRACE {
            let what = format!(
                "a frame of {size} bytes beside {} pinned pages and {} bytes of panels",
                state.held, state.panels
            );
            return Err(Error::Budget { budget, what, least: budget + Frames::least(size) });
        }
        Ok(())
    }
}
