//! A program: circular buffers, semaphores, and a kernel for each thread of each core that takes part.

use crate::kernel::Kernel;
use crate::numerics::Format;
use crate::verbs::CoreId;

/// Threads of a core that kernels run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The first RISC-V core for data movement.
    DataMovement0,
    /// The second one.
    DataMovement1,
    /// Unpack, math and pack: three RISC-V cores and their units.
    Compute,
}

/// A circular buffer: pages in L1 that one thread fills and another one uses.
#[derive(Debug, Clone)]
pub struct CircularBuffer {
    /// Number, 0 to 31.
    pub id: u8,
    /// Cores that have it, at one address.
    pub cores: Vec<CoreId>,
    /// What its tiles are stored as.
    pub format: Format,
    /// Bytes of a page, as a rule a tile.
    pub page_bytes: u32,
    /// Pages.
    pub pages: u32,
    /// Where it is: a tensor's address, or the next free one.
    pub address: Option<u32>,
    /// It lies where another one of its cores lies, which comes before it.
    pub shares: Option<u8>,
}

/// A kernel on one thread.
pub struct Launch {
    /// The core.
    pub core: CoreId,
    /// Which of its threads.
    pub role: Role,
    /// The network that its transfers use.
    pub noc: u8,
    /// What messages call it.
    pub name: String,
    /// The program of the thread.
    pub kernel: Box<dyn Kernel>,
}

/// What is run at once.
#[derive(Default)]
pub struct Program {
    /// Circular buffers, in the order in which they are laid out.
    pub buffers: Vec<CircularBuffer>,
    /// Semaphores that each core has, with their values at the start.
    pub semaphores: Vec<u32>,
    /// Kernels.
    pub launches: Vec<Launch>,
}
