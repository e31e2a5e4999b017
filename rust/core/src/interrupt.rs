/// Tells long work that the caller wants it to stop.
///
/// Polled between pieces of work by the thread that made the call, and by that thread only: a
/// binding may take an interpreter's lock in it to look for signals.
pub trait Interrupt {
    /// True once the work should be abandoned.
    fn interrupted(&self) -> bool;
}

/// Work that nobody interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl Interrupt for Never {
    fn interrupted(&self) -> bool {
        false
    }
}
