//! Circular buffers of a core.

use crate::numerics::Format;

/// A circular buffer's state: counts only grow.
#[derive(Debug, Clone)]
pub(crate) struct Cb {
    pub(crate) format: Format,
    pub(crate) page_bytes: u32,
    pub(crate) pages: u32,
    pub(crate) address: u32,
    /// Pages pushed and popped up to now.
    pub(crate) pushed: u64,
    pub(crate) popped: u64,
    /// The same as their producer and their consumer see it, who may be ahead of the machine's time.
    pub(crate) written: u64,
    pub(crate) read: u64,
}

impl Cb {
    pub(crate) fn new(format: Format, page_bytes: u32, pages: u32, address: u32) -> Self {
        Self { format, page_bytes, pages, address, pushed: 0, popped: 0, written: 0, read: 0 }
    }

    /// Room, as the producer sees it.
    pub(crate) fn free(&self) -> u32 {
        self.pages - (self.written - self.popped) as u32
    }

    /// Pages to use, as the consumer sees them.
    pub(crate) fn filled(&self) -> u32 {
        (self.pushed - self.read) as u32
    }

    /// Address of a page that is counted from the next one to be pushed.
    pub(crate) fn write_address(&self, page: u32) -> u32 {
        self.at(self.written, page)
    }

    /// Address of a page that is counted from the front.
    pub(crate) fn read_address(&self, page: u32) -> u32 {
        self.at(self.read, page)
    }

    fn at(&self, from: u64, page: u32) -> u32 {
        self.address + ((from + u64::from(page)) % u64::from(self.pages)) as u32 * self.page_bytes
    }
}
