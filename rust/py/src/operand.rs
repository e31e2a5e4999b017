//! Block-sparse arrays, checked once for everything that memory safety depends on.

use std::marker::PhantomData;

use numpy::PyUntypedArray;
use prunus_core::{BlocksMut, BsrRef, DType, MemoryBlocks, Pattern};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Indices, Nd};
use crate::door::to_python;

/// Patterns checked between two looks at Python's signals.
const PATTERNS_PER_LOOK: usize = 1024;

/// A block-sparse operand to read: a matrix for each batch member.
///
/// Holding one says that each member has every block that its pattern names, whole and in C order.
pub(crate) struct Operand<'a> {
    blocks: Blocks<'a>,
    shape: (usize, usize),
    transposed: bool,
}

/// Blocks to write, and their places in a matrix, for each batch member.
///
/// Holding one says that each member's blocks lie whole and in C order in writeable memory, no two of them in
/// one place.
pub(crate) struct Target<'a>(Blocks<'a>);

/// One member of an [`Operand`].
pub(crate) struct Member<'a> {
    operand: &'a Operand<'a>,
    pattern: &'a Pattern,
    source: MemoryBlocks<'a>,
}

/// What operands and targets share: values, and who has which of them.
struct Blocks<'a> {
    /// `(*batch, blocks, rows, columns)`, with no batch dimensions where all members share the blocks.
    data: Nd,
    /// One pattern for all members or one for each, and the number of stored blocks before its own.
    patterns: Vec<(Pattern, usize)>,
    /// The array behind `data` is borrowed.
    life: PhantomData<&'a [u8]>,
}

/// The arrays of a call, each checked for itself.
struct Arrays<'a> {
    data: Nd,
    indices: Indices<'a>,
    indptr: Indices<'a>,
}

impl<'a> Operand<'a> {
    /// Checks a matrix for each member of `batch`; without batch dimensions, `data` and `indptr` serve all.
    /// Offsets count through the blocks that a member's `data` holds.
    ///
    /// # Errors
    /// ValueError or TypeError for arrays that do not fit, or what a signal handler raised.
    pub(crate) fn read(
        data: &'a Bound<'_, PyUntypedArray>,
        indices: &Bound<'_, PyUntypedArray>,
        indptr: &Bound<'_, PyUntypedArray>,
        shape: (usize, usize),
        transposed: bool,
        batch: &[usize],
    ) -> PyResult<Self> {
        let arrays = Arrays::new(Nd::read(data)?, indices, indptr)?;
        for (name, dims, core) in [("data", data_batch(&arrays.data), 3), ("indptr", arrays.ptr_batch(), 1)] {
            if dims.is_empty() || dims == batch {
                continue;
            }
            return Err(PyValueError::new_err(match batch {
                [] => format!("{name}: expected {core} dimensions, got {}", dims.len() + core),
                _ => format!("batch dimensions of {name} and out must agree, got {dims:?} and {batch:?}"),
            }));
        }
        let (stored, named) = (stored(&arrays.data), arrays.indices.shape[0]);
        if stored < named {
            return Err(PyValueError::new_err(format!("data holds {stored} blocks, indices name {named}")));
        }
        let blocks = arrays.into_blocks(data.py(), shape.1, batch)?;
        Ok(Self { blocks, shape, transposed })
    }

    /// Element type of the values.
    pub(crate) fn dtype(&self) -> DType {
        self.blocks.data.dtype
    }

    /// Rows and columns of a block as stored.
    pub(crate) fn blocksize(&self) -> (usize, usize) {
        self.blocks.blocksize()
    }

    /// The matrix of batch member `index`.
    pub(crate) fn member(&self, index: usize) -> Member<'_> {
        Member { operand: self, pattern: self.blocks.member(index).0, source: self.source(index) }
    }

    /// The pattern, to keep, and the blocks of an operand without batch dimensions. The pattern's offsets
    /// start at 0 and end at the number of its indices.
    pub(crate) fn into_single(self) -> (Pattern, MemoryBlocks<'a>) {
        let source = self.source(0);
        let mut patterns = self.blocks.patterns;
        (patterns.swap_remove(0).0, source)
    }

    fn source(&self, index: usize) -> MemoryBlocks<'a> {
        let (_, start, _) = self.blocks.member(index);
        // SAFETY: checked by `read`: the blocks that the member's pattern names lie here in C order, in an
        // array that is borrowed for `'a`.
        unsafe { MemoryBlocks::new(start, self.blocks.block_bytes()) }
    }
}

impl Member<'_> {
    /// The matrix as engines take it.
    pub(crate) fn bsr(&self) -> BsrRef<'_> {
        BsrRef {
            pattern: self.pattern,
            source: &self.source,
            dtype: self.operand.dtype(),
            shape: self.operand.shape,
            blocksize: self.operand.blocksize(),
            transposed: self.operand.transposed,
            group: 0,
            by_column: None,
        }
    }
}

impl<'a> Target<'a> {
    /// Checks blocks to write in a matrix of `columns` columns for each member of `batch`: either one
    /// pattern for all and blocks for each, or a pattern for each with offsets into the blocks of all.
    ///
    /// # Errors
    /// As [`Operand::read`], and ValueError for blocks that are read-only or overlap.
    pub(crate) fn write(
        data: &'a Bound<'_, PyUntypedArray>,
        indices: &Bound<'_, PyUntypedArray>,
        indptr: &Bound<'_, PyUntypedArray>,
        columns: usize,
        batch: &[usize],
    ) -> PyResult<Self> {
        let arrays = Arrays::new(Nd::write(data)?, indices, indptr)?;
        let (out, ptr) = (data_batch(&arrays.data), arrays.ptr_batch());
        let expected = if ptr.is_empty() { batch } else { &[] };
        if out != expected || !(ptr.is_empty() || ptr == batch) {
            return Err(PyValueError::new_err(format!(
                "batch dimensions {batch:?} of a and b need those of out_data and indptr to be either the same \
                 and none, or none and the same; got {out:?} and {ptr:?}"
            )));
        }
        // That each member has room for its pattern is the engine's to check, which is told the room.
        Ok(Self(arrays.into_blocks(data.py(), columns, batch)?))
    }

