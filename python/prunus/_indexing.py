"""``W[...]``: batch members, rows, columns and values; parts stay block-sparse, lines come out dense."""

from __future__ import annotations

import math
import operator
from types import EllipsisType
from typing import Any, TypeVar

import numpy as np

from prunus import _layout as lay
from prunus._dtypes import Array
from prunus._elementwise import stack
from prunus._layout import Int64
from prunus._storage import BlockStorage

S = TypeVar("S", bound=BlockStorage)

EVERYTHING = slice(None)


def _is_all(key: Any) -> bool:
    return isinstance(key, slice) and key == EVERYTHING


def getitem(a: S, key: Any) -> Any:
    """Return ``a[key]``; see ``BSR.__getitem__``."""
    a._check()
    keys = _expand(key, a.ndim)
    nb = len(a._batch)
    picked = a if all(map(_is_all, keys[:nb])) else _batch(a, keys[:nb])
    rows, cols = (
        _normal(k, n, nb + ax) for ax, (k, n) in enumerate(zip(keys[nb:], a.shape[-2:], strict=True))
    )
    if _is_all(rows) and _is_all(cols):
        return picked._wrap(
            picked._data, picked._indices, picked._indptr, picked._stored, picked._batch, picked._t
        )
    if isinstance(rows, int) and isinstance(cols, int):
        return points(picked, np.array([rows]), np.array([cols]))[..., 0][()]
    if isinstance(rows, int):
        return _pick(_line(picked, rows, 0), cols)
    if isinstance(cols, int):
        return _pick(_line(picked, cols, 1), rows)
    # A range with a step is an array of positions by now, but still chooses on its own axis only.
    paired = not any(isinstance(k, slice) for k in keys[nb:])
    if paired and isinstance(rows, np.ndarray) and isinstance(cols, np.ndarray):
        if rows.ndim == 2 and rows.shape[1] == 1 and (cols.ndim == 1 or cols.shape[0] == 1):
            rows, cols = rows[:, 0], cols.reshape(-1)  # np.ix_
        elif rows.ndim == 1 and cols.ndim == 1:
            return points(picked, rows, cols)
        else:
            raise IndexError("index arrays of two dimensions are supported in np.ix_ form only")
    for index in (rows, cols):
        if isinstance(index, np.ndarray) and index.ndim != 1:
            raise IndexError(f"an index array must have one dimension, got {index.ndim}")
    if picked.frozen:
        # Not a view that keeps a copy of all values alive.
        part = _part(picked._thawed(), rows, cols)
        return part._with_data(part._data.copy())
    return _part(picked, rows, cols)


