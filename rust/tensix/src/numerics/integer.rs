//! Products of int8 tiles.

use super::Error;
use super::kernel::{self, Int32Sum, Rows};
use super::matmul::add_block;
use super::tile::{TILE, Tile};

/// A tile of int8 in either operand register.
#[derive(Clone, Debug)]
pub struct SrcInt8(Box<Rows>);

impl SrcInt8 {
    /// Loads a tile; values beyond int8 become the nearest that it has.
    pub fn new(tile: &Tile<i32>) -> Self {
        let mut rows = Box::new(Rows::ZERO);
        for (to, from) in rows.0.iter_mut().zip(tile.as_chunks::<TILE>().0) {
            for (to, &from) in to.iter_mut().zip(from) {
                *to = f32::from(from.clamp(-128, 127) as i8);
            }
        }
        Self(rows)
    }
}

/// Adds `in0 @ in1` to `dst`; all values of `in0` and `in1` are int8, or become the nearest.
///
/// The product is exact: every phase is taken. Sums of 16 products are added to `dst` one by one; what exceeds
/// `±(2^31 - 1)` stays there.
pub fn matmul_tile_i8(in0: &Tile<i32>, in1: &Tile<i32>, dst: &mut Tile<i32>) {
    let (in0, in1) = (SrcInt8::new(in0), SrcInt8::new(in1));
    kernel::add_product::<Int32Sum>(&[(&in1.0, &in0.0)], dst);
}

/// Adds the product of a block of `height × k` tiles and one of `k × width` tiles to one of `height × width`, all row of
/// tiles by row of tiles: to each tile of `dst` what [`matmul_tile_i8`] adds, `k` times in ascending order.
pub fn matmul_block_i8(
    in0: &[SrcInt8],
    in1: &[SrcInt8],
    dst: &mut [Tile<i32>],
    height: usize,
    width: usize,
) -> Result<(), Error> {
    add_block::<Int32Sum, _, _, _>(in0, in1, dst, height, width, |a, b| ([(&a.0, &b.0); 4], 1))
}
