//! Aligned buffers: workspace that is kept between calls, and pages for packed operands.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Mutex;

use prunus_core::Error;

/// Cache line and widest vector.
const LINE: usize = 64;
/// Huge page of x86-64 and (with 4 KiB base pages) AArch64 Linux.
const HUGE: usize = 2 << 20;
/// Largest total that the free list of workspaces keeps.
const KEPT_BYTES: usize = 64 << 20;

/// Uninitialised memory, aligned to cache lines, or to huge pages (asked for where the system has
/// them) from 2 MiB on.
#[derive(Debug)]
pub struct Buffer {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a buffer owns its memory, like a Vec.
unsafe impl Send for Buffer {}
// SAFETY: shared access hands out raw pointers only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `bytes` (at least one cache line).
    ///
    /// # Errors
    /// [`Error::Memory`] where there are not so many.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        let align = if bytes >= HUGE { HUGE } else { LINE };
        let fault = || Error::Memory(bytes as u128);
        let size = bytes.max(LINE).checked_next_multiple_of(align).ok_or_else(fault)?;
        let layout = Layout::from_size_align(size, align).map_err(|_| fault())?;
        // SAFETY: the layout's size is not zero.
        let ptr = NonNull::new(unsafe { alloc(layout) }).ok_or_else(fault)?;
        if align == HUGE {
            advise_huge(ptr, size);
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

    /// Never true: a buffer holds at least one cache line.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge(ptr: NonNull<u8>, size: usize) {
    // SAFETY: the range was just allocated; the advice changes no contents. It may be refused.
    unsafe { libc::madvise(ptr.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_ptr: NonNull<u8>, _size: usize) {}

static FREE: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

/// A buffer out of the free list; returned to it on drop. Touching fresh pages costs more than
/// most packing does, so workspaces are reused; they never hold operands from one call to the next.
#[derive(Debug)]
pub struct Workspace(Option<Buffer>);

impl Workspace {
    /// Takes a buffer for as many bytes as the product of `factors`, which may be too large to count.
    ///
    /// # Errors
    /// [`Error::Memory`] where there are not so many.
    pub fn of(factors: &[usize]) -> Result<Self, Error> {
        let bytes = factors.iter().try_fold(1u128, |product, &factor| product.checked_mul(factor as u128));
        let bytes = bytes.unwrap_or(u128::MAX);
        Self::take(usize::try_from(bytes).map_err(|_| Error::Memory(bytes))?)
    }

    /// Takes a buffer of at least `bytes`.
    ///
    /// # Errors
    /// [`Error::Memory`] where there are not so many.
    pub fn take(bytes: usize) -> Result<Self, Error> {
        // After a fork another thread may own the lock for ever: never wait for it.
        let kept = FREE.try_lock().ok().and_then(|mut free| {
            let best = (0..free.len()).filter(|&i| free[i].len() >= bytes).min_by_key(|&i| free[i].len())?;
            Some(free.swap_remove(best))
        });
        let buffer = match kept {
            Some(buffer) => buffer,
            None => Buffer::new(bytes)?,
        };
        Ok(Self(Some(buffer)))
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ref().map_or(std::ptr::null_mut(), Buffer::as_ptr)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let Some(buffer) = self.0.take() else { return };
        if let Ok(mut free) = FREE.try_lock() {
            let held: usize = free.iter().map(Buffer::len).sum();
            if free.len() < 64 && held + buffer.len() <= KEPT_BYTES {
                free.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_large_enough() {
        for bytes in [0, 1, 63, 64, 65, 4096, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE] {
            let buffer = Buffer::new(bytes).unwrap();
            assert!(buffer.len() >= bytes && buffer.len() >= LINE && !buffer.is_empty());
            let align = if bytes >= HUGE { HUGE } else { LINE };
            assert_eq!(buffer.as_ptr().addr() % align, 0);
            // SAFETY: the buffer's own bytes.
            unsafe {
                buffer.as_ptr().write_bytes(1, buffer.len());
                assert_eq!(buffer.as_ptr().add(buffer.len() - 1).read(), 1);
            }
        }
    }

    #[test]
    fn workspaces_in_use_are_apart_and_kept_after() {
        // Of a size that no other test asks for; other tests may hold the list at any moment, so that
        // a single hand-back can be lost: try until one was kept.
        const SIZE: usize = 5 * LINE + 12_345;
        let (a, b) = (Workspace::take(SIZE).unwrap(), Workspace::take(SIZE).unwrap());
        assert!(a.as_ptr().addr().abs_diff(b.as_ptr().addr()) >= SIZE);
        drop((a, b));
        let reused = (0..1000).any(|_| {
            let before = Workspace::take(SIZE).unwrap();
            let address = before.as_ptr().addr();
            drop(before);
            Workspace::take(SIZE).unwrap().as_ptr().addr() == address
        });
        assert!(reused);
    }

    #[test]
    fn what_is_kept_has_a_limit() {
        drop((0..100).map(|_| Workspace::take(LINE).unwrap()).collect::<Vec<_>>());
        drop(Workspace::take(KEPT_BYTES + 1).unwrap());
        let free = FREE.lock().unwrap();
        assert!(free.len() <= 64);
        assert!(free.iter().map(Buffer::len).sum::<usize>() <= KEPT_BYTES);
    }

    #[test]
    fn many_threads_take_and_return() {
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                scope.spawn(move || {
                    for i in 0..200 {
                        let bytes = (i * 37 + usize::from(thread) * 101) % 5000;
                        let workspace = Workspace::take(bytes).unwrap();
                        // SAFETY: the workspace holds `bytes`, and nobody else has it.
                        unsafe {
                            workspace.as_ptr().write_bytes(thread, bytes);
                            std::thread::yield_now();
                            assert!((0..bytes).all(|at| workspace.as_ptr().add(at).read() == thread));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn sizes_that_no_machine_has_are_errors() {
        for factors in [&[usize::MAX][..], &[1 << 40, 1 << 40], &[usize::MAX, usize::MAX, usize::MAX]] {
            assert!(matches!(Workspace::of(factors), Err(Error::Memory(_))));
        }
        assert!(Workspace::of(&[3, 0, usize::MAX]).is_ok());
    }
}