def _expand(key: Any, ndim: int) -> list[Any]:
    """Return one key a dimension: an ellipsis and missing trailing keys become full slices."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(k is None for k in keys):
        raise IndexError("a BSR takes no new axes; call .toarray() first")
    dots = [n for n, k in enumerate(keys) if isinstance(k, EllipsisType)]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(keys) - len(dots) > ndim:
        raise IndexError(f"too many indices: the array is {ndim}-dimensional, but {len(keys)} were indexed")
    fill = [EVERYTHING] * (ndim - len(keys) + len(dots))
    return keys[: dots[0]] + fill + keys[dots[0] + 1 :] if dots else keys + fill


def _normal(key: Any, length: int, axis: int) -> int | slice | Array:
    """Return a key as a non-negative int, a full slice, a range or an array of non-negative ints.

    Raises
    ------
    IndexError
        If it is out of range or no index.
    """
    if isinstance(key, slice):
        start, stop, step = key.indices(length)
        if (start, step) == (0, 1) and stop == length:
            return EVERYTHING
        return slice(start, max(start, stop), 1) if step == 1 else np.arange(start, stop, step)
    if not isinstance(key, (np.ndarray, list, range, tuple)) or (
        isinstance(key, np.ndarray) and key.ndim == 0
    ):
        try:
            number = operator.index(key)
        except TypeError:
            raise IndexError(
                f"only integers, slices, ellipsis and integer or boolean arrays index a BSR, got {key!r}"
            ) from None
        if isinstance(key, (bool, np.bool_)):
            raise IndexError("a single boolean is no index of a BSR")
        if not -length <= number < length:
            raise IndexError(f"index {number} is out of bounds for axis {axis} with size {length}")
        return number % length
    index = np.asarray(key)
    if index.dtype == bool:
        if index.ndim != 1 or len(index) != length:
            raise IndexError(
                f"a boolean index must be a vector of {length} here, got shape {index.shape}; "
                "W.multiply(mask) keeps the values under a mask of the whole shape"
            )
        return np.flatnonzero(index)
    if index.size == 0:
        index = index.astype(np.int64)
    if index.dtype.kind not in "iu":
        raise IndexError(f"index arrays must hold integers or booleans, got dtype {index.dtype}")
    if index.size and not -length <= int(index.min()) <= int(index.max()) < length:
        raise IndexError(
            f"indices from {int(index.min())} to {int(index.max())} are out of bounds for axis {axis} "
            f"with size {length}"
        )
    index = index.astype(np.int64)
    return np.where(index < 0, index + length, index)


def _batch(a: S, keys: list[Any]) -> S:
    """Index the batch dimensions."""
    if any(isinstance(k, (bool, np.bool_)) for k in keys):
        raise IndexError("a single boolean is no index of a BSR")
    members = math.prod(a._batch)
    ids = np.arange(members, dtype=np.int64).reshape(a._batch)[tuple(keys)]
    if np.ndim(ids) == 0:
        return a._member(tuple(int(i) for i in np.unravel_index(int(ids), a._batch)))
    if not a._own:
        data = np.ascontiguousarray(a._values()[tuple(keys)])
        return a._wrap(data, a._indices, a._indptr, a._stored, ids.shape, a._t)
    flat = ids.reshape(-1)
    table = a._indptr.reshape(members, -1)
    if len(flat) and np.array_equal(flat, np.arange(flat[0], flat[0] + len(flat))):
        table = table[flat[0] : flat[0] + len(flat)]
        part = slice(int(table[0, 0]), int(table[-1, -1]))  # members side by side: a view
        indptr = (table - table[0, 0]).reshape(*ids.shape, -1)
        return a._wrap(a._values()[part], a._indices[part], indptr, a._stored, ids.shape, a._t)
    chosen = [a._member(tuple(map(int, np.unravel_index(int(b), a._batch)))) for b in flat]
    return stack(chosen, ids.shape, a)


def _members(a: S) -> list[S]:
    return [a._member(at) for at in np.ndindex(*a._batch)]


def _pick(line: Array, index: int | slice | Array) -> Array:
    """Index a dense line that is ours, so that the result never keeps a larger one alive."""
    if isinstance(index, np.ndarray) and index.ndim != 1:
        raise IndexError(f"an index array must have one dimension, got {index.ndim}")
    picked = line[..., index]
    return picked if _is_all(index) else picked.copy()


def _line(a: BlockStorage, at: int, axis: int) -> Array:
    """Return row (axis 0) or column (axis 1) ``at`` of every member as a dense array (*batch, length)."""
    if a._own:
        lines = [_line(one, at, axis) for one in _members(a)]
        length = a.shape[-1 - axis]
        return np.stack(lines).reshape(*a._batch, length) if lines else np.zeros((*a._batch, length), a.dtype)
    stored_axis = 1 - axis if a._t else axis
    br, bc = a._data.shape[-2:]
    if stored_axis == 0:
        part = slice(int(a._indptr[at // br]), int(a._indptr[at // br + 1]))
        values, where = a._values()[..., part, at % br, :], a._indices[part].astype(np.int64)
    else:
        which = np.flatnonzero(a._indices == at // bc)
        values = a._values()[..., at % bc][..., which, :]
        where = np.searchsorted(a._indptr, which, side="right") - 1
    blocks = a._grid[1 - stored_axis]
    width = values.shape[-1]
    out = np.zeros((blocks, *a._batch, width), a.dtype)
    np.add.at(out, where, np.moveaxis(values, -2, 0))  # duplicates sum
    length = a._stored[1 - stored_axis]
    return np.ascontiguousarray(np.moveaxis(out, 0, -2).reshape(*a._batch, blocks * width)[..., :length])


def points(a: BlockStorage, rows: Int64, cols: Int64) -> Array:
    """Return the values at paired positions, (*batch, points)."""
    rows, cols = np.broadcast_arrays(rows, cols)
    if a._own:
        parts = [points(one, rows, cols) for one in _members(a)]
        return (
            np.stack(parts).reshape(*a._batch, len(rows))
            if parts
            else np.zeros((*a._batch, len(rows)), a.dtype)
        )
    a = a._canonical()
    i, j = (cols, rows) if a._t else (rows, cols)
    br, bc = a._data.shape[-2:]
    wanted = (i // br) * max(a._grid[1], 1) + j // bc
    keys = a._keys()
    at = np.searchsorted(keys, wanted)
    hit = at < len(keys)
    hit[hit] = keys[at[hit]] == wanted[hit]
    out = np.zeros((*a._batch, len(i)), a.dtype)
    out[..., hit] = a._values()[..., at[hit], i[hit] % br, j[hit] % bc]
    return out


def _part(a: S, rows: slice | Array, cols: slice | Array) -> S:
    """Return the rows and columns chosen by ranges or arrays, in blocks of the same size."""
    if a._own:
        return (
            stack([_part(one, rows, cols) for one in _members(a)], a._batch, a)
            if math.prod(a._batch)
            else (stack([], a._batch, _part(_void(a), rows, cols)))
        )
    first, second = (cols, rows) if a._t else (rows, cols)
    for axis, index in ((0, first), (1, second)):
        if isinstance(index, slice):
            if _is_all(index):
                continue
            size = a._data.shape[-2 + axis]
            if index.start % size == 0:
                a = _aligned(a, index.start, index.stop, axis)
                continue
        lines = np.arange(index.start, index.stop) if isinstance(index, slice) else index
        a = _take(a._canonical(), lines, axis)
    return a


def _void(a: S) -> S:
    """Return a two-dimensional array without blocks, otherwise like ``a``'s members."""
    index = a._indices.dtype
    return a._wrap(a._values()[:0], np.zeros(0, index), np.zeros(a._grid[0] + 1, index), a._stored, (), a._t)


