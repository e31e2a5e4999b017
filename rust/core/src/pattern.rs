use crate::Error;

/// Which blocks of a matrix exist, in compressed row form, validated.
///
/// Row `i` holds the entries `indptr[i]..indptr[i + 1]`; entry `e` lies in block column
/// `indices[e]` and its values are stored block `block(e)`. Built from the caller's arrays by
/// copying, so that nothing a caller does to them later can lead a kernel out of bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    indptr: Vec<usize>,
    indices: Vec<u32>,
    /// Stored block of each entry, where that is not the entry's own number.
    blocks: Option<Vec<u32>>,
    block_cols: usize,
    sorted: bool,
}

impl Pattern {
    /// Copies and checks a pattern. The first offset may be above 0: entries before it are not used.
    ///
    /// # Errors
    /// [`Error::Pattern`] where `indptr` is empty, decreases or runs past the indices, or an index
    /// is negative or not below `block_cols`.
    pub fn new<P, I>(indptr: P, indices: I, block_cols: usize) -> Result<Self, Error>
    where
        P: ExactSizeIterator<Item = i64>,
        I: ExactSizeIterator<Item = i64>,
    {
        let stored = indices.len();
        if u32::try_from(block_cols).is_err() || u32::try_from(stored).is_err() {
            return Err(Error::Pattern(format!(
                "at most 2^32 - 1 block columns and stored blocks are supported, got {block_cols} and {stored}"
            )));
        }
        let mut offsets = Vec::with_capacity(indptr.len());
        let mut last = 0i64;
        for (row, value) in indptr.enumerate() {
            if value < last || value as u64 > stored as u64 {
                return Err(Error::Pattern(format!(
                    "indptr must start at 0, not decrease and end at most at {stored}; indptr[{row}] is {value} after {last}"
                )));
            }
            last = value;
            offsets.push(value as usize);
        }
        if offsets.is_empty() {
            return Err(Error::Pattern("indptr is empty".to_owned()));
        }
        let mut columns = Vec::with_capacity(stored);
        for (entry, value) in indices.enumerate() {
            if value < 0 || value as u64 >= block_cols as u64 {
                return Err(Error::Pattern(format!(
                    "block column indices must be in 0..{block_cols}; indices[{entry}] is {value}"
                )));
            }
            columns.push(value as u32);
        }
        let mut pattern = Self { indptr: offsets, indices: columns, blocks: None, block_cols, sorted: true };
        pattern.sorted = pattern.check_sorted();
        Ok(pattern)
    }

    /// Takes a pattern whose rows' columns ascend, and whose offsets begin at 0 and end at the number of
    /// columns.
    ///
    /// # Errors
    /// [`Error::Pattern`] where that is not so, or a column is not below `block_cols`.
    pub fn from_sorted(indptr: Vec<usize>, indices: Vec<u32>, block_cols: usize) -> Result<Self, Error> {
        let pattern = Self { indptr, indices, blocks: None, block_cols, sorted: true };
        let (offsets, stored) = (&pattern.indptr, pattern.indices.len());
        let numbered = u32::try_from(block_cols).is_ok() && u32::try_from(stored).is_ok();
        let whole = offsets.first() == Some(&0) && offsets.last() == Some(&stored) && offsets.is_sorted();
        // The last of a row that ascends is its largest.
        let inside = |row: &[usize]| {
            let row = &pattern.indices[row[0]..row[1]];
            row.is_sorted() && row.last().is_none_or(|&column| (column as usize) < block_cols)
        };
        if numbered && whole && offsets.windows(2).all(inside) {
            return Ok(pattern);
        }
        Err(Error::Pattern(format!(
            "expected at most 2^32 - 1 blocks in sorted rows of {block_cols}, got {stored} in {} rows",
            offsets.len().saturating_sub(1)
        )))
    }

    fn check_sorted(&self) -> bool {
        self.indptr.windows(2).all(|w| self.indices[w[0]..w[1]].windows(2).all(|pair| pair[0] <= pair[1]))
    }

    /// Number of block rows.
    pub fn block_rows(&self) -> usize {
        self.indptr.len() - 1
    }

    /// Number of block columns.
    pub fn block_cols(&self) -> usize {
        self.block_cols
    }

    /// Number of entries between the first and the last offset.
    pub fn len(&self) -> usize {
        self.indptr[self.indptr.len() - 1] - self.indptr[0]
    }

    /// True when no block exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the offsets and indices take.
    pub fn bytes(&self) -> usize {
        let blocks = self.blocks.as_deref().unwrap_or_default();
        size_of_val(&*self.indptr) + size_of_val(&*self.indices) + size_of_val(blocks)
    }

