//! Memory that direct I/O can read into.

use std::alloc::Layout;
use std::ptr::NonNull;

use crate::{Error, Result};

/// Boundary of offsets, lengths and addresses that every drive's direct I/O takes.
pub const SECTOR: usize = 4096;
/// Huge page of x86-64 and (with 4 KiB base pages) AArch64 Linux.
const HUGE: usize = 2 << 20;

/// Zeroed memory, aligned to sectors, or to huge pages (asked for where the system has them) from 2 MiB on. That
/// much is backed only as it is first touched.
#[derive(Debug)]
pub struct Aligned {
    ptr: NonNull<u8>,
    len: usize,
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
        let len = bytes.max(1).checked_next_multiple_of(SECTOR).ok_or(Error::Memory(bytes))?;
        let ptr = allocate(len).ok_or(Error::Memory(bytes))?;
        Ok(Self { ptr, len })
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: there is at least one sector.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        free(self.ptr, self.len);
    }
}

fn layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len, if len >= HUGE { HUGE } else { SECTOR }).ok()
}

fn allocate(len: usize) -> Option<NonNull<u8>> {
    let layout = layout(len)?;
    #[cfg(unix)]
    if len >= HUGE {
        return map(len);
    }
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
}

fn free(ptr: NonNull<u8>, len: usize) {
    #[cfg(unix)]
    if len >= HUGE {
        return unmap(ptr.as_ptr(), len);
    }
    if let Some(layout) = layout(len) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(ptr.as_ptr(), layout) };
    }
}

/// Maps memory at a huge page's boundary. The allocator would clear aligned memory by hand, and so back all of it
/// by small pages before huge ones can be asked for.
#[cfg(unix)]
fn map(len: usize) -> Option<NonNull<u8>> {
    let all = len.checked_add(HUGE)?;
    let (access, sort) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory at a place of the system's choice.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), all, access, sort, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    let base = base.cast::<u8>();
    let before = base.align_offset(HUGE);
    let ptr = base.wrapping_add(before);
    unmap(base, before);
    unmap(ptr.wrapping_add(len), HUGE - before);
    #[cfg(target_os = "linux")]
    // SAFETY: advice about memory of our own; refused, it changes nothing.
    unsafe {
        libc::madvise(ptr.cast(), len, libc::MADV_HUGEPAGE);
    }
    NonNull::new(ptr)
}

#[cfg(unix)]
fn unmap(ptr: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: mapped by `map`, and used by nobody any more. Where it fails the memory is lost, and no more.
        unsafe { libc::munmap(ptr.cast(), len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_long_enough() {
        for bytes in [0, 1, SECTOR, SECTOR + 1, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + 5] {
            let memory = Aligned::new(bytes).unwrap();
            let boundary = if memory.len() >= HUGE { HUGE } else { SECTOR };
            assert!((memory.as_ptr() as usize).is_multiple_of(boundary));
            assert!(memory.len() >= bytes.max(1) && memory.len() < bytes + 2 * SECTOR && !memory.is_empty());
            // SAFETY: the memory is that long and nobody else's.
            let slice = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), memory.len()) };
            assert!(slice.iter().all(|&byte| byte == 0));
            slice.fill(1);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        for bytes in [usize::MAX, usize::MAX / 2, isize::MAX as usize - SECTOR, 1 << 60] {
            assert!(matches!(Aligned::new(bytes), Err(Error::Memory(wanted)) if wanted == bytes));
        }
    }
}
