//! The pool of pages: a budget of memory, which pages of files are in it, and who waits for them.
//!
//! `frames.rs` is the memory, `table.rs` says which page is where, `policy.rs` which one leaves, `layouts.rs` how
//! files are cut, `state.rs` puts these together under one lock, `transfer.rs` moves pages between files and frames.

mod call;
mod frames;
mod layouts;
pub mod policy;
mod ranks;
pub mod simulate;
mod state;
mod table;
mod transfer;

pub(crate) use call::{Call, Outcome, POLL, copy};
pub(crate) use frames::{Frames, LARGEST};
pub(crate) use layouts::{Layout, Room};
pub(crate) use state::{Grab, Passage, Patience, Shared, State};
pub(crate) use table::Phase;
pub(crate) use transfer::{Batch, launch};
