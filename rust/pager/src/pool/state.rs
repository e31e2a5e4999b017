//! Frames, pages and their order under one lock. Nothing is waited for under it, and no I/O is submitted;
//! only a file is cut.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::ahead::Ahead;
use super::call::{Call, Outcome};
use super::frames::{Frames, NOBODY};
use super::layouts::Layouts;
use super::policy::{Policy, hash};
use super::table::{Page, Phase, Table};
use crate::DiskFile;

/// What came of asking for a page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grab {
    /// It is there, and pinned.
    Ready(u32),
    /// Somebody else is bringing it; the call will hear of it.
    Coming,
    /// It got a frame and is pinned; the caller has to bring it.
    Mine(u32),
    /// Nothing can be had now.
    Full,
}

/// A panel of a stream that is being read or written.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) id: u64,
    pub(crate) layout: u32,
    /// Bytes from the layout's start.
    pub(crate) range: Range<u64>,
    /// It goes to the file.
    pub(crate) out: bool,
    /// The file was changed under it since its read began.
    pub(crate) stale: bool,
}

/// What there is in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) evictions: u64,
}

/// Everything under the lock.
pub(crate) struct State {
    pub(crate) frames: Frames,
    pub(crate) policies: Vec<Policy>,
    pub(crate) table: Table,
    pub(crate) layouts: Layouts,
    pub(crate) waiting: HashMap<u32, Vec<(Arc<Call>, u32, bool)>>,
    /// Dirty pages in the order in which they became so; some are no longer.
    pub(crate) dirty: VecDeque<u32>,
    pub(crate) dirty_bytes: usize,
    pub(crate) writing_bytes: usize,
    /// Bytes whose write-back failed: only a flush tries again.
    pub(crate) failed_bytes: usize,
    pub(crate) ahead: Ahead,
    pub(crate) passages: Vec<Passage>,
    /// Bytes of frames that streams have, and at most had.
    pub(crate) panels: usize,
    pub(crate) panels_peak: usize,
    /// The part of the slabs that those frames keep from others: more, where frames do not fill their slabs.
    pub(crate) panels_share: usize,
    /// Panels that are being read.
    pub(crate) reading: usize,
    /// Bytes of frames that are never used again, as the system may still move bytes there.
    pub(crate) lost: usize,
    /// Pages pinned by guards that a user holds.
    pub(crate) held: usize,
    pub(crate) loading: usize,
    pub(crate) counts: Counts,
    /// Counts changes that others may wait for.
    pub(crate) moves: u64,
    pub(crate) clock: u64,
    pub(super) sleepers: usize,
}

impl State {
    pub(super) fn new(frames: Frames) -> Self {
        Self {
            frames,
            policies: Vec::new(),
            table: Table::default(),
            layouts: Layouts::default(),
            waiting: HashMap::new(),
            dirty: VecDeque::new(),
            dirty_bytes: 0,
            writing_bytes: 0,
            failed_bytes: 0,
            ahead: Ahead::default(),
            passages: Vec::new(),
            panels: 0,
            panels_peak: 0,
            panels_share: 0,
            reading: 0,
            lost: 0,
            held: 0,
            loading: 0,
            counts: Counts::default(),
            moves: 0,
            clock: 0,
            sleepers: 0,
        }
    }

    /// The class of frames of `size` bytes.
    pub(crate) fn class(&mut self, size: usize) -> usize {
        let class = self.frames.class(size);
        while self.policies.len() <= class {
            let most = self.frames.most(self.policies.len());
            self.policies.push(Policy::new(most));
        }
        class
    }

    /// Tells a class's policy how many frames it has to rank pages of.
    pub(super) fn fit(&mut self, class: usize) {
        let frames = self.frames.capacity(class);
        let frames = frames - self.ahead.reserve(class).min(frames);
        if self.policies[class].capacity() != frames {
            self.policies[class].set_capacity(frames);
        }
    }

    /// Gives a frame back.
    pub(crate) fn give(&mut self, frame: u32) {
        let class = self.frames.class_of(frame);
        self.frames.give(frame);
        self.fit(class);
    }

