//! The Tensix simulator: chips as data, a deterministic discrete-event machine, the kernels that run on it, and what
//! its arithmetic does to values.

pub mod chip;
pub mod error;
pub mod kernel;
mod machine;
mod memory;
pub mod mesh;
pub mod noc;
pub mod numerics;
pub mod program;
pub mod programs;
pub mod report;
mod simulator;
pub mod time;
pub mod timeline;
pub mod verbs;

pub use chip::ChipSpec;
pub use error::Error;
pub use machine::Options;
pub use mesh::Mesh;
pub use simulator::Simulator;
