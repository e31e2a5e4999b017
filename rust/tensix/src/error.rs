//! What can be wrong with a chip, a program or a run. Different faults are different errors.

/// Why a chip was refused, or a program stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A description of a chip that is none, or whose figures contradict each other.
    #[error("{0}")]
    Spec(String),
    /// A call of the kernel API, or a program, that breaks its rules.
    #[error("misused: {0}")]
    Misused(String),
    /// Something that hardware leaves undefined: it might give any result there.
    #[error("undefined on hardware: {0}")]
    Undefined(String),
    /// Something that the chip can do and the simulator cannot, or that this chip lacks.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// All threads wait; the text says for what.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// The program did not end within its limit of cycles.
    #[error("not finished: {0}")]
    Endless(String),
    /// A kernel raised an error of its own; the binding keeps it.
    #[error("{0}")]
    Kernel(String),
    /// The caller asked for the work to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}
