//! Files that are open for paging: which engine serves them and why, how large they are, and whether they are
//! still the files that were opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::io::{Descriptor, Engine, Engines, Kind, Null, Op, Piece, Request, on_engine_thread};
use crate::{Error, Result};

mod blocking;
mod present;
mod system;

use present::Present;
use system::Identity;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is there, and stays as it is.
    Read,
    /// It is there.
    ReadWrite,
    /// It is made, or emptied, and holds so many zeroes then. Where this process has it open, another file takes its
    /// place instead: who has the old one keeps it.
    Create {
        /// Bytes.
        size: u64,
    },
    /// It must not be there yet; it is made and holds so many zeroes.
    CreateNew {
        /// Bytes.
        size: u64,
    },
}

impl Mode {
    /// Whether files that are opened so can be written.
    pub fn writable(self) -> bool {
        self != Self::Read
    }
}

/// An open file and the engine that serves it.
pub struct DiskFile {
    path: PathBuf,
    /// The path as it was when the file was opened, also after the program has gone to another directory.
    place: PathBuf,
    writable: bool,
    handle: Handle,
    engine: Arc<dyn Engine>,
    why: String,
    direct: bool,
    size: AtomicU64,
    identity: Option<Identity>,
    /// Says in this process that it is open.
    _present: Option<Present>,
    /// Its directory does not durably know of it yet.
    fresh: AtomicBool,
    /// How far writes went, or may yet go, past the size up to the end of a sector.
    padded: AtomicU64,
    /// Which process opened it.
    process: u32,
    /// Taken to read, change and write back parts of sectors.
    sectors: Mutex<()>,
    /// Taken to change the size. No I/O is waited for under it.
    length: Mutex<()>,
}

enum Handle {
    System(File),
    Memory(Arc<Null>, Descriptor),
}

impl Handle {
    fn len(&self) -> io::Result<u64> {
        match self {
            Self::System(file) => Ok(file.metadata()?.len()),
            Self::Memory(null, fd) => Ok(null.len(*fd)),
        }
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.set_len(size),
            Self::Memory(null, fd) => null.resize(*fd, size),
        }
    }
}

impl DiskFile {
    /// Opens a regular file; symbolic links are followed. The first engine that the system and the file allow is
    /// taken, and [`why`](Self::why) says so.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses, the path names no regular file, or the pinned engine is not to be
    /// had. A file that [`Mode::Create`] would empty is then as it was.
    pub fn open(path: &Path, mode: Mode, engines: &Engines) -> Result<Arc<Self>> {
        let fault = |source| Error::Io { path: path.to_owned(), what: "open".to_owned(), source };
        if let Some(null) = engines.in_memory() {
            return Self::in_memory(path, mode, Arc::clone(null)).map(Arc::new).map_err(fault);
        }
        Self::on_disk(path, mode, engines).map(Arc::new).map_err(fault)
    }

    fn on_disk(path: &Path, mode: Mode, engines: &Engines) -> io::Result<Self> {
        must_be_regular(path)?;
        let place = std::path::absolute(path)?;
        // Nothing is cut before everything else is known to work.
        let file = OpenOptions::new()
            .read(true)
            .write(mode.writable())
            .create(matches!(mode, Mode::Create { .. }))
            .create_new(matches!(mode, Mode::CreateNew { .. }))
            .open(path)?;
        if let Mode::Create { size } = mode
            && present::is_open(&Identity::of(&file.metadata()?))
        {
            drop(file);
            return Self::replacing(path, place, size, engines);
        }
        Self::prepare(file, path, place, mode, engines).inspect_err(|_| {
            if matches!(mode, Mode::CreateNew { .. }) {
                // It was made here. Where it cannot be removed, the error that is reported matters more.
                let _ = std::fs::remove_file(path);
            }
        })
    }

