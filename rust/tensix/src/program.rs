//! A program: circular buffers, semaphores, and a kernel for each thread of each core that takes part.

use crate::error::Error;
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
    /// Cores that have it, at one address; their numbers count over all chips of a mesh.
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
    /// The core; its number counts over all chips of a mesh.
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

impl Program {
    /// The program of the first chip on another one, whose first core's number is given.
    #[must_use]
    pub fn moved(mut self, first: CoreId) -> Self {
        for core in self.buffers.iter_mut().flat_map(|buffer| &mut buffer.cores) {
            *core += first;
        }
        for launch in &mut self.launches {
            launch.core += first;
        }
        self
    }

    /// Both programs at once. Semaphores are every core's: those of one number begin alike.
    ///
    /// # Errors
    /// If they do not.
    pub fn beside(mut self, other: Self) -> Result<Self, Error> {
        let both = self.semaphores.len().min(other.semaphores.len());
        if self.semaphores[..both] != other.semaphores[..both] {
            return Err(Error::Misused(
                "programs side by side whose semaphores begin with other values".into(),
            ));
        }
        self.semaphores.extend_from_slice(&other.semaphores[both..]);
        self.buffers.extend(other.buffers);
        self.launches.extend(other.launches);
        Ok(self)
    }
}
