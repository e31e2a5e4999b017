"""Block-sparse times block-sparse, of tensors.

The product of two patterns is a list of pairs of blocks: each block of ``a`` meets the blocks of ``b`` in the
row that its column names. The list is expanded and sorted by block of the result on the device (expand, sort,
compress: Dalton, Olson, Bell, *Optimizing sparse matrix-matrix multiplication for the GPU*, 2015), and each
block of the result sums its pairs, by ascending column of ``a`` and of equal ones as they are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import configs, dtypes
from prunus.cuda.blocks import Lists, Operand, lists, rows_of
from prunus.cuda.products import operands_of, precision, triton_of
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Capacity", "Product", "ssd"]

# Blocks that are smaller than this along a side leave matrix units mostly idle.
_LEAST: Final = 16


class Capacity(NamedTuple):
    """What a product has room for: ``pairs`` of blocks, and ``blocks`` of the result."""

    pairs: int
    blocks: int


class Product(NamedTuple):
    """A product in sorted, distinct blocks.

    Attributes
    ----------
    data : Tensor
        Shape (room, br, bc); what comes after the blocks that ``indptr`` tells of holds anything.
    indices, indptr : Tensor of int64
        Shapes (room,) and (rows + 1,).
    needed : Tensor of int64
        Shape (2,): how many pairs and blocks there are.
    """

    data: torch.Tensor
    indices: torch.Tensor
    indptr: torch.Tensor
    needed: torch.Tensor


def ssd(where: Place, a: Operand, b: Operand, dtype: Any, capacity: Capacity | None = None) -> Product:
    """Return ``a @ b``.

    How many blocks it has is data. Without ``capacity``, two numbers are read back, and the host waits for
    them: how many pairs, and how many blocks. It is the only operation that does so, as in cuSPARSE.

    Parameters
    ----------
    where : Place
        Where the operands live.
    a, b : Operand
        Of two dimensions; ``a``'s blocks are as wide, after transposition, as ``b``'s are high. Blocks may be
        unsorted and repeated.
    dtype : torch.dtype
        Of the result.
    capacity : Capacity, optional
        Room to take in place of reading anything back. Where a product needs more (``needed`` says so), pairs
        and blocks beyond it are missing: look at ``needed`` once the device is waited for anyhow. Blocks are
        counted among the pairs that there was room for: their number is final where ``needed[0]`` fits.
    """
    torch = libraries().torch
    a_lists, b_lists = lists(a), lists(b)
    a_rows, b_rows = a_lists.indptr.shape[0] - 1, b_lists.indptr.shape[0] - 1
    (ar, ac), (br, bc) = a.stored, b.stored
    rows_wide, inner_wide = (ac, ar) if a.transposed else (ar, ac)
    cols_wide = br if b.transposed else bc
    (m, k), (_, n) = a.size, b.size
    cols = blocks_along(n, cols_wide)
    inner, counts, first, row = _meetings(a_lists, b_lists, len(a.indices), a_rows, b_rows)
    ends = torch.cumsum(counts, 0)
    total = ends[-1:] if len(ends) else ends.new_zeros(1)
    pairs = int(total.item()) if capacity is None else capacity.pairs
    # Each pair's place in a's list and in b's.
    p = torch.arange(pairs, device=where.device, dtype=torch.int64)
    exists = p < total
    if len(counts):
        t = torch.searchsorted(ends, p, right=True).clamp_(max=len(counts) - 1)
        left = t if a_lists.order is None else a_lists.order[t]
        at = first[t] + p - (ends[t] - counts[t])
    else:
        t = left = at = p
    if len(b.indices) and len(counts):
        at = at.clamp_(max=len(b.indices) - 1)
        right = at if b_lists.order is None else b_lists.order[at]
        key = (row[t] * cols + b_lists.indices[right]) * max(b_rows, 1) + inner[t]
    else:
        right = key = p
    beyond = torch.iinfo(torch.int64).max
    key, order = torch.sort(torch.where(exists, key, beyond), stable=True)
    left, right = left[order], right[order]
    place = key // max(b_rows, 1)
    fresh = exists.clone()
    fresh[1:] &= place[1:] != place[:-1]
    number = torch.cumsum(fresh, 0) - 1
    made = number[-1:] + 1 if pairs else total
    blocks = int(made.item()) if capacity is None else capacity.blocks
    # Where each block's pairs begin; those that are not there have none, and come last.
    edges = torch.arange(blocks + 1, device=where.device, dtype=torch.int64)
    starts = torch.searchsorted(torch.where(exists, number, beyond), edges)
    known = starts[:-1].clamp(max=max(pairs - 1, 0))
    spots = place[known] if pairs else edges[:-1]
    there = edges[:-1] < made
    row_of = torch.where(there, spots // max(cols, 1), a_rows)
    col_of = torch.where(there, spots % max(cols, 1), 0)
    lines = torch.arange(a_rows + 1, device=where.device, dtype=torch.int64)
    indptr = torch.searchsorted(row_of, lines)
    data = empty((blocks, rows_wide, cols_wide), dtype, where)
    _multiply(
        where,
        (a, b),
        (left, right, key % max(b_rows, 1), starts, row_of, col_of),
        data,
        (rows_wide, inner_wide, cols_wide),
        (m, n, k),
    )
    return Product(data, col_of, indptr, torch.cat([total, made]))


def _meetings(
    a: Lists, b: Lists, blocks: int, a_rows: int, b_rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return of each of a's blocks its column, how many of b's it meets, the first of them, and its row."""
    torch = libraries().torch
    row = rows_of(a.indptr, blocks)
    inner = (a.indices if a.order is None else a.indices[a.order]).to(torch.int64)
    # What there is only room for may hold anything.
    inner = inner.clamp(0, max(b_rows - 1, 0))
    if b_rows:
        first, end = b.indptr[inner].to(torch.int64), b.indptr[inner + 1].to(torch.int64)
        return inner, torch.where(row < a_rows, end - first, 0), first, row
    none = torch.zeros_like(inner)
    return inner, none, none, row


def _multiply(
    where: Place,
    operands: tuple[Operand, Operand],
    pairs: tuple[torch.Tensor, ...],
    data: torch.Tensor,
    block: tuple[int, int, int],
    size: tuple[int, int, int],
) -> None:
    """Write the blocks of the result from their pairs."""
    from prunus.cuda.kernels import ssd as kernels

    if 0 in data.shape:
        return
    a, b = operands
    br, bi, bc = block
    kind = dtypes.compute(a.data.dtype, b.data.dtype, data.dtype)
    common = {
        "A_TRANSPOSED": a.transposed,
        "B_TRANSPOSED": b.transposed,
        "BR": br,
        "BI": bi,
        "BC": bc,
        "SUMS": triton_of(dtypes.sums(kind)),
    }
    tensors = (a.data, b.data, *pairs, data, *size)
    if min(br, bc) < _LEAST:
        tile = configs.ssd_small(where, bi)
        grid = (blocks_along(data.numel(), tile.n),)
        launch(
            where,
            kernels.ssd_small,
            grid,
            *tensors,
            len(data),
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
        (len(data) * blocks_along(br, tile.m) * blocks_along(bc, tile.n),),
        *tensors,
        **common,
        COMPUTE=operands_of(kind, where),
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        **tile.options,
    )
