//! The pool of pages: a budget of memory, which pages of files are in it, and who waits for them.
//!
//! `frames.rs` is the memory, `table.rs` says which page is where, `policy.rs` which one leaves, `layouts.rs` how
//! files are cut, `state.rs` puts these together under one lock (`shared.rs`), `ahead.rs` adds pages that are read
//! before they are asked for, `transfer.rs` moves pages between files and frames.

mod ahead;
mod call;
mod frames;
mod layouts;
pub mod policy;
mod ranks;
mod shared;
pub mod simulate;
mod state;
mod table;
mod transfer;

pub(crate) use call::{Call, Outcome, POLL, copy};
pub(crate) use frames::{Frames, LARGEST};
pub(crate) use layouts::{Layout, Room};
pub(crate) use shared::{Patience, Shared};
pub(crate) use state::{Grab, Passage, State};
pub(crate) use table::Phase;
pub(crate) use transfer::{Batch, launch};