    /// A frame that nobody has, without evicting anything.
    pub(crate) fn take_free(&mut self, class: usize) -> Option<u32> {
        let frame = self.frames.take(class)?;
        self.fit(class);
        Some(frame)
    }

    /// A frame, if need be that of a page that leaves.
    pub(crate) fn take(&mut self, class: usize) -> Option<u32> {
        if let Some(frame) = self.take_free(class) {
            return Some(frame);
        }
        if self.frames.may_grow(class) && self.rob(class, true) {
            return self.take_free(class);
        }
        let Self { policies, table, .. } = self;
        let own = policies[class].victim(|id| evictable(table.page(id)));
        if let Some(id) = own {
            self.counts.evictions += 1;
            self.drop_page(id);
            return self.take_free(class);
        }
        loop {
            // what was read ahead may be all over the slabs
            if self.rob(class, false) {
                return self.take_free(class);
            }
            if !self.drop_ahead(u64::MAX) {
                return None;
            }
            if let Some(frame) = self.take_free(class) {
                return Some(frame);
            }
        }
    }

    /// Takes a slab from another class.
    fn rob(&mut self, class: usize, fair: bool) -> bool {
        let (table, policies, frames) = (&self.table, &self.policies, &self.frames);
        let prey = frames.prey(class, fair, |id| {
            let page = table.page(id);
            // pages that were used again are what a pool is for
            evictable(page).then(|| if policies[frames.class_of(page.frame)].again(id) { 16 } else { 1 })
        });
        let Some(prey) = prey else { return false };
        for id in prey {
            self.counts.evictions += 1;
            self.drop_page(id);
        }
        true
    }

    /// Removes a page from everything. Those who wait for it hear of it.
    pub(crate) fn drop_page(&mut self, id: u32) {
        let frame = self.remove_page(id);
        self.give(frame);
    }

    /// Removes a page whose frame the system may still change: nobody gets it any more.
    pub(crate) fn lose_page(&mut self, id: u32) {
        let frame = self.remove_page(id);
        self.lost += self.frames.size(self.frames.class_of(frame));
        self.frames.set_owner(frame, NOBODY);
    }

    /// Removes a page from everything but its frame, which is returned.
    fn remove_page(&mut self, id: u32) -> u32 {
        let page = self.table.remove(id);
        let class = self.frames.class_of(page.frame);
        let size = self.frames.size(class);
        self.policies[class].remove(id);
        if page.ahead {
            self.ahead.end(class, size);
        }
        match page.phase {
            Phase::Dirty => {
                self.dirty_bytes -= size;
                if page.failed {
                    self.failed_bytes -= size;
                }
            }
            Phase::Writing => self.writing_bytes -= size,
            Phase::Loading => self.loading -= 1,
            Phase::Clean | Phase::Absent => {}
        }
        self.layouts[page.layout].pages -= 1;
        if page.awaited {
            for (call, tag, _) in self.waiting.remove(&id).unwrap_or_default() {
                call.deliver([(tag, Outcome::Again)], 0);
            }
        }
        page.frame
    }

    /// Puts a page into a frame, in [`Phase::Loading`], with one pin.
    pub(crate) fn place(&mut self, layout: u32, index: u64, frame: u32) -> u32 {
        let id = self.table.add(layout, index, frame);
        self.frames.set_owner(frame, id);
        self.table.page_mut(id).pins = 1;
        self.layouts[layout].pages += 1;
        self.loading += 1;
        id
    }

    /// Ranks a page that is used for the first time.
    pub(crate) fn admit(&mut self, id: u32) {
        let page = self.table.page(id);
        let class = self.frames.class_of(page.frame);
        self.policies[class].admit(id, hash(page.layout, page.index));
        if self.ahead.forget(class, self.frames.capacity(class)) {
            self.fit(class);
        }
    }

