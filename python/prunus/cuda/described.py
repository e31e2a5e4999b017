"""Operands of ``dsd`` as the tensor memory accelerator takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus.cuda.blocks import Operand
from prunus.cuda.configs import Tile
from prunus.cuda.runtime import is_traced
from prunus.cuda.versions import descriptor

if TYPE_CHECKING:
    import torch

__all__ = ["Described", "describe"]

# Addresses and strides are multiples of it, and coordinates are 32-bit.
_ALIGNED: Final = 16
_LONGEST: Final = 2**31


class Described(NamedTuple):
    """Operands of ``dsd_described``.

    Attributes
    ----------
    data, x : TensorDescriptor
        All blocks below each other, and all members of x (or of its transpose) below each other.
    data_rows, x_rows : int
        Rows of a member; 0 where members share.
    x_transposed : bool
    """

    data: Any
    x: Any
    data_rows: int
    x_rows: int
    x_transposed: bool


def describe(w: Operand, x: torch.Tensor, kind: Any, tile: Tile) -> Described | None:
    """Return descriptors of both operands of ``dsd``, or None where they cannot be.

    They can be where both are of one 16-bit dtype (matrix units read no other in either order), the inner
    dimension holds whole blocks (what a block hangs over with could not be masked), the tile divides blocks,
    and x has one contiguous dimension and begins, and goes on, at multiples of 16 bytes. Where a compiler
    traces the launch, addresses are not known yet.

    Parameters
    ----------
    w : Operand
        Block-sparse.
    x : Tensor
        Shape (members, k, n).
    kind : dtype
        What is computed in.
    tile : Tile
        Sizes of what is loaded.
    """
    if is_traced():
        return None
    (_, k), (sr, sc) = w.size, w.stored
    br, bc = (sc, sr) if w.transposed else (sr, sc)
    if not (kind == w.data.dtype == x.dtype and kind.itemsize == 2):
        return None
    if k % bc or bc % tile.k or br % tile.m or 0 in x.shape or 0 in w.data.shape:
        return None
    flat = _rows(
        w.data.reshape(-1, w.data.shape[-3] * sr, sc) if w.data.ndim > 3 else w.data.reshape(1, -1, sc)
    )
    transposed = x.stride(-1) != 1 or x.shape[-1] == 1
    across = _rows(x.transpose(1, 2) if transposed else x)
    if flat is None or across is None:
        return None
    box = (tile.k, tile.m) if w.transposed else (tile.m, tile.k)
    x_box = (tile.n, tile.k) if transposed else (tile.k, tile.n)
    return Described(descriptor(flat[0], box), descriptor(across[0], x_box), flat[1], across[1], transposed)


def _rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """Return members of (members, rows, columns) below each other, and rows of each; 0 of what all share."""
    members, rows, columns = tensor.shape
    shared = members == 1 or tensor.stride(0) == 0
    if shared:
        members = 1
    elif tensor.stride(0) != rows * tensor.stride(1):
        return None
    size = tensor.element_size()
    step = tensor.stride(1) if rows > 1 or not shared else columns
    if (
        tensor.stride(2) != 1
        or step < columns
        or step * size % _ALIGNED
        or tensor.data_ptr() % _ALIGNED
        or members * rows >= _LONGEST
    ):
        return None
    return tensor.as_strided((members * rows, columns), (step, 1)), 0 if shared else rows
