//! What a call waits for.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::Error;

/// Longest wait between two looks at whether the caller was interrupted.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// What came of a page that was waited for.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It is there, and pinned for the call.
    Ready,
    /// Something else happened to it: ask for it again. It is not pinned.
    Again,
    /// It could not be read. It is not pinned.
    Failed(Arc<Error>),
}

#[derive(Debug, Default)]
struct Inner {
    arrived: Vec<(u32, Outcome)>,
    requests: usize,
    /// Arrivals that the sleeper wants before it is woken; 0 while it is awake.
    wanted: usize,
}

/// Arrivals for one call. Tags are the call's own.
#[derive(Debug, Default)]
pub(crate) struct Call {
    inner: Mutex<Inner>,
    woken: Condvar,
}

impl Call {
    /// Delivers pages, and says how many of the call's requests ended with them.
    pub(crate) fn deliver(&self, arrivals: impl IntoIterator<Item = (u32, Outcome)>, requests: usize) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.arrived.extend(arrivals);
        inner.requests += requests;
        if inner.wanted > 0 && inner.arrived.len() >= inner.wanted {
            inner.wanted = 0;
            self.woken.notify_one();
        }
    }

    /// Moves arrivals to `into`, after waiting until there are `wanted` or [`POLL`] has passed. Returns the
    /// requests that ended since the last time.
    pub(crate) fn collect(&self, into: &mut Vec<(u32, Outcome)>, wanted: usize) -> usize {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.arrived.len() < wanted {
            inner.wanted = wanted;
            inner = self.woken.wait_timeout(inner, POLL).unwrap_or_else(PoisonError::into_inner).0;
            inner.wanted = 0;
        }
        into.append(&mut inner.arrived);
        std::mem::take(&mut inner.requests)
    }
}

/// The same error for another one who waits.
pub(crate) fn copy(error: &Error) -> Error {
    let again = |source: &std::io::Error| match source.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(source.kind(), source.to_string()),
    };
    match error {
        Error::Io { path, what, source } => {
            Error::Io { path: path.clone(), what: what.clone(), source: again(source) }
        }
        Error::Short { path, offset, expected, got } => {
            Error::Short { path: path.clone(), offset: *offset, expected: *expected, got: *got }
        }
        Error::Format { path, fault } => Error::Format { path: path.clone(), fault: fault.clone() },
        Error::Changed { path, fault } => Error::Changed { path: path.clone(), fault: fault.clone() },
        Error::Budget { budget, what, least } => {
            Error::Budget { budget: *budget, what: what.clone(), least: *least }
        }
        Error::Argument { what, expected, got } => {
            Error::Argument { what, expected: expected.clone(), got: got.clone() }
        }
        Error::Memory(bytes) => Error::Memory(*bytes),
        Error::Interrupted => Error::Interrupted,
    }
}
