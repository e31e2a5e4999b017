//! What can go wrong with a file.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. Every message says what was expected and what came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused an operation on a file.
    #[error("{}: {what}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried, as "read 65536 bytes at 4096".
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file ends before the bytes that were asked for.
    #[error("{}: expected {expected} bytes at {offset}, the file has {got}", path.display())]
    Short {
        /// Which file.
        path: PathBuf,
        /// Where they should be.
        offset: u64,
        /// Bytes wanted.
        expected: u64,
        /// Bytes that came.
        got: u64,
    },
    /// A file is not what its format says.
    #[error("{}: {fault}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        fault: String,
    },
    /// A file was replaced, or cut, by somebody else while it was open.
    #[error("{}: the file has changed since it was opened: {fault}", path.display())]
    Changed {
        /// Which file.
        path: PathBuf,
        /// What is different.
        fault: String,
    },
    /// A budget does not hold what one operation needs at a time.
    #[error("a budget of {budget} bytes is too small: {what} needs at least {least}")]
    Budget {
        /// Bytes there are.
        budget: usize,
        /// What they are for.
        what: String,
        /// The least that would do.
        least: usize,
    },
    /// An argument is out of range.
    #[error("{what}: expected {expected}, got {got}")]
    Argument {
        /// The argument.
        what: &'static str,
        /// What would do.
        expected: String,
        /// What came.
        got: String,
    },
    /// Memory could not be had.
    #[error("out of memory: {0} bytes could not be allocated")]
    Memory(usize),
    /// The caller asked for the work to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}
