//! What the hardware's formats and its matrix unit do to values.
//!
//! The model follows Tenstorrent's own description of Wormhole B0 (`tt-isa-documentation`: `MVMUL`, `SrcASrcB`, `Dst`,
//! `FloatBitPatterns`) and, for the layout of tiles in memory, the data formats of `tt-metal`:
//!
//! * A [`Tile`] is 32 × 32 values, row by row. In memory it is four faces of 16 × 16 (top left, top right, bottom left,
//!   bottom right) in one [`Format`], little-endian: [`encode_tile`], [`decode_tile`]; whole matrices, with zeros around
//!   ragged edges: [`tilize`], [`untilize`].
//! * The matrix unit multiplies [`SrcB`] by [`SrcA`], a few bits of each mantissa in each phase of a [`Fidelity`], and
//!   adds every sum of 16 products to Dst, which holds what [`Accumulate`] says: [`matmul_tile`], [`matmul_block`].
//! * int8 operands are multiplied exactly and added to int32: [`matmul_tile_i8`], [`matmul_block_i8`].
//!
//! Tenstorrent calls its description of floating-point arithmetic a rough guide. Where it leaves a choice open, the
//! items here say what was chosen; every result is the same, to the bit, on every CPU.

mod block;
mod error;
mod fidelity;
mod format;
mod integer;
mod kernel;
mod layout;
mod matmul;
mod round;
mod source;
#[cfg(test)]
mod tests;
mod tile;

pub use error::Error;
pub use fidelity::{Accumulate, Fidelity};
pub use format::Format;
pub use integer::{SrcInt8, matmul_block_i8, matmul_tile_i8};
pub use layout::{Matrix, MatrixMut, tile_grid, tilize, untilize};
pub use matmul::{matmul_block, matmul_tile};
pub use round::{flush_denormal, round_bf16, to_tf32};
pub use source::{SrcA, SrcB};
pub use tile::{Element, FACE, TILE, TILE_VALUES, Tile, decode_tile, encode_tile};
