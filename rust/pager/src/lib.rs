//! Tensors on disk: files that other tools read, I/O engines side by side, and a pool of pages with a budget.
//!
//! Nothing here knows what a product is. Bytes of files arrive in aligned memory by direct I/O, in the order
//! that was asked for; what is kept afterwards is decided by the pool.

mod aligned;
mod error;
mod file;
pub mod format;
pub mod io;
mod pager;
pub mod pool;
pub mod probe;
mod segment;
mod stream;

pub use aligned::{Aligned, SECTOR};
pub use error::{Error, Result};
pub use file::{DiskFile, Mode, sync_parent};
pub use pager::{Pager, Stats};
pub use segment::{Pinned, Segment};
pub use stream::{Kept, Panel, Reader, Writer};
