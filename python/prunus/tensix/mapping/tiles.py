"""Operands as tiles of 32 x 32: dense ones, batches of them, and those tiles that blocks touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from prunus import _core
from prunus import _layout as lay
from prunus._dtypes import Array
from prunus.engines.base import Blocks
from prunus.tensix.buffers import HOST, TILE

__all__ = [
    "TILE",
    "BlockTiles",
    "Tiles",
    "ceil_tiles",
    "columns_of",
    "dense",
    "finite",
    "from_tiles",
    "of_blocks",
    "rows_of",
]

_F32: Final = np.dtype(np.float32)


@dataclass(frozen=True)
class Tiles:
    """Tiles as bytes, one page after the other; made where they are wanted."""

    format: str
    count: int
    make: Callable[[], bytes]
    #: The same tiles padded to other numbers of rows and columns, of those that are a matrix.
    padded: Callable[[int, int], Tiles] | None = None

    def over(self, rows: int, columns: int) -> Tiles:
        """Return the tiles of the same matrix padded to ``rows`` and ``columns`` of tiles."""
        if self.padded is None:
            raise ValueError("these tiles are those of no matrix")
        return self.padded(rows, columns)


class BlockTiles(NamedTuple):
    """The tiles that blocks of a matrix touch: their rows and columns of tiles, ascending, and their values.

    A tile may come more than once, where blocks do.
    """

    rows: Array
    columns: Array
    values: Array

    @property
    def distinct(self) -> bool:
        """Whether no tile comes twice."""
        same = (self.rows[1:] == self.rows[:-1]) & (self.columns[1:] == self.columns[:-1])
        return not same.any()


def ceil_tiles(length: int) -> int:
    """Return the tiles that cover a length."""
    return -(-length // TILE)


def dense(array: Array, format: str, columns: int | None = None, rows: int | None = None) -> Tiles:
    """Return the tiles of (*batch, m, n), member by member, padded to ``rows`` and ``columns`` of tiles.

    Tiles are row of tiles by row of tiles, and each member's rows begin a row of tiles.
    """
    *batch, m, n = array.shape
    across, down = columns or ceil_tiles(n), rows or ceil_tiles(m)
    members = int(np.prod(batch, dtype=int))
    count = members * down * across

    def make() -> bytes:
        # Integers as tiles of floats are exact: they are int8 and sums of few of them.
        kind = np.int32 if format.startswith("int") else _F32
        padded = np.zeros((members, down * TILE, across * TILE), kind)
        padded[:, :m, :n] = array.reshape(members, m, n)
        return _core.tilize(format, padded.reshape(-1, across * TILE)) if count else b""

    def padded(rows: int, columns: int) -> Tiles:
        return dense(array, format, columns, rows)

    return Tiles(format, count, make, padded)


def stacked(values: Array, format: str) -> Tiles:
    """Return tiles from (n, 32, 32)."""
    return dense(values.reshape(-1, TILE), format)


def rows_of(vector: Array, format: str) -> Tiles:
    """Return tiles side by side whose first row is a vector: what a broadcast of rows takes."""
    return dense(vector[None], format)


def columns_of(vector: Array, format: str) -> Tiles:
    """Return tiles below each other whose first column is a vector."""
    return dense(vector[:, None], format)


def from_tiles(data: bytes, format: str, shape: tuple[int, int]) -> Array:
    """Return the matrix of ``shape`` tiles that tiles hold, of the format's dtype."""
    rows, cols = shape[0] * TILE, shape[1] * TILE
    flat = _core.untilize(format, data, rows, cols)
    return flat.reshape(rows, cols).astype(HOST[format], copy=False)


def finite(array: Array) -> bool:
    """Whether all values are finite."""
    if array.dtype.kind == "i":
        return True
    # ml_dtypes' floats have a ufunc of their own.
    return bool(np.isfinite(array).all())


def cleaned(array: Array) -> Array:
    """Return the array with 0 for infinities and NaN."""
    return np.where(np.isfinite(array), array, array.dtype.type(0))


