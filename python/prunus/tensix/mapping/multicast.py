"""Large products by multicast.

Rows of cores share rows of the left operand, columns of cores columns of the right one. What is small, has an
epilogue, or many members, goes by lists instead (``products``).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from prunus import _core
from prunus._dtypes import Array
from prunus._threads import get_num_threads
from prunus.tensix.buffers import tile_bytes
from prunus.tensix.mapping import tiles
from prunus.tensix.mapping.job import Outcome, Run, in_turn
from prunus.tensix.mapping.tiles import BlockTiles, Tiles

__all__ = ["dense", "pays", "pruned", "static"]

#: Tiles of the result, and along the inner dimension, from which on sharing operands pays.
_RESULT: Final = 64
_INNER: Final = 8
# Cycles after which a program is stopped.
_LIMIT: Final = 1e10


def pays(m: int, k: int, n: int, formats: tuple[str, str]) -> bool:
    """Whether operands of (m, k) and (k, n) values, of two formats, are worth sharing.

    Both are of one format, and of floats: partial sums in L1 are added by the packer, which adds no integers.
    """
    if formats[0] != formats[1] or formats[0].startswith("int"):
        return False
    down, inner, across = (tiles.ceil_tiles(length) for length in (m, k, n))
    return min(down, across) >= 2 and down * across >= _RESULT and inner >= _INNER


def _buffer(run: Run, operand: Tiles) -> int:
    each = tile_bytes(operand.format)
    buffer = run.chip.buffer(each, max(1, operand.count), None)
    if run.values:
        run.chip.write_buffer(buffer, operand.make() or bytes(each))
    return buffer


def _result(run: Run, format: str, rows: int, columns: int) -> int:
    each = tile_bytes(format)
    buffer = run.chip.buffer(each, rows * columns, None)
    if run.values:
        # Rows of tiles of which nothing is live are not written.
        run.chip.write_buffer(buffer, bytes(each * rows * columns))
    return buffer


def _outcome(run: Run, out: int, format: str, shape: tuple[int, int], report: dict[str, Any]) -> Outcome:
    values = [tiles.from_tiles(run.chip.read_buffer(out), format, shape)] if run.values else []
    return Outcome(values, None, report)


@in_turn
def dense(run: Run, a: Array, b: Array, format: str) -> Outcome:
    """Multiply (m, k) and (k, n), all of one format."""
    sizes = _sizes(a.shape[0], a.shape[1], b.shape[1])
    rows, inner, columns = _core.tensix_covered(run.chip, sizes, False, (format, format), run.wide)
    in0 = _buffer(run, tiles.dense(a, format, inner, rows))
    in1 = _buffer(run, tiles.dense(b, format, columns, inner))
    out = _result(run, format, rows, columns)
    report = _core.tensix_multicast(
        run.chip,
        sizes,
        None,
        (in0, in1, out),
        (format, format),
        run.fidelity,
        run.wide,
        run.timeline,
        get_num_threads(),
    )
    return _outcome(run, out, format, (rows, columns), report)


@in_turn
def static(run: Run, w: BlockTiles, shape: tuple[int, int], x: Array, formats: tuple[str, str]) -> Outcome:
    """Multiply a left operand of (m, k) that has some tiles only, each once, by (k, n)."""
    down, _, _ = sizes = _sizes(*shape, x.shape[1])
    rows, inner, columns = _core.tensix_covered(run.chip, sizes, True, formats, run.wide)
    starts = np.searchsorted(w.rows, np.arange(down + 1)).tolist()
    in0 = _buffer(run, tiles.stacked(w.values, formats[0]))
    in1 = _buffer(run, tiles.dense(x, formats[0], columns, inner))
    out = _result(run, formats[1], rows, columns)
    report = _core.tensix_multicast(
        run.chip,
        sizes,
        (w.columns.tolist(), starts),
        (in0, in1, out),
        formats,
        run.fidelity,
        run.wide,
        run.timeline,
        get_num_threads(),
    )
    return _outcome(run, out, formats[1], (rows, columns), report)


@in_turn
def pruned(run: Run, h: Array, w: Array, live: Array, formats: tuple[str, str]) -> Outcome:
    """Multiply (m, k) and (k, n), where only some tiles of the left operand are live.

    The cores that wrote them know which: they tell the others, and all make their lists as the program runs.
    ``live`` has a bool for each tile.
    """
    sizes = _sizes(h.shape[0], h.shape[1], w.shape[1])
    columns = run.chip.pruned_columns(sizes, formats[0], formats[1], run.wide)
    rows = _core.tensix_covered(run.chip, sizes, True, formats, run.wide)[0]
    in0 = _buffer(run, tiles.dense(h, formats[0]))
    in1 = _buffer(run, tiles.dense(w, formats[0], columns))
    out = _result(run, formats[1], rows, columns)
    report, _ = run.chip.pruned_product(
        sizes,
        (in0, in1, out),
        0.0,
        formats,
        run.fidelity,
        run.wide,
        _LIMIT,
        "epilogue",
        np.ascontiguousarray(live).tobytes(),
        get_num_threads(),
    )
    return _outcome(run, out, formats[1], (rows, columns), report)


def _sizes(m: int, k: int, n: int) -> tuple[int, int, int]:
    return tiles.ceil_tiles(m), tiles.ceil_tiles(k), tiles.ceil_tiles(n)
