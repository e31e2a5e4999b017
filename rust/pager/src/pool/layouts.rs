//! Ranges of files that are cut into pages.

use std::ops::{Index, IndexMut, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::State;
use super::table::Phase;
use crate::{DiskFile, Error, Result, SECTOR};

/// A range of a file, cut into pages.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) file: Arc<DiskFile>,
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// The same, for its segments: what lies beyond was cut off.
    pub(crate) limit: Arc<AtomicU64>,
    pub(crate) page: usize,
    /// Pages are whole sectors, and can be written from their frames.
    pub(crate) exact: bool,
    pub(crate) class: usize,
    /// Segments that there are of it.
    pub(crate) users: usize,
    /// Pages that have frames.
    pub(crate) pages: usize,
    /// What kept pages from being written back, until a flush raises it.
    pub(crate) fault: Option<Arc<Error>>,
}

impl Layout {
    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.limit.store(len, Ordering::Release);
    }

    /// Bytes of a page; the last one has fewer.
    pub(crate) fn bytes(&self, index: u64) -> usize {
        let begin = index * self.page as u64;
        (self.len.saturating_sub(begin)).min(self.page as u64) as usize
    }

    /// The sectors of the file that hold a page.
    pub(crate) fn sectors(&self, index: u64) -> Range<u64> {
        let begin = self.start + index * self.page as u64;
        let end = begin + self.bytes(index) as u64;
        begin / SECTOR as u64 * SECTOR as u64..end.next_multiple_of(SECTOR as u64)
    }

    /// Where a page begins in its frame.
    pub(crate) fn lead(&self, index: u64) -> usize {
        ((self.start + index * self.page as u64) % SECTOR as u64) as usize
    }

    /// Pages that a range of bytes (from the layout's start) touches.
    pub(crate) fn touched(&self, range: &Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        range.start / self.page as u64..(range.end - 1) / self.page as u64 + 1
    }
}

/// The layouts, by number.
#[derive(Debug, Default)]
pub(crate) struct Layouts(Vec<Option<Layout>>);

impl Layouts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Layout> {
        self.0.iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Layout> {
        self.0.iter_mut().flatten()
    }

    fn numbers(&self) -> Vec<u32> {
        (0..self.0.len() as u32).filter(|&number| self.0[number as usize].is_some()).collect()
    }

    pub(crate) fn add(&mut self, layout: Layout) -> u32 {
        let free = self.0.iter().position(Option::is_none).unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[free] = Some(layout);
        free as u32
    }
}

impl Index<u32> for Layouts {
    type Output = Layout;

    fn index(&self, number: u32) -> &Layout {
        match &self.0[number as usize] {
            Some(layout) => layout,
            None => unreachable!("a layout is removed only when it has neither pages nor users"),
        }
    }
}

impl IndexMut<u32> for Layouts {
    fn index_mut(&mut self, number: u32) -> &mut Layout {
        match &mut self.0[number as usize] {
            Some(layout) => layout,
            None => unreachable!("a layout is removed only when it has neither pages nor users"),
        }
    }
}

/// Whether a new segment can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It may join this layout, whose length was set.
    Join(u32),
    /// It may have one of its own.
    New,
    /// Pages have to be written back first.
    Later,
    /// Its bytes are in use in other pages.
    Taken,
}

impl State {
    /// Makes room for a segment: drops pages of layouts out of use that it overlaps, and of the last page of the
    /// one that it lengthens.
    pub(crate) fn room(&mut self, file: &Arc<DiskFile>, start: u64, len: u64, page: usize) -> Room {
        let mut room = Room::New;
        for number in self.layouts.numbers() {
            let layout = &self.layouts[number];
            if !Arc::ptr_eq(&layout.file, file) {
                continue;
            }
            if layout.start == start && layout.page == page {
                let old = layout.len;
                if len > old
                    && !old.is_multiple_of(page as u64)
                    && !self.clear(number, old / page as u64..old / page as u64 + 1)
                {
                    return Room::Later;
                }
                self.layouts[number].set_len(old.max(len));
                room = Room::Join(number);
            } else if file.writable() && layout.start < start + len && start < layout.start + layout.len {
                if layout.users > 0 {
                    return Room::Taken;
                }
                let pages = 0..layout.len.div_ceil(layout.page as u64);
                if !self.clear(number, pages) {
                    return Room::Later;
                }
            }
        }
        room
    }

