//! Verbs of the compute threads: registers, products, what is done with single tiles, packing.

use prunus_tensix::verbs::{Along, Binary, Broadcast, Unary, Verb as Asked};
use pyo3::prelude::*;

use super::KernelContext;
use crate::tensix::errors::misused;
use crate::tensix::verb::{Byte, Dim, Tile, Verb};

#[allow(clippy::too_many_arguments, reason = "the hardware's calls have as many")]
#[pymethods]
impl KernelContext {
    /// Have the math thread take a free half of the destination registers.
    fn tile_regs_acquire(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_acquire", Asked::TileRegsAcquire)
    }

    /// Hand the half that was acquired to the packer.
    fn tile_regs_commit(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_commit", Asked::TileRegsCommit)
    }

    /// Have the packer wait for a half that was committed.
    fn tile_regs_wait(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_wait", Asked::TileRegsWait)
    }

    /// Give the half that was packed back to the math thread.
    fn tile_regs_release(&self, py: Python<'_>) -> PyResult<Py<Verb>> {
        self.make(py, "tile_regs_release", Asked::TileRegsRelease)
    }

    /// Add the product of a tile of ``in0_cb`` and one of ``in1_cb`` to tile ``dst`` of the destination registers.
    fn matmul_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(
            py,
            "matmul_tiles",
            Asked::MatmulBlock {
                in0_cb: in0_cb.byte(),
                in1_cb: in1_cb.byte(),
                in0: in0.0,
                in1: in1.0,
                dst: dst.0,
                h: 1,
                w: 1,
                in0_stride: 1,
            },
        )
    }

    /// Add products of ``rt_dim`` tiles of ``in0_cb``, ``kt_dim`` apart, and ``ct_dim`` tiles of ``in1_cb``, side by side.
    ///
    /// Their sums begin at tile ``dst`` of the destination registers, row by row.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the API's call")]
    fn matmul_block(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
        ct_dim: Dim,
        rt_dim: Dim,
        kt_dim: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(
            py,
            "matmul_block",
            Asked::MatmulBlock {
                in0_cb: in0_cb.byte(),
                in1_cb: in1_cb.byte(),
                in0: in0.0,
                in1: in1.0,
                dst: dst.0,
                h: rt_dim.0,
                w: ct_dim.0,
                in0_stride: kt_dim.0,
            },
        )
    }

    /// Copy a tile of a circular buffer to tile ``dst`` of the destination registers.
    fn copy_tile(&self, py: Python<'_>, cb: Byte, tile: Tile, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "copy_tile", Asked::CopyTile { cb: cb.byte(), tile: tile.0, dst: dst.0 })
    }

    /// Put the sum of two tiles into tile ``dst`` of the destination registers.
    fn add_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(py, "add_tiles", binary(Binary::Add, (in0_cb, in1_cb), in0, in1, dst))
    }

    /// Put the difference of two tiles into tile ``dst`` of the destination registers.
    fn sub_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(py, "sub_tiles", binary(Binary::Sub, (in0_cb, in1_cb), in0, in1, dst))
    }

    /// Put the product, value by value, of two tiles into tile ``dst`` of the destination registers.
    fn mul_tiles(
        &self,
        py: Python<'_>,
        in0_cb: Byte,
        in1_cb: Byte,
        in0: Tile,
        in1: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        self.make(py, "mul_tiles", binary(Binary::Mul, (in0_cb, in1_cb), in0, in1, dst))
    }

    /// Replace each x of a tile of the destination registers by max(x, 0).
    fn relu_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "relu_tile", Asked::UnaryTile { op: Unary::Relu, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by x times the normal distribution's cumulative function.
    fn gelu_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "gelu_tile", Asked::UnaryTile { op: Unary::Gelu, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by x / (1 + exp(-x)).
    fn silu_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "silu_tile", Asked::UnaryTile { op: Unary::Silu, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by exp(x).
    fn exp_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "exp_tile", Asked::UnaryTile { op: Unary::Exp, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by 1 / x.
    fn recip_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "recip_tile", Asked::UnaryTile { op: Unary::Recip, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by the absolute value.
    fn abs_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "abs_tile", Asked::UnaryTile { op: Unary::Abs, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by its square root.
    fn sqrt_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "sqrt_tile", Asked::UnaryTile { op: Unary::Sqrt, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by x * x.
    fn square_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "square_tile", Asked::UnaryTile { op: Unary::Square, dst: dst.0 })
    }

    /// Replace each x of a tile of the destination registers by log(1 + exp(x)).
    fn softplus_tile(&self, py: Python<'_>, dst: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "softplus_tile", Asked::UnaryTile { op: Unary::Softplus, dst: dst.0 })
    }

    /// Multiply a tile of the destination registers by a number.
    fn mul_unary_tile(&self, py: Python<'_>, dst: Tile, value: f32) -> PyResult<Py<Verb>> {
        let op = Unary::Scale(value.to_bits());
        self.make(py, "mul_unary_tile", Asked::UnaryTile { op, dst: dst.0 })
    }

    /// Add a number to a tile of the destination registers.
    fn add_unary_tile(&self, py: Python<'_>, dst: Tile, value: f32) -> PyResult<Py<Verb>> {
        let op = Unary::Offset(value.to_bits());
        self.make(py, "add_unary_tile", Asked::UnaryTile { op, dst: dst.0 })
    }

    /// Add tile ``other`` of the destination registers to tile ``dst`` of them.
    fn add_binary_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "add_binary_tile", registers(Binary::Add, dst, other))
    }

    /// Subtract tile ``other`` of the destination registers from tile ``dst`` of them.
    fn sub_binary_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "sub_binary_tile", registers(Binary::Sub, dst, other))
    }

    /// Multiply tile ``dst`` of the destination registers by tile ``other`` of them, value by value.
    fn mul_binary_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "mul_binary_tile", registers(Binary::Mul, dst, other))
    }

    /// Replace each value of tile ``dst`` of the destination registers by the larger one of it and tile ``other``'s.
    fn binary_max_tile(&self, py: Python<'_>, dst: Tile, other: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "binary_max_tile", registers(Binary::Max, dst, other))
    }

    /// Set tile ``dst`` of the destination registers to 0 where tile ``mask`` of them is 0.
    fn mask_tile(&self, py: Python<'_>, dst: Tile, mask: Tile) -> PyResult<Py<Verb>> {
        self.make(py, "mask_tile", Asked::MaskTile { dst: dst.0, mask: mask.0 })
    }

    /// Copy a tile of a circular buffer of which the first "row", "col" or "scalar" stands for all.
    fn unary_bcast(
        &self,
        py: Python<'_>,
        broadcast: &str,
        cb: Byte,
        tile: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        let broadcast = broadcast_of(py, broadcast)?;
        let asked = Asked::BroadcastTile { broadcast, cb: cb.byte(), tile: tile.0, dst: dst.0 };
        self.make(py, "unary_bcast", asked)
    }

    /// Put the sums ("sum") or the largest values ("max") of a tile's rows ("row"), of its columns ("col") or of all of it
    /// ("scalar") into the first column, row or value of tile ``dst`` of the destination registers.
    fn reduce_tile(
        &self,
        py: Python<'_>,
        op: &str,
        along: &str,
        cb: Byte,
        tile: Tile,
        dst: Tile,
    ) -> PyResult<Py<Verb>> {
        let op = match op {
            "sum" => Binary::Add,
            "max" => Binary::Max,
            _ => return Err(misused(py, &format!("misused: tiles are reduced by sum or max, got {op:?}"))),
        };
        let along = match along {
            "row" => Along::Row,
            "col" => Along::Column,
            "scalar" => Along::Both,
            _ => return Err(misused(py, &format!("misused: expected row, col or scalar, got {along:?}"))),
        };
        let asked = Asked::ReduceTile { op, along, cb: cb.byte(), tile: tile.0, dst: dst.0 };
        self.make(py, "reduce_tile", asked)
    }

    /// Write a tile of the destination registers to page ``tile`` of those reserved.
    ///
    /// By default tiles go to one page after the other, from each ``cb_push_back`` on.
    #[pyo3(signature = (dst, cb, tile=None))]
    fn pack_tile(&self, py: Python<'_>, dst: Tile, cb: Byte, tile: Option<Tile>) -> PyResult<Py<Verb>> {
        let tile = self.next_page(&cb, tile, 1);
        self.make(py, "pack_tile", Asked::PackTile { dst: dst.0, cb: cb.byte(), tile, tiles: 1 })
    }

    /// Write so many tiles of the destination registers to the next pages of those reserved.
    fn pack_tile_block(&self, py: Python<'_>, dst: Tile, cb: Byte, tiles: Dim) -> PyResult<Py<Verb>> {
        let tile = self.next_page(&cb, None, tiles.0);
        self.make(py, "pack_tile_block", Asked::PackTile { dst: dst.0, cb: cb.byte(), tile, tiles: tiles.0 })
    }

    /// Have the packer add to what pages hold, or overwrite it again.
    fn pack_reconfig_l1_acc(&self, py: Python<'_>, on: bool) -> PyResult<Py<Verb>> {
        self.make(py, "pack_reconfig_l1_acc", Asked::PackReconfigL1Acc { on })
    }
}

