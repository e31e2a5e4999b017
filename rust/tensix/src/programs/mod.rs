//! Built-in programs: operations as kernels on cores.

pub mod blocking;
pub mod dynamic;
mod lists;
mod live;
pub mod matmul;
pub mod norms;
pub mod patterns;
mod scan;
pub mod sparse;
pub mod streams;
