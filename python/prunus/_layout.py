"""Algorithms on patterns and block values as plain arrays; nothing here knows the BSR class.

A *stacked* pattern is ``indices`` (n,) with a one-dimensional ``indptr`` (rows + 1,). An array whose batch
members each have a pattern of their own is stored as one stacked pattern with the members' block rows one
below the other, so the row-wise algorithms serve both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus._dtypes import Array

Index = NDArray[np.signedinteger[Any]]
Int64 = NDArray[np.int64]

MAX_INDEX = np.iinfo(np.int64).max


def index_dtype(largest: int) -> np.dtype[Any]:
    """Return the narrower of int32 and int64 that holds ``largest``, as SciPy chooses."""
    return np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def blocks_along(length: int, block: int) -> int:
    """Return how many blocks cover ``length``; the last may hang over the edge."""
    return -(-length // block)


def as_blocksize(blocksize: Any) -> tuple[int, int]:
    """Return ``blocksize`` as two positive ints; one int means a square block.

    Raises
    ------
    TypeError, ValueError
        If it is not one or two integers, or one of them is below 1.
    """
    given: Sequence[Any] = blocksize if isinstance(blocksize, (tuple, list)) else (blocksize, blocksize)
    try:
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        raise TypeError(f"blocksize must be one or two integers, got {blocksize!r}") from None
    if len(sizes) != 2:
        raise ValueError(f"blocksize must be one or two integers, got {len(sizes)}")
    if min(sizes) < 1 or max(sizes) > MAX_INDEX:
        raise ValueError(f"blocksize must be at least 1 in both directions, got {sizes}")
    return sizes[0], sizes[1]


def as_shape(shape: Any) -> tuple[int, ...]:
    """Return ``shape`` as a tuple of ints with at least two dimensions.

    Raises
    ------
    TypeError, ValueError
        If an entry is no integer, negative or beyond int64, or there are fewer than two.
    """
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}") from None
    if len(sizes) < 2:
        raise ValueError(f"shape must have at least two dimensions, got {sizes}")
    if min(sizes) < 0 or max(sizes) > MAX_INDEX:
        raise ValueError(f"shape must hold sizes from 0 to {MAX_INDEX}, got {sizes}")
    return sizes


def as_lengths(maker: str, n: Any, m: Any) -> tuple[int, int]:
    """Return numbers of queries and keys as ints; ``m`` is ``n`` if None.

    Raises
    ------
    TypeError
        If one is no integer; ``maker`` is the function that was called.
    """
    try:
        rows = operator.index(n)
        return rows, rows if m is None else operator.index(m)
    except TypeError:
        given = f"{n!r}" if m is None else f"{n!r}, {m!r}"
        raise TypeError(
            f"{maker}(n, m, blocksize=...) takes numbers of queries and keys, got {given}; write "
            f"{maker}(*shape, blocksize=...) for a shape"
        ) from None


def check_positions(members: int, rows: int, cols: int) -> None:
    """Raise ValueError if a block's position in the whole array does not fit int64."""
    if members * rows * max(cols, 1) > MAX_INDEX:
        raise ValueError(
            f"too many block positions: {members} x {rows} x {cols} does not fit a 64-bit index; "
            "use larger blocks or a smaller shape"
        )


# Patterns ------------------------------------------------------------------------------------------------


def stack_indptr(indptr: Index) -> Index:
    """Turn (*B, rows + 1) absolute offsets into one stacked (members * rows + 1,) indptr."""
    if indptr.ndim == 1:
        return indptr
    end = indptr[..., -1].reshape(-1)[-1:]
    if end.size == 0:
        end = np.zeros(1, indptr.dtype)
    return np.concatenate([indptr[..., :-1].reshape(-1), end])


def unstack_indptr(stacked: Index, batch: tuple[int, ...], rows: int) -> Index:
    """Undo :func:`stack_indptr` for members of ``rows`` block rows; with no ``batch``, nothing to undo."""
    if not batch:
        return stacked
    members = math.prod(batch)
    starts = np.arange(members)[:, None] * rows + np.arange(rows + 1)
    table: Index = stacked[starts].reshape(*batch, rows + 1)
    return table


