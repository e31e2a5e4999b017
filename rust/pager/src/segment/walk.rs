//! Accesses in the order of the file, grouped by page.

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

impl<'a> Accesses<'a> {
    pub(super) fn new(offsets: &'a [u64], size: usize, page: usize) -> Self {
        let mut order = Vec::new();
        if !offsets.is_sorted() {
            order = (0..offsets.len() as u32).collect();
            // equal offsets stay in their order: of two writes to one place the later one counts
            order.sort_by_key(|&index| offsets[index as usize]);
        }
        Self { offsets, order, size: size as u64, page: page as u64 }
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
    use super::*;

    #[test]
    fn groups_by_page() {
        let offsets = [30, 5, 5, 0, 12];
        let accesses = Accesses::new(&offsets, 15, 10);
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
