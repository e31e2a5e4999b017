//! The pool's memory: one arena, cut into slabs, each of which serves frames of one size.

use std::sync::Arc;

use crate::{Aligned, Error, Result, SECTOR};

/// Largest slab, a huge page.
pub(crate) const LARGEST: usize = 2 << 20;
/// Slabs that even a small budget is cut into, so that different sizes find room side by side.
const HANDFUL: usize = 8;
/// A frame that belongs to no page: free, or a stream's.
pub(crate) const NOBODY: u32 = u32::MAX;

const NO_CLASS: u16 = u16::MAX;

#[derive(Debug)]
struct Slab {
    class: u16,
    /// In its class's list of slabs with free frames.
    listed: bool,
    used: u16,
    free: Vec<u16>,
}

/// Frames of one size.
#[derive(Debug)]
struct Class {
    size: usize,
    per_slab: usize,
    slabs: usize,
    /// Slabs that may have free frames.
    open: Vec<u32>,
    /// When it was last used, in bytes of frames taken.
    used: u64,
}

/// The arena and who has which part of it. A frame's number is that of its first sector.
#[derive(Debug)]
pub(crate) struct Frames {
    arena: Arc<Aligned>,
    slab: usize,
    slabs: Vec<Slab>,
    empty: Vec<u32>,
    classes: Vec<Class>,
    /// The page that has the frame of that number.
    owners: Vec<u32>,
    used: usize,
    peak: usize,
    clock: u64,
}

/// Size of slabs for a budget.
fn slab_size(budget: usize) -> usize {
    let share = budget / HANDFUL;
    if share >= LARGEST {
        LARGEST
    } else if share < SECTOR {
        SECTOR
    } else {
        1 << share.ilog2()
    }
}

impl Frames {
    /// Allocates the arena.
    ///
    /// # Errors
    /// [`Error::Budget`] and [`Error::Memory`].
    pub(crate) fn new(budget: usize) -> Result<Self> {
        if budget < HANDFUL * SECTOR {
            let what = "a pool of pages".to_owned();
            return Err(Error::Budget { budget, what, least: HANDFUL * SECTOR });
        }
        let slab = slab_size(budget);
        let count = budget / slab;
        let arena = Arc::new(Aligned::new(count * slab)?);
        let slabs = (0..count).map(|_| Slab { class: NO_CLASS, listed: false, used: 0, free: Vec::new() });
        Ok(Self {
            arena,
            slab,
            slabs: slabs.collect(),
            empty: (0..count as u32).rev().collect(),
            classes: Vec::new(),
            owners: vec![NOBODY; count * slab / SECTOR],
            used: 0,
            peak: 0,
            clock: 0,
        })
    }

    /// The memory.
    pub(crate) fn arena(&self) -> &Arc<Aligned> {
        &self.arena
    }

    /// Bytes of the arena.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Bytes in use, now and at most so far.
    pub(crate) fn in_use(&self) -> (usize, usize) {
        (self.used, self.peak)
    }

    /// Largest frame.
    pub(crate) fn largest(&self) -> usize {
        self.slab
    }

    /// The least budget whose slabs hold such a frame.
    pub(crate) fn least(size: usize) -> usize {
        HANDFUL * size.max(SECTOR).next_power_of_two()
    }

    /// The class of frames of `size` bytes, a multiple of a sector and at most [`Self::largest`].
    pub(crate) fn class(&mut self, size: usize) -> usize {
        debug_assert!(size.is_multiple_of(SECTOR) && size <= self.slab);
        self.classes.iter().position(|class| class.size == size).unwrap_or_else(|| {
            let per_slab = self.slab / size;
            self.classes.push(Class { size, per_slab, slabs: 0, open: Vec::new(), used: 0 });
            self.classes.len() - 1
        })
    }

    /// Frames that a class could have at most.
    pub(crate) fn most(&self, class: usize) -> usize {
        self.slabs.len() * self.classes[class].per_slab
    }

    /// Frames that a class has, free ones included.
    pub(crate) fn capacity(&self, class: usize) -> usize {
        self.classes[class].slabs * self.classes[class].per_slab
    }

    /// Bytes of a class's frames.
    pub(crate) fn size(&self, class: usize) -> usize {
        self.classes[class].size
    }

    /// Bytes of a slab over the frames of a class that it holds.
    pub(crate) fn share(&self, class: usize) -> usize {
        self.slab / self.classes[class].per_slab
    }

    /// Slabs that nobody has.
    pub(crate) fn empty(&self) -> usize {
        self.empty.len()
    }

    fn slab_of(&self, frame: u32) -> usize {
        frame as usize * SECTOR / self.slab
    }

    /// The class that a frame is of.
    pub(crate) fn class_of(&self, frame: u32) -> usize {
        usize::from(self.slabs[self.slab_of(frame)].class)
    }

    /// Who has a frame.
    pub(crate) fn set_owner(&mut self, frame: u32, page: u32) {
        self.owners[frame as usize] = page;
    }

    /// Whether a class has a free frame without taking a slab.
    pub(crate) fn has_free(&mut self, class: usize) -> bool {
        while let Some(&slab) = self.classes[class].open.last() {
            let slab = &mut self.slabs[slab as usize];
            if usize::from(slab.class) == class && !slab.free.is_empty() {
                return true;
            }
            if usize::from(slab.class) == class {
                slab.listed = false;
            }
            self.classes[class].open.pop();
        }
        false
    }

