"""A program of equal pieces of work, put together step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import numpy as np

from prunus import _core
from prunus._dtypes import Array
from prunus._threads import get_num_threads
from prunus.tensix.buffers import tile_bytes
from prunus.tensix.mapping.tiles import TILE, Tiles, ceil_tiles, dense, from_tiles

__all__ = [
    "Found",
    "Job",
    "Outcome",
    "Run",
    "hand_over",
    "in_turn",
    "norms_buffer",
    "norms_read",
    "reach_of",
    "wide_norms",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Tiles that are read or written in one go; every circular buffer of a stream holds at least as many.
CHUNK: Final = 8
# Tiles side by side that norms may reach over: they lie in a core's L1 at once.
_REACH: Final = 192
# Bytes of a single value in DRAM: what all chips can read at once.
_SCALAR: Final = 64


class Run(NamedTuple):
    """Where programs run, and how.

    ``wide`` sums have 32 bits; ``timeline`` is how many intervals are recorded at most.
    """

    chip: _core.TensixChip
    values: bool
    fidelity: str
    wide: bool
    timeline: int
    #: Held while a program has the chip.
    turn: AbstractContextManager[Any]


def in_turn(program: Callable[Concatenate[Run, _P], _T]) -> Callable[Concatenate[Run, _P], _T]:
    """Have threads that share a chip take turns; give DRAM back, also after an interrupt."""

    @wraps(program)
    def run(where: Run, /, *args: _P.args, **options: _P.kwargs) -> _T:
        with where.turn:
            mark = where.chip.buffers()
            try:
                return program(where, *args, **options)
            finally:
                where.chip.keep_buffers(mark)

    return run


def hand_over(k: _core.KernelContext, *packs: tuple[int, int]) -> list[_core.Verb]:
    """Commit registers and pack some of them: pairs of register and circular buffer."""
    cbs = [cb for _, cb in packs]
    return [
        k.tile_regs_commit(),
        *(k.cb_reserve_back(cb, 1) for cb in cbs),
        k.tile_regs_wait(),
        *(k.pack_tile(dst, cb, 0) for dst, cb in packs),
        k.tile_regs_release(),
        *(k.cb_push_back(cb, 1) for cb in cbs),
    ]


def reach_of(branch: int, columns: int) -> int:
    """Return how many tiles side by side hold whole branches of a result; 0 if a core does not hold as many.

    Then norms are found apart, see :func:`wide_norms`.
    """
    reach = _core.tensix_norms(branch, columns)[0]
    return reach if reach <= _REACH else 0


@dataclass(frozen=True)
class Found:
    """What the writers find of the first output: norms of branches, and what is dead by a threshold."""

    branch: int
    squares: bool
    threshold: float | None
    #: Without values, what is live.
    live: Array | None = None


@dataclass(frozen=True)
class Outcome:
    """What a job gave."""

    outputs: list[Array]
    norms: Array | None
    report: Any


def norms_buffer(run: Run, branch: int, rows: int, columns: int) -> int:
    """Make room in DRAM for norms of branches of a result; return the buffer's number."""
    size, pages = _norms_pages(branch, rows, columns)
    buffer = run.chip.buffer(size, pages, None)
    if run.values:
        run.chip.write_buffer(buffer, bytes(size * pages))
    return buffer


def norms_read(run: Run, buffer: int, branch: int, rows: int, columns: int) -> Array:
    """Return the words of norms, a row for each page."""
    words = np.frombuffer(run.chip.read_buffer(buffer), np.float32)
    return words.reshape(_norms_pages(branch, rows, columns)[1], -1)


