//! Accesses in the order of the file, grouped by page.

use prunus_core::Interrupt;

use crate::{Error, Result};

/// Offsets sorted or merged between two looks at whether the caller was interrupted: about a millisecond.
const RUN: usize = 1 << 16;

/// Accesses of one size, sorted.
pub(super) struct Accesses<'a> {
    offsets: &'a [u64],
    /// Positions in the order of offsets; empty where they are in order.
    order: Vec<u32>,
    size: u64,
    page: u64,
}

/// Accesses to one page: positions in the sorted order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) page: u64,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Where a walk over the pages stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    at: usize,
    /// Page of the access at hand, where it has begun on an earlier one.
    page: Option<u64>,
}

/// Positions in the order of offsets. Equal offsets stay in their order: of two writes to one place the later one
/// counts.
fn sorted(offsets: &[u64], interrupt: &dyn Interrupt) -> Result<Vec<u32>> {
    let mut order: Vec<u32> = (0..offsets.len() as u32).collect();
    let look = || if interrupt.interrupted() { Err(Error::Interrupted) } else { Ok(()) };
    for run in order.chunks_mut(RUN) {
        run.sort_by_key(|&index| offsets[index as usize]);
        look()?;
    }
    let (mut len, mut merged) = (RUN, Vec::with_capacity(if order.len() > RUN { order.len() } else { 0 }));
    while len < order.len() {
        merged.clear();
        for pair in order.chunks(2 * len) {
            let (mut left, mut right) = pair.split_at(len.min(pair.len()));
            while !left.is_empty() && !right.is_empty() {
                for _ in 0..RUN {
                    let (&[first, ref rest @ ..], &[second, ref others @ ..]) = (left, right) else { break };
                    if offsets[second as usize] < offsets[first as usize] {
                        merged.push(second);
                        right = others;
                    } else {
                        merged.push(first);
                        left = rest;
                    }
                }
                look()?;
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        std::mem::swap(&mut order, &mut merged);
        len *= 2;
    }
    Ok(order)
}

impl<'a> Accesses<'a> {
    /// # Errors
    /// [`Error::Interrupted`]: millions of offsets take a while to sort.
    pub(super) fn new(
        offsets: &'a [u64],
        size: usize,
        page: usize,
        interrupt: &dyn Interrupt,
    ) -> Result<Self> {
        let order = if offsets.is_sorted() { Vec::new() } else { sorted(offsets, interrupt)? };
        Ok(Self { offsets, order, size: size as u64, page: page as u64 })
    }

    /// Row and offset of a position.
    pub(super) fn get(&self, at: usize) -> (usize, u64) {
        let row = if self.order.is_empty() { at } else { self.order[at] as usize };
        (row, self.offsets[row])
    }

    fn first(&self, at: usize) -> u64 {
        self.get(at).1 / self.page
    }

    fn last(&self, at: usize) -> u64 {
        (self.get(at).1 + self.size - 1) / self.page
    }

    /// The next page that is touched. One that is touched by an access that began before it may come again.
    pub(super) fn next(&self, cursor: &mut Cursor) -> Option<Group> {
        if cursor.at >= self.offsets.len() {
            return None;
        }
        let from = cursor.at;
        let page = cursor.page.unwrap_or_else(|| self.first(from));
        let mut to = from + 1;
        while self.last(to - 1) == page && to < self.offsets.len() && self.first(to) == page {
            to += 1;
        }
        *cursor = if self.last(to - 1) > page {
            Cursor { at: to - 1, page: Some(page + 1) }
        } else {
            Cursor { at: to, page: None }
        };
        Some(Group { page, from, to })
    }

    /// What an access has in a page: first byte in the access's row, first byte in the page, bytes.
    pub(super) fn part(&self, at: usize, page: u64) -> (usize, usize, usize) {
        let (_, offset) = self.get(at);
        let begin = page * self.page;
        let from = offset.max(begin);
        let to = (offset + self.size).min(begin + self.page);
        ((from - offset) as usize, (from - begin) as usize, (to - from) as usize)
    }

    /// Whether the accesses of a group are all of a page's `bytes`.
    pub(super) fn cover(&self, group: Group, bytes: usize) -> bool {
        let mut end = 0;
        for at in group.from..group.to {
            let (_, begin, len) = self.part(at, group.page);
            if begin > end {
                return false;
            }
            end = end.max(begin + len);
        }
        end >= bytes
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use prunus_core::Never;

    use super::*;

    #[test]
    fn long_lists_are_sorted_and_may_be_interrupted() {
        struct After(Cell<usize>);
        impl Interrupt for After {
            fn interrupted(&self) -> bool {
                self.0.set(self.0.get().wrapping_sub(1));
                self.0.get() == usize::MAX
            }
        }
        for count in [2, RUN, RUN + 1, 5 * RUN + 77] {
            // many equal ones, whose order must stay
            let offsets: Vec<u64> = (0..count as u64).map(|at| at.wrapping_mul(0x9e37_79b9) % 1000).collect();
            let mut expected: Vec<u32> = (0..count as u32).collect();
            expected.sort_by_key(|&at| offsets[at as usize]);
            assert!(sorted(&offsets, &Never).unwrap() == expected);
            let looks = After(Cell::new(usize::MAX - 1));
            assert!(sorted(&offsets, &looks).is_ok());
            let looks = usize::MAX - 1 - looks.0.get();
            assert!(looks >= count / RUN);
            for after in 0..looks {
                assert!(matches!(sorted(&offsets, &After(Cell::new(after))), Err(Error::Interrupted)));
            }
        }
    }

    #[test]
    fn groups_by_page() {
        let offsets = [30, 5, 5, 0, 12];
        let accesses = Accesses::new(&offsets, 15, 10, &Never).unwrap();
        let mut cursor = Cursor::default();
        let groups: Vec<Group> = std::iter::from_fn(|| accesses.next(&mut cursor)).collect();
        let group = |page, from, to| Group { page, from, to };
        // sorted: 0 (row 3), 5 (row 1), 5 (row 2), 12 (row 4), 30 (row 0)
        assert_eq!(
            groups,
            [
                group(0, 0, 1),
                group(1, 0, 1),
                group(0, 1, 2),
                group(1, 1, 2),
                group(0, 2, 3),
                group(1, 2, 4),
                group(2, 3, 4),
                group(3, 4, 5),
                group(4, 4, 5),
            ]
        );
        assert_eq!(accesses.part(3, 1), (0, 2, 8));
        assert_eq!(accesses.part(3, 2), (8, 0, 7));
        assert!(accesses.cover(group(0, 0, 1), 10));
        assert!(!accesses.cover(group(2, 3, 4), 10));
    }
}