    /// Makes a new file that takes the place of one.
    fn replacing(path: &Path, place: PathBuf, size: u64, engines: &Engines) -> io::Result<Self> {
        // What a link points to is replaced, not the link.
        let target = std::fs::canonicalize(&place)?;
        let name = format!(".prunus-{}-{}.tmp", std::process::id(), present::number());
        let temporary = target.with_file_name(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary)?;
        let made = std::fs::metadata(&target)
            .and_then(|old| file.set_permissions(old.permissions()))
            .and_then(|()| Self::prepare(file, path, place, Mode::CreateNew { size }, engines))
            .and_then(|new| std::fs::rename(&temporary, &target).map(|()| new));
        made.inspect_err(|_| {
            // Where it cannot be removed, the error that is reported matters more.
            let _ = std::fs::remove_file(&temporary);
        })
    }

    fn prepare(file: File, path: &Path, place: PathBuf, mode: Mode, engines: &Engines) -> io::Result<Self> {
        let refused = match engines.pin() {
            Some(Kind::Buffered) => None,
            _ => system::make_direct(&file).err(),
        };
        let choice = engines.choose(refused.as_ref())?;
        let direct = choice.engine.kind() != Kind::Buffered;
        if !direct {
            system::read_as_asked(&file);
        }
        let fresh = match mode {
            Mode::Create { size } | Mode::CreateNew { size } => {
                file.set_len(0)?;
                file.set_len(size)?;
                true
            }
            Mode::Read | Mode::ReadWrite => false,
        };
        let identity = Identity::of(&file.metadata()?);
        Ok(Self {
            path: path.to_owned(),
            place,
            writable: mode.writable(),
            handle: Handle::System(file),
            engine: choice.engine,
            why: choice.why,
            direct,
            size: AtomicU64::new(identity.size),
            identity: Some(identity),
            _present: Some(Present::new(&identity)),
            fresh: AtomicBool::new(fresh),
            padded: AtomicU64::new(0),
            process: std::process::id(),
            sectors: Mutex::default(),
            length: Mutex::default(),
        })
    }

    fn in_memory(path: &Path, mode: Mode, null: Arc<Null>) -> io::Result<Self> {
        let fd = match (null.find(path), mode) {
            (Some(_), Mode::CreateNew { .. }) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Mode::Read | Mode::ReadWrite) => return Err(io::ErrorKind::NotFound.into()),
            (Some(fd), Mode::Read | Mode::ReadWrite) => fd,
            (_, Mode::Create { size } | Mode::CreateNew { size }) => {
                let size = usize::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
                null.put(path, vec![0; size])
            }
        };
        Ok(Self {
            path: path.to_owned(),
            place: path.to_owned(),
            writable: mode.writable(),
            size: AtomicU64::new(null.len(fd)),
            handle: Handle::Memory(Arc::clone(&null), fd),
            engine: null,
            why: "in memory".to_owned(),
            direct: true,
            identity: None,
            _present: None,
            fresh: AtomicBool::new(false),
            padded: AtomicU64::new(0),
            process: std::process::id(),
            sectors: Mutex::default(),
            length: Mutex::default(),
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes; without what pads its last sector while a write is under way.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether it can be written.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Whether requests must keep to whole sectors of file and memory.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// Which engine serves it.
    pub fn kind(&self) -> Kind {
        self.engine.kind()
    }

    /// Why it is that engine.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The engine that serves it.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The system's handle.
    pub fn descriptor(&self) -> Descriptor {
        match &self.handle {
            #[cfg(unix)]
            Handle::System(file) => std::os::fd::AsRawFd::as_raw_fd(file),
            #[cfg(windows)]
            Handle::System(file) => std::os::windows::io::AsRawHandle::as_raw_handle(file) as usize,
            Handle::Memory(_, fd) => *fd,
        }
    }

    /// An error of this file's, as [`crate::io::Done`] reports it.
    pub fn error(&self, what: impl Into<String>, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), what: what.into(), source }
    }

    /// A request for [`submit`](Self::submit). `owner` keeps the pieces' memory.
    pub fn request(
        &self,
        op: Op,
        offset: u64,
        pieces: Vec<Piece>,
        owner: Arc<dyn std::any::Any + Send + Sync>,
        done: crate::io::Done,
    ) -> Request {
        Request { fd: self.descriptor(), op, offset, pieces, owner, done }
    }

