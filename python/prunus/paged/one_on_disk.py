"""Products of a matrix on disk, or of an expression over some, with one in memory: one reading, in its order.

Where the operand is stored by rows, each panel gives rows of the result; otherwise each adds to all sums. The
engine multiplies panels where they were read to; dtypes that it does not know, and parts of sums of many
columns, are NumPy's, in runs that are put together.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

import numpy as np

from prunus import engines
from prunus._dtypes import F32, F64, FLOATS, I32, OPERANDS, Array, DType
from prunus.engines.base import Blocks, Streams
from prunus.paged.array import PagedArray
from prunus.paged.panels import by_rows, panels, stored

__all__ = ["multiply", "wide"]

_PANEL: Final = 1 << 20
# Bytes that are multiplied at a time with at least so many columns. Constants: where sums are cut does not
# depend on a budget.
_GROUP: Final = 16 << 20
_MANY: Final = 8
# Columns of x up to which each panel adds to all sums as rows of a table do; with more, tiles do better.
_ROWS: Final = 128
# Rows of a block as the engine takes a panel, at most: they share what is in the first cache of x.
_HEIGHT: Final = 64
# Terms of a sum in single precision, at most, before it is added to one in double precision: a BLAS has a few
# hundred.
_CHAIN: Final = 512


def wide(work: DType) -> DType:
    """Return the dtype in which parts of sums are added: twice the precision where ``work`` is single."""
    return np.result_type(work, F64) if work.kind in "fc" else work


def _runs(a: Any, size: int, unit: int = 0) -> Generator[tuple[int, Array], None, None]:
    """Yield runs of rows as they are stored: of ``size`` bytes, or units that lie where they were read to."""
    if isinstance(a, PagedArray):
        return stored(a, 0 if unit else size, unit)
    turned = a if by_rows(a) else a.T
    rows = size // max(turned.shape[1] * a.itemsize, 1) // max(unit, 1) * max(unit, 1)
    return panels(turned, max(rows, unit, 1))


def multiply(a: Any, x: Array, out: Any, work: DType) -> str:
    """Compute ``a @ x`` into ``out``; return who did. ``a`` is on disk, or computed from what is."""
    rows = by_rows(a)  # panels are rows of the result; otherwise they are parts of its sums
    known = a.dtype in OPERANDS and x.dtype in OPERANDS and out.dtype in OPERANDS | {I32}
    engine = engines.active()
    if known and isinstance(engine, Streams) and type(out) is np.ndarray:
        engine.dense_from_disk(a, x, out)
    elif rows and known:
        _by_rows(a, x, out)
    elif not rows and known and a.dtype in FLOATS and x.dtype in FLOATS and x.shape[1] <= _ROWS:
        _by_parts(a, x, out, work)
    else:
        _by_numpy(a, x, out, work, rows)
        return "numpy"
    return engine.name


def _by_rows(a: Any, x: Array, out: Any) -> None:
    """Compute ``a @ x``, some rows of the result from each panel, by the engine and where they were read to.

    To the engine a panel is a block-sparse matrix, all of whose block rows have one block as wide as the
    matrix. Sums run over whole rows in order, so that it does not matter how many of them a panel has.
    """
    engine, width = engines.active(), a.shape[1]
    row = max(width * a.dtype.itemsize, 1)
    height = _height(a._store.panel() if isinstance(a, PagedArray) else _PANEL, row)
    held = engine.hold(x, a.dtype, out.dtype, (height, width))
    direct = type(out) is np.ndarray
    with closing(_runs(a, _PANEL, height)) as runs:
        for start, panel in runs:
            target = (
                out[start : start + len(panel)] if direct else np.empty((len(panel), x.shape[1]), out.dtype)
            )
            whole = len(panel) // height * height
            for first, stop, each in ((0, whole, height), (whole, len(panel), len(panel) - whole)):
                if first < stop:
                    at = np.arange((stop - first) // each + 1, dtype=np.int64)
                    data = panel[first:stop].reshape(-1, each, width)
                    blocks = Blocks(data, np.zeros_like(at[1:]), at, (stop - first, width), False)
                    engine.dsd(blocks, x, target[first:stop], None, None, held)
            if not direct:
                out[start : start + len(panel)] = target


def _height(panel: int, row: int) -> int:
    """Return how many rows of ``row`` bytes make a block: some blocks a panel, for all threads."""
    if row > panel:  # put together in memory of its own
        return max(min(_GROUP // row, 8), 1)
    height = min(max(panel // row // 4, 1), _HEIGHT)
    return height // 8 * 8 if height > 8 else height


def _by_parts(a: Any, x: Array, out: Any, work: DType) -> None:
    """Compute ``a @ x`` where each panel adds to all sums.

    Sums go on for ``_CHAIN`` rows of what is stored and are then added to those in double precision: where
    does not depend on a panel, and no sum in single precision is of many terms.
    """
    double = F64 in (a.dtype, x.dtype, work)
    rows = a.shape[1]
    sums = np.empty((x.shape[1], a.shape[0]), F64 if double else F32)
    total = sums if double or rows <= _CHAIN else np.zeros(sums.shape, F64)
    chain = rows if total is sums else _CHAIN
    with closing(_runs(a, _PANEL, 1)) as runs:
        for start, panel in runs:
            at, end = start, start + len(panel)
            while at < end:
                stop = min(end, at - at % chain + chain)
                part = np.ascontiguousarray(x[at:stop].T)
                engines.active().combine(part, panel[at - start : stop - start], sums, add=at % chain > 0)
                if total is not sums and (stop % chain == 0 or stop == rows):
                    with np.errstate(all="ignore"):
                        total += sums
                at = stop
    with np.errstate(all="ignore"):
        out[...] = total.T


def _by_numpy(a: Any, x: Array, out: Any, work: DType, rows: bool) -> None:
    """Compute ``a @ x`` with NumPy, which takes every dtype."""
    x = x.astype(work, copy=False)
    # Each run packs x anew, so with many columns a run has to be long.
    size = _PANEL if x.shape[1] < _MANY else _GROUP
    total = out if rows else np.zeros((a.shape[0], x.shape[1]), wide(work))

    def multiply(start: int, panel: Array) -> None:
        if rows:
            total[start : start + len(panel)] = np.matmul(panel.astype(work, copy=False), x)
        else:
            np.add(
                total, np.matmul(panel.astype(work, copy=False).T, x[start : start + len(panel)]), out=total
            )

    if a.nbytes <= size:  # nothing to do meanwhile
        with closing(_runs(a, size)) as runs:
            for start, panel in runs:
                multiply(start, panel)
    else:
        # One panel is multiplied while the next one is put together.
        with ThreadPoolExecutor(1) as pool, closing(_runs(a, size)) as runs:
            running: Future[None] | None = None
            for start, panel in runs:
                if running is not None:
                    running.result()
                running = pool.submit(multiply, start, panel)
            if running is not None:
                running.result()
    if not rows:
        with np.errstate(all="ignore"):
            out[...] = total
