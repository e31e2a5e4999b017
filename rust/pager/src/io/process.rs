//! What each process must have for itself: neither threads nor rings live on in a forked child.

use std::process;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A value that is made again where the process is found to be another one than that which made it.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    entry: AtomicPtr<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    pid: u32,
    value: T,
}

impl<T> PerProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { entry: AtomicPtr::new(boxed(value)) }
    }

    /// This process's value, from `make` where the present one belongs to a parent.
    pub(crate) fn get(&self, make: impl FnOnce() -> T) -> &T {
        let old = self.entry.load(Ordering::Acquire);
        // SAFETY: entries come from `boxed` and are freed by nobody before `self` is dropped.
        let entry = unsafe { &*old };
        if entry.pid == process::id() {
            return &entry.value;
        }
        // No lock of the old value may be taken here: a thread that the fork left behind may hold it for ever.
        // For the same reason the old value is never dropped.
        let new = boxed(make());
        match self.entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: as above; it is `self`'s now.
            Ok(_) => unsafe { &(*new).value },
            Err(theirs) => {
                // SAFETY: `new` has never been shared.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: as for `old`.
                unsafe { &(*theirs).value }
            }
        }
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let entry = *self.entry.get_mut();
        // SAFETY: the last entry, and nobody has a reference to it any more.
        let entry = unsafe { Box::from_raw(entry) };
        if entry.pid != process::id() {
            std::mem::forget(entry);
        }
    }
}

fn boxed<T>(value: T) -> *mut Entry<T> {
    Box::into_raw(Box::new(Entry { pid: process::id(), value }))
}
