//! Pages in the order in which they should leave: a window of new ones, and of the rest those used once and
//! those used again (W-TinyLFU: Einziger, Friedman and Manes, ACM Transactions on Storage 13(4), 2017).

/// No page.
const NONE: u32 = u32::MAX;
/// A page from the window must have been used that much more often than the one it displaces: pages that
/// are all used equally often (a loop, or one in changing order) then do not displace each other.
const MARGIN: u8 = 1;
/// Pages in use that are passed over before another list is looked at.
const PATIENCE: usize = 64;

/// Not resident.
const ABSENT: u8 = 3;
const WINDOW: usize = 0;
const ONCE: usize = 1;
const AGAIN: usize = 2;

#[derive(Clone, Copy, Debug)]
struct Node {
    hash: u64,
    older: u32,
    newer: u32,
    list: u8,
}

const EMPTY: Node = Node { hash: 0, older: NONE, newer: NONE, list: ABSENT };

#[derive(Clone, Copy, Debug)]
struct Ends {
    oldest: u32,
    newest: u32,
    len: usize,
}

/// How often pages were used lately, estimated: four counters each, all in one cache line; halved now and then
/// (a count-min sketch with conservative updates).
#[derive(Debug)]
pub(super) struct Sketch {
    counters: Vec<u8>,
    uses: usize,
    period: usize,
}

impl Sketch {
    /// For so many frames at most.
    pub(super) fn new(most: usize) -> Self {
        Self { counters: vec![0; (16 * most.max(16)).next_power_of_two()], uses: 0, period: 0 }
    }

    /// For so many frames now.
    pub(super) fn set_capacity(&mut self, frames: usize) {
        self.period = 20 * frames.max(16);
    }

    fn places(&self, hash: u64) -> [usize; 4] {
        let line = (hash as usize) & (self.counters.len() - 1) & !63;
        std::array::from_fn(|i| line | i << 4 | (hash >> (40 + 4 * i)) as usize & 15)
    }

    /// Estimate of the uses.
    pub(super) fn count(&self, hash: u64) -> u8 {
        self.places(hash).into_iter().map(|place| self.counters[place]).min().unwrap_or(0)
    }

    /// Counts one use.
    pub(super) fn add(&mut self, hash: u64) {
        let count = self.count(hash);
        if count < 15 {
            for place in self.places(hash) {
                self.counters[place] = self.counters[place].max(count + 1);
            }
        }
        self.uses += 1;
        if self.uses >= self.period {
            self.uses /= 2;
            for counter in &mut self.counters {
                *counter /= 2;
            }
        }
    }
}

/// The lists.
#[derive(Debug)]
pub(super) struct Ranks {
    nodes: Vec<Node>,
    ends: [Ends; 3],
    capacity: usize,
    /// Share of the window, in 1/256.
    share: usize,
}

impl Ranks {
    pub(super) fn new(share: usize) -> Self {
        let ends = Ends { oldest: NONE, newest: NONE, len: 0 };
        Self { nodes: Vec::new(), ends: [ends; 3], capacity: 0, share }
    }

