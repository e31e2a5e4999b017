"""Matrices on disk cut into blocks of which the strongest are kept; never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from prunus import _construct
from prunus import _layout as lay
from prunus._dtypes import Array, DType
from prunus._layout import Index, Int64
from prunus.paged.sources import Source

__all__ = ["Pruned", "prune_stream"]

_STRIP: Final = 32 << 20  # bytes of rows that are read at a time

Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Pruned:
    """A block-sparse array whose pattern is known and whose values are read when they are written."""

    shape: tuple[int, int]
    blocksize: tuple[int, int]
    values: Source
    indices: Index
    indptr: Index


def prune_stream(
    matrix: Any, blocksize: tuple[int, int], density: float | None, dtype: DType, told: Told
) -> Pruned:
    """Choose blocks as :meth:`prunus.BSR.from_dense` does; the matrix is read now, and again for the values.

    Parameters
    ----------
    matrix : array-like of shape (m, n)
        Anything of which ``matrix[i:j]`` gives rows.
    blocksize : tuple of int
        Rows and columns of a block.
    density : float or None
        Share of blocks to keep, by norm; None keeps those with a non-zero.
    dtype : dtype
        Of the values; blocks are chosen after the conversion.
    told : callable
        Is told the bytes of the matrix that were read each time.
    """
    m, n = matrix.shape
    br, bc = blocksize
    rows, cols = lay.blocks_along(m, br), lay.blocks_along(n, bc)
    lay.check_positions(1, rows, cols)
    grid = np.zeros((rows, cols), bool if density is None else np.float64)
    for first, strip in _strips(matrix, br, dtype, told):
        part = (
            _construct.live_blocks(strip, blocksize, None, "fro")
            if density is None
            else _construct.block_norms(strip, blocksize, "fro")
        )
        grid[first : first + len(part)] = part
    live = grid if density is None else _construct.strongest(grid, _construct.as_fraction(density, "density"))
    row, col = np.nonzero(live)
    indices, indptr = lay.pattern_of(row * np.int64(max(cols, 1)) + col, rows, cols)

    def pieces() -> Iterator[Array]:
        return _gather(matrix, blocksize, dtype, row, col, told)

    return Pruned((m, n), blocksize, Source(dtype, (len(row), br, bc), pieces), indices, indptr)


def _strips(matrix: Any, br: int, dtype: DType, told: Told) -> Iterator[tuple[int, Array]]:
    """Yield rows, as many whole block rows at a time as fit, with the number of the first block row."""
    m, n = matrix.shape
    step = max(_STRIP // max(br * n * matrix.dtype.itemsize, 1), 1) * br
    for start in range(0, m, step):
        strip = np.asarray(matrix[start : min(start + step, m)])
        told(strip.nbytes)
        yield start // br, strip.astype(dtype, copy=False)


def _gather(
    matrix: Any, blocksize: tuple[int, int], dtype: DType, row: Int64, col: Int64, told: Told
) -> Iterator[Array]:
    br, bc = blocksize
    for first, strip in _strips(matrix, br, dtype, told):
        begin, end = np.searchsorted(row, (first, first + lay.blocks_along(len(strip), br)))
        yield lay.gather(strip, row[begin:end] - first, col[begin:end], br, bc)
