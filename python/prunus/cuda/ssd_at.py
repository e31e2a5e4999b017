"""Block-sparse times block-sparse at chosen blocks, of tensors.

Unlike the whole product (:mod:`prunus.cuda.ssd`) it has no list of pairs, whose length is data: each block
of the result merges a row of ``a`` with a column of ``b`` while it is computed (the inner-product form of a
masked product: Milaković et al., *Parallel algorithms for masked sparse matrix-matrix products*, 2022). So
nothing is read back, and what it takes besides the operands is a sorted list of each one's blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import configs, dtypes
from prunus.cuda.blocks import Operand, lists, rows_of
from prunus.cuda.products import operands_of, precision, triton_of
from prunus.cuda.runtime import Place, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["ssd_at"]

# Blocks that are smaller than this along a side leave matrix units mostly idle.
_LEAST: Final = 16


class _Sorted(NamedTuple):
    """The blocks of an operand by row and ascending column, equal ones as they are stored.

    Attributes
    ----------
    inner : Tensor of int64
        Shape (n,): their columns.
    starts : Tensor
        Shape (rows + 1,).
    stored : Tensor of int64
        Shape (n,): where they are stored.
    """

    inner: torch.Tensor
    starts: torch.Tensor
    stored: torch.Tensor


def _sorted(w: Operand) -> _Sorted:
    """Return the blocks of an operand in order."""
    torch = libraries().torch
    found = lists(w)
    if found.order is not None:  # a transpose has been sorted already
        return _Sorted(found.indices[found.order].to(torch.int64), found.indptr, found.order)
    across = blocks_along(w.shape[1], w.stored[1])
    column = w.indices.to(torch.int64)
    # What there is only room for may hold anything; it comes last, and no row ends there.
    row = rows_of(w.indptr, len(w.indices))
    beyond = row >= len(w.indptr) - 1
    keys = torch.where(beyond, len(w.indptr) * across, row.to(torch.int64) * across + column)
    order = torch.sort(keys, stable=True)[1]
    return _Sorted(column[order], w.indptr, order)


def ssd_at(
    where: Place,
    a: Operand,
    b: Operand,
    indices: torch.Tensor,
    indptr: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the blocks of ``a @ b`` at a pattern, zeros where no pair of blocks meets.

    Pairs that meet elsewhere are not multiplied. If ``out`` has room for more blocks than ``indptr`` tells
    of, that room becomes 0.

    Parameters
    ----------
    where : Place
        Where the operands live.
    a, b : Operand
        Without a batch; after transposition, ``a``'s blocks are as wide as ``b``'s are high. Blocks may be
        unsorted and repeated.
    indices : Tensor of int32 or int64
        Shape (blocks,); in any order, and some may name one place.
    indptr : Tensor of int32 or int64
        Shape (rows + 1,).
    out : Tensor
        Shape (blocks, br, bc), contiguous.

    Raises
    ------
    ValueError
        If an operand is a batch.
    """
    if a.data.ndim > 3 or b.data.ndim > 3 or a.own or b.own or out.ndim != 3:
        raise ValueError("a product at chosen blocks takes operands of two dimensions, not batches")
    from prunus.cuda.kernels import ssd_at as kernels

    if 0 in out.shape:
        return
    room, br, bc = (int(length) for length in out.shape)
    bi = a.stored[0 if a.transposed else 1]
    left, right = _sorted(a), _sorted(b.T)
    kind = dtypes.compute(a.data.dtype, b.data.dtype, out.dtype)
    (m, k), n = a.size, b.size[1]
    tensors = (a.data, b.data, *left, *right, rows_of(indptr.contiguous(), room), indices.contiguous(), out)
    common = {
        "A_TRANSPOSED": a.transposed,
        "B_TRANSPOSED": b.transposed,
        "BR": br,
        "BI": bi,
        "BC": bc,
        "SUMS": triton_of(dtypes.sums(kind)),
    }
    lines = int(indptr.shape[0]) - 1
    if min(br, bc) < _LEAST:
        tile = configs.ssd_small(where, bi)
        grid = (blocks_along(out.numel(), tile.n),)
        small = {**common, "TN": tile.n, "TK": tile.k, **tile.options}
        launch(where, kernels.ssd_at_small, grid, *tensors, m, n, k, lines, room, **small)
        return
    tile = configs.ssd_at(where, (br, bc), bi, kind.itemsize * 8)
    launch(
        where,
        kernels.ssd_at,
        (room * blocks_along(br, tile.m) * blocks_along(bc, tile.n),),
        *tensors,
        m,
        n,
        k,
        lines,
        **common,
        COMPUTE=operands_of(kind, where),
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        **tile.options,
    )