    /// Whether bytes of a layout are on their way to the file.
    pub(crate) fn is_going(&self, layout: u32, range: &Range<u64>) -> bool {
        self.passages
            .iter()
            .any(|passage| passage.out && passage.layout == layout && overlap(&passage.range, range))
    }

    /// Forgets pages of bytes that could not be written: the file says what is there. Pages that are in use or newer
    /// than the file stay.
    pub(crate) fn disown(&mut self, layout: u32, range: &Range<u64>) {
        if self.layouts[layout].pages > 0 {
            for index in self.layouts[layout].touched(range) {
                let Some(id) = self.table.find(layout, index) else { continue };
                let page = self.table.page(id);
                if page.phase == Phase::Clean && page.pins == 0 {
                    self.drop_page(id);
                }
            }
        }
        self.overtake(layout, range);
    }

    /// Marks panels that are being read as overtaken.
    pub(crate) fn overtake(&mut self, layout: u32, range: &Range<u64>) {
        for passage in &mut self.passages {
            passage.stale |= !passage.out && passage.layout == layout && overlap(&passage.range, range);
        }
    }

    /// Whether a panel that is being read was overtaken.
    pub(crate) fn is_stale(&self, passage: u64) -> bool {
        self.passages.iter().any(|one| one.id == passage && one.stale)
    }

    /// Bytes of a page, from the layout's start.
    pub(crate) fn range(&self, layout: u32, index: u64) -> Range<u64> {
        let layout = &self.layouts[layout];
        let begin = index * layout.page as u64;
        begin..begin + layout.bytes(index) as u64
    }

    /// Asks for a page to read from it.
    pub(crate) fn grab(&mut self, layout: u32, index: u64, call: &Arc<Call>, tag: u32) -> Grab {
        if let Some(id) = self.table.find(layout, index) {
            self.counts.hits += 1;
            self.use_page(id);
            let page = self.table.page_mut(id);
            page.pins += 1;
            if page.phase != Phase::Loading {
                return Grab::Ready(id);
            }
            page.awaited = true;
            self.waiting.entry(id).or_default().push((Arc::clone(call), tag, true));
            return Grab::Coming;
        }
        match self.bring(layout, index) {
            Some(id) => Grab::Mine(id),
            None => Grab::Full,
        }
    }

    /// A frame for an absent page, which becomes [`Phase::Loading`]; `None` where there is none, or where its
    /// bytes are on their way to the file.
    fn bring(&mut self, layout: u32, index: u64) -> Option<u32> {
        let range = self.range(layout, index);
        // the file was cut under a call that goes on
        if range.is_empty() || !self.passages.is_empty() && self.is_going(layout, &range) {
            return None;
        }
        let frame = self.take(self.layouts[layout].class)?;
        self.counts.misses += 1;
        let id = self.place(layout, index, frame);
        self.admit(id);
        Some(id)
    }

    /// Asks for a page to write to it: ready, it counts a writer. A page that is coming is not pinned, and has to
    /// be asked for again.
    pub(crate) fn grab_to_write(&mut self, layout: u32, index: u64, call: &Arc<Call>, tag: u32) -> Grab {
        let Some(id) = self.table.find(layout, index) else {
            return match self.bring(layout, index) {
                Some(id) => Grab::Mine(id),
                None => Grab::Full,
            };
        };
        let phase = self.table.page(id).phase;
        if matches!(phase, Phase::Loading | Phase::Writing) {
            self.table.page_mut(id).awaited = true;
            self.waiting.entry(id).or_default().push((Arc::clone(call), tag, false));
            return Grab::Coming;
        }
        self.counts.hits += 1;
        self.use_page(id);
        let page = self.table.page_mut(id);
        page.pins += 1;
        page.writers += 1;
        Grab::Ready(id)
    }

    /// Counts a use of a page for its rank.
    pub(crate) fn use_page(&mut self, id: u32) {
        let page = self.table.page_mut(id);
        let (frame, ahead) = (page.frame, page.ahead);
        page.ahead = false;
        let class = self.frames.class_of(frame);
        if ahead {
            self.ahead.end(class, self.frames.size(class));
            self.admit(id);
        } else if self.policies[class].contains(id) {
            self.policies[class].touch(id);
        }
    }