def _norms_pages(branch: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the bytes of a page of norms, and how many there are."""
    wide, size = _core.tensix_norms(branch, columns)
    return size, ceil_tiles(rows) * (1 + (ceil_tiles(columns) - 1) // wide)


@in_turn
def wide_norms(run: Run, values: Array, format: str, found: Found) -> tuple[Outcome, Array]:
    """Find norms of branches that no core holds, in a result that lies in DRAM.

    Parameters
    ----------
    run : Run
        Where.
    values : ndarray
        The result, (rows, columns).
    format : str
        Of its tiles.
    found : Found
        What is wanted.

    Returns
    -------
    outcome : Outcome
        The result, whose dead branches are 0 if there is a threshold.
    norms : ndarray of float32
        Shape (rows, branches); empty without values.
    """
    (rows, columns), branch = values.shape, found.branch
    down, across, branches = ceil_tiles(rows), ceil_tiles(columns), -(-columns // branch)
    each = tile_bytes(format)
    result = run.chip.buffer(each, down * across, None)
    buffer = run.chip.buffer(4 * TILE, down * branches, None)
    if run.values:
        run.chip.write_buffer(result, dense(values, format).make())
        run.chip.write_buffer(buffer, bytes(4 * TILE * down * branches))
    live = None if found.live is None else found.live.tobytes()
    norms = (branch, columns, rows, format, found.squares, found.threshold, buffer, live)
    report = _core.tensix_wide_norms(run.chip, result, norms, run.timeline, get_num_threads())
    if not run.values:
        return Outcome([], None, report), np.zeros((0, 0), np.float32)
    words = np.frombuffer(run.chip.read_buffer(buffer), np.float32).reshape(down, branches, TILE)
    output = from_tiles(run.chip.read_buffer(result), format, (down, across))
    return Outcome([output], None, report), words.swapaxes(1, 2).reshape(-1, branches)[:rows]


@dataclass
class _Accesses:
    streams: list[Array] = field(default_factory=list)
    pages: list[Array] = field(default_factory=list)

    def add(self, streams: Sequence[int] | Array, pages: Sequence[int] | Array) -> None:
        self.streams.append(np.asarray(streams, np.uint8))
        self.pages.append(np.asarray(pages, np.uint32))

    def packed(self) -> tuple[Array, Array, Array]:
        starts = np.cumsum([0, *(len(one) for one in self.pages)]).astype(np.uint32)
        none = np.zeros(0, np.uint32)
        return (
            np.concatenate([none.astype(np.uint8), *self.streams]),
            np.concatenate([none, *self.pages]),
            starts,
        )


class Job:
    """Circular buffers, streams, a text for the compute threads, and pieces of work.

    Buffers in DRAM are those of the job; who makes one gives them back, see :func:`in_turn`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._chip, self._values = run.chip, run.values
        self._buffers: list[tuple[int, str, int, int]] = []
        self._inputs: list[tuple[int, int, int]] = []
        self._outputs: list[tuple[int, int, int]] = []
        self._results: list[tuple[int, str, tuple[int, int]]] = []
        self._repeats: list[tuple[int, int]] = []
        self._reads, self._writes = _Accesses(), _Accesses()
        #: Makes the verbs of the text.
        self.k = self._chip.recorder()
        self.first: list[_core.Verb] = []
        self.again: list[_core.Verb] = []
        self.last: list[_core.Verb] = []

    def cb(self, number: int, format: str, pages: int, page_bytes: int | None = None) -> int:
        """Add a circular buffer; return its number."""
        self._buffers.append((number, format, page_bytes or tile_bytes(format), pages))
        return number

    def input(self, cb: int, tiles: Tiles, pages: int = 2 * CHUNK) -> int:
        """Put tiles into DRAM and have them stream to a circular buffer; return the stream's number."""
        each = tile_bytes(tiles.format)
        self.cb(cb, tiles.format, pages)
        buffer = self._chip.buffer(each, max(1, tiles.count), None)
        if self._values:
            self._chip.write_buffer(buffer, tiles.make() or bytes(each))
        self._inputs.append((cb, buffer, each))
        return len(self._inputs) - 1

    def scalars(self, cb: int, values: Array, pages: int = 2 * CHUNK) -> int:
        """Put single values into DRAM; they go to the first places of tiles of float32."""
        self.cb(cb, "float32", pages)
        flat = np.zeros((values.size, _SCALAR // 4), np.float32)
        flat[:, 0] = values.reshape(-1)
        buffer = self._chip.buffer(_SCALAR, len(flat), None)
        if self._values:
            self._chip.write_buffer(buffer, flat.tobytes())
        self._inputs.append((cb, buffer, _SCALAR))
        return len(self._inputs) - 1

    def output(self, cb: int, format: str, shape: tuple[int, int], pages: int = 2 * CHUNK) -> int:
        """Have the tiles of a matrix of ``shape`` tiles written to DRAM; return the stream's number."""
        self.cb(cb, format, pages)
        each = tile_bytes(format)
        buffer = self._chip.buffer(each, shape[0] * shape[1], None)
        if self._values:
            # What no piece writes is zero.
            self._chip.write_buffer(buffer, bytes(each * shape[0] * shape[1]))
        self._outputs.append((cb, buffer, each))
        self._results.append((buffer, format, shape))
        return len(self._outputs) - 1

    def piece(
        self,
        reads: tuple[Sequence[int] | Array, Sequence[int] | Array],
        writes: tuple[Sequence[int] | Array, Sequence[int] | Array],
        repeats: int,
        groups: int = 1,
    ) -> None:
        """Add a piece: streams and pages that it reads and writes, in order, and how often the text repeats.

        The whole text runs ``groups`` times.
        """
        self._repeats.append((repeats, groups))
        self._reads.add(*reads)
        self._writes.add(*writes)

    def run(self, found: tuple[Found, int, int, int] | None = None) -> Outcome:
        """Run all pieces.

        Parameters
        ----------
        found : (Found, int, int, int), optional
            What to find of the first output: with its rows and columns, and a circular buffer for norms.

        Returns
        -------
        Outcome
            Outputs as matrices, with their padding.
        """
        norms, buffer = None, 0
        if found is not None:
            what, rows, columns, cb = found
            buffer = norms_buffer(self._run, what.branch, rows, columns)
            self.cb(cb, "float32", 1, _core.tensix_norms(what.branch, columns)[1])
            format = self._results[0][1]
            live = None if what.live is None else what.live.tobytes()
            norms = (what.branch, columns, rows, format, what.squares, what.threshold, buffer, cb, live)
        counts = np.array(self._repeats, np.uint32).reshape(-1, 2)
        report = _core.tensix_streams(
            self._chip,
            self._buffers,
            self._inputs,
            self._outputs,
            (self.first, self.again, self.last),
            np.ascontiguousarray(counts[:, 0]),
            np.ascontiguousarray(counts[:, 1]),
            self._reads.packed(),
            self._writes.packed(),
            norms,
            self._run.fidelity,
            self._run.wide,
            self._run.timeline,
            get_num_threads(),
        )
        outputs: list[Array] = []
        words = None
        if self._values:
            for number, format, shape in self._results:
                outputs.append(from_tiles(self._chip.read_buffer(number), format, shape))
            if found is not None:
                words = norms_read(self._run, buffer, what.branch, rows, columns)
        return Outcome(outputs, words, report)
