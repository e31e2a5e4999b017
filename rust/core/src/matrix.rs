use std::borrow::Cow;
use std::marker::PhantomData;

use crate::{BlockSource, DType, Pattern};

/// A dense matrix to read: any strides, zero and negative ones included.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    /// First element.
    pub ptr: *const u8,
    /// Element type.
    pub dtype: DType,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Bytes from one row to the next.
    pub row_stride: isize,
    /// Bytes from one column to the next.
    pub col_stride: isize,
    life: PhantomData<&'a [u8]>,
}

/// A dense matrix to write.
#[derive(Clone, Copy, Debug)]
pub struct MatMut<'a> {
    /// The matrix; its pointer may be written through.
    pub view: MatRef<'a>,
}

/// A dense vector to read.
#[derive(Clone, Copy, Debug)]
pub struct VecRef<'a> {
    /// First element.
    pub ptr: *const u8,
    /// Element type.
    pub dtype: DType,
    /// Number of elements.
    pub len: usize,
    /// Bytes from one element to the next.
    pub stride: isize,
    life: PhantomData<&'a [u8]>,
}

// SAFETY: a view is a pointer into memory that its constructor's caller keeps alive and, for reading,
// unchanged; sharing it between threads is sharing a slice.
unsafe impl Send for MatRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for MatRef<'_> {}
// SAFETY: as above.
unsafe impl Send for VecRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for VecRef<'_> {}
// SAFETY: engines write disjoint tiles of a result from different threads; the constructor's caller
// promises exclusive use of the memory.
unsafe impl Send for MatMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for MatMut<'_> {}

impl<'a> MatRef<'a> {
    /// Describes a matrix in memory.
    ///
    /// # Safety
    /// Every element `ptr + i * row_stride + j * col_stride` must be readable for `'a`.
    pub unsafe fn new(
        ptr: *const u8,
        dtype: DType,
        (rows, cols): (usize, usize),
        (row_stride, col_stride): (isize, isize),
    ) -> Self {
        Self { ptr, dtype, rows, cols, row_stride, col_stride, life: PhantomData }
    }

    /// The transposed view of the same memory.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Address of element `(row, col)`; the caller keeps both in range before reading through it.
    pub fn at(&self, row: usize, col: usize) -> *const u8 {
        self.ptr.wrapping_offset(row as isize * self.row_stride + col as isize * self.col_stride)
    }
}

impl<'a> MatMut<'a> {
    /// Describes a matrix to write.
    ///
    /// # Safety
    /// As [`MatRef::new`], and the memory must be writeable and used by nobody else for `'a`.
    pub unsafe fn new(ptr: *mut u8, dtype: DType, shape: (usize, usize), strides: (isize, isize)) -> Self {
        // SAFETY: the caller's promise includes that of MatRef::new.
        Self { view: unsafe { MatRef::new(ptr, dtype, shape, strides) } }
    }

    /// Address of element `(row, col)`; the caller keeps both in range before writing through it.
    pub fn at(&self, row: usize, col: usize) -> *mut u8 {
        self.view.at(row, col).cast_mut()
    }
}

impl<'a> VecRef<'a> {
    /// Describes a vector in memory.
    ///
    /// # Safety
    /// Every element `ptr + i * stride` must be readable for `'a`.
    pub unsafe fn new(ptr: *const u8, dtype: DType, len: usize, stride: isize) -> Self {
        Self { ptr, dtype, len, stride, life: PhantomData }
    }

    /// Address of element `i`; the caller keeps it in range before reading through it.
    pub fn at(&self, i: usize) -> *const u8 {
        self.ptr.wrapping_offset(i as isize * self.stride)
    }
}

/// A block-sparse matrix: a pattern of `blocksize` blocks and a source of their values.
///
/// Each block is `blocksize.0 × blocksize.1` values in C order. `shape` need not be a multiple of
/// the block size: what a block holds beyond the shape is padding that no operation reads.
#[derive(Clone, Copy)]
pub struct BsrRef<'a> {
    /// Which blocks exist.
    pub pattern: &'a Pattern,
    /// Where their values are.
    pub source: &'a dyn BlockSource,
    /// Element type of the values.
    pub dtype: DType,
    /// Rows and columns of the matrix as stored.
    pub shape: (usize, usize),
    /// Rows and columns of a block as stored.
    pub blocksize: (usize, usize),
    /// Use the transpose in place of the stored matrix.
    pub transposed: bool,
    /// Rows whose words lie together: 0 for blocks in C order; `g`, which divides the block's rows, for
    /// a packed operand whose blocks are laid out as `[row group][column][row in group]`.
    pub group: usize,
    /// The transpose's pattern, where it was made ahead of time (packed operands).
    pub by_column: Option<&'a Pattern>,
}

impl<'a> BsrRef<'a> {
    /// Rows and columns of the operand, after transposition.
    pub fn op_shape(&self) -> (usize, usize) {
        if self.transposed { (self.shape.1, self.shape.0) } else { self.shape }
    }

    /// The operand's pattern after transposition, each row's columns ascending.
    pub fn op_pattern(&self) -> Cow<'a, Pattern> {
        match (self.transposed, self.by_column) {
            (true, Some(pattern)) => Cow::Borrowed(pattern),
            (true, None) => Cow::Owned(self.pattern.transposed()),
            (false, _) if self.pattern.is_sorted() => Cow::Borrowed(self.pattern),
            (false, _) => Cow::Owned(self.pattern.clone().into_sorted()),
        }
    }

    /// Rows and columns of a block of the operand, after transposition.
    pub fn op_blocksize(&self) -> (usize, usize) {
        if self.transposed { (self.blocksize.1, self.blocksize.0) } else { self.blocksize }
    }
}
