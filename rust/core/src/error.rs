use crate::DType;

/// What can be wrong with a call. Every message says what was expected and what came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Shapes of operands do not fit each other.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The operand or dimension in question.
        what: &'static str,
        /// What would have fitted.
        expected: String,
        /// What was passed.
        got: String,
    },
    /// An `indptr` or `indices` array is not a valid block pattern.
    #[error("invalid block pattern: {0}")]
    Pattern(String),
    /// No kernel for this combination of element types.
    #[error("{what}: no product for dtypes {a} and {b} with result {out}")]
    DTypes {
        /// The operation.
        what: &'static str,
        /// First operand's type.
        a: DType,
        /// Second operand's type.
        b: DType,
        /// Result's type.
        out: DType,
    },
    /// A keyword has a value that is not one of those known.
    #[error("{what}: expected {expected}, got {got:?}")]
    Choice {
        /// The keyword.
        what: &'static str,
        /// Values that are accepted.
        expected: String,
        /// The value that came.
        got: String,
    },
    /// Memory for a workspace could not be had.
    #[error("out of memory: {0} bytes of workspace could not be allocated")]
    Memory(u128),
    /// The system would not start threads.
    #[error("could not start threads: {0}")]
    Threads(String),
    /// A defect of this library, caught before it could cross into the caller's language.
    #[error("internal error, please report it: {0}")]
    Bug(String),
    /// The caller asked for the work to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}
