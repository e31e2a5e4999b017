//! How much of a table was used: what a trace reports.

use std::ops::Range;

use super::Live;

/// What the rows of an input need, and what tiles of neighbouring rows need together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Live branches, over all rows.
    pub live: usize,
    /// Units that those have.
    pub units: usize,
    /// Branches that at least one row of a tile needs, over all tiles.
    pub union_live: usize,
    /// Units that those have.
    pub union_units: usize,
}

impl Live<'_> {
    /// Counts over all rows, and over tiles of `tile` of them, where a row has `units`.
    pub fn counts(&self, units: usize, tile: usize) -> Counts {
        let mut counts = Counts::default();
        if self.branches == 0 {
            return counts;
        }
        // Every branch is as wide as the first, but for the last one.
        let short = (self.branches * self.branch).saturating_sub(units);
        let units_of = |live: usize, last: bool| live * self.branch - if last { short } else { 0 };
        let mut any = vec![0; self.branches];
        for tile in self.bytes.chunks(tile.max(1).saturating_mul(self.branches)) {
            for (i, row) in tile.chunks(self.branches).enumerate() {
                let live = set(row);
                counts.live += live;
                counts.units += units_of(live, row[self.branches - 1] != 0);
                match i {
                    0 => any.copy_from_slice(row),
                    _ => any.iter_mut().zip(row).for_each(|(any, &bit)| *any |= bit),
                }
            }
            let live = set(&any);
            counts.union_live += live;
            counts.union_units += units_of(live, any[self.branches - 1] != 0);
        }
        counts
    }
}

/// How many bytes are not 0; added up in bytes first, of which a vector holds the most.
fn set(bytes: &[u8]) -> usize {
    let few = |range: Range<usize>| bytes[range].iter().map(|&byte| u8::from(byte != 0)).sum::<u8>();
    let step = usize::from(u8::MAX);
    (0..bytes.len()).step_by(step).map(|at| usize::from(few(at..bytes.len().min(at + step)))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_branches_and_tiles() {
        for (rows, units, branch, tile) in
            [(1, 7, 3, 4), (5, 6, 3, 2), (9, 1000, 1, 4), (0, 5, 2, 3), (3, 0, 2, 3)]
        {
            let branches = usize::div_ceil(units, branch);
            let bytes: Vec<u8> = (0..rows * branches).map(|i| [0, 1, 0, 2, 255][i * i % 5]).collect();
            let live = Live::new(&bytes, branch, rows, units).unwrap();
            let mut expected = Counts::default();
            for first in (0..rows).step_by(tile) {
                let tile = first..rows.min(first + tile);
                for unit in 0..units {
                    // A branch counts where its first unit is.
                    let begins = usize::from(unit % branch == 0);
                    let needs = |row: usize| live.bytes[row * branches + unit / branch] != 0;
                    let live: Vec<bool> = tile.clone().map(needs).collect();
                    let (some, any) =
                        (live.iter().filter(|&&live| live).count(), usize::from(live.contains(&true)));
                    expected.units += some;
                    expected.live += some * begins;
                    expected.union_units += any;
                    expected.union_live += any * begins;
                }
            }
            assert_eq!(live.counts(units, tile), expected, "{rows} x {units}");
        }
    }
}
