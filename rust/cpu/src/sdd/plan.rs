//! How a sampled product is cut up: fixed by shapes, dtypes and the SIMD level, never by timing.

use std::ops::Range;

use prunus_core::Pattern;

use crate::dsd::plan::BURST_WORDS;

/// Bytes of a row of a that are multiplied before the next part of the inner dimension is taken.
const CHUNK_BYTES: usize = 2048;
/// Bytes of a, packed, that are kept in the last cache while every column of b sweeps them.
const ROWS_BYTES: usize = 12 << 20;
/// Bytes of b, packed, that are kept in the second cache.
pub(super) const COLUMNS_BYTES: usize = 256 << 10;
/// Bytes of sums kept at a time where the result cannot hold them itself.
const SUMS_BYTES: usize = 32 << 20;

/// The constants above by name, for reports.
pub(super) fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("sdd_chunk_bytes", CHUNK_BYTES as u64),
        ("sdd_rows_bytes", ROWS_BYTES as u64),
        ("sdd_columns_bytes", COLUMNS_BYTES as u64),
        ("sdd_sums_bytes", SUMS_BYTES as u64),
    ]
}

/// A block to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub row: u32,
    pub column: u32,
    /// Where the result stores it.
    pub block: u32,
}

/// Cuts the inner dimension into chunks of about equal length, each but the last whole bursts.
pub(super) fn chunks(inner: usize, step: usize, element_bytes: usize) -> Vec<Range<usize>> {
    let burst = BURST_WORDS * step;
    let count = inner.div_ceil(CHUNK_BYTES / element_bytes).max(1);
    let length = inner.div_ceil(count).next_multiple_of(burst).max(1);
    (0..inner).step_by(length).map(|start| start..inner.min(start + length)).collect()
}

/// Block rows whose part of a chunk of a fits the last cache.
pub(super) fn rows_together(block_rows: usize, chunk: usize, element_bytes: usize) -> usize {
    (ROWS_BYTES / (block_rows * chunk * element_bytes).max(1)).max(1)
}

/// Blocks whose sums are kept at a time.
pub(super) fn blocks_together(sums_bytes: usize) -> usize {
    (SUMS_BYTES / sums_bytes).max(1)
}

/// The pattern's blocks in the order in which they are computed: by group of `together` block rows, by
/// column, by row; and where each group ends.
pub(super) fn entries(pattern: &Pattern, together: usize) -> (Vec<Entry>, Vec<usize>) {
    let indptr = pattern.indptr();
    let nothing = Entry { row: 0, column: 0, block: 0 };
    let mut list = vec![nothing; pattern.len()];
    let mut ends = Vec::new();
    let mut next = vec![0usize; pattern.block_cols() + 1];
    let mut start = 0;
    for first in (0..pattern.block_rows()).step_by(together) {
        let last = pattern.block_rows().min(first + together);
        let held = indptr[first]..indptr[last];
        if held.is_empty() {
            continue;
        }
        next.fill(0);
        pattern.indices()[held.clone()].iter().for_each(|&column| next[column as usize + 1] += 1);
        next[0] = start;
        for column in 1..next.len() {
            next[column] += next[column - 1];
        }
        for row in first..last {
            for e in indptr[row]..indptr[row + 1] {
                let column = pattern.indices()[e];
                let slot = &mut next[column as usize];
                list[*slot] = Entry { row: row as u32, column, block: pattern.block(e) as u32 };
                *slot += 1;
            }
        }
        start += held.len();
        ends.push(start);
    }
    (list, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_inner_dimension() {
        for (step, size) in [(1, 4), (1, 8), (2, 2)] {
            for inner in 0..5000 {
                let chunks = chunks(inner, step, size);
                let mut next = 0;
                for chunk in &chunks {
                    assert_eq!(chunk.start, next);
                    assert!(chunk.start.is_multiple_of(BURST_WORDS * step));
                    assert!(chunk.len() * size <= CHUNK_BYTES);
                    next = chunk.end;
                }
                assert_eq!(next, inner);
            }
        }
    }

    #[test]
    fn entries_are_the_patterns_blocks_in_order() {
        let pattern =
            Pattern::new([1i64, 3, 3, 6].into_iter(), [9i64, 2, 0, 1, 2, 1].into_iter(), 10).unwrap();
        for together in [1, 2, 3, 10] {
            let (list, ends) = entries(&pattern, together);
            assert_eq!(ends.last(), Some(&5));
            let mut sorted = list.clone();
            sorted.sort_by_key(|e| (e.row as usize / together, e.column, e.row));
            assert_eq!(list, sorted);
            let mut blocks: Vec<u32> = list.iter().map(|e| e.block).collect();
            blocks.sort_unstable();
            assert_eq!(blocks, [1, 2, 3, 4, 5]);
        }
    }
}
