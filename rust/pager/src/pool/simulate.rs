//! Other policies and traces to hold the pool's own against: for tests and benchmarks.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::policy::{Policy, hash};

/// Pages asked for, one after another.
pub type Trace = Vec<u32>;

/// A small generator of numbers (splitmix64), so that traces are the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Passes over `pages` pages in the same order.
pub fn cyclic(pages: usize, passes: usize) -> Trace {
    (0..passes).flat_map(|_| 0..pages as u32).collect()
}

/// Passes over `pages` pages, each in an order of its own.
pub fn shuffled(pages: usize, passes: usize, random: &mut Random) -> Trace {
    let mut order: Vec<u32> = (0..pages as u32).collect();
    let mut trace = Trace::new();
    for _ in 0..passes {
        for last in (1..pages).rev() {
            order.swap(last, random.below(last + 1));
        }
        trace.extend_from_slice(&order);
    }
    trace
}

/// Independent draws; page k with a probability in proportion to 1/(k+1)^`skew`.
pub fn zipf(pages: usize, skew: f64, length: usize, random: &mut Random) -> Trace {
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=pages)
        .map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        })
        .collect();
    (0..length)
        .map(|_| {
            let x = random.unit() * sum;
            cumulative.partition_point(|&c| c < x).min(pages - 1) as u32
        })
        .collect()
}

/// Zipf draws with a scan of `scan` pages after every `every` draws; a scan is never repeated.
pub fn with_scans(draws: &[u32], first: u32, scan: usize, every: usize) -> Trace {
    let mut trace = Trace::new();
    let mut fresh = first;
    for part in draws.chunks(every) {
        trace.extend_from_slice(part);
        trace.extend(fresh..fresh + scan as u32);
        fresh += scan as u32;
    }
    trace
}

