"""Arithmetic of block-sparse arrays on a GPU that is not a product: all of it on the device, in torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from prunus._arrays import is_array_like
from prunus.cuda.blocks import Operand, lists, rows_of
from prunus.cuda.construct import grid_of
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["is_operand", "merged", "paired", "scaled", "scatter", "sums"]


def is_operand(other: Any) -> bool:
    """Say whether ``@`` takes an object, or leaves it to the object's own operator."""
    from prunus._storage import BlockStorage

    kind = type(other)
    if getattr(kind, "on_cuda", False) or isinstance(other, (libraries().torch.Tensor, BlockStorage)):
        return True
    return isinstance(other, np.ndarray) or is_array_like(other)


def keys_of(w: Operand, members: int) -> torch.Tensor:
    """Return one number a stored block, ascending with (member, row, column); past the end the last."""
    torch = libraries().torch
    down, across = grid_of(w)
    rows = down * (members if w.own else 1)
    row = rows_of(w.indptr, len(w.indices)).to(torch.int64)
    return torch.where(row < rows, row * across + w.indices, rows * across)


def scatter(w: Operand, tiles: torch.Tensor, members: int) -> None:
    """Add blocks to tiles (members, rows, columns, br, bc), of zeros."""
    torch = libraries().torch
    down, across = grid_of(w)
    keys = keys_of(w, members)
    # What is past the end adds nothing to the first tile.
    there = keys < down * across * (members if w.own else 1)
    data = torch.where(there[:, None, None], w.data, 0)
    keys = torch.where(there, keys, 0)
    member, at = keys // (down * across), keys % (down * across)
    row, col = at // across, at % across
    if w.own:
        tiles.index_put_((member, row, col), data, accumulate=True)
        return
    data = data if data.ndim > 3 else data[None]
    for one, blocks in zip(tiles, data, strict=True):
        one.index_put_((row, col), blocks, accumulate=True)


def scaled(w: Operand, factor: Any, divide: bool = False) -> torch.Tensor:
    """Return the blocks times a number, or divided by it."""
    torch = libraries().torch
    if isinstance(factor, (np.integer, np.floating)):
        factor = factor.item()
    number = isinstance(factor, (int, float)) or (isinstance(factor, torch.Tensor) and factor.ndim == 0)
    if not number:
        raise TypeError(
            f"a BSR is scaled by a number, got {type(factor).__name__}; W.toarray() is a dense tensor"
        )
    return w.data / factor if divide else w.data * factor


def _physical(w: Operand) -> Operand:
    """Return an equal two-dimensional operand that is not transposed."""
    if not w.transposed:
        return w
    torch = libraries().torch
    found = lists(w)
    assert found.order is not None
    data = w.data[found.order].transpose(-1, -2).contiguous()
    return Operand(data, found.indices[found.order].to(torch.int64), found.indptr, w.size)


def merged(data: torch.Tensor, keys: torch.Tensor, w: Operand) -> Operand:
    """Return an operand like ``w`` of blocks in any order; those of one key are summed, in order."""
    torch = libraries().torch
    down, across = grid_of(w)
    last = down * across
    keys, order = torch.sort(keys, stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    slot = torch.cumsum(first, 0) - 1
    out = torch.zeros_like(data)
    out.index_put_((slot,), torch.where((keys < last)[:, None, None], data[order], 0), accumulate=True)
    own = torch.full_like(keys, last).scatter_(0, slot, keys)
    edges = torch.arange(down + 1, device=keys.device) * across
    indices = torch.where(own < last, own % max(across, 1), 0)
    return Operand(out, indices, torch.searchsorted(own, edges), w.shape)


def paired(a: Operand, b: Operand, how: str) -> Operand:
    """Return the sum, difference or elementwise product of two operands of one shape and block size.

    The result has room for as many blocks as there could be. Blocks that only one of them has take part in
    sums, and not in products.
    """
    torch = libraries().torch
    a, b = _physical(a), _physical(b)
    kind = torch.promote_types(a.data.dtype, b.data.dtype)
    left, right = a.data.to(kind), b.data.to(kind)
    if how != "*":
        data = torch.cat([left, -right if how == "-" else right])
        return merged(data, torch.cat([keys_of(a, 1), keys_of(b, 1)]), a)
    one = merged(left, keys_of(a, 1), a)
    other = merged(right, keys_of(b, 1), b)
    down, across = grid_of(a)
    mine, theirs = keys_of(one, 1), keys_of(other, 1)
    if not len(theirs):
        return merged(left[:0], mine[:0], a)
    at = torch.searchsorted(theirs, mine).clamp(max=len(theirs) - 1)
    both = theirs[at] == mine
    keys = torch.where(both, mine, down * across)
    return merged(one.data * other.data[at], keys, a)


def sums(w: Operand, batch: tuple[int, ...], axis: int | None) -> torch.Tensor:
    """Return sums over rows (0), columns (1) or everything (None) of each member."""
    torch = libraries().torch
    if axis not in (None, 0, 1, -1, -2):
        raise ValueError(f"axis must be None, 0 or 1 (of the last two), got {axis!r}")
    members = math.prod(batch)
    (br, bc), (down, across), (m, k) = w.stored, grid_of(w), w.shape
    keys = keys_of(w, members)
    limit = down * across * (members if w.own else 1)
    there = keys < limit
    at = torch.where(there, keys, 0) % max(down * across, 1)
    member = torch.where(there, keys, 0) // max(down * across, 1)
    row, col = at // max(across, 1), at % max(across, 1)
    device = w.data.device
    inside = (row[:, None] * br + torch.arange(br, device=device) < m)[:, :, None]
    inside = inside & (col[:, None] * bc + torch.arange(bc, device=device) < k)[:, None, :]
    half = w.data.dtype in (torch.float16, torch.bfloat16)
    wide = torch.float32 if half else torch.int64 if w.data.dtype == torch.int8 else w.data.dtype
    data = torch.where(inside & there[:, None, None], w.data.to(wide), 0)
    stored = None if axis is None else (axis % 2 == 1) != w.transposed  # sums along the columns of blocks?
    if stored is None:
        each = data.sum((-1, -2))
        total = each.sum(-1) if not w.own else torch.zeros(members, dtype=wide, device=device)
        if w.own:
            total.index_put_((member,), each, accumulate=True)
        result = total.reshape(batch).sum()
    else:
        part = data.sum(-1 if stored else -2)
        count, size, length, place = (down, br, m, row) if stored else (across, bc, k, col)
        out = torch.zeros((max(members, 1), count, size), dtype=wide, device=device)
        if w.own:
            out.index_put_((member, place), part, accumulate=True)
        else:
            for one, values in zip(out, part if part.ndim > 2 else part[None], strict=True):
                one.index_put_((place,), values, accumulate=True)
        result = out.flatten(1)[:, :length].reshape(*batch, length)
    return result.to(w.data.dtype) if half else result
