//! Built-in programs: operations as kernels on cores.

pub mod blocking;
pub mod cut;
pub mod dynamic;
pub mod epilogue;
pub mod gather;
pub mod layer;
mod lists;
mod live;
pub mod matmul;
pub mod norms;
pub mod patterns;
mod scan;
pub mod sparse;
pub mod streams;
pub mod wide;
