//! CPU engine of prunus: block-sparse kernels for every SIMD level, and the threads that run them.

pub mod dsd;
pub mod level;
pub mod machine;
pub mod memory;
pub mod threads;

#[cfg(target_arch = "x86_64")]
mod amx;
mod simd;

pub use dsd::Dsd;
pub use threads::Context;