def _aligned(a: S, start: int, stop: int, axis: int) -> S:
    """Return a range that starts on a block; whole block rows share their memory with ``a``.

    A range that ends inside a block leaves the rest of the block hanging over the new edge, unseen.
    """
    size = a._data.shape[-2 + axis]
    low, high = start // size, lay.blocks_along(stop, size)
    high = max(high, low) if stop > start else low
    if axis == 0:
        part = slice(int(a._indptr[low]), int(a._indptr[high]))
        indptr = a._indptr[low : high + 1] - a._indptr[low]
        data = a._values()[..., part, :, :]
        return a._wrap(
            np.ascontiguousarray(data), a._indices[part], indptr, (stop - start, a._stored[1]), a._batch, a._t
        )
    stored = (a._stored[0], stop - start)
    keep = (a._indices >= low) & (a._indices < high)
    if low == 0 and keep.all():
        return a._wrap(a._values(), a._indices, a._indptr, stored, a._batch, a._t)
    kept = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])
    indptr = kept[a._indptr].astype(a._indptr.dtype)
    indices = (a._indices[keep] - low).astype(a._indices.dtype)
    return a._wrap(
        np.ascontiguousarray(a._values()[..., keep, :, :]), indices, indptr, stored, a._batch, a._t
    )


def _take(a: S, index: Int64, axis: int) -> S:
    """Return the stored rows (axis 0) or columns (axis 1) at ``index``, any order, repeats allowed."""
    br, bc = a._data.shape[-2:]
    size = a._data.shape[-2 + axis]
    block, inner = index // size, index % size
    if axis == 0:
        stored = (len(index), a._stored[1])
        rows, cols = lay.blocks_along(stored[0], br), a._grid[1]
        starts = a._indptr[block].astype(np.int64)
        source, line = lay.expand(starts, a._indptr[block + 1] - starts)
        keys = line // br * max(cols, 1) + a._indices[source]
    else:
        stored = (a._stored[0], len(index))
        rows, cols = a._grid[0], lay.blocks_along(stored[1], bc)
        order = np.argsort(block, kind="stable")
        edges = np.searchsorted(block[order], np.arange(a._grid[1] + 1))
        starts = edges[a._indices].astype(np.int64)
        at, source = lay.expand(starts, edges[a._indices + 1] - starts)
        line = order[at]
        keys = a._stacked_rows()[source] * max(cols, 1) + line // bc
    keys, target = np.unique(keys, return_inverse=True)
    data = np.zeros((*a._batch, len(keys), br, bc), a.dtype)
    if axis == 0:
        data[..., target, line % br, :] = a._values()[..., source, inner[line], :]
    else:
        data[..., target, :, line % bc] = a._values()[..., source, :, inner[line]]
    indices, indptr = lay.pattern_of(keys, rows, cols)
    return a._wrap(data, indices, indptr, stored, a._batch, a._t)
