//! Which engine serves a file: the first of io_uring, direct I/O from threads and buffered I/O that the system
//! allows, and why the ones before it were not taken.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::threads::{THREADS, Threads, repeat};
use super::{Engine, Kind, Null};
use crate::{Error, Result};

/// Requests under way where nothing else is said.
pub const DEPTH: usize = 64;
/// Variable that pins an engine.
const PIN: &str = "PRUNUS_IO";

/// Makes engines when they are first needed, and shares them between files.
pub struct Engines {
    pin: Option<Kind>,
    depth: usize,
    null: Option<Arc<Null>>,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    uring: Option<io::Result<Arc<dyn Engine>>>,
    /// Rings that are of no use any more, for what they counted.
    dead: Vec<Arc<dyn Engine>>,
    direct: Option<Arc<dyn Engine>>,
    buffered: Option<Arc<dyn Engine>>,
}

/// An engine for a file, and why it is this one.
pub(crate) struct Choice {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) why: String,
}

impl Engines {
    /// Engines of up to `depth` requests under way each (threads: at most 16 of them, or `depth` where that is
    /// less). With `pin` files are served by that engine or not at all; `None` leaves it to the environment
    /// variable `PRUNUS_IO` (`io_uring`, `direct` or `buffered`), and without that to what the system allows.
    ///
    /// # Errors
    /// [`Error::Argument`] where `PRUNUS_IO` is something else, `pin` is [`Kind::Null`], or `depth` is 0.
    pub fn new(pin: Option<Kind>, depth: usize) -> Result<Self> {
        let pin = match (pin, std::env::var_os(PIN)) {
            (Some(Kind::Null), _) => return Err(wrong("null".to_owned())),
            (Some(kind), _) => Some(kind),
            (None, Some(name)) if !name.is_empty() => Some(name.to_string_lossy().parse()?),
            (None, _) => None,
        };
        if depth == 0 {
            return Err(Error::Argument {
                what: "depth",
                expected: "at least one request".to_owned(),
                got: depth.to_string(),
            });
        }
        Ok(Self { pin, depth, null: None, made: Mutex::default() })
    }

    /// Engines that open files in memory.
    pub fn null(engine: Arc<Null>) -> Self {
        Self { pin: Some(Kind::Null), depth: engine.depth(), null: Some(engine), made: Mutex::default() }
    }

    /// The engine with files in memory, where that is the one.
    pub(crate) fn in_memory(&self) -> Option<&Arc<Null>> {
        self.null.as_ref()
    }

    /// Which engine is pinned.
    pub fn pin(&self) -> Option<Kind> {
        self.pin
    }

    /// Requests under way at most.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Engines that are in use so far.
    pub fn in_use(&self) -> Vec<Arc<dyn Engine>> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let uring = made.uring.as_ref().and_then(|engine| engine.as_ref().ok());
        let null = self.null.as_ref().map(|null| Arc::clone(null) as Arc<dyn Engine>);
        uring
            .into_iter()
            .chain(&made.dead)
            .chain(&made.direct)
            .chain(&made.buffered)
            .cloned()
            .chain(null)
            .collect()
    }

    /// The engine for a file of which direct I/O was tried; `refused` says why it is not to be had.
    ///
    /// # Errors
    /// The pinned engine's own error.
    pub(crate) fn choose(&self, refused: Option<&io::Error>) -> io::Result<Choice> {
        if let Some(null) = &self.null {
            return Ok(Choice { engine: Arc::clone(null) as Arc<dyn Engine>, why: "in memory".to_owned() });
        }
        let pinned = |kind: Kind| format!("{kind} was asked for");
        match (self.pin, refused) {
            (Some(Kind::Buffered), _) => self.threads(Kind::Buffered, pinned(Kind::Buffered)),
            (Some(kind), Some(error)) => {
                let fault = format!("{kind} was asked for, but direct I/O is refused: {error}");
                Err(io::Error::new(error.kind(), fault))
            }
            (None, Some(error)) => self.threads(Kind::Buffered, format!("direct I/O is refused: {error}")),
            (Some(Kind::Direct), None) => self.threads(Kind::Direct, pinned(Kind::Direct)),
            (pin, None) => match (self.uring(), pin) {
                (Ok(engine), None) => Ok(Choice { engine, why: "the system has it".to_owned() }),
                (Ok(engine), Some(_)) => Ok(Choice { engine, why: pinned(Kind::Uring) }),
                (Err(error), None) => self.threads(Kind::Direct, format!("io_uring is refused: {error}")),
                (Err(error), Some(_)) => Err(io::Error::new(
                    error.kind(),
                    format!("io_uring was asked for, but it is refused: {error}"),
                )),
            },
        }
    }

    fn threads(&self, kind: Kind, why: String) -> io::Result<Choice> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let place = if kind == Kind::Direct { &mut made.direct } else { &mut made.buffered };
        let make = || Arc::new(Threads::new(kind, THREADS.min(self.depth))) as Arc<dyn Engine>;
        Ok(Choice { engine: Arc::clone(place.get_or_insert_with(make)), why })
    }

    fn uring(&self) -> io::Result<Arc<dyn Engine>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.uring.as_ref().is_some_and(|engine| engine.as_ref().is_ok_and(|engine| !engine.is_alive()))
            && let Some(Ok(dead)) = made.uring.take()
        {
            made.dead.push(dead);
        }
        match made.uring.get_or_insert_with(|| uring(self.depth)) {
            Ok(engine) => Ok(Arc::clone(engine)),
            Err(error) => {
                let fault = repeat(error);
                // Whoever opens a file when there are more descriptors or memory gets a ring.
                if is_passing(&fault) {
                    made.uring = None;
                }
                Err(fault)
            }
        }
    }
}

/// Whether what was refused may be had later.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let for_good = [Kind::PermissionDenied, Kind::Unsupported, Kind::InvalidInput];
    !for_good.contains(&error.kind())
}

#[cfg(target_os = "linux")]
fn uring(depth: usize) -> io::Result<Arc<dyn Engine>> {
    super::Uring::new(depth).map(|engine| Arc::new(engine) as Arc<dyn Engine>)
}

#[cfg(not(target_os = "linux"))]
fn uring(_: usize) -> io::Result<Arc<dyn Engine>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has it"))
}

fn wrong(got: String) -> Error {
    Error::Argument { what: "I/O engine", expected: "io_uring, direct or buffered".to_owned(), got }
}
