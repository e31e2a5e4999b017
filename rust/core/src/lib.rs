//! Vocabulary of prunus: dtypes, block-sparse layouts, block sources, epilogues and errors.
//!
//! Nothing here multiplies, reads a file or knows Python. Engines and pagers both depend on this
//! crate and never on each other; [`BlockSource`] is the seam between them.

mod blocks;
mod dtype;
mod epilogue;
mod error;
mod interrupt;
mod matrix;
mod pattern;
mod source;

pub use blocks::BlocksMut;
pub use dtype::DType;
pub use epilogue::{Activation, Epilogue};
pub use error::Error;
pub use interrupt::{Interrupt, Never};
pub use matrix::{BsrRef, MatMut, MatRef, VecRef};
pub use pattern::Pattern;
pub use source::{BlockSource, MemoryBlocks};
