"""Large plain products of operands of one format by multicast, as Tenstorrent's benchmark does them.

Rows of cores share rows of the left operand, columns of cores columns of the right one. What has an epilogue,
operands of two formats or is tall or flat goes by ``layers``; what is small, or has many members, by lists
(``products``).
"""

from __future__ import annotations

from typing import Any, Final

from prunus import _core
from prunus._dtypes import Array
from prunus._threads import get_num_threads
from prunus.tensix.buffers import tile_bytes
from prunus.tensix.mapping import tiles
from prunus.tensix.mapping.job import Outcome, Run, in_turn
from prunus.tensix.mapping.tiles import Tiles

__all__ = ["dense", "multiply", "outcome", "pays", "put", "room", "sizes_of"]

#: Tiles of the result, and along the inner dimension, from which on sharing operands pays.
_RESULT: Final = 64
_INNER: Final = 8


def pays(m: int, k: int, n: int, formats: tuple[str, ...]) -> bool:
    """Whether operands of (m, k) and (k, n) values, of some formats, are worth sharing.

    They are of floats: partial sums in L1 are added by the packer, which adds no integers.
    """
    if any(format.startswith("int") for format in formats):
        return False
    down, inner, across = (tiles.ceil_tiles(length) for length in (m, k, n))
    return min(down, across) >= 2 and down * across >= _RESULT and inner >= _INNER


def put(run: Run, operand: Tiles) -> int:
    """Put tiles into DRAM; return the buffer's number."""
    each = tile_bytes(operand.format)
    buffer = run.chip.buffer(each, max(1, operand.count), None)
    if run.values:
        run.chip.write_buffer(buffer, operand.make() or bytes(each))
    return buffer


def room(run: Run, format: str, rows: int, columns: int) -> int:
    """Make room for a result of ``rows`` x ``columns`` tiles; return the buffer's number."""
    each = tile_bytes(format)
    buffer = run.chip.buffer(each, rows * columns, None)
    if run.values:
        # Neither padding nor rows of tiles of which nothing is live are written.
        run.chip.write_buffer(buffer, bytes(each * rows * columns))
    return buffer


def outcome(run: Run, out: int, format: str, shape: tuple[int, int], report: dict[str, Any]) -> Outcome:
    """Return what a program gave that wrote a result of ``shape`` tiles."""
    values = [tiles.from_tiles(run.chip.read_buffer(out), format, shape)] if run.values else []
    return Outcome(values, None, report)


@in_turn
def multiply(
    run: Run,
    sizes: tuple[int, int, int],
    operands: tuple[Tiles, Tiles],
    format: str,
    covered: tuple[int, int],
) -> Outcome:
    """Multiply operands of ``sizes`` tiles that are laid out for it, with a result of ``covered`` tiles."""
    in0, in1 = (put(run, operand) for operand in operands)
    out = room(run, format, *covered)
    report = _core.tensix_multicast(
        run.chip,
        sizes,
        (in0, in1, out),
        format,
        run.fidelity,
        run.wide,
        run.timeline,
        get_num_threads(),
    )
    return outcome(run, out, format, covered, report)


def dense(run: Run, a: Array, b: Array, format: str) -> Outcome:
    """Multiply (m, k) and (k, n), all of one format."""
    sizes = sizes_of(a.shape[0], a.shape[1], b.shape[1])
    rows, inner, columns = _core.tensix_covered(run.chip, sizes, format, run.wide)
    operands = tiles.dense(a, format, inner, rows), tiles.dense(b, format, columns, inner)
    return multiply(run, sizes, operands, format, (rows, columns))


def sizes_of(m: int, k: int, n: int) -> tuple[int, int, int]:
    """Return how many tiles cover three lengths."""
    return tiles.ceil_tiles(m), tiles.ceil_tiles(k), tiles.ceil_tiles(n)