    /// Takes requests as one batch, and keeps the file open until they are done. Their `fd` is set here. Offsets
    /// and pieces are whole sectors where the file is [`direct`](Self::direct): a write may then go past the
    /// size up to the end of its sector, and what it wrote there is cut off again by [`sync`](Self::sync),
    /// [`resize`](Self::resize) and when the file is closed.
    pub fn submit(self: &Arc<Self>, mut batch: Vec<Request>) {
        for request in &mut batch {
            request.fd = self.descriptor();
            if request.op == Op::Write {
                let len =
                    request.pieces.iter().fold(0_u64, |sum, piece| sum.saturating_add(piece.len as u64));
                let end = request.offset.saturating_add(len);
                if end > self.size() {
                    self.padded.fetch_max(end, Ordering::AcqRel);
                }
            }
            let file = Arc::clone(self);
            let done = std::mem::replace(&mut request.done, Box::new(|_| ()));
            request.done = Box::new(move |result| {
                // Let go first: whoever hears that all is done, and lets go too, is then the one who closes it.
                drop(file);
                done(result);
            });
        }
        self.engine.submit(batch);
    }

    /// Makes the file so many bytes long; new ones are zero. Requests beyond must not be under way.
    ///
    /// # Errors
    /// [`Error::Argument`] where the file is open for reading only, and the system's own.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.must_be_writable()?;
        self.trim()?;
        let _lock = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.set_len(size).map_err(|source| self.error(format!("resize to {size} bytes"), source))?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// Makes durable what was written before, and that the file is there. Writes that are under way are not
    /// waited for.
    ///
    /// # Errors
    /// The system's. After one it is not known what is durable.
    pub fn sync(&self) -> Result<()> {
        self.trim()?;
        let fault = |source| self.error("make durable", source);
        match &self.handle {
            Handle::System(file) => file.sync_data().map_err(fault)?,
            Handle::Memory(..) => self.sync_memory().map_err(fault)?,
        }
        if self.fresh.swap(false, Ordering::AcqRel) {
            sync_parent(&self.place).inspect_err(|_| self.fresh.store(true, Ordering::Release))?;
        }
        Ok(())
    }

    fn sync_memory(&self) -> io::Result<()> {
        let (tell, told) = std::sync::mpsc::channel();
        // The receiver waits below.
        let done = Box::new(move |result| drop(tell.send(result)));
        self.engine.submit(vec![self.request(Op::Sync, 0, Vec::new(), Arc::new(()), done)]);
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the I/O engine lost a request"))).map(drop)
    }

