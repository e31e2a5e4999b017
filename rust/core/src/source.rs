use std::marker::PhantomData;

use crate::Error;

/// Where the blocks of a matrix come from: the seam between engines and storage.
///
/// An engine announces the blocks that it will need, in order, then takes each. Memory has them at
/// once; a file answers as its reads complete. Blocks are numbered as the pattern stores them.
pub trait BlockSource: Sync {
    /// Tells the source which blocks will be taken next, in this order.
    fn announce(&self, _blocks: &mut dyn Iterator<Item = usize>) {}

    /// Address of the first value of block `index`, in C order, valid while `self` is borrowed.
    ///
    /// # Errors
    /// Whatever kept the block from arriving.
    fn block(&self, index: usize) -> Result<*const u8, Error>;

    /// Address of block 0 where all blocks lie one after another in memory.
    fn contiguous(&self) -> Option<*const u8> {
        None
    }

    /// True where taking a block twice costs as much as taking it once more from storage, so that
    /// an engine should put the loop over blocks outermost.
    fn single_pass(&self) -> bool {
        false
    }
}

/// Blocks that lie one after another in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBlocks<'a> {
    base: *const u8,
    bytes_per_block: usize,
    life: PhantomData<&'a [u8]>,
}

// SAFETY: a shared view of memory that outlives it, like a slice.
unsafe impl Send for MemoryBlocks<'_> {}
// SAFETY: as above.
unsafe impl Sync for MemoryBlocks<'_> {}

impl MemoryBlocks<'_> {
    /// Describes blocks at `base`.
    ///
    /// # Safety
    /// The memory of every block that the pattern names must be readable for the source's lifetime.
    pub unsafe fn new(base: *const u8, bytes_per_block: usize) -> Self {
        Self { base, bytes_per_block, life: PhantomData }
    }
}

impl BlockSource for MemoryBlocks<'_> {
    fn block(&self, index: usize) -> Result<*const u8, Error> {
        Ok(self.base.wrapping_add(index * self.bytes_per_block))
    }

    fn contiguous(&self) -> Option<*const u8> {
        Some(self.base)
    }
}