def of_blocks(w: Blocks, clean: bool = False) -> BlockTiles:
    """Return the tiles that a two-dimensional operand's blocks touch, of its transpose if it is transposed.

    Blocks that come twice go to tiles of their own, so that their products are summed one by one.
    """
    (br, bc), (m, k) = w.data.shape[-2:], w.shape
    data = w.values
    data = data.astype(np.int32 if data.dtype.kind == "i" else _F32)
    if clean:
        data = cleaned(data)
    i, j = lay.block_rows(w.indptr), np.asarray(w.indices, np.int64)
    if w.transposed:
        data, i, j, br, bc, m, k = data.swapaxes(1, 2), j, i, bc, br, k, m
    # How often each block came before.
    place = i * (ceil_blocks(k, bc) + 1) + j
    order = np.argsort(place, kind="stable")
    same = np.concatenate([[False], place[order][1:] == place[order][:-1]])
    at = np.arange(len(place))
    since = np.maximum.accumulate(np.where(same, 0, at)) if len(place) else at
    again = np.empty(len(place), np.int64)
    again[order] = at - since
    rows = (i[:, None] * br + np.arange(br))[:, :, None]
    cols = (j[:, None] * bc + np.arange(bc))[:, None, :]
    inside = (rows < m) & (cols < k)
    across = ceil_tiles(k)
    number = ((rows // TILE) * across + cols // TILE) * (1 + again.max(initial=0)) + again[:, None, None]
    number = np.broadcast_to(number, data.shape)[inside]
    tiles, slot = np.unique(number, return_inverse=True)
    values = np.zeros((len(tiles), TILE, TILE), data.dtype)
    inner_rows = np.broadcast_to(rows % TILE, data.shape)[inside]
    inner_cols = np.broadcast_to(cols % TILE, data.shape)[inside]
    values[slot.reshape(-1), inner_rows, inner_cols] = data[inside]
    plain = tiles // (1 + again.max(initial=0))
    return BlockTiles(plain // across if across else plain, plain % across if across else plain, values)


def ceil_blocks(length: int, block: int) -> int:
    """Return the blocks that cover a length."""
    return -(-length // block)


def roomy(w: Blocks) -> Blocks:
    """Return the operand with each block padded to whole tiles: then a tile holds values of one block only.

    Its shape is that of whole blocks; padding at the edge is 0.
    """
    (br, bc), (m, k) = w.data.shape[-2:], w.shape
    values = w.values
    i, j = lay.block_rows(w.indptr), np.asarray(w.indices, np.int64)
    rows = (i[:, None] * br + np.arange(br))[:, :, None] < m
    cols = (j[:, None] * bc + np.arange(bc))[:, None, :] < k
    high, wide = ceil_tiles(br) * TILE, ceil_tiles(bc) * TILE
    data = np.zeros((len(values), high, wide), values.dtype)
    data[:, :br, :bc] = np.where(rows & cols, values, values.dtype.type(0))
    shape = (ceil_blocks(m, br) * high, ceil_blocks(k, bc) * wide)
    return w._replace(data=data, shape=shape)


def spread_rows(x: Array, block: int) -> Array:
    """Return (k, n) with each ``block`` rows padded to whole tiles, as the columns of :func:`roomy` are."""
    k, n = x.shape
    count, high = ceil_blocks(k, block), ceil_tiles(block) * TILE
    out = np.zeros((count, high, n), x.dtype)
    whole = np.zeros((count * block, n), x.dtype)
    whole[:k] = x
    out[:, :block] = whole.reshape(count, block, n)
    return out.reshape(count * high, n)


def close_rows(x: Array, block: int, rows: int) -> Array:
    """Undo :func:`spread_rows`."""
    high = ceil_tiles(block) * TILE
    return x.reshape(-1, high, x.shape[1])[:, :block].reshape(-1, x.shape[1])[:rows]


def touched(w: Blocks, grid: tuple[int, int]) -> Array:
    """Return which tiles of a grid blocks touch."""
    (br, bc), (m, k) = w.data.shape[-2:], w.shape
    wanted = np.zeros(grid, bool)
    i, j = lay.block_rows(w.indptr), np.asarray(w.indices, np.int64)
    top, bottom = i * br // TILE, (np.minimum((i + 1) * br, m) - 1) // TILE
    left, right = j * bc // TILE, (np.minimum((j + 1) * bc, k) - 1) // TILE
    for t, b, le, r in zip(top.tolist(), bottom.tolist(), left.tolist(), right.tolist(), strict=True):
        wanted[t : b + 1, le : r + 1] = True
    return wanted


def blocks_from(
    places: list[tuple[int, int]],
    values: Array,
    pattern: tuple[Array, Array],
    blocksize: tuple[int, int],
    shape: tuple[int, int],
    dtype: np.dtype[np.generic],
) -> Array:
    """Return the blocks of a pattern from tiles at ``places``; what is past ``shape`` or in no tile is 0."""
    (br, bc), (m, n), (indices, indptr) = blocksize, shape, pattern
    i, j = lay.block_rows(indptr), np.asarray(indices, np.int64)
    data = np.zeros((len(i), br, bc), dtype)
    if not len(values):
        return data
    across = ceil_tiles(n)
    keys = np.array([row * across + column for row, column in places])
    rows = (i[:, None] * br + np.arange(br))[:, :, None]
    cols = (j[:, None] * bc + np.arange(bc))[:, None, :]
    number = rows // TILE * across + cols // TILE
    slot = np.minimum(np.searchsorted(keys, number), len(keys) - 1)
    there = (keys[slot] == number) & (rows < m) & (cols < n)
    picked = values[slot, np.broadcast_to(rows % TILE, slot.shape), np.broadcast_to(cols % TILE, slot.shape)]
    data[there] = picked[there]
    return data
