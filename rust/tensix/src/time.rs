//! Simulated time, and what is to happen when.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A moment or a duration, in ticks. Rates are no whole numbers of cycles, and integers keep runs equal to the bit.
pub type Time = u64;

/// Ticks in a cycle.
pub const TICKS: Time = 64;

/// Ticks in so many cycles, rounded to the nearest.
pub(crate) fn ticks(cycles: f64) -> Time {
    (cycles * TICKS as f64).round() as Time
}

/// Cycles in so many ticks.
pub(crate) fn cycles(time: Time) -> f64 {
    time as f64 / TICKS as f64
}

#[derive(Clone, Copy)]
struct Entry<E> {
    when: Time,
    turn: u64,
    what: E,
}

impl<E> Entry<E> {
    fn key(&self) -> (Time, u64) {
        (self.when, self.turn)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Cycles that lie in buckets; later events wait in a heap.
const BUCKETS: u64 = 1 << 12;

/// Events in order of time; those of one moment in the order in which they were entered.
///
/// A calendar queue (R. Brown, 1988) with a bucket for each of the next cycles: nearly all events are for one of them.
pub(crate) struct Queue<E> {
    buckets: Vec<Vec<Entry<E>>>,
    /// A bit for each bucket that has entries.
    filled: Vec<u64>,
    later: BinaryHeap<Reverse<Entry<E>>>,
    /// The cycle under way, whose bucket is in descending order.
    cycle: u64,
    turn: u64,
    taken: u64,
    now: Time,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            filled: vec![0; (BUCKETS / 64) as usize],
            later: BinaryHeap::new(),
            cycle: 0,
            turn: 0,
            taken: 0,
            now: 0,
        }
    }

    /// The moment of the event that was taken last.
    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// Events taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Enters an event; one that would lie in the past happens now.
    pub(crate) fn at(&mut self, when: Time, what: E) {
        let when = when.max(self.now);
        let entry = Entry { when, turn: self.turn, what };
        self.turn += 1;
        self.enter(entry);
    }

    fn enter(&mut self, entry: Entry<E>) {
        let cycle = entry.when / TICKS;
        if cycle >= self.cycle + BUCKETS {
            self.later.push(Reverse(entry));
            return;
        }
        let at = (cycle % BUCKETS) as usize;
        let bucket = &mut self.buckets[at];
        if cycle == self.cycle {
            let place = bucket.partition_point(|other| other.key() > entry.key());
            bucket.insert(place, entry);
        } else {
            bucket.push(entry);
        }
        self.filled[at / 64] |= 1 << (at % 64);
    }

    pub(crate) fn pop(&mut self) -> Option<E> {
        loop {
            let at = (self.cycle % BUCKETS) as usize;
            if let Some(entry) = self.buckets[at].pop() {
                self.now = entry.when;
                self.taken += 1;
                return Some(entry.what);
            }
            self.filled[at / 64] &= !(1 << (at % 64));
            self.cycle = match self.next_cycle() {
                Some(cycle) => cycle,
                None => self.later.peek()?.0.when / TICKS,
            };
            let end = self.cycle + BUCKETS;
            while self.later.peek().is_some_and(|Reverse(first)| first.when / TICKS < end) {
                if let Some(Reverse(entry)) = self.later.pop() {
                    let at = (entry.when / TICKS % BUCKETS) as usize;
                    self.buckets[at].push(entry);
                    self.filled[at / 64] |= 1 << (at % 64);
                }
            }
            self.buckets[(self.cycle % BUCKETS) as usize].sort_unstable_by_key(|entry| Reverse(entry.key()));
        }
    }

    /// The first cycle after this one whose bucket has entries.
    fn next_cycle(&self) -> Option<u64> {
        let words = self.filled.len() as u64;
        let start = self.cycle % BUCKETS;
        for step in 0..=words {
            let word = (start / 64 + step) % words;
            let mut bits = self.filled[word as usize];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            } else if step == words {
                bits &= !(u64::MAX << (start % 64));
            }
            if bits != 0 {
                let at = word * 64 + u64::from(bits.trailing_zeros());
                return Some(self.cycle + (at + BUCKETS - start) % BUCKETS);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_entry() {
        let mut queue = Queue::new();
        for (when, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (3, 'b')] {
            queue.at(when, what);
        }
        assert_eq!(queue.pop(), Some('a'));
        queue.at(0, 'x');
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(rest, ['x', 'b', 'c', 'd']);
        assert_eq!((queue.now(), queue.taken()), (5, 5));
    }

    #[test]
    fn events_far_ahead_come_after_those_that_are_near() {
        let mut queue = Queue::new();
        let mut times: Vec<Time> = (0..400).map(|i: u64| i * i * i * 7919 % 3_000_000).collect();
        for when in &times {
            queue.at(*when, *when);
        }
        let mut out = Vec::new();
        while let Some(when) = queue.pop() {
            assert_eq!(queue.now(), when);
            if out.len() == 100 {
                // Entered while others are taken, near and far.
                for more in [0, 63, 64, 5000, 262_144, 262_145, 1 << 30] {
                    queue.at(when + more, when + more);
                    times.push(when + more);
                }
            }
            out.push(when);
        }
        times.sort_unstable();
        assert_eq!(out, times);
    }
}
