//! Built-in programs: operations as kernels on cores.

pub mod blocking;
pub mod matmul;
pub mod patterns;