def block_rows(indptr: Index) -> Int64:
    """Return the (stacked) block row of every stored block."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=np.int64), np.diff(indptr))


def keys_of(indices: Index, indptr: Index, cols: int) -> Int64:
    """Return one number a block that orders blocks by row, then column; ``indptr`` is stacked."""
    return block_rows(indptr) * np.int64(max(cols, 1)) + indices


def pattern_of(keys: Int64, rows: int, cols: int) -> tuple[Index, Index]:
    """Return ``(indices, indptr)`` of sorted, distinct ``keys``."""
    row, col = np.divmod(keys, np.int64(max(cols, 1)))
    dtype = index_dtype(max(cols, len(keys)))
    indptr = np.searchsorted(row, np.arange(rows + 1))
    return col.astype(dtype), indptr.astype(dtype)


def is_sorted(indices: Index, indptr: Index, *, strictly: bool = False) -> bool:
    """Say whether columns ascend inside every block row (``strictly``: without duplicates)."""
    if len(indices) < 2:
        return True
    bad = indices[1:] <= indices[:-1] if strictly else indices[1:] < indices[:-1]
    # A step down between two rows is no fault.
    starts = indptr[1:-1]
    bad[starts[(starts > 0) & (starts < len(indices))] - 1] = False
    return not bad.any()


def sort_order(indices: Index, indptr: Index) -> Int64:
    """Return the stable order that sorts columns inside every block row."""
    return np.lexsort((indices, block_rows(indptr))).astype(np.int64, copy=False)


def transpose(data: Array, indices: Index, indptr: Index, cols: int) -> tuple[Array, Index, Index]:
    """Return the transpose of a pattern and its blocks (..., n, br, bc); columns come out ascending.

    Equal columns keep their stored order, so duplicates sum as before.

    Raises
    ------
    ValueError
        If a column is out of range: np.bincount would ask for that much memory, or write past its end.
    """
    least, largest = int(indices.min(initial=0)), int(indices.max(initial=0))
    if least < 0 or largest >= max(cols, 1):
        raise ValueError(f"indices must be in 0..{cols}, got {least} to {largest}")
    order = np.argsort(indices, kind="stable")
    new_indices = block_rows(indptr)[order].astype(indices.dtype)
    counts = np.bincount(indices, minlength=cols) if cols else np.zeros(0, np.int64)
    new_indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype(indptr.dtype)
    return np.ascontiguousarray(np.swapaxes(data[..., order, :, :], -1, -2)), new_indices, new_indptr


# Values --------------------------------------------------------------------------------------------------


def interior(dense: Array, br: int, bc: int) -> tuple[Array, int, int]:
    """Return the whole blocks of ``dense`` (m, n) as a view (rows, cols, br, bc), and how many there are."""
    rows, cols = dense.shape[0] // br, dense.shape[1] // bc
    inner = dense[: rows * br, : cols * bc]
    # Splitting an axis never needs a copy, whatever the strides.
    return inner.reshape(rows, br, cols, bc).transpose(0, 2, 1, 3), rows, cols


def gather(dense: Array, row: Int64, col: Index, br: int, bc: int) -> Array:
    """Copy the blocks at (``row``, ``col``) out of ``dense`` (m, n); what hangs over the edge is 0."""
    whole, rows, cols = interior(dense, br, bc)
    inside = (row < rows) & (col < cols)
    if inside.all():
        return np.ascontiguousarray(whole[row, col])
    data = np.zeros((len(row), br, bc), dense.dtype)
    data[inside] = whole[row[inside], col[inside]]
    for k in np.flatnonzero(~inside):  # only the last block row and column
        i, j = int(row[k]) * br, int(col[k]) * bc
        part = dense[i : i + br, j : j + bc]
        data[k, : part.shape[0], : part.shape[1]] = part
    return data


def scatter(dense: Array, data: Array, row: Int64, col: Index) -> None:
    """Write distinct blocks ``data`` (n, br, bc) into ``dense`` (m, n), leaving the padding out."""
    br, bc = data.shape[1:]
    whole, rows, cols = interior(dense, br, bc)
    inside = (row < rows) & (col < cols)
    if inside.all():
        whole[row, col] = data
        return
    whole[row[inside], col[inside]] = data[inside]
    for k in np.flatnonzero(~inside):
        i, j = int(row[k]) * br, int(col[k]) * bc
        part = dense[i : i + br, j : j + bc]
        part[...] = data[k, : part.shape[0], : part.shape[1]]


def padding(
    row: Int64, col: Index, shape: tuple[int, int], blocksize: tuple[int, int]
) -> list[tuple[Int64, tuple[slice, slice]]]:
    """Return which blocks hang over the edge of ``shape``, and with which part.

    ``row`` counts block rows inside one member. Each entry is block numbers and the (row, column) slices of
    their padding.
    """
    over: list[tuple[Int64, tuple[slice, slice]]] = []
    for axis, at in enumerate((row, col)):
        rest = shape[axis] % blocksize[axis]
        if rest:
            which = np.flatnonzero(at == shape[axis] // blocksize[axis])
            tail = slice(rest, None)
            over.append((which, (tail, slice(None)) if axis == 0 else (slice(None), tail)))
    return [entry for entry in over if len(entry[0])]


def without_padding(data: Array, over: list[tuple[Int64, tuple[slice, slice]]]) -> Array:
    """Return ``data`` (..., n, br, bc) with zeros where blocks hang over the edge; a copy only if needed."""
    clean = data
    for which, part in over:
        if np.any(data[(..., which, *part)] != 0):
            if clean is data:
                clean = data.copy()
            clean[(..., which, *part)] = 0
    return clean


def merge(
    data: Array, keys: Int64, order: Int64, *, dtype: np.dtype[Any] | None = None
) -> tuple[Array, Int64]:
    """Sum blocks (..., n, br, bc) with equal keys, in stored order, and return (values, distinct keys)."""
    ranked = keys[order]
    first = np.flatnonzero(np.concatenate([np.ones(1, bool), ranked[1:] != ranked[:-1]])[: len(ranked)])
    if len(first) == len(ranked):
        return np.ascontiguousarray(data[..., order, :, :]), ranked
    summed = np.add.reduceat(data[..., order, :, :], first, axis=-3, dtype=dtype or data.dtype)
    return np.ascontiguousarray(summed.astype(data.dtype, copy=False)), ranked[first]


def reblock(
    data: Array, row: Int64, col: Index, shape: tuple[int, int], blocksize: tuple[int, int]
) -> tuple[Array, Int64]:
    """Cut distinct, padding-free blocks (..., n, br, bc) of a stacked pattern into blocks of another size.

    Goes through the greatest common divisor of both sizes. ``row`` is the block row inside a member plus
    the member times the number of block rows, ``shape`` that of one member. Returns the new blocks and
    their keys over the new grid; a new block exists where an old one touches it.
    """
    br, bc = data.shape[-2:]
    nr, nc = blocksize
    gr, gc = math.gcd(br, nr), math.gcd(bc, nc)
    old_rows = blocks_along(shape[0], br)
    new_rows, new_cols = blocks_along(shape[0], nr), blocks_along(shape[1], nc)
    member, inner = np.divmod(row, np.int64(max(old_rows, 1)))
    batch, n = data.shape[:-3], data.shape[-3]
    small = np.moveaxis(data.reshape(*batch, n, br // gr, gr, bc // gc, gc), -3, -2)
    small = small.reshape(*batch, -1, gr, gc)
    # Position of every small block, in small blocks.
    i = np.repeat((inner[:, None] * (br // gr) + np.arange(br // gr)), bc // gc, axis=1).reshape(-1)
    j = np.tile(col.astype(np.int64)[:, None] * (bc // gc) + np.arange(bc // gc), (1, br // gr)).reshape(-1)
    member = np.repeat(member, (br // gr) * (bc // gc))
    keep = (i * gr < shape[0]) & (j * gc < shape[1])
    if not keep.all():
        small, i, j, member = small[..., keep, :, :], i[keep], j[keep], member[keep]
    pr, pc = nr // gr, nc // gc
    keys, at = np.unique((member * new_rows + i // pr) * max(new_cols, 1) + j // pc, return_inverse=True)
    out = np.zeros((*batch, len(keys), pr, gr, pc, gc), data.dtype)
    # Advanced indices apart from each other put their axis first.
    out[..., at, i % pr, :, j % pc, :] = np.moveaxis(small, -3, 0)
    return out.reshape(*batch, len(keys), nr, nc), keys


def expand(starts: Int64, counts: Int64) -> tuple[Int64, Int64]:
    """Concatenate the ranges ``[starts[k], starts[k] + counts[k])``; also return k for every entry."""
    owner = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    offset = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + offset, owner