    /// Sees whether the path still names this file, and whether it is as it was: for a file that is open for
    /// reading its size and the time of its last change, for others that it was not cut.
    ///
    /// # Errors
    /// [`Error::Changed`] where it is not.
    pub fn check_unchanged(&self) -> Result<()> {
        let (Handle::System(file), Some(then)) = (&self.handle, self.identity) else { return Ok(()) };
        let changed = |fault: String| Error::Changed { path: self.path.clone(), fault };
        let now = file.metadata().map_err(|source| self.error("look at", source))?;
        let now = Identity::of(&now);
        // A file without a name is what it was: a temporary one never had it for long.
        match std::fs::metadata(&self.place) {
            Ok(there) => {
                let there = Identity::of(&there);
                if (there.device, there.inode) != (then.device, then.inode) {
                    return Err(changed("another file has taken its place".to_owned()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.error("look at", error)),
        }
        if self.writable {
            let size = self.size();
            if now.size < size {
                return Err(changed(format!("it was cut to {} bytes of {size}", now.size)));
            }
        } else if now.size != then.size {
            return Err(changed(format!("it had {} bytes and has {}", then.size, now.size)));
        } else if now.modified != then.modified {
            return Err(changed("it was written to".to_owned()));
        }
        Ok(())
    }

    /// What tells the file from all others, whatever it is called; nothing where the system has no such thing.
    pub fn identity(&self) -> Option<(u64, u64)> {
        self.identity.map(|identity| (identity.device, identity.inode))
    }

    fn must_be_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        let got = format!("{}, open for reading", self.path.display());
        Err(Error::Argument { what: "file", expected: "one that is open for writing".to_owned(), got })
    }

    /// Notes that bytes up to `end` are the file's, and that up to `written` something was put on the drive.
    fn grown(&self, end: u64, written: u64) {
        let _lock = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.size.fetch_max(end, Ordering::AcqRel).max(end);
        if written > size {
            self.padded.fetch_max(written, Ordering::AcqRel);
        }
    }

    /// Whether a file so long ends in what pads its last sector. What others have written is not cut off: they
    /// went further, or ended elsewhere.
    fn is_padding(&self, long: u64, size: u64) -> bool {
        let padded = self.padded.load(Ordering::Acquire);
        size < long && long <= padded && long.is_multiple_of(crate::SECTOR as u64)
    }

    /// Cuts off what pads the last sector. Never on an engine's thread: cutting waits for all direct I/O on the
    /// file, which may need that thread to be completed.
    pub(crate) fn trim(&self) -> Result<()> {
        if self.padded.load(Ordering::Acquire) <= self.size() {
            return Ok(());
        }
        let _lock = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.size();
        let cut = |long| if self.is_padding(long, size) { self.handle.set_len(size) } else { Ok(()) };
        self.handle
            .len()
            .and_then(cut)
            .map_err(|source| self.error("cut off the end of the last sector", source))
    }
}

impl DiskFile {
    /// Opens it once more, while nothing is written that pads its last sector. Returns the other one where that
    /// has another size: somebody else has changed it.
    pub(crate) fn as_it_is(&self, open: impl FnOnce() -> Result<Arc<Self>>) -> Result<Option<Arc<Self>>> {
        let _lock = self.sectors.lock().unwrap_or_else(PoisonError::into_inner);
        self.trim()?;
        let now = open()?;
        Ok((now.size() != self.size()).then_some(now))
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let size = self.size();
        // A forked child knows nothing of what its parent has written since.
        if self.process != std::process::id()
            || !self.handle.len().is_ok_and(|long| self.is_padding(long, size))
        {
            return;
        }
        match &self.handle {
            // See `trim`. Where the file or a thread cannot be had the padding stays: nobody is left to be told.
            Handle::System(file) if on_engine_thread() => {
                if let Ok(file) = file.try_clone() {
                    let _ = std::thread::Builder::new().spawn(move || file.set_len(size));
                }
            }
            handle => drop(handle.set_len(size)),
        }
    }
}

impl std::fmt::Debug for DiskFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, size, why, writable, .. } = self;
        f.debug_struct("DiskFile")
            .field("path", path)
            .field("size", size)
            .field("writable", writable)
            .field("engine", &self.kind().name())
            .field("why", why)
            .finish_non_exhaustive()
    }
}

fn must_be_regular(path: &Path) -> io::Result<()> {
    // Looked at before it is opened: to open a FIFO waits for somebody at its other end.
    match std::fs::metadata(path) {
        Ok(data) if data.is_file() => Ok(()),
        #[cfg(unix)]
        Ok(data) if data.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(data) => {
            let fault = format!("expected a regular file, this is {}", system::sort(&data));
            Err(io::Error::new(io::ErrorKind::InvalidInput, fault))
        }
        // To open it says what is wrong, or makes the file.
        Err(_) => Ok(()),
    }
}

/// Makes durable that a file is in its directory, or under its new name there.
///
/// # Errors
/// The system's. File systems that know no such thing, and directories that may not be read, are passed over.
pub fn sync_parent(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        // The directory where the file itself is, not a link to it.
        let place = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let parent = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let passed =
            [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported, io::ErrorKind::PermissionDenied];
        match File::open(parent).and_then(|directory| directory.sync_all()) {
            Err(error) if !passed.contains(&error.kind()) => {
                let what = "make its directory durable".to_owned();
                return Err(Error::Io { path: path.to_owned(), what, source: error });
            }
            _ => {}
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
