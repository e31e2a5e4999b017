"""Large products of layers by multicast, with what happens to sums on the cores that have them.

Which way a product goes is arithmetic on the chip's figures (``programs::cut``): the cut that is predicted to
take the fewest cycles, on a grid or on a line of parts, against lists (``products``), where cores share
nothing. Products of integers go by lists: the packer adds no integers in L1.
"""

from __future__ import annotations

from typing import NamedTuple

from prunus import _core
from prunus._threads import get_num_threads
from prunus.tensix.buffers import tile_bytes
from prunus.tensix.mapping import tiles
from prunus.tensix.mapping.job import Outcome, Run, in_turn, norms_buffer, norms_read
from prunus.tensix.mapping.products import Epilogue
from prunus.tensix.mapping.tiles import Tiles

__all__ = ["Way", "multiply", "way"]

_Place = tuple[int, str]


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
    """

    sizes: tuple[int, int, int]
    padded: tuple[int, int, int]
    cycles: float
    lists: float


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


def way(
    run: Run, sizes: tuple[int, int, int], formats: tuple[str, str, str], e: Epilogue, wanted: float
) -> Way | None:
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
        padded, cycles, lists = _core.tensix_layer_cut(
            run.chip, sizes, formats, _ending(e, formats[2], {}, False), wanted, run.fidelity, run.wide
        )
    except ValueError:
        # Norms over branches that are whole only after more tiles than L1 holds beside operands.
        if e.found is None:
            raise
        return None
    return Way(sizes, padded, cycles, lists) if cycles < lists else None


#: Products of fewer tiles than this, which take less time than looking for a cut, go by lists.
_LEAST = 512


@in_turn
def multiply(
    run: Run, left: Tiles, right: Tiles, formats: tuple[str, str, str], e: Epilogue, by: Way
) -> Outcome:
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

    def put(operand: Tiles) -> int:
        buffer = run.chip.buffer(tile_bytes(operand.format), operand.count, None)
        if run.values:
            run.chip.write_buffer(buffer, operand.make())
        return buffer

    in0, in1 = put(left.over(rows, inner)), put(right.over(inner, columns))
    each = tile_bytes(formats[2])
    out = run.chip.buffer(each, rows * columns, None)
    if run.values:
        # Padding is not written.
        run.chip.write_buffer(out, bytes(each * rows * columns))
    buffers = {}
    for name, one, shape in (
        ("add", e.add, (rows, columns)),
        ("row", e.row, (1, columns)),
        ("column", e.column, (rows, 1)),
        ("scale", e.scale, (rows, columns)),
        ("mask", e.mask, (rows, columns)),
    ):
        if one is not None:
            buffers[name] = put(one.over(*shape))
    if e.found is not None:
        buffers["found"] = norms_buffer(run, e.found.branch, *e.extent)
    report = _core.tensix_layer(
        run.chip,
        by.sizes,
        (in0, in1, out),
        formats,
        _ending(e, formats[2], buffers, True),
        run.fidelity,
        run.wide,
        run.timeline,
        get_num_threads(),
    )
    if not run.values:
        return Outcome([], None, report)
    outputs = [tiles.from_tiles(run.chip.read_buffer(out), formats[2], (rows, columns))]
    norms = None if e.found is None else norms_read(run, buffers["found"], e.found.branch, *e.extent)
    return Outcome(outputs, norms, report)