    /// A free frame, from a slab that nobody has if need be.
    pub(crate) fn take(&mut self, class: usize) -> Option<u32> {
        if !self.has_free(class) {
            let slab = self.empty.pop()?;
            self.assign(slab, class);
        }
        let &index = self.classes[class].open.last()?;
        let slab = &mut self.slabs[index as usize];
        let place = slab.free.pop()?;
        slab.used += 1;
        let size = self.classes[class].size;
        self.used += size;
        self.peak = self.peak.max(self.used);
        self.clock += size as u64;
        self.classes[class].used = self.clock;
        Some(((index as usize * self.slab + usize::from(place) * size) / SECTOR) as u32)
    }

    fn assign(&mut self, index: u32, class: usize) {
        let per_slab = self.classes[class].per_slab as u16;
        let slab = &mut self.slabs[index as usize];
        slab.class = class as u16;
        slab.listed = true;
        slab.free.clear();
        slab.free.extend((0..per_slab).rev());
        self.classes[class].open.push(index);
        self.classes[class].slabs += 1;
    }

    /// Takes a frame back. A slab without used ones is anybody's again.
    pub(crate) fn give(&mut self, frame: u32) {
        self.owners[frame as usize] = NOBODY;
        let index = self.slab_of(frame);
        let slab = &mut self.slabs[index];
        let class = &mut self.classes[usize::from(slab.class)];
        self.used -= class.size;
        slab.used -= 1;
        slab.free.push(((frame as usize * SECTOR % self.slab) / class.size) as u16);
        if slab.used == 0 {
            class.slabs -= 1;
            class.open.retain(|&open| open as usize != index);
            slab.class = NO_CLASS;
            slab.listed = false;
            self.empty.push(index as u32);
        } else if !slab.listed {
            slab.listed = true;
            class.open.push(index as u32);
        }
    }

    /// Whether a class may take slabs from others rather than evict its own pages: it has less than an equal
    /// share, or another one has lain idle while the whole pool was filled once.
    pub(crate) fn may_grow(&self, class: usize) -> bool {
        let others = |other: &usize| *other != class && self.classes[*other].slabs > 0;
        let active = 1 + (0..self.classes.len()).filter(others).count();
        active > 1
            && (self.classes[class].slabs * active < self.slabs.len()
                || (0..self.classes.len()).filter(others).any(|other| self.idle(other)))
    }

    fn idle(&self, class: usize) -> bool {
        self.clock - self.classes[class].used > self.arena.len() as u64
    }

    /// The pages of the slab of another class that is cheapest to take, of those whose pages may all leave.
    /// With `fair`, only from classes that are idle or have more than an equal share. `worth` says of a page what
    /// it is worth to stay, `None` that it must.
    pub(crate) fn prey(
        &self,
        class: usize,
        fair: bool,
        worth: impl Fn(u32) -> Option<usize>,
    ) -> Option<Vec<u32>> {
        let others = |other: &usize| *other != class && self.classes[*other].slabs > 0;
        let active = 1 + (0..self.classes.len()).filter(others).count();
        let step = |slab: &Slab| self.classes[usize::from(slab.class)].size / SECTOR;
        let pages = |index: usize| {
            let first = index * self.slab / SECTOR;
            let step = step(&self.slabs[index]);
            let free = self.slabs[index].free.as_slice();
            (0..self.slab / SECTOR / step)
                .filter(|&place| !free.contains(&(place as u16)))
                .map(move |place| self.owners[first + place * step])
        };
        let rich =
            |other: usize| !fair || self.idle(other) || self.classes[other].slabs * active > self.slabs.len();
        (0..self.slabs.len())
            .filter(|&index| {
                let other = self.slabs[index].class;
                other != NO_CLASS && usize::from(other) != class && rich(usize::from(other))
            })
            .filter_map(|index| {
                let worth = pages(index).try_fold(0, |sum, page| {
                    let worth = if page == NOBODY { None } else { worth(page) };
                    Some(sum + worth?)
                });
                Some((worth?, index))
            })
            .min()
            .map(|(_, index)| pages(index).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_follow_the_budget() {
        assert_eq!(slab_size(256 << 20), LARGEST);
        assert_eq!(slab_size(1 << 20), 128 << 10);
        assert_eq!(slab_size(32 << 10), 4 << 10);
        assert!(matches!(Frames::new(1000), Err(Error::Budget { least: 32768, .. })));
    }

    #[test]
    fn slabs_go_where_they_are_needed() {
        let mut frames = Frames::new(64 << 10).unwrap();
        assert_eq!(frames.largest(), 8 << 10);
        let (small, large) = (frames.class(4 << 10), frames.class(8 << 10));
        let taken: Vec<u32> = std::iter::from_fn(|| frames.take(small)).collect();
        assert_eq!(taken.len(), 16);
        assert_eq!(frames.in_use(), (64 << 10, 64 << 10));
        assert_eq!(frames.take(large), None);
        for (page, &frame) in taken.iter().enumerate() {
            frames.set_owner(frame, page as u32);
        }
        assert_eq!(frames.prey(large, true, |page| (page != 2 && page % 2 == 0).then_some(1)), None);
        let prey = frames
            .prey(large, true, |page| (page > 1).then_some(usize::from(page != 9 && page != 8)))
            .unwrap();
        assert_eq!(prey.len(), 2);
        assert!(prey.contains(&8) && prey.contains(&9));
        for page in prey {
            frames.give(taken[page as usize]);
        }
        let frame = frames.take(large).unwrap();
        assert_eq!(frames.class_of(frame), large);
        frames.give(frame);
        assert_eq!((frames.empty(), frames.capacity(large), frames.capacity(small)), (1, 0, 14));
    }
}
