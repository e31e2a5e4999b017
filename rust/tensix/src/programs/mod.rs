//! Built-in programs: operations as kernels on cores.

pub mod blocking;
pub mod gathered;
pub mod matmul;
pub mod patterns;
pub mod sparse;
