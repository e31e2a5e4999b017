use std::marker::PhantomData;

use crate::DType;

/// Blocks of a result to write: one after another in memory, each in C order.
#[derive(Clone, Copy, Debug)]
pub struct BlocksMut<'a> {
    base: *mut u8,
    /// Element type.
    pub dtype: DType,
    /// Rows and columns of a block.
    pub blocksize: (usize, usize),
    /// Number of blocks.
    pub count: usize,
    life: PhantomData<&'a mut [u8]>,
}

// SAFETY: engines write disjoint blocks from different threads; the constructor's caller promises
// exclusive use of the memory.
unsafe impl Send for BlocksMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for BlocksMut<'_> {}

impl BlocksMut<'_> {
    /// Describes `count` blocks at `base`.
    ///
    /// # Safety
    /// The memory of every block must be writeable and used by nobody else for the lifetime.
    pub unsafe fn new(base: *mut u8, dtype: DType, blocksize: (usize, usize), count: usize) -> Self {
        Self { base, dtype, blocksize, count, life: PhantomData }
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.blocksize.0 * self.blocksize.1 * self.dtype.size()
    }

    /// Address of block `index`; the caller keeps it below `count` before writing through it.
    pub fn at(&self, index: usize) -> *mut u8 {
        self.base.wrapping_add(index * self.block_bytes())
    }
}
