"""Block-sparse times block-sparse, of tensors.

The product of two patterns is a list of pairs of blocks: each block of ``a`` meets the blocks of ``b`` in the
row that its column names. The list is expanded and sorted by block of the result on the device (expand, sort,
compress: Dalton, Olson, Bell, *Optimizing sparse matrix-matrix multiplication for the GPU*, 2015), and each
block of the result sums its pairs, by ascending column of ``a`` and of equal ones as they are stored.

Members of a batch that share their patterns have one list. Those that do not have rows of blocks of their
own in a list of all: where a member lies below the one before it, as on a block diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import configs, dtypes
from prunus.cuda.blocks import Operand
from prunus.cuda.pairs import Patterns, blocks_of, pairs_of, starts_of
from prunus.cuda.products import NEAR, operands_of, precision, triton_of
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Capacity", "Product", "ssd"]

# Blocks that are smaller than this along a side leave matrix units mostly idle.
_LEAST: Final = 16


class Capacity(NamedTuple):
    """What a product has room for: ``pairs`` of blocks, and ``blocks`` of the result.

    Members that share their patterns share pairs as well; of those that do not, all are counted.
    """

    pairs: int
    blocks: int


class Product(NamedTuple):
    """A product in sorted, distinct blocks.

    Attributes
    ----------
    data : Tensor
        Shape (room, br, bc), or (members, room, br, bc) where members of a batch share the pattern; what
        comes after the blocks that ``indptr`` tells of holds anything.
    indices, indptr : Tensor of int64
        Shapes (room,) and (rows + 1,), or (members, rows + 1) with a pattern for each member.
    needed : Tensor of int64
        Shape (2,): how many pairs and blocks there are.
    """

    data: torch.Tensor
    indices: torch.Tensor
    indptr: torch.Tensor
    needed: torch.Tensor


def ssd(
    where: Place,
    a: Operand,
    b: Operand,
    dtype: Any,
    capacity: Capacity | None = None,
    batches: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> Product:
    """Return ``a @ b``.

    How many blocks it has is data. Without ``capacity``, two numbers are read back, once for all members, and
    the host waits for them: how many pairs, and how many blocks. It is the only operation that does so, as in
    cuSPARSE.

    Parameters
    ----------
    where : Place
        Where the operands live.
    a, b : Operand
        ``a``'s blocks are as wide, after transposition, as ``b``'s are high. Blocks may be unsorted and
        repeated.
    dtype : torch.dtype
        Of the result.
    capacity : Capacity, optional
        Room to take in place of reading anything back. Where a product needs more (``needed`` says so), pairs
        and blocks beyond it are missing: look at ``needed`` once the device is waited for anyhow. Blocks are
        counted among the pairs that there was room for: their number is final where ``needed[0]`` fits.
    batches : tuple of tuple of int
        Batch dimensions of ``a`` and of ``b``, which broadcast. If no operand has a pattern for each of its
        members, the result's members share one.
    """
    torch = libraries().torch
    batch = tuple(torch.broadcast_shapes(*batches))
    own = a.own or b.own
    (ar, ac), (br, bc) = a.stored, b.stored
    rows_wide, inner_wide = (ac, ar) if a.transposed else (ar, ac)
    cols_wide = br if b.transposed else bc
    (m, k), (_, n) = a.size, b.size
    cols = blocks_along(n, cols_wide)
    # Members that share both patterns need one list.
    alike = batch if own else ()
    left_of, right_of = Patterns.of(a, batches[0], alike), Patterns.of(b, batches[1], alike)
    a_rows, lines = left_of.rows, left_of.rows * math.prod(alike)
    found = pairs_of(left_of, right_of, cols, None if capacity is None else capacity.pairs)
    made = blocks_of(found, lines, cols, None if capacity is None else capacity.blocks)
    left, right, row, indptr = found.left, found.right, made.rows, made.indptr
    shape: tuple[int, ...] = (len(row), rows_wide, cols_wide)
    members = [starts_of(one, own_batch, batch) for one, own_batch in zip((a, b), batches, strict=True)]
    if own:
        # Rows of all members follow each other: where each member's begin, and which of its own each is.
        first = torch.arange(math.prod(batch), device=where.device, dtype=torch.int64)[:, None] * a_rows
        indptr = indptr[first + torch.arange(a_rows + 1, device=where.device, dtype=torch.int64)]
        member = (found.place // max(cols * a_rows, 1)).clamp_(max=max(math.prod(batch) - 1, 0))
        left, right = (
            at if start is None else at + start[member]
            for at, start in zip((left, right), members, strict=True)
        )
        row = row % max(a_rows, 1)
        members = [None, None]
    elif batch:
        shape = (math.prod(batch), *shape)
        none = torch.zeros(shape[0], device=where.device, dtype=torch.int64)
        members = [none if start is None else start for start in members]
    data = empty(shape, dtype, where)
    _multiply(
        where,
        (a, b),
        (left, right, found.inner, made.starts, row, made.columns),
        members,
        data,
        (rows_wide, inner_wide, cols_wide),
        (m, n, k),
    )
    return Product(data, made.columns, indptr, torch.cat([found.total, made.total]))


def _multiply(
    where: Place,
    operands: tuple[Operand, Operand],
    pairs: tuple[torch.Tensor, ...],
    starts: Sequence[torch.Tensor | None],
    data: torch.Tensor,
    block: tuple[int, int, int],
    size: tuple[int, int, int],
) -> None:
    """Write the blocks of the result from their pairs; ``starts`` says where each member's operands begin."""
    from prunus.cuda.kernels import ssd as kernels

    if 0 in data.shape:
        return
    a, b = operands
    br, bi, bc = block
    members, room = (len(data) if data.ndim > 3 else 1), int(data.shape[-3])
    kind = dtypes.compute(a.data.dtype, b.data.dtype, data.dtype)
    common = {
        "A_TRANSPOSED": a.transposed,
        "B_TRANSPOSED": b.transposed,
        "BR": br,
        "BI": bi,
        "BC": bc,
        "MEMBERS": data.ndim > 3,
        "FAR": len(pairs[0]) * bi > NEAR,
        "SUMS": triton_of(dtypes.sums(kind)),
    }
    # Without members, nothing looks at these.
    begins = (pairs[0] if start is None else start for start in starts)
    tensors = (a.data, b.data, *pairs, *begins, data, *size, room)
    if min(br, bc) < _LEAST:
        tile = configs.ssd_small(where, bi)
        grid = (blocks_along(data.numel(), tile.n),)
        launch(
            where,
            kernels.ssd_small,
            grid,
            *tensors,
            members,
            **common,
            TN=tile.n,
            TK=tile.k,
            **tile.options,
        )
        return
    tile = configs.ssd(where, (br, bc), bi, kind.itemsize * 8)
    launch(
        where,
        kernels.ssd,
        (members * room * blocks_along(br, tile.m) * blocks_along(bc, tile.n),),
        *tensors,
        **common,
        COMPUTE=operands_of(kind, where),
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        **tile.options,
    )