    /// Lets pages that could not be written back be tried again.
    pub(crate) fn forgive(&mut self, file: Option<&Arc<DiskFile>>) {
        for id in self.table.numbers() {
            let page = *self.table.page(id);
            let wanted = || file.is_none_or(|file| Arc::ptr_eq(&self.layouts[page.layout].file, file));
            if page.phase == Phase::Dirty && page.failed && wanted() {
                self.failed_bytes -= self.frames.size(self.frames.class_of(page.frame));
                self.table.page_mut(id).failed = false;
            }
        }
    }

    /// Ends a use.
    pub(crate) fn unpin(&mut self, id: u32) {
        let page = self.table.page_mut(id);
        debug_assert!(page.pins > 0 && page.phase != Phase::Absent);
        page.pins -= 1;
    }

    /// A page was read or filled: those who wait for it have it.
    pub(crate) fn ready(&mut self, id: u32) {
        let page = self.table.page_mut(id);
        debug_assert_eq!(page.phase, Phase::Loading);
        page.phase = Phase::Clean;
        page.stale = false;
        self.loading -= 1;
        self.wake(id);
    }

    /// Tells those who wait for a page's phase.
    pub(crate) fn wake(&mut self, id: u32) {
        let page = self.table.page_mut(id);
        if !std::mem::take(&mut page.awaited) {
            return;
        }
        for (call, tag, pinned) in self.waiting.remove(&id).unwrap_or_default() {
            call.deliver([(tag, if pinned { Outcome::Ready } else { Outcome::Again })], 0);
        }
    }

    /// A use that changed a page ends.
    pub(crate) fn written(&mut self, id: u32) {
        self.clock += 1;
        let clock = self.clock;
        let page = self.table.page_mut(id);
        debug_assert!(page.writers > 0 && matches!(page.phase, Phase::Clean | Phase::Dirty));
        page.writers -= 1;
        let (layout, index, frame) = (page.layout, page.index, page.frame);
        if page.phase == Phase::Clean {
            page.phase = Phase::Dirty;
            page.dirtied = clock;
            if !std::mem::replace(&mut page.listed, true) {
                self.dirty.push_back(id);
            }
            self.dirty_bytes += self.frames.size(self.frames.class_of(frame));
        }
        if !self.passages.is_empty() {
            let range = self.range(layout, index);
            self.overtake(layout, &range);
        }
        self.unpin(id);
    }

    /// Checks what must always be true.
    pub(crate) fn check(&self) {
        let (mut dirty, mut writing, mut loading, mut ahead, mut failed) = (0, 0, 0, 0, 0);
        let mut used = self.panels + self.lost;
        for id in self.table.numbers() {
            let page = self.table.page(id);
            if page.phase == Phase::Absent {
                continue;
            }
            let class = self.frames.class_of(page.frame);
            let size = self.frames.size(class);
            used += size;
            dirty += if page.phase == Phase::Dirty { size } else { 0 };
            failed += if page.phase == Phase::Dirty && page.failed { size } else { 0 };
            writing += if page.phase == Phase::Writing { size } else { 0 };
            loading += usize::from(page.phase == Phase::Loading);
            ahead += if page.ahead { size } else { 0 };
            assert_eq!(self.table.find(page.layout, page.index), Some(id));
            assert!(page.writers <= page.pins);
            assert!(page.phase != Phase::Writing || page.writers == 0);
            assert_eq!(self.policies[class].contains(id), !page.ahead);
        }
        assert_eq!(
            (dirty, writing, loading, ahead, failed),
            (self.dirty_bytes, self.writing_bytes, self.loading, self.ahead.bytes, self.failed_bytes)
        );
        assert!(self.panels <= self.panels_share);
        assert_eq!(used, self.frames.in_use().0);
        assert!(used <= self.frames.bytes());
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn evictable(page: &Page) -> bool {
    page.pins == 0 && page.phase == Phase::Clean && !page.ahead
}
