//! Which page leaves when a frame is needed.
//!
//! W-TinyLFU (see `ranks.rs`), with a margin that makes it keep the first part of a loop larger than the pool,
//! as LIRS does, and of one whose order changes from pass to pass, as LIRS does not. Sets that move on are
//! served better by recency. Which of the two is at hand, two miniature pools find out that see a sample of
//! the pages only (Waldspurger et al., USENIX ATC 2017): the better one sets the window's share.

use std::collections::HashMap;

use super::ranks::{Ranks, Sketch};

/// Shares of the window (in 1/256) that compete.
const SHARES: [usize; 2] = [3, 250];
/// Frames of a miniature pool, at most; at least half of it where the pool has as many.
const MINIATURE: usize = 256;

/// A pool without memory that serves a sample of the pages.
#[derive(Debug)]
struct Miniature {
    ranks: Ranks,
    ids: HashMap<u64, u32>,
    free: Vec<u32>,
    /// Hits, older ones weighing less.
    hits: usize,
}

impl Miniature {
    fn new(share: usize) -> Self {
        Self { ranks: Ranks::new(share), ids: HashMap::new(), free: Vec::new(), hits: 0 }
    }

    /// Lets pages go that are not in the sample any more. Nobody would ask for them again, and a page that was used
    /// often stays for long where use counts: that pool would seem to be of no use.
    fn keep(&mut self, sampled: impl Fn(u64) -> bool) {
        let Self { ranks, ids, free, .. } = self;
        ids.retain(|&hash, &mut id| {
            let stays = sampled(hash);
            if !stays {
                ranks.remove(id);
                free.push(id);
            }
            stays
        });
        self.hits = 0;
    }

    fn access(&mut self, hash: u64, sketch: &Sketch) {
        if let Some(&id) = self.ids.get(&hash) {
            self.ranks.touch(id);
            self.hits += 1;
            return;
        }
        while self.ranks.len() >= self.ranks.capacity().max(1) {
            let Some(gone) = self.ranks.victim_hash(sketch) else { break };
            if let Some(id) = self.ids.remove(&gone) {
                self.free.push(id);
            }
        }
        // all numbers that were given are either of a page or free
        let id = self.free.pop().unwrap_or(self.ids.len() as u32);
        self.ids.insert(hash, id);
        self.ranks.insert(id, hash);
    }
}

/// The order of eviction among the pages of one frame size. Pages are numbered by their owner.
#[derive(Debug)]
pub struct Policy {
    ranks: Ranks,
    sketch: Sketch,
    miniatures: [Miniature; 2],
    /// One page of so many is in the sample.
    rate: u64,
    sampled: usize,
}

/// Spreads the bits of a page's identity.
pub fn hash(layout: u32, index: u64) -> u64 {
    let mut z =
        index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(layout).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z ^ (z >> 32)
}

/// Whether a page is in the sample of one in `rate`, a power of two.
fn is_sampled(hash: u64, rate: u64) -> bool {
    (hash >> 20) & (rate - 1) == 0
}

impl Policy {
    /// A policy for no frames yet (see [`Self::set_capacity`]), and for so many at most.
    pub fn new(most: usize) -> Self {
        let mut policy = Self {
            ranks: Ranks::new(SHARES[0]),
            sketch: Sketch::new(most),
            miniatures: SHARES.map(Miniature::new),
            rate: 1,
            sampled: 0,
        };
        policy.set_capacity(0);
        policy
    }

    /// Frames that there are. Fewer than before: the owner evicts the rest.
    pub fn set_capacity(&mut self, frames: usize) {
        self.ranks.set_capacity(frames);
        self.sketch.set_capacity(frames);
        // A power of two, so that the sample of a pool that has grown is a part of the one before.
        let rate = frames.div_ceil(MINIATURE).max(1).next_power_of_two() as u64;
        for miniature in &mut self.miniatures {
            miniature.ranks.set_capacity((frames as u64 / rate) as usize);
            if rate != self.rate {
                miniature.keep(|hash| is_sampled(hash, rate));
            }
        }
        if rate != self.rate {
            (self.rate, self.sampled) = (rate, 0);
        }
    }

    /// Frames that there are.
    pub fn capacity(&self) -> usize {
        self.ranks.capacity()
    }

    /// A page came into the pool. `hash` is that of its identity (see [`hash`]), the same every time.
    pub fn admit(&mut self, id: u32, hash: u64) {
        self.ranks.insert(id, hash);
        self.used(hash);
    }

    /// A resident page was used.
    pub fn touch(&mut self, id: u32) {
        self.ranks.touch(id);
        self.used(self.ranks.hash(id));
    }

    /// Takes out the page that should leave next, of those that may: `None` where none may.
    pub fn victim(&mut self, may: impl FnMut(u32) -> bool) -> Option<u32> {
        self.ranks.victim(&self.sketch, may)
    }

    /// Takes out a page that left for another reason.
    pub fn remove(&mut self, id: u32) {
        self.ranks.remove(id);
    }

    /// Whether a resident page was used again after it had stood its first test.
    pub fn again(&self, id: u32) -> bool {
        self.ranks.again(id)
    }

    /// Whether pages are kept for how often they were used, and not only for how lately.
    pub fn counts_uses(&self) -> bool {
        self.ranks.share() == SHARES[0]
    }

    /// Whether a page is ranked.
    pub fn contains(&self, id: u32) -> bool {
        self.ranks.contains(id)
    }

    fn used(&mut self, hash: u64) {
        self.sketch.add(hash);
        if !is_sampled(hash, self.rate) {
            return;
        }
        for miniature in &mut self.miniatures {
            miniature.access(hash, &self.sketch);
        }
        self.sampled += 1;
        let small = self.miniatures[0].ranks.capacity().max(16);
        if self.sampled >= 2 * small {
            self.sampled = 0;
            let [frequent, recent] = [self.miniatures[0].hits, self.miniatures[1].hits];
            // More than noise: by how much the two differ in a sample varies from one to the next, and each change
            // costs.
            let now = usize::from(self.ranks.share() == SHARES[1]);
            let (here, there) = if now == 0 { (frequent, recent) } else { (recent, frequent) };
            if there > here + here / 32 + 4 {
                self.ranks.set_share(SHARES[1 - now]);
            }
            for miniature in &mut self.miniatures {
                miniature.hits -= miniature.hits / 4;
            }
        }
    }
}