    /// For so many frames now. While a pool grows there is room for what the window has too much.
    pub(super) fn set_capacity(&mut self, frames: usize) {
        let grown = frames > self.capacity;
        self.capacity = frames;
        while grown
            && self.ends[WINDOW].len > self.window()
            && self.ends[ONCE].len + self.ends[AGAIN].len + self.window() < frames
        {
            let oldest = self.ends[WINDOW].oldest;
            self.unlink(oldest);
            self.push(ONCE, oldest);
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn set_share(&mut self, share: usize) {
        self.share = share;
        while self.ends[WINDOW].len > self.window() {
            let oldest = self.ends[WINDOW].oldest;
            self.unlink(oldest);
            self.push(ONCE, oldest);
        }
    }

    pub(super) fn share(&self) -> usize {
        self.share
    }

    pub(super) fn len(&self) -> usize {
        self.ends.iter().map(|ends| ends.len).sum()
    }

    fn window(&self) -> usize {
        (self.capacity * self.share / 256).max(1)
    }

    fn push(&mut self, list: usize, id: u32) {
        let newest = self.ends[list].newest;
        let node = &mut self.nodes[id as usize];
        (node.older, node.newer, node.list) = (newest, NONE, list as u8);
        match newest {
            NONE => self.ends[list].oldest = id,
            newest => self.nodes[newest as usize].newer = id,
        }
        self.ends[list].newest = id;
        self.ends[list].len += 1;
    }

    fn unlink(&mut self, id: u32) -> usize {
        let Node { older, newer, list, .. } = self.nodes[id as usize];
        let list = usize::from(list);
        match older {
            NONE => self.ends[list].oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => self.ends[list].newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        self.ends[list].len -= 1;
        list
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.nodes.get(id as usize).is_some_and(|node| node.list != ABSENT)
    }

    pub(super) fn again(&self, id: u32) -> bool {
        self.nodes.get(id as usize).is_some_and(|node| usize::from(node.list) == AGAIN)
    }

    pub(super) fn hash(&self, id: u32) -> u64 {
        self.nodes[id as usize].hash
    }

    /// A page came in.
    pub(super) fn insert(&mut self, id: u32, hash: u64) {
        if self.nodes.len() <= id as usize {
            self.nodes.resize(id as usize + 1, EMPTY);
        }
        debug_assert_eq!(self.nodes[id as usize].list, ABSENT);
        self.nodes[id as usize].hash = hash;
        if self.ends[WINDOW].len >= self.window() && self.len() + 1 < self.capacity {
            // While there is room nothing has to compete. After an eviction there is room for one: then the window
            // may be larger than it should be, as where all its pages are in use, and the next ones that leave
            // are its own.
            let oldest = self.ends[WINDOW].oldest;
            self.unlink(oldest);
            self.push(ONCE, oldest);
        }
        self.push(WINDOW, id);
    }

    /// A page was used.
    pub(super) fn touch(&mut self, id: u32) {
        match self.unlink(id) {
            WINDOW => self.push(WINDOW, id),
            _ => {
                self.push(AGAIN, id);
                let main = self.capacity.saturating_sub(self.window());
                if self.ends[AGAIN].len > main * 4 / 5 {
                    let oldest = self.ends[AGAIN].oldest;
                    self.unlink(oldest);
                    self.push(ONCE, oldest);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, id: u32) {
        if self.contains(id) {
            self.unlink(id);
            self.nodes[id as usize] = EMPTY;
        }
    }

    /// Oldest of a list that may leave; those in use that are met on the way become its newest.
    fn oldest(&mut self, list: usize, patience: usize, may: &mut impl FnMut(u32) -> bool) -> Option<u32> {
        for _ in 0..self.ends[list].len.min(patience) {
            let id = self.ends[list].oldest;
            if may(id) {
                return Some(id);
            }
            self.unlink(id);
            self.push(list, id);
        }
        None
    }

    /// Takes out the page that should leave, and tells what it was.
    pub(super) fn victim_hash(&mut self, sketch: &Sketch) -> Option<u64> {
        let gone = self.choose(sketch, |_| true)?;
        let hash = self.hash(gone);
        self.remove(gone);
        Some(hash)
    }

    /// Takes out the page that should leave.
    pub(super) fn victim(&mut self, sketch: &Sketch, may: impl FnMut(u32) -> bool) -> Option<u32> {
        let gone = self.choose(sketch, may)?;
        self.remove(gone);
        Some(gone)
    }

    fn choose(&mut self, sketch: &Sketch, mut may: impl FnMut(u32) -> bool) -> Option<u32> {
        let full = self.ends[WINDOW].len >= self.window();
        let new = if full { self.oldest(WINDOW, PATIENCE, &mut may) } else { None };
        let old = self.oldest(ONCE, PATIENCE, &mut may).or_else(|| self.oldest(AGAIN, PATIENCE, &mut may));
        let gone = match (new, old) {
            (Some(new), Some(old)) => {
                if sketch.count(self.hash(new)) > sketch.count(self.hash(old)) + MARGIN {
                    self.unlink(new);
                    self.push(ONCE, new);
                    old
                } else {
                    // The next one is compared with another page: one whose uses are overestimated, as its counters
                    // are also those of popular pages, would keep out all others for ever.
                    let list = self.unlink(old);
                    self.push(list, old);
                    new
                }
            }
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => {
                [WINDOW, ONCE, AGAIN].into_iter().find_map(|list| self.oldest(list, usize::MAX, &mut may))?
            }
        };
        Some(gone)
    }
}
