"""Matrices on disk, or computed from such, as runs of rows in the order of storage: what products read."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from prunus._dtypes import Array
from prunus.paged.array import PagedArray
from prunus.paged.blocks import stream_panel
from prunus.paged.evaluate import Pass, Stream, Tile, natural
from prunus.paged.expr import PagedExpr, _arrays
from prunus.paged.graph import as_node, check, stamps_of

__all__ = ["by_rows", "computed", "is_on_disk", "kept", "pager_of", "panels", "stored"]


def is_on_disk(value: Any) -> bool:
    """Say whether a dense operand is an array on disk, or an expression over some."""
    return isinstance(value, (PagedArray, PagedExpr))


def pager_of(value: Any) -> Any:
    """Return the pager of an array on disk, or of the first one in an expression."""
    return value.pager if isinstance(value, PagedArray) else _arrays(as_node(value))[0].pager


def by_rows(a: Any) -> bool:
    """Say whether a matrix is stored row by row: for an expression, whether its largest source is."""
    if isinstance(a, PagedArray):
        return a._perm == (0, 1)
    return natural(_arrays(as_node(a)), a.ndim) == (0, 1)


def kept(a: Any) -> Any:
    """Return an operand that is to be read more than once: an expression is computed into a file."""
    if not isinstance(a, PagedExpr):
        return a
    from prunus.paged.working import from_array

    return from_array(a, order="F" if a.ndim == 2 and not by_rows(a) else "C", pager=pager_of(a))


def panels(a: Any, rows: int, streams: int = 1) -> Generator[tuple[int, Array], None, None]:
    """Yield ``rows`` rows at a time of a matrix that is stored by rows: the first one's index, and them.

    A panel is valid until the next but one is asked for.
    """
    if isinstance(a, PagedArray):
        yield from stored(a, rows * max(a.shape[1] * a.itemsize, 1), streams=streams)
        return
    for start, (panel,) in computed([a], rows):
        yield start, panel


def computed(values: Sequence[Any], rows: int) -> Generator[tuple[int, list[Array]], None, None]:
    """Yield ``rows`` rows at a time of matrices of one shape, all from one reading of their sources.

    Panels are valid until the next but one is asked for.
    """
    stamps = stamps_of(values)
    check(stamps)
    count, width = values[0].shape
    rows = min(rows, count)
    buffers = [[np.empty((rows, width), one.dtype) for one in values] for _ in range(2)]

    def work(tiles: Iterator[Tile]) -> list[Tile]:
        return list(tiles)

    start = filled = 0
    with closing(Pass([as_node(one) for one in values], (0, 1)).run(work)) as jobs:
        for (across, along), parts in (tile for job in jobs for tile in job):
            at = across.start
            while at < across.stop:  # a tile may lie in several panels
                stop = min(across.stop, start + rows)
                for buffer, part in zip(buffers[0], parts, strict=True):
                    buffer[at - start : stop - start, along] = part[at - across.start : stop - across.start]
                filled += (stop - at) * (along.stop - along.start)
                at, here = stop, min(rows, count - start)
                if filled == here * width:
                    yield start, [buffer[:here] for buffer in buffers[0]]
                    buffers.reverse()
                    start, filled = start + here, 0
    check(stamps)


def stored(
    a: PagedArray, size: int, unit: int = 0, streams: int = 1
) -> Generator[tuple[int, Array], None, None]:
    """Yield runs of about ``size`` bytes of the stored rows of a matrix: the first row's index, and the rows.

    With ``unit``, runs are some multiple of so many rows that lies where it was read to, if it can. A run is
    valid until the next but one is asked for. ``streams`` is how many are read at once.
    """
    rows, width = a._stored
    row = max(width * a.itemsize, 1)
    step, panel = min(max(size // row, 1), rows), a._store.panel(streams)
    if unit:
        panel = stream_panel(int(a.pager.budget), row * unit)
        step = min(max(panel // row // unit, 1) * unit, rows)
    panel = min(panel, step * row)
    a._store.file.check()
    stream = Stream(a, panel)
    # In memory that is used again: fresh pages cost more than copying to old ones. Two, so that the caller
    # has one while the other is filled.
    buffers = [np.empty(step * row if step * row > panel else 0, np.uint8) for _ in range(2)]
    try:
        for start in range(0, rows, step):
            count = min(step, rows - start)
            buffers.reverse()
            buffer = buffers[0]
            if buffer.size:
                for at in range(0, count * row, panel):
                    part = min(panel, count * row - at)
                    buffer[at : at + part] = stream.take(part)
                run = buffer[: count * row]
            else:
                run = stream.take(count * row)
            values = run.view(a.dtype).reshape(count, width)
            # Kernels read no value across an odd address, which arrays in files of others may begin at.
            yield start, values if values.flags.aligned else values.copy()
    finally:
        stream.close()
