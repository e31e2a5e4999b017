//! The system's calls for one transfer, and what threads of engines need from it.

use std::cell::Cell;
use std::io;

use super::{Descriptor, Op, Piece};

/// Moves bytes between a file and memory by one call; returns how many.
#[cfg(unix)]
pub(super) fn transfer(fd: Descriptor, op: Op, offset: u64, window: &[Piece]) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let (vector, count) = (window.as_ptr().cast::<libc::iovec>(), window.len() as libc::c_int);
    let moved = match op {
        // SAFETY: pieces are laid out as iovecs are, and the request's owner keeps their memory.
        Op::Read => unsafe { libc::preadv(fd, vector, count, offset) },
        // SAFETY: as above.
        Op::Write => unsafe { libc::pwritev(fd, vector, count, offset) },
        Op::Sync => return sync(fd),
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn sync(fd: Descriptor) -> io::Result<usize> {
    // SAFETY: a call without memory.
    usize::try_from(unsafe { libc::fdatasync(fd) }).map_err(|_| io::Error::last_os_error())
}

#[cfg(target_vendor = "apple")]
fn sync(fd: Descriptor) -> io::Result<usize> {
    // fsync leaves bytes in the drive's cache there.
    // SAFETY: a call without memory.
    let full = unsafe { libc::fcntl(fd, libc::F_FULLFSYNC) };
    usize::try_from(full).map_err(|_| io::Error::last_os_error())
}

#[cfg(all(
    unix,
    not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_vendor = "apple"))
))]
fn sync(fd: Descriptor) -> io::Result<usize> {
    // SAFETY: a call without memory.
    usize::try_from(unsafe { libc::fsync(fd) }).map_err(|_| io::Error::last_os_error())
}

/// Moves bytes between a file and memory by one call; returns how many.
#[cfg(windows)]
pub(super) fn transfer(fd: Descriptor, op: Op, offset: u64, window: &[Piece]) -> io::Result<usize> {
    use std::mem::ManuallyDrop;
    use std::os::windows::fs::FileExt;
    use std::os::windows::io::FromRawHandle;
    // SAFETY: the request's owner keeps the handle open, and it is not closed here.
    let file = ManuallyDrop::new(unsafe { std::fs::File::from_raw_handle(fd as *mut _) });
    if op == Op::Sync {
        return file.sync_data().map(|()| 0);
    }
    let Some(piece) = window.first() else { return Ok(0) };
    // One piece at a time: there is no scattering call for files that are not open for overlapped I/O.
    // SAFETY: the request's owner keeps the memory.
    let bytes = unsafe { std::slice::from_raw_parts_mut(piece.ptr, piece.len) };
    match op {
        Op::Read => file.seek_read(bytes, offset),
        _ => file.seek_write(bytes, offset),
    }
}

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is a thread of an engine's.
pub(crate) fn on_engine_thread() -> bool {
    OURS.get()
}

/// Begins a thread of an engine's: it leaves signals to the program's own threads, as Python's main thread must
/// be the one that is woken.
pub(super) fn begin_thread() {
    OURS.set(true);
    #[cfg(unix)]
    {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is filled before it is used, and only this thread's mask changes.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
        }
    }
}
