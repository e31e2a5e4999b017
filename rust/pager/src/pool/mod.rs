//! The pool of pages.

pub mod policy;
mod ranks;
pub mod simulate;
