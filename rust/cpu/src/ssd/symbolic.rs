//! Symbolic phase: the pattern of a product of two patterns.

use std::ops::Range;
use std::sync::Mutex;

use prunus_core::{Error, Pattern};

use crate::dsd::plan::row_ranges;
use crate::threads::{Context, for_each};

/// What marking one block costs, in multiply-adds: for cutting up the work.
const MARK_WORK: u64 = 16;
/// A row with at least one column in so many is read off its markers, else its columns are sorted.
const SCAN_ONE_IN: usize = 32;

/// Block products before each block row of `a · b`, as prefix sums.
pub(super) fn products(a: &Pattern, b: &Pattern) -> Vec<usize> {
    let (rows, b_rows) = (a.indptr(), b.indptr());
    let mut sums = Vec::with_capacity(rows.len());
    let mut total = 0usize;
    sums.push(0);
    for row in rows.windows(2) {
        for &k in &a.indices()[row[0]..row[1]] {
            total = total.saturating_add(b_rows[k as usize + 1] - b_rows[k as usize]);
        }
        sums.push(total);
    }
    sums
}

/// Columns of some block rows, one row after another, and how many each row has.
#[derive(Default)]
struct Part {
    columns: Vec<u32>,
    counts: Vec<usize>,
}

/// The pattern of `a · b`, whose rows' columns ascend.
pub(super) fn pattern(
    a: &Pattern,
    b: &Pattern,
    products: &[usize],
    context: &Context<'_>,
) -> Result<Pattern, Error> {
    let ranges = row_ranges(products, MARK_WORK, context.threads, 1);
    let parts: Vec<Mutex<Part>> = ranges.iter().map(|_| Mutex::default()).collect();
    for_each(context, ranges.len(), |i| {
        let part = rows(a, b, &ranges[i]);
        *parts[i].lock().unwrap_or_else(|held| held.into_inner()) = part;
        Ok(())
    })?;
    let parts: Vec<Part> =
        parts.into_iter().map(|part| part.into_inner().unwrap_or_else(|held| held.into_inner())).collect();
    let mut indptr = Vec::with_capacity(a.indptr().len());
    let mut indices = Vec::with_capacity(parts.iter().map(|part| part.columns.len()).sum());
    indptr.push(0);
    let mut total = 0;
    for part in parts {
        for count in part.counts {
            total += count;
            indptr.push(total);
        }
        indices.extend_from_slice(&part.columns);
    }
    Pattern::from_sorted(indptr, indices, b.block_cols())
}

/// Finds the columns of each row in `range` with an array of markers.
fn rows(a: &Pattern, b: &Pattern, range: &Range<usize>) -> Part {
    let mut part = Part { columns: Vec::new(), counts: Vec::with_capacity(range.len()) };
    // The last row of `range`, counted from 1, that has met a column.
    let mut marks = vec![0usize; b.block_cols()];
    for row in range.clone() {
        let mark = row - range.start + 1;
        let first = part.columns.len();
        for &k in &a.indices()[a.indptr()[row]..a.indptr()[row + 1]] {
            let k = k as usize;
            for &column in &b.indices()[b.indptr()[k]..b.indptr()[k + 1]] {
                let seen = &mut marks[column as usize];
                if *seen != mark {
                    *seen = mark;
                    part.columns.push(column);
                }
            }
        }
        let count = part.columns.len() - first;
        if count * SCAN_ONE_IN >= marks.len() {
            part.columns.truncate(first);
            let met = marks.iter().enumerate().filter(|&(_, &seen)| seen == mark);
            part.columns.extend(met.map(|(column, _)| column as u32));
        } else {
            part.columns[first..].sort_unstable();
        }
        part.counts.push(count);
    }
    part
}

/// Block products of `a · b` that meet in a block of `wanted`, before each block row, as prefix sums.
pub(super) fn products_at(
    a: &Pattern,
    b: &Pattern,
    wanted: &Pattern,
    products: &[usize],
    context: &Context<'_>,
) -> Result<Vec<usize>, Error> {
    let ranges = row_ranges(products, MARK_WORK, context.threads, 1);
    let parts: Vec<Mutex<Vec<usize>>> = ranges.iter().map(|_| Mutex::default()).collect();
    for_each(context, ranges.len(), |i| {
        let part = count(a, b, wanted, &ranges[i]);
        *parts[i].lock().unwrap_or_else(|held| held.into_inner()) = part;
        Ok(())
    })?;
    let mut sums = Vec::with_capacity(a.indptr().len());
    let mut total = 0;
    sums.push(0);
    for part in parts {
        for count in part.into_inner().unwrap_or_else(|held| held.into_inner()) {
            total += count;
            sums.push(total);
        }
    }
    Ok(sums)
}

