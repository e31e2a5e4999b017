"""Large products of layers by multicast, with what happens to sums on the cores that have them.

Which way a product goes is arithmetic on the chip's figures (``programs::cut``): the cut that is predicted to
take the fewest cycles, on a grid or on a line of parts, against lists (``products``), where cores share
nothing. Products of integers go by lists: the packer adds no integers in L1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from prunus import _core
from prunus._dtypes import Array
from prunus._threads import get_num_threads
from prunus.tensix.mapping import tiles
from prunus.tensix.mapping.job import Outcome, Run, in_turn, norms_buffer, norms_read
from prunus.tensix.mapping.multicast import outcome, put, room, sizes_of
from prunus.tensix.mapping.products import Epilogue
from prunus.tensix.mapping.tiles import BlockTiles, Tiles

__all__ = ["Formats", "Way", "covered", "multiply", "pruned", "sparse", "static", "way"]

_Place = tuple[int, str]
#: Of both operands and the result.
Formats = tuple[str, str, str]
#: Products of fewer tiles than this, which take less time than looking for a cut, go by lists.
_LEAST: Final = 512


class _Ending(NamedTuple):
    """An epilogue with the numbers of its buffers, as the compiled side takes it."""

    add: _Place | None
    row: _Place | None
    column: _Place | None
    factor: float | None
    activation: str | None
    scale: _Place | None
    mask: _Place | None
    found: tuple[int, int, int, str, bool, float | None, int, bytes | None] | None


class Way(NamedTuple):
    """How a product goes by multicast.

    Attributes
    ----------
    sizes : tuple of int
        Tiles along m, k and n.
    padded : tuple of int
        The same with the padding of cores' parts and blocks.
    cycles, lists : float
        What it is predicted to take so, and by lists.
    line : bool
        Whether one operand goes to all cores, and not each to those of a row or column of them.
    """

    sizes: tuple[int, int, int]
    padded: tuple[int, int, int]
    cycles: float
    lists: float
    line: bool


def _ending(e: Epilogue, format: str, buffers: dict[str, int], live: bool) -> _Ending:
    def place(name: str, one: Tiles | None) -> _Place | None:
        return None if one is None else (buffers.get(name, 0), one.format)

    found = None
    if e.found is not None:
        known = e.found.live.tobytes() if live and e.found.live is not None else None
        rows, columns = e.extent
        found = (
            e.found.branch,
            columns,
            rows,
            format,
            e.found.squares,
            e.found.threshold,
            buffers.get("found", 0),
            known,
        )
    return _Ending(
        place("add", e.add),
        place("row", e.row),
        place("column", e.column),
        e.factor,
        e.activation,
        place("scale", e.scale),
        place("mask", e.mask),
        found,
    )


def way(run: Run, sizes: tuple[int, int, int], formats: Formats, e: Epilogue, wanted: float) -> Way | None:
    """Return how a product of (m, k, n) tiles goes by multicast; None where lists are predicted to be faster.

    Parameters
    ----------
    run : Run
        Where.
    sizes : tuple of int
        Tiles along m, k and n.
    formats : tuple of str
        Of both operands and the result.
    e : Epilogue
        What comes after the sums.
    wanted : float
        Tiles of the result that lists would compute.
    """
    if min(sizes) == 0 or any(format.startswith("int") for format in formats):
        return None
    if sizes[0] * sizes[1] * sizes[2] < _LEAST:
        return None
    try:
        padded, cycles, lists, line = _core.tensix_layer_cut(
            run.chip, sizes, formats, _ending(e, formats[2], {}, False), wanted, run.fidelity, run.wide
        )
    except ValueError:
        # Norms over branches that are whole only after more tiles than L1 holds beside operands.
        if e.found is None:
            raise
        return None
    return Way(sizes, padded, cycles, lists, line) if cycles < lists else None


def _operands(run: Run, e: Epilogue, format: str, rows: int, columns: int) -> tuple[_Ending, dict[str, int]]:
    """Put what an epilogue takes into DRAM, padded to ``rows`` and ``columns`` of tiles."""
    buffers = {}
    for name, one, shape in (
        ("add", e.add, (rows, columns)),
        ("row", e.row, (1, columns)),
        ("column", e.column, (rows, 1)),
        ("scale", e.scale, (rows, columns)),
        ("mask", e.mask, (rows, columns)),
    ):
        if one is not None:
            buffers[name] = put(run, one.over(*shape))
    if e.found is not None:
        buffers["found"] = norms_buffer(run, e.found.branch, *e.extent)
    return _ending(e, format, buffers, True), buffers


@in_turn
def multiply(run: Run, left: Tiles, right: Tiles, formats: Formats, e: Epilogue, by: Way) -> Outcome:
    """Multiply dense operands by multicast.

    Parameters
    ----------
    run : Run
        Where.
    left, right : Tiles
        Operands, which know how to pad themselves.
    formats : tuple of str
        Of both operands and the result.
    e : Epilogue
        What comes after the sums.
    by : Way
        As :func:`way` returned it.
    """
    rows, inner, columns = by.padded
    in0, in1 = put(run, left.over(rows, inner)), put(run, right.over(inner, columns))
    out = room(run, formats[2], rows, columns)
    ending, buffers = _operands(run, e, formats[2], rows, columns)
    report = _core.tensix_layer(
        run.chip,
        by.sizes,
        (in0, in1, out),
        formats,
        ending,
        run.fidelity,
        run.wide,
        run.timeline,
        get_num_threads(),
    )
    found = outcome(run, out, formats[2], (rows, columns), report)
    if e.found is None or not run.values:
        return found
    return replace(found, norms=norms_read(run, buffers["found"], e.found.branch, *e.extent))


def static(
    run: Run, w: BlockTiles, shape: tuple[int, int], x: Array, formats: Formats, e: Epilogue
) -> Outcome:
    """Multiply a left operand of (m, k) that has some tiles only, each once, by (k, n)."""
    down, _, _ = sizes = sizes_of(*shape, x.shape[1])
    starts = np.searchsorted(w.rows, np.arange(down + 1)).tolist()
    left = tiles.stacked(w.values, formats[0])
    _, inner, columns = layout = covered(run, sizes, False, formats, e)
    right = tiles.dense(x, formats[1], columns, inner)
    return sparse(run, sizes, layout, (w.columns.tolist(), starts), None, (left, right), formats, e)


def pruned(run: Run, h: Array, w: Array, live: Array, formats: Formats, e: Epilogue) -> Outcome:
    """Multiply (m, k) and (k, n), where only some tiles of the left operand are live.

    The cores that wrote them know which: they tell the others, and all make their lists as the program runs.
    ``live`` has a bool for each tile.
    """
    sizes = sizes_of(h.shape[0], h.shape[1], w.shape[1])
    mask = np.ascontiguousarray(live).tobytes()
    _, inner, columns = layout = covered(run, sizes, True, formats, e)
    pages = tiles.dense(h, formats[0]), tiles.dense(w, formats[1], columns, inner)
    return sparse(run, sizes, layout, None, mask, pages, formats, e)


def covered(
    run: Run, sizes: tuple[int, int, int], known: bool, formats: Formats, e: Epilogue
) -> tuple[int, int, int]:
    """Return tiles along m, k and n with their padding, where the left operand has some tiles only.

    With ``known`` the cores know which.
    """
    ending = _ending(e, formats[2], {}, False)
    return _core.tensix_sparse_covered(run.chip, sizes, known, formats, ending, run.wide)


@in_turn
def sparse(
    run: Run,
    sizes: tuple[int, int, int],
    layout: tuple[int, int, int],
    pattern: tuple[list[int], list[int]] | None,
    mask: bytes | None,
    pages: tuple[Tiles, Tiles],
    formats: Formats,
    e: Epilogue,
) -> Outcome:
    """Multiply operands that are laid out as :func:`covered` says."""
    rows, _, columns = layout
    in0, in1 = (put(run, operand) for operand in pages)
    out = room(run, formats[2], rows, columns)
    ending, _ = _operands(run, e, formats[2], rows, columns)
    report = _core.tensix_sparse(
        run.chip,
        sizes,
        pattern,
        mask,
        (in0, in1, out),
        formats,
        ending,
        run.fidelity,
        run.wide,
        run.timeline,
        get_num_threads(),
    )
    return outcome(run, out, formats[2], (rows, columns), report)
