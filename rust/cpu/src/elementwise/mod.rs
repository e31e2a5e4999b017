//! Elementwise expressions, fused: a small program over registers of a few thousand values.
//!
//! A program is a list of steps, each with NumPy's name of an operation, the type in which it is computed, and
//! the values it takes. It runs over an array in chunks that stay in the first caches, so that an expression
//! reads its operands once and writes its result once, whatever its length. Each operation gives the bits that
//! NumPy gives, but for the sign and payload of a NaN, which NumPy does not promise either.
//!
//! What NumPy would warn of is reported as [`flags`]: the status of the floating-point unit after each step
//! whose ufunc looks at it. A caller that has to warn repeats the work with NumPy, which knows how; the same
//! goes for [`flags::DEFER`], values for which NumPy's result is its own affair (a float that fits no integer).

mod compile;
pub mod flags;
mod halves;
mod kernels;
mod layout;
mod ops;
mod run;
#[cfg(test)]
mod tests;

pub use compile::{Program, Step};
pub use layout::Operand;
pub use ops::Kind;
