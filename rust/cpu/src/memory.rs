//! Aligned buffers: workspace that is kept between calls, and pages for packed operands.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

use prunus_core::Error;

/// Cache line and widest vector.
const LINE: usize = 64;
/// Huge page of x86-64 and (with 4 KiB base pages) AArch64 Linux.
const HUGE: usize = 2 << 20;
/// Largest total that the free list of workspaces keeps.
const KEPT_BYTES: usize = 64 << 20;
/// Most workspaces that it keeps.
const KEPT: usize = 64;
/// Looks at the free list's lock before a workspace is made, or given up, without it.
const TRIES: usize = 64;

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

static FREE: Mutex<Kept> = Mutex::new(Kept(Vec::new()));

/// Buffers that wait for their next use, that of the longest wait first.
struct Kept(Vec<Buffer>);

impl Kept {
    /// Takes the smallest that has `bytes`; of several the one used last, which caches may still hold.
    fn take(&mut self, bytes: usize) -> Option<Buffer> {
        let fits = (0..self.0.len()).rev().filter(|&i| self.0[i].len() >= bytes);
        fits.min_by_key(|&i| self.0[i].len()).map(|i| self.0.remove(i))
    }

    /// Keeps one more, and returns what is no longer kept for it: those that waited longest, however small
    /// they are. Were it the newcomer that has to go, as many small ones as are kept would leave no place
    /// for the large one that every call needs, whose fresh pages cost ten times what is computed in them.
    fn put(&mut self, buffer: Buffer) -> Vec<Buffer> {
        if buffer.len() > KEPT_BYTES {
            return vec![buffer];
        }
        let mut held = self.0.iter().map(Buffer::len).sum::<usize>() + buffer.len();
        let mut out = 0;
        while held > KEPT_BYTES || self.0.len() - out >= KEPT {
            held -= self.0[out].len();
            out += 1;
        }
        self.0.push(buffer);
        self.0.drain(..out).collect()
    }
}

/// The free list, if it is to be had soon: after a fork a thread that is not there may own the lock for ever.
fn free() -> Option<MutexGuard<'static, Kept>> {
    (0..TRIES).find_map(|_| {
        std::hint::spin_loop();
        FREE.try_lock().ok()
    })
}

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
        let kept = free().and_then(|mut free| free.take(bytes));
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
        let dropped = free().map(|mut free| free.put(buffer));
        drop(dropped); // with the lock given back
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
        assert!(free.0.len() <= KEPT);
        assert!(free.0.iter().map(Buffer::len).sum::<usize>() <= KEPT_BYTES);
    }

    #[test]
    fn large_ones_are_kept_however_many_small_ones_were() {
        let mut kept = Kept(Vec::new());
        let put = |kept: &mut Kept, bytes| kept.put(Buffer::new(bytes).unwrap());
        for _ in 0..KEPT {
            assert!(put(&mut kept, 100).is_empty());
        }
        let large = Buffer::new(3 * HUGE).unwrap();
        let address = large.as_ptr().addr();
        assert_eq!(kept.put(large).len(), 1);
        for _ in 0..3 {
            let large = kept.take(2 * HUGE + 1).unwrap();
            assert_eq!(large.as_ptr().addr(), address);
            kept.put(large);
        }
        assert_eq!(kept.0.len(), KEPT);
        // Bytes are limited too, and what was used last stays.
        for _ in 0..KEPT_BYTES / HUGE {
            put(&mut kept, HUGE);
        }
        assert_eq!(kept.0.len(), KEPT_BYTES / HUGE);
        assert_eq!(put(&mut kept, KEPT_BYTES + 1).len(), 1);
        assert_eq!(kept.0.len(), KEPT_BYTES / HUGE);
        assert!(kept.take(HUGE + 1).is_none());
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
