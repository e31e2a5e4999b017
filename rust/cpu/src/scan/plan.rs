//! Who computes which channels, and up to which step.

use std::ops::Range;

use super::lanes::PAD;
use super::{Live, Scan};

/// Channels of a task at most: a tile's inputs and outputs stay in the first cache.
pub(super) const CHUNK: usize = 64;

/// Some channels of one member of the batch.
#[derive(Debug)]
pub(super) struct Task {
    pub member: usize,
    /// Neighbouring channels: the first one, and how many.
    pub runs: Vec<(usize, usize)>,
    /// Steps that each channel is computed for: up to its last live one, or all.
    ends: Vec<usize>,
    /// The largest of `ends`; 0 where there is nothing but zeros to write.
    pub end: usize,
}

impl Task {
    fn new(member: usize) -> Self {
        Self { member, runs: Vec::new(), ends: Vec::new(), end: 0 }
    }

    pub(super) fn channels(&self) -> usize {
        self.ends.len()
    }

    /// Channels with padding.
    pub(super) fn width(&self) -> usize {
        self.channels().next_multiple_of(PAD)
    }

    fn push(&mut self, channel: usize, end: usize) {
        match self.runs.last_mut() {
            Some((first, n)) if *first + *n == channel => *n += 1,
            _ => self.runs.push((channel, 1)),
        }
        self.ends.push(end);
        self.end = self.end.max(end);
    }

    /// Writes how many of the `count` steps after `from` each channel needs, 0 for padding.
    pub(super) fn ends(&self, from: usize, count: usize, to: &mut [usize]) {
        to.fill(0);
        for (to, &end) in to.iter_mut().zip(&self.ends) {
            *to = end.saturating_sub(from).min(count);
        }
    }

    /// Writes which outputs of `steps` are live, a byte for each channel and 0 for padding.
    pub(super) fn liveness(&self, live: &Live<'_>, scan: &Scan<'_>, steps: Range<usize>, to: &mut [u8]) {
        let (length, channels) = (scan.members[0].u.rows, scan.members[0].u.cols);
        let (branches, width) = (channels.div_ceil(live.branch), self.width());
        for (row, step) in to.chunks_exact_mut(width).zip(steps) {
            let from = &live.bytes[(self.member * length + step) * branches..][..branches];
            let (to, padding) = row.split_at_mut(self.channels());
            padding.fill(0);
            let mut at = 0;
            for &(first, n) in &self.runs {
                if live.branch == 1 {
                    to[at..at + n].copy_from_slice(&from[first..first + n]);
                } else {
                    for (to, channel) in to[at..at + n].iter_mut().zip(first..) {
                        *to = from[channel / live.branch];
                    }
                }
                at += n;
            }
        }
    }
}

/// Cuts the scan: for each member first the channels that are computed, then those that are only zeros. How
/// wide tasks are depends on the number of threads, and no result on how wide they are.
pub(super) fn tasks(scan: &Scan<'_>, threads: usize) -> Vec<Task> {
    let first = &scan.members[0];
    let (length, channels) = (first.u.rows, first.u.cols);
    let few = scan.members.len() * channels.div_ceil(CHUNK) < threads;
    let chunk = if few { PAD } else { CHUNK };
    let mut tasks = Vec::new();
    for member in 0..scan.members.len() {
        let known = scan.live.filter(|_| first.state.is_none());
        let ends = known.map(|live| {
            let ends = last_live(&live, member, length, channels);
            close_gaps((0..channels).map(|channel| ends[channel / live.branch]).collect())
        });
        let (mut alive, mut dead) = (Task::new(member), Task::new(member));
        for channel in 0..channels {
            let end = ends.as_ref().map_or(length, |ends| ends[channel]);
            let task = if end > 0 { &mut alive } else { &mut dead };
            task.push(channel, end);
            if task.channels() == chunk {
                tasks.push(std::mem::replace(task, Task::new(member)));
            }
        }
        tasks.extend([alive, dead].into_iter().filter(|task| task.channels() > 0));
    }
    tasks
}

/// Dead channels in a row between live ones that are computed with them where many are live: to pick single
/// values out of rows costs more than it saves. Their outputs are 0 all the same.
const GAP: usize = 8;

/// Gives the channels of short gaps a first step, where at least a quarter of all channels are live.
fn close_gaps(mut ends: Vec<usize>) -> Vec<usize> {
    let live = ends.iter().filter(|&&end| end > 0).count();
    if live * 4 < ends.len() {
        return ends;
    }
    let mut last = None;
    for i in 0..ends.len() {
        if ends[i] == 0 {
            continue;
        }
        if let Some(last) = last
            && i - last <= GAP
        {
            ends[last + 1..i].fill(1);
        }
        last = Some(i);
    }
    ends
}

/// How many steps there are up to the last live one, for each branch. Looks from the end, and no further than
/// it has to.
fn last_live(live: &Live<'_>, member: usize, length: usize, channels: usize) -> Vec<usize> {
    let branches = channels.div_ceil(live.branch);
    let mut ends = vec![0; branches];
    let mut pending: Vec<usize> = (0..branches).collect();
    for step in (0..length).rev() {
        if pending.is_empty() {
            break;
        }
        let row = &live.bytes[(member * length + step) * branches..][..branches];
        pending.retain(|&branch| {
            let found = row[branch] != 0;
            if found {
                ends[branch] = step + 1;
            }
            !found
        });
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_live_step_is_found() {
        #[rustfmt::skip]
        let bytes = [
            1, 0, 0,
            1, 1, 0,
            0, 0, 0,
        ];
        let both: Vec<u8> = [&bytes[..], &[0, 0, 1, 0, 0, 0, 1, 0, 0]].concat();
        let live = Live { bytes: &both, branch: 2 };
        assert_eq!(last_live(&live, 0, 3, 5), [2, 2, 0]);
        assert_eq!(last_live(&live, 1, 3, 6), [3, 0, 1]);
        assert_eq!(last_live(&live, 1, 0, 6), [0, 0, 0]);
    }

    #[test]
    fn short_gaps_are_closed_where_many_are_live() {
        assert_eq!(close_gaps(vec![0, 5, 0, 0, 7, 0]), [0, 5, 1, 1, 7, 0]);
        assert_eq!(
            close_gaps(vec![3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2]),
            [3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2]
        );
        assert_eq!(close_gaps(vec![3, 0, 0, 0, 0, 0, 0, 2, 2, 2]), [3, 1, 1, 1, 1, 1, 1, 2, 2, 2]);
        assert_eq!(close_gaps(vec![3, 0, 2, 0, 0, 0, 0, 0, 0]), [3, 0, 2, 0, 0, 0, 0, 0, 0]);
        assert!(close_gaps(Vec::new()).is_empty());
    }

    #[test]
    fn neighbours_are_one_run() {
        let mut task = Task::new(0);
        for (channel, end) in [(3, 5), (4, 2), (7, 9), (8, 1)] {
            task.push(channel, end);
        }
        assert_eq!((task.runs.clone(), task.end, task.width()), (vec![(3, 2), (7, 2)], 9, 16));
        let mut ends = [77; 6];
        task.ends(2, 4, &mut ends);
        assert_eq!(ends, [3, 0, 4, 0, 0, 0]);
    }
}