/// Counts the block products of each row in `range` that meet in a wanted block; one that is named twice is
/// computed twice.
fn count(a: &Pattern, b: &Pattern, wanted: &Pattern, range: &Range<usize>) -> Vec<usize> {
    let mut times = vec![0usize; b.block_cols()];
    let row = |row: usize| {
        let columns = &wanted.indices()[wanted.indptr()[row]..wanted.indptr()[row + 1]];
        if columns.is_empty() {
            return 0;
        }
        columns.iter().for_each(|&column| times[column as usize] += 1);
        let met = |&k: &u32| {
            let k = k as usize;
            let with = &b.indices()[b.indptr()[k]..b.indptr()[k + 1]];
            with.iter().map(|&column| times[column as usize]).sum::<usize>()
        };
        let count = a.indices()[a.indptr()[row]..a.indptr()[row + 1]].iter().map(met).sum();
        columns.iter().for_each(|&column| times[column as usize] = 0);
        count
    };
    range.clone().map(row).collect()
}

/// What each row of a product at chosen blocks costs, in multiply-adds, as prefix sums: its block products of
/// `block` multiply-adds each, and a look at all that it could have.
pub(super) fn costs(wanted: &Pattern, all: &[usize], at: &[usize], block: usize) -> Vec<usize> {
    let cost = |row: usize| {
        // An empty row is not looked at.
        let empty = wanted.indptr()[row] == wanted.indptr()[row + 1];
        let looks = if empty { 0 } else { all[row + 1] - all[row] };
        (at[row + 1] - at[row]).saturating_mul(block).saturating_add(looks.saturating_mul(MARK_WORK as usize))
    };
    let mut total = 0usize;
    let sums = (0..wanted.block_rows()).map(|row| {
        total = total.saturating_add(cost(row));
        total
    });
    std::iter::once(0).chain(sums).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prunus_core::Never;

    fn random(rows: usize, cols: usize, one_in: u64, seed: u64) -> Pattern {
        let mut state = seed;
        let mut indptr = vec![0i64];
        let mut indices = Vec::new();
        for _ in 0..rows {
            for col in 0..cols {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                if (state >> 33).is_multiple_of(one_in) {
                    indices.push(col as i64);
                }
            }
            indptr.push(indices.len() as i64);
        }
        Pattern::new(indptr.into_iter(), indices.into_iter(), cols).unwrap()
    }

    #[test]
    fn patterns_equal_boolean_products() {
        for (one_in, threads) in [(1, 1), (3, 2), (20, 5), (200, 1)] {
            let (a, b) = (random(40, 70, one_in, 1), random(70, 300, one_in, 2));
            let products = products(&a, &b);
            let context = Context { threads, interrupt: &Never };
            let found = pattern(&a, &b, &products, &context).unwrap();
            let (indptr, indices) = (found.indptr(), found.indices());
            assert_eq!(indptr.len(), 41);
            for row in 0..40 {
                let mut expected = vec![];
                for e in a.indptr()[row]..a.indptr()[row + 1] {
                    let k = a.indices()[e] as usize;
                    expected.extend_from_slice(&b.indices()[b.indptr()[k]..b.indptr()[k + 1]]);
                }
                assert_eq!(expected.len(), products[row + 1] - products[row]);
                expected.sort_unstable();
                expected.dedup();
                assert_eq!(indices[indptr[row]..indptr[row + 1]], expected);
            }
        }
    }

    #[test]
    fn products_at_chosen_blocks_are_counted() {
        for (one_in, chosen, threads) in [(1, 1, 1), (3, 2, 2), (20, 3, 5), (2, 300, 3)] {
            let (a, b, wanted) =
                (random(40, 70, one_in, 1), random(70, 90, one_in, 2), random(40, 90, chosen, 3));
            let all = products(&a, &b);
            let found = products_at(&a, &b, &wanted, &all, &Context { threads, interrupt: &Never }).unwrap();
            for row in 0..40 {
                let columns = &wanted.indices()[wanted.indptr()[row]..wanted.indptr()[row + 1]];
                let mut expected = 0;
                for &k in &a.indices()[a.indptr()[row]..a.indptr()[row + 1]] {
                    let with = b.indptr()[k as usize]..b.indptr()[k as usize + 1];
                    expected += b.indices()[with].iter().filter(|&column| columns.contains(column)).count();
                }
                assert_eq!(found[row + 1] - found[row], expected);
            }
            let costs = costs(&wanted, &all, &found, 1000);
            assert!(costs.is_sorted() && costs[40] >= found[40] * 1000);
            assert!(costs[40] <= found[40] * 1000 + all[40] * MARK_WORK as usize);
        }
    }
}
