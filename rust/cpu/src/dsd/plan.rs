//! How a product is cut up: fixed by shapes, dtypes and the SIMD level, never by timing.

/// Vectors of columns in a super-panel: the columns that one pass over W serves. Wide enough that
/// W is re-read seldom, narrow enough that a block row's sums and burst stay in the first cache.
const SUPER_VECTORS: usize = 9;
/// Words of the summed dimension in one burst of blocks: their slice of a panel fits half of L1.
pub(crate) const BURST_WORDS: usize = 64;
/// Rows of one block row that share a burst: their sums fit L1 beside it.
pub(crate) const SEGMENT_ROWS: usize = 64;
/// Bytes of a block row's W that are swept by all panels before the next part is taken.
pub(crate) const SWEEP_BYTES: usize = 256 << 10;
/// Bytes of packed x kept at a time; more columns than that are done in turns.
pub(crate) const PACKED_BYTES: usize = 4 << 20;
/// A row of x this long or shorter is read in place: its panels share cache sets evenly enough.
const IN_PLACE_ROW_BYTES: isize = 1024;
/// Rows as short as a panel's are always read in place; longer ones only where x is used too little
/// to pay for a copy.
const IN_PLACE_ALWAYS_BYTES: isize = 256;
const IN_PLACE_REUSE: usize = 250;
/// A multiply-add of the thin kernel waits for memory about as long as this many of the others take.
pub(crate) const THIN_WEIGHT: usize = 8;
/// Multiply-adds worth a task of their own, and the most that may pass before signals are seen.
const TASK_MIN: u64 = 1 << 21;
const TASK_MAX: u64 = 1 << 29;

/// The constants above by name, for reports.
pub(crate) fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("super_vectors", SUPER_VECTORS as u64),
        ("burst_words", BURST_WORDS as u64),
        ("segment_rows", SEGMENT_ROWS as u64),
        ("sweep_bytes", SWEEP_BYTES as u64),
        ("packed_bytes", PACKED_BYTES as u64),
        ("in_place_row_bytes", IN_PLACE_ROW_BYTES as u64),
        ("task_min", TASK_MIN),
        ("task_max", TASK_MAX),
    ]
}

/// Columns that one set of accumulators holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panel {
    pub col: usize,
    pub cols: usize,
    pub vectors: usize,
}

/// Cuts `n` columns into panels for blocks of `block_rows` rows. Short blocks get wider panels: the
/// accumulators that they leave free hide the latency of the multiply-add.
pub(crate) fn panels(n: usize, lanes: usize, registers: usize, block_rows: usize) -> Vec<Panel> {
    let widest = if block_rows >= registers / 4 { 3 } else { 6 };
    let mut left = n.div_ceil(lanes);
    let mut col = 0;
    let mut panels = Vec::with_capacity(left.div_ceil(widest) + 1);
    while left > 0 {
        let vectors = match left {
            6.. => widest,
            4 => 2,
            _ => left.min(3),
        };
        let cols = (vectors * lanes).min(n - col);
        panels.push(Panel { col, cols, vectors });
        col += cols;
        left -= vectors;
    }
    panels
}

/// Groups panels into super-panels: ranges of the panel list.
pub(crate) fn super_panels(panels: &[Panel]) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let mut start = 0;
    let mut vectors = 0;
    for (i, panel) in panels.iter().enumerate() {
        if i > start && vectors + panel.vectors > SUPER_VECTORS {
            groups.push(start..i);
            start = i;
            vectors = 0;
        }
        vectors += panel.vectors;
    }
    if start < panels.len() {
        groups.push(start..panels.len());
    }
    groups
}

/// Columns of x that are packed at a time.
pub(crate) fn columns_per_turn(k: usize, element_bytes: usize, lanes: usize) -> usize {
    let unit = SUPER_VECTORS * lanes;
    (PACKED_BYTES / (k.max(1) * element_bytes) / unit).max(1) * unit
}

/// Whether rows of x `row_stride` bytes apart are read where they lie, when each is used by `reuse`
/// rows of W on average.
pub(crate) fn reads_in_place(row_stride: isize, reuse: usize) -> bool {
    let limit = if reuse < IN_PLACE_REUSE { IN_PLACE_ROW_BYTES } else { IN_PLACE_ALWAYS_BYTES };
    (0..=limit).contains(&row_stride)
}

/// Words in a burst for a panel whose words are `word_bytes` apart. A panel read in place spreads over
/// some of the cache's sets only, so its bursts are shorter.
pub(crate) fn burst_words(word_bytes: usize) -> usize {
    if word_bytes > IN_PLACE_ALWAYS_BYTES as usize { BURST_WORDS / 2 } else { BURST_WORDS }
}

/// Cuts block rows into ranges of about equal work. `offsets` are the rows' entries as prefix sums,
/// `work` the multiply-adds of one entry.
pub(crate) fn row_ranges(
    offsets: &[usize],
    work: u64,
    threads: usize,
    copies: usize,
) -> Vec<std::ops::Range<usize>> {
    let rows = offsets.len() - 1;
    // An empty row costs about one entry: its zeros are written too.
    let weight = |row: usize| ((offsets[row] - offsets[0]) + row) as u64 * work;
    let total = weight(rows).max(1);
    let wanted = if threads > 1 { (total / TASK_MIN).min((threads * 4).div_ceil(copies) as u64) } else { 1 };
    let count = wanted.max(total.div_ceil(TASK_MAX)).clamp(1, rows.max(1) as u64);
    let mut ranges = Vec::with_capacity(count as usize);
    let mut start = 0;
    for i in 1..=count {
        let target = (u128::from(total) * u128::from(i) / u128::from(count)) as u64;
        let mut end = start;
        while end < rows && weight(end + 1) <= target {
            end += 1;
        }
        if i == count {
            end = rows;
        }
        if end > start {
            ranges.push(start..end);
        }
        start = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_every_column_once() {
        for registers in [16, 32] {
            for block_rows in [1, 2, 4, 8, 32] {
                for n in 0..700 {
                    let mut next = 0;
                    let panels = panels(n, 16, registers, block_rows);
                    for p in &panels {
                        assert_eq!(p.col, next);
                        assert!(p.cols <= p.vectors * 16 && p.cols + 16 > p.vectors * 16);
                        next += p.cols;
                    }
                    assert_eq!(next, n);
                    let groups = super_panels(&panels);
                    assert_eq!(groups.iter().map(|g| g.len()).sum::<usize>(), panels.len());
                }
            }
        }
    }

    #[test]
    fn ranges_cover_every_row_once_and_balance() {
        let mut offsets = vec![7];
        for i in 0..1000usize {
            offsets.push(offsets[i] + (i * 7919) % 13);
        }
        for threads in [1, 2, 5, 64] {
            let ranges = row_ranges(&offsets, 1 << 20, threads, 1);
            let mut next = 0;
            for r in &ranges {
                assert_eq!(r.start, next);
                next = r.end;
            }
            assert_eq!(next, 1000);
            if threads > 1 {
                let work = |r: &std::ops::Range<usize>| offsets[r.end] - offsets[r.start];
                let most = ranges.iter().map(work).max().unwrap();
                assert!(most * ranges.len() < 2 * (offsets[1000] - 7));
            }
        }
    }
}