/// Zipf draws from a set that moves on by a quarter after every `every` draws.
pub fn shifting(pages: usize, skew: f64, every: usize, phases: usize, random: &mut Random) -> Trace {
    (0..phases)
        .flat_map(|phase| {
            let shift = (phase * pages / 4) as u32;
            // ranks are spread over the set, so that a shift takes popular pages away, too
            zipf(pages, skew, every, random)
                .into_iter()
                .map(move |page| shift + (page.wrapping_mul(2_654_435_761) % pages as u32))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Hits of the pool's own policy. Frames come `slab` at a time, as they do in a pool; `layout` changes the pages'
/// hashes, and so which of them are sampled.
pub fn own(trace: &[u32], capacity: usize, slab: usize, layout: u32) -> usize {
    let mut policy = Policy::new(capacity);
    let mut frames = 0;
    let (mut ids, mut pages, mut free): (HashMap<u32, u32>, Vec<u32>, Vec<u32>) = Default::default();
    let mut hits = 0;
    for &page in trace {
        if let Some(&id) = ids.get(&page) {
            hits += 1;
            policy.touch(id);
            continue;
        }
        if ids.len() == frames && frames < capacity {
            frames = (frames + slab).min(capacity);
            policy.set_capacity(frames);
        }
        if ids.len() == capacity {
            let Some(gone) = policy.victim(|_| true) else { break };
            ids.remove(&pages[gone as usize]);
            free.push(gone);
        }
        let id = free.pop().unwrap_or(pages.len() as u32);
        if id as usize == pages.len() {
            pages.push(page);
        }
        pages[id as usize] = page;
        ids.insert(page, id);
        policy.admit(id, hash(layout, u64::from(page)));
    }
    hits
}

/// Hits of least recently used.
pub fn lru(trace: &[u32], capacity: usize) -> usize {
    let (mut last, mut order): (HashMap<u32, usize>, BTreeSet<(usize, u32)>) = Default::default();
    let mut hits = 0;
    for (now, &page) in trace.iter().enumerate() {
        if let Some(before) = last.insert(page, now) {
            hits += 1;
            order.remove(&(before, page));
        } else if order.len() == capacity
            && let Some((_, gone)) = order.pop_first()
        {
            last.remove(&gone);
        }
        order.insert((now, page));
    }
    hits
}

/// Hits of Belady's optimum.
pub fn optimum(trace: &[u32], capacity: usize) -> usize {
    let mut next = vec![usize::MAX; trace.len()];
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for (now, &page) in trace.iter().enumerate().rev() {
        if let Some(later) = seen.insert(page, now) {
            next[now] = later;
        }
    }
    let (mut held, mut order): (HashMap<u32, usize>, BTreeSet<(usize, u32)>) = Default::default();
    let mut hits = 0;
    for (now, &page) in trace.iter().enumerate() {
        if let Some(due) = held.remove(&page) {
            hits += 1;
            order.remove(&(due, page));
        } else if held.len() == capacity
            && let Some((_, gone)) = order.pop_last()
        {
            held.remove(&gone);
        }
        held.insert(page, next[now]);
        order.insert((next[now], page));
    }
    hits
}

/// Hits of S3-FIFO (Yang et al., SOSP 2023): a tenth of the frames is the small queue, as many ghosts as the
/// main one has frames.
pub fn s3_fifo(trace: &[u32], capacity: usize) -> usize {
    let small_size = (capacity / 10).max(1);
    let (mut small, mut main, mut ghosts): (VecDeque<u32>, VecDeque<u32>, VecDeque<u32>) = Default::default();
    let (mut uses, mut remembered): (HashMap<u32, u8>, HashMap<u32, u32>) = Default::default();
    let mut hits = 0;
    for &page in trace {
        if let Some(count) = uses.get_mut(&page) {
            *count = (*count + 1).min(3);
            hits += 1;
            continue;
        }
        while small.len() + main.len() >= capacity {
            if small.len() >= small_size || main.is_empty() {
                let Some(old) = small.pop_front() else { break };
                if uses[&old] > 1 {
                    uses.insert(old, 0);
                    main.push_back(old);
                } else {
                    uses.remove(&old);
                    ghosts.push_back(old);
                    *remembered.entry(old).or_default() += 1;
                    if ghosts.len() > capacity
                        && let Some(gone) = ghosts.pop_front()
                        && let Some(count) = remembered.get_mut(&gone)
                    {
                        *count -= 1;
                        if *count == 0 {
                            remembered.remove(&gone);
                        }
                    }
                }
            } else if let Some(old) = main.pop_front() {
                match uses.get_mut(&old) {
                    Some(count) if *count > 0 => {
                        *count -= 1;
                        main.push_back(old);
                    }
                    _ => {
                        uses.remove(&old);
                    }
                }
            }
        }
        uses.insert(page, 0);
        if remembered.contains_key(&page) {
            main.push_back(page);
        } else {
            small.push_back(page);
        }
    }
    hits
}

/// The traces that the pool is held against, for a pool of so many frames, with their names.
pub fn traces(frames: usize) -> Vec<(&'static str, Trace)> {
    let mut random = Random(4);
    let pages = 10 * frames;
    let skewed = |skew, random: &mut Random| zipf(pages, skew, 120 * frames, random);
    let mixed = skewed(0.9, &mut random);
    vec![
        ("cyclic 2.4x", cyclic(frames * 12 / 5, 12)),
        ("cyclic 1.1x", cyclic(frames * 11 / 10, 12)),
        ("shuffled 2.4x", shuffled(frames * 12 / 5, 12, &mut random)),
        ("zipf 0.7", skewed(0.7, &mut random)),
        ("zipf 0.9", skewed(0.9, &mut random)),
        ("zipf 1.1", skewed(1.1, &mut random)),
        ("zipf 0.9, wide", zipf(10 * pages, 0.9, 120 * frames, &mut random)),
        ("zipf 0.9 + scans", with_scans(&mixed, pages as u32, frames / 2, frames)),
        ("zipf 0.9 + long scans", with_scans(&mixed, pages as u32, 3 * frames, 5 * frames)),
        ("shifting set", shifting(frames * 3 / 2, 0.9, 10 * frames, 12, &mut random)),
        ("shifting set, wide", shifting(4 * frames, 0.7, 10 * frames, 12, &mut random)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For pools from a handful of frames to many, whose frames come in slabs, and with different samples:
    /// never worse than the better of LRU and S3-FIFO, but for what it takes to find out which way of
    /// keeping pages is the better one, which is less than a point of these traces' length.
    #[test]
    fn as_good_as_lru_and_s3_fifo() {
        for (frames, layouts) in [(64, 2), (256, 2), (512, 3), (1024, 5), (8192, 1)] {
            for (name, trace) in traces(frames) {
                // one of each kind, as long traces take long
                if frames > 4000
                    && !matches!(name, "cyclic 2.4x" | "zipf 0.9" | "zipf 0.9 + scans" | "shifting set")
                {
                    continue;
                }
                let share = |hits: usize| 100.0 * hits as f64 / trace.len() as f64;
                let [lru, s3_fifo, optimum] =
                    [lru, s3_fifo, optimum].map(|policy| share(policy(&trace, frames)));
                let own = (0..layouts).map(|layout| share(own(&trace, frames, 32, layout)));
                let own = own.fold(f64::INFINITY, f64::min);
                println!(
                    "{frames:5} {name:24} own {own:5.1}, LRU {lru:5.1}, S3-FIFO {s3_fifo:5.1}, MIN {optimum:5.1}"
                );
                assert!(own >= lru.max(s3_fifo) - 1.0, "{frames} {name}: {own}, {lru}, {s3_fifo}");
                // Who does not know what comes is further away than that from MIN with independent draws of
                // little skew and sets that move on; see `the_most_popular_pages_are_the_best_to_keep`.
                let reach = match name {
                    "zipf 0.7" => 17.0,
                    "zipf 0.9" | "zipf 0.9, wide" => 12.0,
                    "shifting set, wide" => 25.0,
                    _ => 10.0,
                };
                assert!(own >= optimum - reach, "{frames} {name}: {own} against {optimum}");
            }
        }
    }

    /// Of independent draws nobody who does not know the next ones has more hits than who keeps the most
    /// probable pages for ever. The pool, which has to find out which these are, comes near.
    #[test]
    fn the_most_popular_pages_are_the_best_to_keep() {
        for (frames, skew, reach) in [(512, 0.7, 8.0), (512, 0.9, 7.0), (2048, 0.9, 6.0), (512, 1.1, 5.0)] {
            let trace = zipf(10 * frames, skew, 120 * frames, &mut Random(2));
            let share = |hits: usize| 100.0 * hits as f64 / trace.len() as f64;
            let best = share(trace.iter().filter(|&&page| (page as usize) < frames).count());
            let (own, optimum) = (share(own(&trace, frames, 32, 0)), share(optimum(&trace, frames)));
            println!("{frames:5} zipf {skew}: own {own:5.1}, most popular {best:5.1}, MIN {optimum:5.1}");
            assert!(own >= best - reach, "{frames} {skew}: {own} against {best}");
            assert!(best <= optimum);
        }
    }

    #[test]
    fn the_simulators_are_right() {
        let trace = [1, 2, 3, 1, 2, 4, 1, 2, 3, 4];
        // by hand: the optimum with three frames keeps 1 and 2, then trades 3 for 4
        assert_eq!(optimum(&trace, 3), 5);
        assert_eq!(lru(&trace, 3), 4);
        assert_eq!(lru(&cyclic(10, 3), 10), 20);
        assert_eq!(optimum(&cyclic(10, 3), 1), 0);
        assert_eq!(s3_fifo(&cyclic(10, 3), 10), 20);
    }
}
