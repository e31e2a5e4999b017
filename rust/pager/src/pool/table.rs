//! Which page is in which frame, and in which state.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::policy::hash;

/// What a page is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The number is free.
    Absent,
    /// Being read, or filled for the first time.
    Loading,
    /// As in the file.
    Clean,
    /// Newer than the file.
    Dirty,
    /// Being written back.
    Writing,
}

/// A page that has a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) layout: u32,
    pub(crate) index: u64,
    pub(crate) frame: u32,
    pub(crate) phase: Phase,
    /// Uses under way: it must stay.
    pub(crate) pins: u32,
    /// Uses under way that change it: it must not be written back.
    pub(crate) writers: u32,
    /// The file has changed since its read began.
    pub(crate) stale: bool,
    /// Somebody waits for its phase to change.
    pub(crate) awaited: bool,
    /// Read ahead, and not used yet.
    pub(crate) ahead: bool,
    /// Could not be written back.
    pub(crate) failed: bool,
    /// In the queue of dirty pages.
    pub(crate) listed: bool,
    /// When it became dirty.
    pub(crate) dirtied: u64,
    /// When it was read ahead, in uses of pages.
    pub(crate) since: u64,
}

/// A hasher for keys that are hashed well enough by [`hash`].
#[derive(Default)]
pub(crate) struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = hash(u32::from(byte), self.0);
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = u64::from(value);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = hash(self.0 as u32, value);
    }
}

/// All pages.
#[derive(Default)]
pub(crate) struct Table {
    ids: HashMap<(u32, u64), u32, BuildHasherDefault<Mixed>>,
    pages: Vec<Page>,
    free: Vec<u32>,
}

impl Table {
    /// The number of a page that has a frame.
    pub(crate) fn find(&self, layout: u32, index: u64) -> Option<u32> {
        self.ids.get(&(layout, index)).copied()
    }

    /// A new page, being loaded.
    pub(crate) fn add(&mut self, layout: u32, index: u64, frame: u32) -> u32 {
        let page = Page {
            layout,
            index,
            frame,
            phase: Phase::Loading,
            pins: 0,
            writers: 0,
            stale: false,
            awaited: false,
            ahead: false,
            failed: false,
            listed: false,
            dirtied: 0,
            since: 0,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.pages[id as usize] = page;
                id
            }
            None => {
                self.pages.push(page);
                self.pages.len() as u32 - 1
            }
        };
        let before = self.ids.insert((layout, index), id);
        debug_assert!(before.is_none(), "a page came twice");
        id
    }

    /// Removes a page.
    pub(crate) fn remove(&mut self, id: u32) -> Page {
        let page = self.pages[id as usize];
        debug_assert_ne!(page.phase, Phase::Absent);
        self.pages[id as usize].phase = Phase::Absent;
        self.ids.remove(&(page.layout, page.index));
        self.free.push(id);
        page
    }

    pub(crate) fn page(&self, id: u32) -> &Page {
        &self.pages[id as usize]
    }

    pub(crate) fn page_mut(&mut self, id: u32) -> &mut Page {
        &mut self.pages[id as usize]
    }

    /// All numbers ever given; some are absent.
    pub(crate) fn numbers(&self) -> std::ops::Range<u32> {
        0..self.pages.len() as u32
    }
}
