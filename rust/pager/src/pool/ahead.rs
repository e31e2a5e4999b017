//! Pages that are read before they are asked for.
//!
//! They are not ranked: nothing is known of them but that somebody means to use them. Once the pool is full they get a
//! small share of the frames, which the policy then counts as gone. So a page that was read ahead takes its place among
//! the others when it is used, as one does that is read then, and leaves as soon where it is not worth keeping: reading
//! ahead costs the frames that it uses, and no other page its place.

use std::collections::VecDeque;

use super::state::{Grab, State};
use super::table::Phase;

/// Part of the budget for which other pages leave, where pages are kept for how often they were used.
const SHARE: usize = 10;
/// Part of the budget that may be read ahead otherwise: into free frames, and where only the latest pages count.
const MOST: usize = 2;
/// Entries of pages no longer ahead that are kept however few pages are.
const SLACK: usize = 64;

/// What is known of the frames of one size.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// Pages that were read ahead and not used yet.
    now: usize,
    /// At most so many since the last look, and between the two before it.
    peak: usize,
    before: usize,
    /// The largest part that is set aside.
    most: usize,
    /// Pages that came into use since the last look.
    uses: usize,
}

/// Pages read ahead and not used yet.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Oldest first, with the number of uses of pages then; some are no longer of this kind.
    queue: VecDeque<(u32, u64)>,
    pub(super) bytes: usize,
    classes: Vec<Use>,
}

impl Ahead {
    fn begin(&mut self, class: usize, size: usize, id: u32, uses: u64, budget: usize) {
        if self.classes.len() <= class {
            self.classes.resize(class + 1, Use::default());
        }
        let part = &mut self.classes[class];
        part.now += 1;
        part.peak = part.peak.max(part.now);
        part.most = budget / SHARE / size;
        self.bytes += size;
        self.queue.push_back((id, uses));
    }

    /// A page was used, or left.
    pub(super) fn end(&mut self, class: usize, size: usize) {
        self.classes[class].now -= 1;
        self.bytes -= size;
    }

    /// Pages that were read ahead and not used yet.
    fn live(&self) -> usize {
        self.classes.iter().map(|part| part.now).sum()
    }

    /// Frames that are set aside, as many as were needed lately.
    pub(super) fn reserve(&self, class: usize) -> usize {
        self.classes.get(class).map_or(0, |part| part.peak.max(part.before).min(part.most))
    }

    /// A page came into use. Once as many did as there are frames, what was needed before counts no more: true.
    pub(super) fn forget(&mut self, class: usize, frames: usize) -> bool {
        let Some(part) = self.classes.get_mut(class).filter(|part| part.peak > 0 || part.before > 0) else {
            return false;
        };
        part.uses += 1;
        if part.uses < frames {
            return false;
        }
        (part.uses, part.before, part.peak) = (0, part.peak, part.now);
        true
    }
}

impl State {
    fn uses(&self) -> u64 {
        self.counts.hits + self.counts.misses
    }

    /// Whether an entry of the queue is of a page that is still there and not used; the number may be another
    /// page's by now.
    fn is_ahead(&self, &(id, since): &(u32, u64)) -> bool {
        let page = self.table.page(id);
        page.phase != Phase::Absent && page.ahead && page.since == since
    }

    /// Forgets entries of pages that were used or left: the first ones, and the others once most are. So the queue
    /// stays in proportion to what is ahead, at a constant price for each page.
    fn tidy_ahead(&mut self) {
        while self.ahead.queue.front().is_some_and(|entry| !self.is_ahead(entry)) {
            self.ahead.queue.pop_front();
        }
        if self.ahead.queue.len() > 2 * self.ahead.live() + SLACK {
            let mut queue = std::mem::take(&mut self.ahead.queue);
            queue.retain(|entry| self.is_ahead(entry));
            self.ahead.queue = queue;
        }
    }

    /// Evicts the oldest page that was read ahead until then and not used, of those that were read. The order of the
    /// others stays.
    pub(super) fn drop_ahead(&mut self, until: u64) -> bool {
        let mut loading = Vec::new();
        let victim = loop {
            self.tidy_ahead();
            let Some(&first) = self.ahead.queue.front().filter(|(_, since)| *since <= until) else {
                break None;
            };
            self.ahead.queue.pop_front();
            let page = self.table.page(first.0);
            if page.phase == Phase::Clean && page.pins == 0 {
                break Some(first.0);
            }
            loading.push(first);
        };
        for entry in loading.into_iter().rev() {
            self.ahead.queue.push_front(entry);
        }
        if let Some(id) = victim {
            self.counts.evictions += 1;
            self.drop_page(id);
        }
        victim.is_some()
    }

    /// Whether so many bytes more may be read ahead. What nobody asked for while the pool was used from one end to
    /// the other makes room.
    fn may_read_ahead(&mut self, class: usize, most: usize) -> bool {
        let size = self.frames.size(class);
        let age = (2 * self.frames.bytes() / size) as u64;
        while self.ahead.bytes + size > most {
            match self.uses().checked_sub(age + 1) {
                Some(until) if self.drop_ahead(until) => {}
                _ => return false,
            }
        }
        true
    }

    /// Asks for a page that will be used later: `Mine`, without a pin, or `Full`, or nothing to do.
    pub(crate) fn grab_ahead(&mut self, layout: u32, index: u64) -> Option<Grab> {
        if self.table.find(layout, index).is_some() {
            return None;
        }
        let class = self.layouts[layout].class;
        let (size, budget) = (self.frames.size(class), self.frames.bytes());
        let most = (budget / MOST).max(size);
        if !self.may_read_ahead(class, most) || self.is_going(layout, &self.range(layout, index)) {
            return Some(Grab::Full);
        }
        let share = if self.policies[class].counts_uses() { (budget / SHARE).max(size) } else { most };
        let frame = match self.take_free(class) {
            Some(frame) => frame,
            None if self.may_read_ahead(class, share) => match self.take(class) {
                Some(frame) => frame,
                None => return Some(Grab::Full),
            },
            None => return Some(Grab::Full),
        };
        self.counts.misses += 1;
        let id = self.place(layout, index, frame);
        let uses = self.uses();
        let page = self.table.page_mut(id);
        (page.pins, page.ahead, page.since) = (0, true, uses);
        self.ahead.begin(class, size, id, uses, budget);
        self.tidy_ahead();
        self.fit(class);
        Some(Grab::Mine(id))
    }
}
