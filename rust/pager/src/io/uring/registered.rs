//! Memory that a ring's requests need not look up and pin each time.
//!
//! Measured on a virtual disk with 64 KiB reads: half the processor time with small pages, a seventh less with
//! huge ones. It is backed and pinned as a whole, so it is left to who has the memory to ask for it.

use std::io;
use std::sync::Arc;

use io_uring::IoUring;

use crate::Aligned;

/// Memory that can be registered goes into the table in parts of at most this size (the kernel's limit).
const PART: usize = 1 << 30;
/// Places in the table of registered memory.
const PARTS: u32 = 1024;

/// Memory that the kernel has pinned for a ring.
#[derive(Default)]
pub(super) struct Registered {
    /// First address and length of each part; its place here is its place in the kernel's table.
    parts: Vec<(usize, usize)>,
    kept: Vec<Arc<Aligned>>,
    table: bool,
}

impl Registered {
    pub(super) fn add(&mut self, ring: &IoUring, memory: &Arc<Aligned>) -> io::Result<()> {
        let submitter = ring.submitter();
        if !self.table {
            submitter.register_buffers_sparse(PARTS)?;
            self.table = true;
        }
        self.kept.push(Arc::clone(memory));
        for at in (0..memory.len()).step_by(PART) {
            let place = u32::try_from(self.parts.len()).unwrap_or(PARTS);
            if place >= PARTS {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            let (first, len) = (memory.as_ptr().wrapping_add(at), PART.min(memory.len() - at));
            let part = libc::iovec { iov_base: first.cast(), iov_len: len };
            // One at a time, as the kernel does not say where it stopped.
            // SAFETY: the memory is in `kept` until the ring is gone.
            unsafe { submitter.register_buffers_update(place, &[part], None) }?;
            self.parts.push((first as usize, len));
        }
        Ok(())
    }

    /// The part that holds so many bytes at an address.
    pub(super) fn find(&self, start: usize, len: usize) -> Option<u16> {
        let holds = |&(first, size): &(usize, usize)| {
            start >= first && start - first <= size && len <= size - (start - first)
        };
        self.parts.iter().position(holds).and_then(|part| u16::try_from(part).ok())
    }
}
