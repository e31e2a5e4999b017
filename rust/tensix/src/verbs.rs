//! What a kernel can ask of the machine; each verb has the name of the hardware's API call that it stands for.

use crate::mesh::ChipId;

/// Number of a Tensix core: `row * columns + column` in logical coordinates. What kernels name so is on their own chip;
/// programs count cores over all chips, those of the second one behind those of the first.
pub type CoreId = u16;

/// Where bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a core's L1.
    L1 {
        /// The core.
        core: CoreId,
        /// Byte address.
        address: u32,
    },
    /// In a page of a buffer in DRAM.
    Dram {
        /// Number of the buffer.
        buffer: u16,
        /// Page, which is in channel `page % channels`.
        page: u32,
        /// Byte in the page.
        offset: u32,
    },
}

/// Cores that a multicast goes to, in NoC coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First column and row.
    pub from: (u16, u16),
    /// Last column and row.
    pub to: (u16, u16),
    /// The sender receives as well (`_loopback_src`).
    pub own: bool,
}

/// Element-wise operations of the vector and the matrix unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product.
    Mul,
    /// Larger value.
    Max,
}

/// What of a tile stands for the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broadcast {
    /// The tile itself.
    None,
    /// Its first row, for all rows.
    Row,
    /// Its first column, for all columns.
    Column,
    /// Its first value.
    Scalar,
}

/// What a tile is reduced along, and where the results are: the rest of the result is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Along {
    /// Each row, to the first column.
    Row,
    /// Each column, to the first row.
    Column,
    /// All of it, to the first value.
    Both,
}

/// Functions of one value, by the vector unit. Parameters are the bits of `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    /// max(x, 0).
    Relu,
    /// x * normal distribution's cumulative function.
    Gelu,
    /// x / (1 + exp(-x)).
    Silu,
    /// Exponential function.
    Exp,
    /// 1 / x.
    Recip,
    /// Absolute value.
    Abs,
    /// Square root.
    Sqrt,
    /// x * x.
    Square,
    /// log(1 + exp(x)).
    Softplus,
    /// x times a number.
    Scale(u32),
    /// x plus a number.
    Offset(u32),
}

/// A call of the kernel API.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields have the names of the API's arguments")]
pub enum Verb {
    CbReserveBack {
        cb: u8,
        pages: u32,
    },
    CbPushBack {
        cb: u8,
        pages: u32,
    },
    CbWaitFront {
        cb: u8,
        pages: u32,
    },
    CbPopFront {
        cb: u8,
        pages: u32,
    },
    GetWritePtr {
        cb: u8,
    },
    GetReadPtr {
        cb: u8,
    },
    NocAsyncRead {
        from: Place,
        to: u32,
        bytes: u32,
        stateful: bool,
    },
    NocAsyncReadBarrier,
    NocAsyncWrite {
        from: u32,
        to: Place,
        bytes: u32,
        stateful: bool,
    },
    NocAsyncWriteBarrier,
    NocAsyncWritesFlushed,
    NocAsyncWriteMulticast {
        from: u32,
        area: Area,
        to: u32,
        bytes: u32,
        linked: bool,
    },
    NocSemaphoreInc {
        core: CoreId,
        semaphore: u8,
        by: u32,
    },
    NocSemaphoreSet {
        semaphore: u8,
        value: u32,
    },
    NocSemaphoreSetMulticast {
        from: u8,
        semaphore: u8,
        area: Area,
    },
    NocSemaphoreWait {
        semaphore: u8,
        value: u32,
        at_least: bool,
    },
    /// To another chip: an address of L1 there, or a page in its DRAM. `link` is one of those to the next chip.
    FabricUnicastNocUnicastWrite {
        from: u32,
        chip: ChipId,
        to: Place,
        bytes: u32,
        link: Option<u8>,
    },
    /// The same, and behind all of it an increment of a semaphore of a core of that chip, in the last packet.
    FabricUnicastNocFusedUnicastWithAtomicInc {
        from: u32,
        chip: ChipId,
        to: Place,
        bytes: u32,
        core: CoreId,
        semaphore: u8,
        by: u32,
        link: Option<u8>,
    },
    /// Of a core of another chip, behind all that this thread sent there before by the same link.
    FabricUnicastNocUnicastAtomicInc {
        chip: ChipId,
        core: CoreId,
        semaphore: u8,
        by: u32,
        link: Option<u8>,
    },
    L1Load {
        address: u32,
    },
    L1Store {
        address: u32,
        value: u32,
    },
    Cycles(f64),
    TileRegsAcquire,
    TileRegsCommit,
    TileRegsWait,
    TileRegsRelease,
    MatmulBlock {
        in0_cb: u8,
        in1_cb: u8,
        in0: u32,
        in1: u32,
        dst: u32,
        h: u32,
        w: u32,
        in0_stride: u32,
    },
    CopyTile {
        cb: u8,
        tile: u32,
        dst: u32,
    },
    BinaryTiles {
        op: Binary,
        broadcast: Broadcast,
        in0_cb: u8,
        in1_cb: u8,
        in0: u32,
        in1: u32,
        dst: u32,
    },
    BroadcastTile {
        broadcast: Broadcast,
        cb: u8,
        tile: u32,
        dst: u32,
    },
    ReduceTile {
        op: Binary,
        along: Along,
        cb: u8,
        tile: u32,
        dst: u32,
    },
    BinaryDst {
        op: Binary,
        dst: u32,
        other: u32,
    },
    MaskTile {
        dst: u32,
        mask: u32,
    },
    UnaryTile {
        op: Unary,
        dst: u32,
    },
    PackTile {
        dst: u32,
        cb: u8,
        tile: u32,
        tiles: u32,
    },
    PackReconfigL1Acc {
        on: bool,
    },
}

impl Verb {
    /// Whether the verb is one of compute kernels.
    #[must_use]
    pub fn computes(&self) -> bool {
        matches!(
            self,
            Self::TileRegsAcquire
                | Self::TileRegsCommit
                | Self::TileRegsWait
                | Self::TileRegsRelease
                | Self::MatmulBlock { .. }
                | Self::CopyTile { .. }
                | Self::BinaryTiles { .. }
                | Self::BroadcastTile { .. }
                | Self::ReduceTile { .. }
                | Self::BinaryDst { .. }
                | Self::MaskTile { .. }
                | Self::UnaryTile { .. }
                | Self::PackTile { .. }
                | Self::PackReconfigL1Acc { .. }
        )
    }
}

/// What a verb returns: an address, a word, or nothing that matters.
pub type Reply = u32;
