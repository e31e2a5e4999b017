//! Which files this process has open for paging, so that none of them is emptied under who has it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::system::Identity;
use crate::io::PerProcess;

type Key = (u64, u64);
type Open = Mutex<HashMap<Key, usize>>;

/// How often each file is open. A forked child has its own: its parent's lock may be held for ever there.
fn open() -> MutexGuard<'static, HashMap<Key, usize>> {
    static OPEN: OnceLock<PerProcess<Open>> = OnceLock::new();
    let open = OPEN.get_or_init(|| PerProcess::new(Mutex::default())).get(Mutex::default);
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(identity: &Identity) -> Option<Key> {
    // Where the system does not tell files apart, all have this.
    Some((identity.device, identity.inode)).filter(|key| *key != (0, 0))
}

/// Says that a file is open, while it lives.
pub(super) struct Present {
    key: Option<Key>,
    process: u32,
}

impl Present {
    pub(super) fn new(identity: &Identity) -> Self {
        let key = key(identity);
        if let Some(key) = key {
            *open().entry(key).or_default() += 1;
        }
        Self { key, process: std::process::id() }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let Some(key) = self.key.filter(|_| self.process == std::process::id()) else { return };
        let mut open = open();
        if let Some(count) = open.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&key);
            }
        }
    }
}

/// Whether this process has a file open.
pub(super) fn is_open(identity: &Identity) -> bool {
    key(identity).is_some_and(|key| open().contains_key(&key))
}

/// Numbers for names of temporary files.
pub(super) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
