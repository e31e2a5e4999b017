//! What systems differ in: how direct I/O is asked for, and what tells one file from another.

use std::fs::{File, Metadata};
use std::io;

#[cfg(target_os = "linux")]
use crate::{Aligned, SECTOR};

/// What tells a file from another one in its place, and from itself at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Time of the last change, in nanoseconds.
    pub(super) modified: i128,
}

impl Identity {
    pub(super) fn of(data: &Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Self {
                device: data.dev(),
                inode: data.ino(),
                size: data.len(),
                modified: i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec()),
            }
        }
        #[cfg(not(unix))]
        {
            let since = data.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            let modified = since.map_or(0, |time| time.as_nanos() as i128);
            Self { device: 0, inode: 0, size: data.len(), modified }
        }
    }
}

/// What a path names that is no regular file.
pub(super) fn sort(data: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let sort = data.file_type();
        if sort.is_fifo() {
            return "a FIFO";
        }
        if sort.is_socket() {
            return "a socket";
        }
        if sort.is_block_device() || sort.is_char_device() {
            return "a device";
        }
    }
    if data.is_dir() { "a directory" } else { "something else" }
}

/// Turns direct I/O on for an open file, and sees whether it works.
///
/// # Errors
/// Why it does not.
#[cfg(target_os = "linux")]
pub(super) fn make_direct(file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    if let Some((memory, offset)) = alignment(file) {
        if memory == 0 || offset == 0 {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        if memory.max(offset) > SECTOR {
            let fault = format!("it would need memory aligned to {memory} and offsets to {offset} bytes");
            return Err(io::Error::new(io::ErrorKind::Unsupported, fault));
        }
    }
    // Asked for after opening, as some systems create a file and then refuse to open it directly.
    set_direct(file, true)?;
    let sector = Aligned::new(SECTOR).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    // SAFETY: the memory is that long.
    let read = unsafe { libc::pread(file.as_raw_fd(), sector.as_ptr().cast(), SECTOR, 0) };
    let error = io::Error::last_os_error();
    if read < 0 && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) {
        set_direct(file, false)?;
        return Err(error);
    }
    // Any other error is the file's own, and will meet whoever reads there.
    Ok(())
}

#[cfg(target_os = "linux")]
fn set_direct(file: &File, on: bool) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a call without memory.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let wanted = if on { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What direct I/O on this file wants memory and offsets to be aligned to, where the system tells.
#[cfg(target_os = "linux")]
fn alignment(file: &File) -> Option<(usize, usize)> {
    use std::os::fd::AsRawFd;
    let mut data = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let (empty, mask) = (c"".as_ptr(), libc::STATX_DIOALIGN);
    // SAFETY: the path is a string that ends, and the answer fits.
    let told = unsafe { libc::statx(file.as_raw_fd(), empty, libc::AT_EMPTY_PATH, mask, data.as_mut_ptr()) };
    // SAFETY: zeroes are a valid statx.
    let data = unsafe { data.assume_init() };
    (told == 0 && data.stx_mask & mask != 0)
        .then_some((data.stx_dio_mem_align as usize, data.stx_dio_offset_align as usize))
}

/// Turns the system's cache off for an open file: what comes nearest to direct I/O there.
#[cfg(target_vendor = "apple")]
pub(super) fn make_direct(file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a call without memory.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_NOCACHE, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// There is none here.
#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
pub(super) fn make_direct(_: &File) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "not known on this system"))
}

/// Tells the system that no reading ahead is wanted: what is read ahead is decided here.
pub(super) fn read_as_asked(file: &File) {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: advice; refused, it changes nothing.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    let _ = file;
}
