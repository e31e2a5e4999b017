"""Dense times dense at the blocks of a pattern, of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunus._layout import blocks_along
from prunus.cuda import configs, dtypes
from prunus.cuda.blocks import rows_of
from prunus.cuda.products import NEAR, flat, operands_of, precision, triton_of
from prunus.cuda.runtime import Place, launch

if TYPE_CHECKING:
    import torch

__all__ = ["sdd"]

# Blocks that are smaller than this along a side leave matrix units mostly idle. Of half types they pay all
# the same where a row of blocks has columns enough for a tile.
_LEAST = 16
_ENOUGH = 64


def sdd(
    where: Place,
    a: torch.Tensor,
    b: torch.Tensor,
    indices: torch.Tensor,
    indptr: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the blocks of ``a @ b`` at a pattern, with zeros past the edge of ``a`` and ``b``.

    Rows of ``a`` and columns of ``b`` that no block needs are not looked at. If ``out`` has room for more
    blocks than ``indptr`` tells of, that room is left as it is.

    Parameters
    ----------
    where : Place
        Where the operands live.
    a, b : Tensor
        Shapes (m, k) and (k, n), or (members, m, k) and (members, k, n); any strides.
    indices : Tensor of int32 or int64
        Shape (blocks,).
    indptr : Tensor of int32 or int64
        Shape (rows + 1,), or (members, rows + 1) where each has its own pattern: offsets count through all.
    out : Tensor
        Shape (blocks, br, bc), contiguous; (members, blocks, br, bc) where members share the pattern.
    """
    from prunus.cuda.kernels import sdd as kernels

    if 0 in out.shape:
        return
    own = indptr.ndim > 1
    (m, k), n = a.shape[-2:], int(b.shape[-1])
    room, br, bc = (int(length) for length in out.shape[-3:])
    a, b = flat(a), flat(b)
    members, rows = len(a), int(indptr.shape[-1]) - 1
    # With patterns of their own, one list goes through all members.
    each = 1 if own else members
    kind = dtypes.compute(a.dtype, b.dtype, out.dtype)
    sums = triton_of(dtypes.sums(kind))
    strides = (
        a.stride(0) if members > 1 else 0,
        *a.stride()[1:],
        b.stride(0) if members > 1 else 0,
        *b.stride()[1:],
        room * br * bc,
    )
    lines = rows * (members if own else 1)
    columns = blocks_along(room, max(lines, 1)) * bc
    if min(br, bc) < _LEAST and (max(br, bc) < _LEAST or columns < _ENOUGH or kind.itemsize != 2):
        tile = configs.sdd_small(where, k)
        tiles = blocks_along(room * br * bc, tile.n)
        launch(
            where,
            kernels.sdd_small,
            (tiles * each,),
            a,
            b,
            indices,
            rows_of(indptr, room),
            out,
            m,
            n,
            k,
            room,
            rows,
            lines,
            tiles,
            *strides,
            OWN=own,
            BR=br,
            BC=bc,
            FAR=k > NEAR,
            SUMS=sums,
            TN=tile.n,
            TK=tile.k,
            **tile.options,
        )
        return
    tile = configs.sdd(where, (br, bc), columns, k, kind.itemsize * 8)
    tiles = blocks_along(room * bc, tile.n)
    launch(
        where,
        kernels.sdd,
        (tiles * blocks_along(br, tile.m) * each,),
        a,
        b,
        indices,
        indptr.contiguous(),
        out,
        m,
        n,
        k,
        indptr.numel(),
        rows,
        tiles,
        *strides,
        OWN=own,
        BR=br,
        BC=bc,
        FAR=k > NEAR,
        COMPUTE=operands_of(kind, where),
        SUMS=sums,
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        **tile.options,
    )
