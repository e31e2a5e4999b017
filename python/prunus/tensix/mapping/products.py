"""Products of tiles, by lists.

For each row of tiles of the result there is a list of steps: each a tile of the left operand, and a row of
tiles of the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from prunus import _core
from prunus._dtypes import Array
from prunus.tensix.mapping.job import CHUNK, Found, Job, Outcome, Run, in_turn, reach_of
from prunus.tensix.mapping.tiles import Tiles

__all__ = ["Epilogue", "Steps", "multiply", "pairs"]

# Circular buffers: operands, what the result begins with, bias, factors, masks, the result, and norms.
_IN0, _IN1, _ADD, _BIAS, _SCALE, _MASK, _OUT, _NORMS = 0, 1, 2, 3, 4, 5, 16, 17


@dataclass
class Epilogue:
    """What happens to sums before they are written.

    Tiles of ``add``, ``scale`` and ``mask`` are those of the result; ``row`` and ``column`` are biases, one
    row of tiles side by side, or for each row of tiles of the result one.
    """

    add: Tiles | None = None
    row: Tiles | None = None
    column: Tiles | None = None
    activation: str | None = None
    factor: float | None = None
    scale: Tiles | None = None
    mask: Tiles | None = None
    found: Found | None = None
    #: Rows and columns of values of the result, where something is found of them.
    extent: tuple[int, int] = (0, 0)

    @property
    def registers(self) -> int:
        """Destination registers that are needed beside those of sums."""
        plain = self.row is None and self.column is None and self.scale is None and self.mask is None
        return 0 if plain else 1


@dataclass
class Steps:
    """What a row of tiles of the result is a sum of, and which of its columns of tiles are wanted."""

    left: Array
    right: Array
    #: None: all.
    columns: Array | None = None
    bias: int = 0


# Destination registers of 32 bits: half of eight.
_REGISTERS: Final = 4


def _activate(k: _core.KernelContext, name: str, dst: int) -> _core.Verb:
    if name == "relu":
        return k.relu_tile(dst)
    return k.gelu_tile(dst) if name == "gelu" else k.silu_tile(dst)


def _last(job: Job, e: Epilogue, width: int) -> list[_core.Verb]:
    """Return the text that ends a group of ``width`` tiles: everything between the sums and the page."""
    k, spare = job.k, width
    text = []

    def beside(
        cb: int, load: Callable[[int, int], _core.Verb], use: Callable[[int, int], _core.Verb]
    ) -> None:
        text.append(k.cb_wait_front(cb, width))
        for dst in range(width):
            text.extend([load(cb, dst), use(dst, spare)])
        text.append(k.cb_pop_front(cb, width))

    def copied(cb: int, tile: int) -> _core.Verb:
        return k.copy_tile(cb, tile, spare)

    if e.row is not None:
        beside(_BIAS, lambda cb, tile: k.unary_bcast("row", cb, tile, spare), k.add_binary_tile)
    if e.column is not None:
        text.append(k.cb_wait_front(_BIAS, 1))
        for dst in range(width):
            text.extend([k.unary_bcast("col", _BIAS, 0, spare), k.add_binary_tile(dst, spare)])
        text.append(k.cb_pop_front(_BIAS, 1))
    for dst in range(width):
        if e.factor is not None:
            text.append(k.mul_unary_tile(dst, e.factor))
        if e.activation is not None:
            text.append(_activate(k, e.activation, dst))
    if e.scale is not None:
        beside(_SCALE, copied, k.mul_binary_tile)
    if e.mask is not None:
        beside(_MASK, copied, k.mask_tile)
    return [
        *text,
        k.tile_regs_commit(),
        k.cb_reserve_back(_OUT, width),
        k.tile_regs_wait(),
        k.pack_tile_block(0, _OUT, width),
        k.tile_regs_release(),
        k.cb_push_back(_OUT, width),
    ]


def _first(job: Job, e: Epilogue, width: int) -> list[_core.Verb]:
    """Return the text that begins a group: registers are 0, or what the result begins with."""
    k = job.k
    if e.add is None:
        return [k.tile_regs_acquire()]
    copies = [k.copy_tile(_ADD, dst, dst) for dst in range(width)]
    return [
        k.cb_wait_front(_ADD, width),
        k.tile_regs_acquire(),
        *copies,
        k.cb_pop_front(_ADD, width),
    ]


def width_of(across: int, e: Epilogue) -> int:
    """Return how many tiles side by side are summed at once: registers hold them, and the result divides."""
    most = _REGISTERS - e.registers
    if e.found is not None:
        most = 1
    return max(w for w in range(1, most + 1) if across % w == 0)


@in_turn
def multiply(
    run: Run,
    left: Tiles,
    right: Tiles,
    across: int,
    rows: Sequence[Steps],
    format: str,
    e: Epilogue,
) -> Outcome:
    """Multiply tiles.

    Parameters
    ----------
    run : Run
        Where.
    left, right : Tiles
        Operands; the right one's rows of tiles have ``across`` tiles.
    across : int
        Columns of tiles of the result, at least 1.
    rows : sequence of Steps
        For each row of tiles of the result.
    format : str
        Of the result's tiles.
    e : Epilogue
        What comes after the sums.
    """
    job = Job(run)
    width = width_of(across, e)
    k = job.k
    in0, in1 = job.input(_IN0, left), job.input(_IN1, right, 2 * CHUNK * width)
    bias = e.row or e.column
    more = [
        (None if tiles is None else job.input(cb, tiles, 2 * CHUNK * width))
        for cb, tiles in ((_ADD, e.add), (_BIAS, bias), (_SCALE, e.scale), (_MASK, e.mask))
    ]
    pages = 2 * CHUNK * width
    reach = across
    if e.found is not None:
        reach = reach_of(e.found.branch, e.extent[1])
        pages = max(pages, reach + width)
    out = job.output(_OUT, format, (len(rows), across), pages)
    job.first = _first(job, e, width)
    job.again = [
        k.cb_wait_front(_IN0, 1),
        k.cb_wait_front(_IN1, width),
        k.matmul_block(_IN0, _IN1, 0, 0, 0, width, 1, 1),
        k.cb_pop_front(_IN0, 1),
        k.cb_pop_front(_IN1, width),
    ]
    job.last = _last(job, e, width)
    group = _Group(width, across, in0, in1, more, e)
    for number, row in enumerate(rows):
        wanted = np.arange(across) if row.columns is None else row.columns
        if e.found is None:
            for first in np.unique(wanted // width) * width:
                reads = group.reads(number, row, int(first))
                page = number * across + first
                job.piece(reads, ([out] * width, page + np.arange(width)), len(row.left))
            continue
        for start in np.unique(wanted // reach) * reach:
            tiles = np.arange(start, min(start + reach, across))
            parts = [group.reads(number, row, int(first)) for first in tiles[::width]]
            reads = np.concatenate([s for s, _ in parts]), np.concatenate([p for _, p in parts])
            writes = np.full(len(tiles), out), number * across + tiles
            job.piece(reads, writes, len(row.left), len(parts))
    found = None if e.found is None else (e.found, *e.extent, _NORMS)
    return job.run(found)


@dataclass
class _Group:
    """How the accesses of a group of tiles side by side are ordered."""

    width: int
    across: int
    in0: int
    in1: int
    more: list[int | None]
    e: Epilogue
    _streams: dict[int, Array] = field(default_factory=dict)

    def reads(self, number: int, row: Steps, first: int) -> tuple[Array, Array]:
        """Return streams and pages of the group at column ``first`` of a row of tiles."""
        width, steps = self.width, len(row.left)
        pages = np.empty((steps, 1 + width), np.uint32)
        pages[:, 0] = row.left
        pages[:, 1:] = (np.asarray(row.right) * self.across)[:, None] + first + np.arange(width)
        streams = np.tile(np.array([self.in0] + [self.in1] * width, np.uint8), steps)
        add, bias, scale, mask = self.more
        own = number * self.across + first + np.arange(width)
        before = [] if add is None else [(add, own)]
        after = []
        if bias is not None:
            after.append((bias, first + np.arange(width) if self.e.row is not None else np.array([row.bias])))
        after.extend((stream, own) for stream in (scale, mask) if stream is not None)
        return (
            np.concatenate(
                [*(np.full(len(p), s) for s, p in before), streams, *(np.full(len(p), s) for s, p in after)]
            ),
            np.concatenate([*(p for _, p in before), pages.reshape(-1), *(p for _, p in after)]),
        )


@in_turn
def pairs(run: Run, left: Tiles, right: Tiles, sums: Sequence[tuple[Array, Array]], format: str) -> Outcome:
    """Return tiles below each other, each a sum of products of pages of ``left`` and of ``right``."""
    job = Job(run)
    k = job.k
    in0, in1 = job.input(_IN0, left), job.input(_IN1, right)
    out = job.output(_OUT, format, (len(sums), 1))
    e = Epilogue()
    job.first, job.last = _first(job, e, 1), _last(job, e, 1)
    job.again = [
        k.cb_wait_front(_IN0, 1),
        k.cb_wait_front(_IN1, 1),
        k.matmul_tiles(_IN0, _IN1, 0, 0, 0),
        k.cb_pop_front(_IN0, 1),
        k.cb_pop_front(_IN1, 1),
    ]
    for number, (a, b) in enumerate(sums):
        reads = np.tile([in0, in1], len(a)), np.stack([a, b], axis=1).reshape(-1)
        job.piece(reads, ([out], [number]), len(a))
    return job.run()
