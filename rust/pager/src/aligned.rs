//! Memory that direct I/O can read into.

use std::ptr::NonNull;

use crate::{Error, Result};

/// Boundary of offsets, lengths and addresses that every drive's direct I/O takes.
pub const SECTOR: usize = 4096;
/// Huge page of x86-64 and (with 4 KiB base pages) AArch64 Linux.
const HUGE: usize = 2 << 20;

/// Zeroed memory, aligned to sectors, or to huge pages (asked for where the system has them) from 2 MiB on.
#[derive(Debug)]
pub struct Aligned {
    ptr: NonNull<u8>,
    layout: std::alloc::Layout,
}

// SAFETY: it owns its memory, like a Vec.
unsafe impl Send for Aligned {}
// SAFETY: shared access hands out raw pointers only.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// Allocates `bytes`, rounded up to whole sectors, at least one.
    ///
    /// # Errors
    /// [`Error::Memory`] where there are not so many.
    pub fn new(bytes: usize) -> Result<Self> {
        let align = if bytes >= HUGE { HUGE } else { SECTOR };
        let size = bytes.max(1).checked_next_multiple_of(SECTOR).ok_or(Error::Memory(bytes))?;
        let layout = std::alloc::Layout::from_size_align(size, align).map_err(|_| Error::Memory(bytes))?;
        // SAFETY: the size is not zero.
        let ptr = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or(Error::Memory(bytes))?;
        #[cfg(target_os = "linux")]
        if align == HUGE {
            // SAFETY: advice about memory of our own; refused, it changes nothing.
            unsafe { libc::madvise(ptr.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { ptr, layout })
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never true: there is at least one sector.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.ptr.as_ptr(), self.layout) };
    }
}