    /// Offsets of the rows' entries.
    pub fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// Block columns of the entries.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Stored block of entry `e`.
    pub fn block(&self, e: usize) -> usize {
        self.blocks.as_ref().map_or(e, |blocks| blocks[e] as usize)
    }

    /// True when each row's columns ascend (duplicates allowed).
    pub fn is_sorted(&self) -> bool {
        self.sorted
    }

    /// The same blocks with each row's columns ascending; duplicates keep their order.
    pub fn into_sorted(mut self) -> Self {
        if self.sorted {
            return self;
        }
        let mut order: Vec<u32> = (0..self.indices.len() as u32).collect();
        for w in self.indptr.windows(2) {
            order[w[0]..w[1]].sort_by_key(|&e| self.indices[e as usize]);
        }
        let indices = order.iter().map(|&e| self.indices[e as usize]).collect();
        let blocks = order.iter().map(|&e| self.block(e as usize) as u32).collect();
        self.indices = indices;
        self.blocks = Some(blocks);
        self.sorted = true;
        self
    }

    /// The pattern of the transposed matrix, by a counting sort: rows ascend in every column.
    pub fn transposed(&self) -> Self {
        let (first, last) = (self.indptr[0], self.indptr[self.indptr.len() - 1]);
        let mut indptr = vec![0usize; self.block_cols + 1];
        for &column in &self.indices[first..last] {
            indptr[column as usize + 1] += 1;
        }
        for c in 0..self.block_cols {
            indptr[c + 1] += indptr[c];
        }
        let mut next = indptr.clone();
        let mut indices = vec![0u32; last - first];
        let mut blocks = vec![0u32; last - first];
        for (row, w) in self.indptr.windows(2).enumerate() {
            for e in w[0]..w[1] {
                let slot = &mut next[self.indices[e] as usize];
                indices[*slot] = row as u32;
                blocks[*slot] = self.block(e) as u32;
                *slot += 1;
            }
        }
        let block_cols = self.block_rows();
        Self { indptr, indices, blocks: Some(blocks), block_cols, sorted: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(indptr: &[i64], indices: &[i64], cols: usize) -> Result<Pattern, Error> {
        Pattern::new(indptr.iter().copied(), indices.iter().copied(), cols)
    }

    #[test]
    fn faults_are_named() {
        assert!(pattern(&[], &[], 1).unwrap_err().to_string().contains("empty"));
        assert!(pattern(&[0, 2, 1], &[0, 0], 1).unwrap_err().to_string().contains("indptr[2] is 1"));
        assert!(pattern(&[0, 3], &[0, 0], 1).unwrap_err().to_string().contains("indptr[1] is 3"));
        assert!(pattern(&[-1, 0], &[], 1).unwrap_err().to_string().contains("indptr[0] is -1"));
        assert!(pattern(&[0, 1], &[4], 4).unwrap_err().to_string().contains("indices[0] is 4"));
        assert!(pattern(&[0, 1], &[-2], 4).unwrap_err().to_string().contains("indices[0] is -2"));
    }

    #[test]
    fn sorted_rows_are_taken_as_they_are() {
        let taken = Pattern::from_sorted(vec![0, 2, 2, 3], vec![0, 3, 1], 4).unwrap();
        assert_eq!(taken, pattern(&[0, 2, 2, 3], &[0, 3, 1], 4).unwrap());
        for (indptr, indices) in [
            (vec![], vec![]),
            (vec![1, 2], vec![0, 1]),
            (vec![0, 1], vec![0, 1]),
            (vec![0, 2, 1, 2], vec![0, 1]),
            (vec![0, 2], vec![1, 0]),
            (vec![0, 1], vec![4]),
        ] {
            assert!(Pattern::from_sorted(indptr, indices, 4).is_err());
        }
    }

    #[test]
    fn sorting_is_stable_and_remembers_blocks() {
        let p = pattern(&[0, 4, 5], &[2, 0, 2, 1, 0], 3).unwrap();
        assert!(!p.is_sorted());
        let s = p.into_sorted();
        assert_eq!(s.indices(), [0, 1, 2, 2, 0]);
        assert_eq!((0..5).map(|e| s.block(e)).collect::<Vec<_>>(), [1, 3, 0, 2, 4]);
    }

    #[test]
    fn transposing_twice_gives_the_pattern_back() {
        let p = pattern(&[0, 2, 2, 5], &[0, 3, 1, 2, 3], 4).unwrap();
        let t = p.transposed();
        assert_eq!(t.indptr(), [0, 1, 2, 3, 5]);
        assert_eq!(t.indices(), [0, 2, 2, 0, 2]);
        let back = t.transposed();
        assert_eq!(back.indptr(), p.indptr());
        assert_eq!(back.indices(), p.indices());
        assert!((0..5).all(|e| back.block(e) == p.block(e)));
    }
}
