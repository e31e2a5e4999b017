"""Products of two matrices on disk, or of expressions over some.

Where both are stored along the axis that is summed over, as in ``a.T @ a``, both are read together, once,
and panel after panel adds to all sums. Otherwise some rows of one are held and the other one is read for each
such part. What is multiplied at a time, and where sums are cut, follows from shapes alone: a result does not
depend on a budget. Sums of panels in single precision are added in double precision.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, Final

import numpy as np

from prunus._dtypes import Array, DType
from prunus.paged import one_on_disk
from prunus.paged.array import PagedArray
from prunus.paged.one_on_disk import wide
from prunus.paged.panels import by_rows, computed, kept, pager_of, panels

__all__ = ["multiply"]

_HELD: Final = 16 << 20  # bytes of an operand, or of a part of one, that are held whatever the budget
_PANEL: Final = 8 << 20  # bytes of a panel of the other one
_MOST: Final = 4096  # its rows, at most: a sum of so many products is as exact as in a BLAS
_TILE: Final = 512  # rows of the result that are multiplied at a time, at most, where they are long
_VALUES: Final = 1 << 20  # values of them, where they are short
# Bytes of sums at a time that are not formed in the result itself: beyond, operands are read again.
_ASIDE: Final = 256 << 20


def multiply(a: Any, b: Any, out: Any, work: DType) -> str:
    """Compute ``a @ b`` into ``out``, in memory or on disk, with both operands on disk; return who did."""
    summed_a, summed_b = not by_rows(a), by_rows(b)  # stored along the axis that is summed over
    if summed_a and summed_b:
        return _along(a.T, b, out, work)
    if b.nbytes <= min(_HELD, a.nbytes):
        return one_on_disk.multiply(a, b.load(), out, work)
    if a.nbytes <= _HELD:
        return one_on_disk.multiply(b.T, a.load().T, out.T, work)
    if summed_a:
        return _by_parts(b.T, a.T, out.T, work)
    if summed_b:
        return _by_parts(a, b, out, work)
    if b.nbytes < a.nbytes:
        return _by_rows(b.T, a.T, out.T, work)
    return _by_rows(a, b, out, work)


def _step(row: int) -> int:
    """Return how many rows of ``row`` bytes make a panel."""
    return min(max(_PANEL // max(row, 1), 1), _MOST)


def _tile(each: int, columns: int) -> int:
    """Return how many rows of the result are multiplied at a time, if one takes ``each`` bytes."""
    return max(min(_HELD // each, max(_TILE, _VALUES // columns)), 1)


def _along(left: Any, right: Any, out: Any, work: DType) -> str:
    """Compute ``left.T @ right``, both by rows, from one reading of both where the sums fit into memory."""
    m, n = left.shape[1], right.shape[1]
    to = wide(work)
    each = n * to.itemsize
    tile = _tile(each, n)
    inside = type(out) is np.ndarray and out.dtype == to
    strip = m if inside else max(_ASIDE // each // tile, 1) * tile
    same = _same(left, right)
    half = same and strip >= m  # what is below the diagonal is above it too
    step = _step(m * left.itemsize + n * right.itemsize)
    for first in range(0, m, strip):
        last = min(first + strip, m)
        sums = out[first:last] if inside else np.empty((last - first, n), to)
        sums[...] = 0
        with closing(_together(left, right, same, step)) as runs:
            for panels_of in runs:
                x, y = (values.astype(work, copy=False) for values in panels_of)
                for i in range(first, last, tile):
                    stop, j = min(i + tile, last), i if half else 0
                    part = np.matmul(x[:, i:stop].T, y[:, j:])
                    with np.errstate(all="ignore"):
                        sums[i - first : stop - first, j:] += part
        if half:
            _mirror(sums, tile)
        if not inside:
            with np.errstate(all="ignore"):
                out[first:last] = sums
    return "numpy"


def _same(a: Any, b: Any) -> bool:
    """Say whether two matrices are the same bytes."""
    if not isinstance(a, PagedArray) or not isinstance(b, PagedArray):
        return False
    return a._store.version is b._store.version and (a._start, a._stored, a._perm, a.dtype) == (
        b._start, b._stored, b._perm, b.dtype,
    )  # fmt: skip


def _together(left: Any, right: Any, same: bool, step: int) -> Generator[tuple[Array, Array], None, None]:
    """Yield the rows of both, some at a time; what both are computed from is read once."""
    if same:
        with closing(panels(left, step)) as runs:
            for _, x in runs:
                yield x, x
    elif left.shape == right.shape and not (isinstance(left, PagedArray) and isinstance(right, PagedArray)):
        with closing(computed([left, right], step)) as pairs:
            for _, (x, y) in pairs:
                yield x, y
    else:
        with closing(panels(left, step, 2)) as lefts, closing(panels(right, step, 2)) as rights:
            for (_, x), (_, y) in zip(lefts, rights, strict=True):
                yield x, y


def _mirror(sums: Array, tile: int) -> None:
    """Copy what is above the diagonal to below it."""
    for i in range(0, len(sums), tile):
        stop = min(i + tile, len(sums))
        square = sums[i:stop, i:stop]
        below = np.tril_indices(stop - i, -1)
        square[below] = square.T[below]
        sums[stop:, i:stop] = sums[i:stop, stop:].T


def _by_parts(a: Any, b: Any, out: Any, work: DType) -> str:
    """Compute ``a @ b``, both by rows: rows of ``a`` are held, and panels of ``b`` add to their sums."""
    (m, k), n = a.shape, b.shape[1]
    to = wide(work)
    each, row = n * to.itemsize, k * max(a.itemsize, work.itemsize)
    tile = min(_tile(each, n), max(_HELD // row, 1))
    rows = max(min(max(_HELD, int(pager_of(b).budget) // 4) // row, _ASIDE // each) // tile, 1) * tile
    if rows < m:
        b = kept(b)
    step = _step(n * b.itemsize)
    for first in range(0, m, rows):
        held = a[first : first + rows].astype(work, copy=False)
        sums = np.zeros((len(held), n), to)
        with closing(panels(b, step)) as runs:
            for start, panel in runs:
                y = panel.astype(work, copy=False)
                for i in range(0, len(held), tile):
                    part = np.matmul(held[i : i + tile, start : start + len(y)], y)
                    with np.errstate(all="ignore"):
                        sums[i : i + tile] += part
        with np.errstate(all="ignore"):
            out[first : first + len(held)] = sums
    return "numpy"


def _by_rows(a: Any, b: Any, out: Any, work: DType) -> str:
    """Compute ``a @ b``, ``a`` by rows, ``b`` by columns: rows of ``a`` are held, whole sums are formed."""
    (m, k), n = a.shape, b.shape[1]
    inside = type(out) is np.ndarray and out.dtype == work
    rows = max(_HELD, int(pager_of(b).budget) // 4) // (k * max(a.itemsize, work.itemsize))
    rows = max(rows if inside else min(rows, _ASIDE // (n * work.itemsize)), 8)
    # Parts of about one size: the engine sums few columns in another order.
    rows = -(-m // -(-m // rows))
    if rows < m:
        b = kept(b)
    name = ""
    for first in range(0, m, rows):
        held = a[first : first + rows].astype(work, copy=False)
        part = out[first : first + rows] if inside else np.empty((len(held), n), work)
        name = one_on_disk.multiply(b.T, held.T, part.T, work)
        if not inside:
            out[first : first + len(held)] = part
    return name
