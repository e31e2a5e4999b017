//! CPU engine of prunus: block-sparse kernels for every SIMD level, and the threads that run them.

pub mod attention;
pub mod dsd;
pub mod elementwise;
pub mod level;
pub mod machine;
pub mod memory;
pub mod moments;
pub mod rows;
pub mod scan;
pub mod sdd;
pub mod select;
pub mod ssd;
pub mod team;
pub mod threads;
pub mod transform;

#[cfg(target_arch = "x86_64")]
mod amx;
mod dispatch;
mod product;
mod simd;

pub use attention::Attention;
pub use dsd::Dsd;
pub use scan::Scan;
pub use sdd::Sdd;
pub use select::Largest;
pub use ssd::Ssd;
pub use threads::Context;