    /// Cuts a file's layouts off at its new end once `cut` has cut the file, and forgets what was to be written
    /// beyond. Nothing is done while something is under way there, but that no call begins there any more; returns
    /// whether it was done.
    ///
    /// # Errors
    /// That of `cut`; then nothing was done either.
    pub(crate) fn cut(
        &mut self,
        file: &Arc<DiskFile>,
        size: u64,
        cut: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let longer: Vec<(u32, u64)> = self
            .layouts
            .numbers()
            .into_iter()
            .map(|number| (number, size.saturating_sub(self.layouts[number].start)))
            .filter(|&(number, len)| {
                let layout = &self.layouts[number];
                Arc::ptr_eq(&layout.file, file) && layout.len > len
            })
            .collect();
        let mut gone = Vec::new();
        for &(number, len) in &longer {
            let layout = &self.layouts[number];
            layout.limit.store(len, Ordering::Release);
            let (last, first_gone) = (len / layout.page as u64, len.div_ceil(layout.page as u64));
            for id in self.table.numbers() {
                let page = self.table.page(id);
                if page.phase == Phase::Absent || page.layout != number || page.index < last {
                    continue;
                }
                let moving = matches!(page.phase, Phase::Loading | Phase::Writing) || page.writers > 0;
                let goes = page.index >= first_gone;
                if moving || goes && page.pins > 0 {
                    return Ok(false);
                }
                gone.extend(goes.then_some(id));
            }
            // sectors around a panel count as the panel's
            let end = len.next_multiple_of(SECTOR as u64);
            if self.passages.iter().any(|one| one.out && one.layout == number && one.range.end > end) {
                return Ok(false);
            }
        }
        cut()?;
        for id in gone {
            self.drop_page(id);
        }
        for (number, len) in longer {
            let old = self.layouts[number].len;
            self.layouts[number].set_len(len);
            // what is read there now may be what was there before: it is not kept, should the file grow again
            self.overtake(number, &(len..old));
        }
        Ok(true)
    }

    /// Undoes what a [`cut`](Self::cut) did that was not done.
    pub(crate) fn uncut(&mut self, file: &Arc<DiskFile>) {
        for layout in self.layouts.iter_mut().filter(|layout| Arc::ptr_eq(&layout.file, file)) {
            layout.set_len(layout.len);
        }
    }

    /// Drops clean pages; whether there are none left.
    fn clear(&mut self, number: u32, range: Range<u64>) -> bool {
        let mut clear = true;
        for id in self.table.numbers() {
            let page = *self.table.page(id);
            if page.phase == Phase::Absent || page.layout != number || !range.contains(&page.index) {
                continue;
            }
            if page.phase == Phase::Clean && page.pins == 0 {
                self.drop_page(id);
            } else {
                clear = false;
            }
        }
        clear
    }

    /// Removes layouts out of use whose file nobody else has, and those without pages. The files are returned to
    /// be closed outside of the lock.
    pub(crate) fn retire(&mut self) -> Vec<Arc<DiskFile>> {
        let mut files = Vec::new();
        for number in self.layouts.numbers() {
            let layout = &self.layouts[number];
            if layout.users > 0 || layout.fault.is_some() {
                continue;
            }
            let ours = self.layouts.iter().filter(|other| Arc::ptr_eq(&other.file, &layout.file)).count();
            if layout.pages > 0 && Arc::strong_count(&layout.file) == ours {
                self.clear(number, 0..u64::MAX);
            }
            if self.layouts[number].pages == 0
                && let Some(layout) = self.layouts.0[number as usize].take()
            {
                files.push(layout.file);
            }
        }
        files
    }
}