    /// True where there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.data.is_empty()
    }

    /// Places and blocks of batch member `index`; one at a time, as members may share blocks.
    pub(crate) fn member(&mut self, index: usize) -> (&Pattern, BlocksMut<'_>) {
        let blocks = &self.0;
        let (pattern, start, count) = blocks.member(index);
        // SAFETY: checked by `write`: that many blocks lie here in C order, in an array that is writeable and
        // borrowed. No other member is in use, and Python's caller is told not to read or write the array
        // meanwhile.
        let out = unsafe { BlocksMut::new(start, blocks.data.dtype, blocks.blocksize(), count) };
        (pattern, out)
    }
}

impl Blocks<'_> {
    fn blocksize(&self) -> (usize, usize) {
        let n = self.data.shape.len();
        (self.data.shape[n - 2], self.data.shape[n - 1])
    }

    fn block_bytes(&self) -> usize {
        let (rows, cols) = self.blocksize();
        rows * cols * self.data.dtype.size()
    }

    /// Pattern of a batch member, where its blocks start, and how many are stored from there on.
    fn member(&self, index: usize) -> (&Pattern, *mut u8, usize) {
        let (pattern, first) = match self.patterns.as_slice() {
            [shared] => shared,
            own => &own[index],
        };
        let start = self.data.member(data_batch(&self.data), index);
        // A target's offsets may lie past its blocks: then there is room for none.
        let count = stored(&self.data).saturating_sub(*first);
        (pattern, start.wrapping_add(first * self.block_bytes()), count)
    }
}

impl<'a> Arrays<'a> {
    fn new(
        data: Nd,
        indices: &'a Bound<'_, PyUntypedArray>,
        indptr: &'a Bound<'_, PyUntypedArray>,
    ) -> PyResult<Self> {
        let n = data.batch(3)?.len();
        let (shape, strides) = (&data.shape[n..], &data.strides[n..]);
        let size = data.dtype.size();
        let expected = [shape[1] * shape[2] * size, shape[2] * size, size];
        let dense = shape.iter().zip(strides).zip(expected).all(|((&n, &s), e)| n <= 1 || s == e as isize);
        if !dense && !data.is_empty() {
            return Err(PyValueError::new_err("data: expected blocks in C order"));
        }
        if shape[1] == 0 || shape[2] == 0 {
            return Err(PyValueError::new_err("blocks of zero size"));
        }
        let (indices, indptr) = (Indices::new("indices", indices)?, Indices::new("indptr", indptr)?);
        if indices.shape.len() != 1 {
            return Err(PyValueError::new_err(format!(
                "indices: expected one dimension, got {}",
                indices.shape.len()
            )));
        }
        Ok(Self { data, indices, indptr })
    }

    /// Batch dimensions of the offsets.
    fn ptr_batch(&self) -> &'a [usize] {
        &self.indptr.shape[..self.indptr.shape.len() - 1]
    }

    /// Copies and checks the patterns: one for all members once, patterns of their own one by one.
    fn into_blocks<'d>(self, py: Python<'_>, columns: usize, batch: &[usize]) -> PyResult<Blocks<'d>> {
        let members = if self.ptr_batch().is_empty() { 1 } else { batch.iter().product() };
        let n = self.data.shape.len();
        let block_cols = columns.div_ceil(self.data.shape[n - 1]);
        let patterns = (0..members)
            .map(|member| {
                if member % PATTERNS_PER_LOOK == PATTERNS_PER_LOOK - 1 {
                    py.check_signals()?;
                }
                self.pattern(member, block_cols)
            })
            .collect::<PyResult<Vec<_>>>()?;
        Ok(Blocks { data: self.data, patterns, life: PhantomData })
    }

    /// Copies and checks the pattern of one member, whose offsets may count through all members' blocks:
    /// the pattern of its own blocks, its offsets from 0, and how many blocks come before them.
    fn pattern(&self, member: usize, block_cols: usize) -> PyResult<(Pattern, usize)> {
        // Read once: what another thread writes meanwhile cannot come between a check and its use.
        let offsets: Vec<i64> = self.indptr.values(self.ptr_batch(), member).collect();
        let named = self.indices.shape[0];
        let end = |offset: Option<&i64>| offset.copied().unwrap_or(0);
        let (mut first, mut last) = (end(offsets.first()), end(offsets.last()));
        if first < 0 || last < first || last as u64 > named as u64 {
            // With all indices, the pattern's own check says which offset is wrong, and how.
            (first, last) = (0, named as i64);
        }
        let columns = self.indices.part(first as usize..last as usize);
        let offsets = offsets.into_iter().map(|offset| offset.saturating_sub(first));
        let pattern = Pattern::new(offsets, columns, block_cols).map_err(to_python)?;
        Ok((pattern, first as usize))
    }
}

/// Dimensions of the values that come before those of a member's blocks.
fn data_batch(data: &Nd) -> &[usize] {
    &data.shape[..data.shape.len() - 3]
}

/// Number of blocks that each member's values hold.
fn stored(data: &Nd) -> usize {
    data.shape[data.shape.len() - 3]
}