impl KernelContext {
    /// The page that a pack without one goes to.
    fn next_page(&self, cb: &Byte, tile: Option<Tile>, tiles: u32) -> u32 {
        let mut state = self.state();
        match (tile, state.packed.get_mut(cb.0 as usize)) {
            (Some(tile), _) => tile.0,
            (None, Some(packed)) => {
                let page = *packed;
                *packed = page.saturating_add(tiles);
                page
            }
            (None, None) => 0,
        }
    }
}

fn binary(op: Binary, cbs: (Byte, Byte), in0: Tile, in1: Tile, dst: Tile) -> Asked {
    let (in0_cb, in1_cb) = (cbs.0.byte(), cbs.1.byte());
    Asked::BinaryTiles { op, broadcast: Broadcast::None, in0_cb, in1_cb, in0: in0.0, in1: in1.0, dst: dst.0 }
}

fn registers(op: Binary, dst: Tile, other: Tile) -> Asked {
    Asked::BinaryDst { op, dst: dst.0, other: other.0 }
}

fn broadcast_of(py: Python<'_>, name: &str) -> PyResult<Broadcast> {
    match name {
        "row" => Ok(Broadcast::Row),
        "col" => Ok(Broadcast::Column),
        "scalar" => Ok(Broadcast::Scalar),
        _ => Err(misused(py, &format!("misused: expected row, col or scalar, got {name:?}"))),
    }
}
