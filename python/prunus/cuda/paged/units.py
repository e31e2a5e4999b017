"""Units of tables on disk in pieces for a GPU: which go together, and what a buffer has of them.

Pieces hold as many live units as a buffer has room for, or neighbours where nearly all are live: where sums
are cut depends on shapes and on which units the batch needs, never on budgets or timing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from prunus._dtypes import Array
from prunus._layout import blocks_along
from prunus.cuda import dtypes
from prunus.cuda.paged.sources import RowsInOrder
from prunus.cuda.streaming import Ring
from prunus.cuda.versions import libraries
from prunus.paged.tables import Span, Table, announced, live_units

if TYPE_CHECKING:
    import torch

__all__ = ["ALIGNED", "Got", "Live", "Parts", "Piece", "chosen", "columns", "live_of", "neighbours", "stream"]

#: Parts of a piece begin at multiples of so many bytes.
ALIGNED: Final = 16


class Live(NamedTuple):
    """Which branches are live: for each row on the GPU, and for any row on the host."""

    each: torch.Tensor
    any: Array
    same: bool  # for all rows


class Piece(NamedTuple):
    """Units that go together.

    Attributes
    ----------
    units : ndarray of int64
        Ascending.
    branches : ndarray of int64, optional
        Their branches; None: neighbours from ``units[0]`` on, live or not.
    branch : int
        Units of a branch that are in the piece, but for the last one.
    """

    units: Array
    branches: Array | None
    branch: int


def columns(table: torch.Tensor, piece: Piece, units: torch.Tensor | None) -> torch.Tensor:
    """Return the columns of some units."""
    if units is None:
        return table[:, int(piece.units[0]) : int(piece.units[-1]) + 1]
    return table.index_select(1, units)


def live_of(
    live: Live | None, piece: Piece, branches: torch.Tensor | None, branch: int
) -> torch.Tensor | None:
    """Return which of a piece's branches are live for each row; None: all are."""
    if live is None:
        return None
    if branches is not None:
        # What any row needs is what all need, where all need the same.
        return None if live.same else live.each.index_select(1, branches)
    first = int(piece.units[0])
    part = slice(first // branch, first // branch + blocks_along(len(piece.units), piece.branch))
    return live.each[:, part]


def neighbours(units: int, most: int, branch: int) -> Iterator[Piece]:
    """Cut all units into pieces of so many at most: whole branches, or parts of one."""
    if most >= branch:
        step = most // branch * branch
        for first in range(0, units, step):
            yield Piece(np.arange(first, min(first + step, units)), None, branch)
        return
    for begin in range(0, units, branch):
        end = min(begin + branch, units)
        for first in range(begin, end, most):
            every = np.arange(first, min(first + most, end))
            yield Piece(every, None, len(every))


def chosen(branches: Array, most: int, branch: int, units: int) -> Iterator[Piece]:
    """Cut the units of some branches into pieces of so many at most: whole branches, or parts of one."""
    if most >= branch:
        step = most // branch
        for first in range(0, len(branches), step):
            at = branches[first : first + step]
            yield Piece(live_units(at, branch, units), at, branch)
        return
    for at in branches:
        end = min((int(at) + 1) * branch, units)
        for first in range(int(at) * branch, end, most):
            every = np.arange(first, min(first + most, end))
            yield Piece(every, np.array([at]), len(every))


class Got(NamedTuple):
    """A piece on the GPU.

    Attributes
    ----------
    tables : tuple of Tensor
        Shape (units, width) each: their rows of each table.
    units, branches : Tensor of int64, or None
        Which they are; None: neighbours.
    """

    tables: tuple[torch.Tensor, ...]
    units: torch.Tensor | None
    branches: torch.Tensor | None


class Parts:
    """What a piece has in a buffer: its rows of each table, units and branches.

    Parameters
    ----------
    tables : list of Table
        What is read, all with a row for each unit.
    plan : list of Piece
        The pieces, in the order in which they are filled.
    whole : bool
        Whether they are all units in order: tables are read from end to end.
    branch : int
        Units of a branch.
    """

    def __init__(self, tables: list[Table], plan: list[Piece], whole: bool, branch: int) -> None:
        self._tables, self._whole = tables, whole
        self._streams: list[Generator[tuple[int, Array], None, None]] = []
        self._sources: list[RowsInOrder] = []
        if whole:
            # Table.stream is a generator, which ends its reader when it is closed.
            self._streams = [table.stream(unit=branch) for table in self._tables]  # type: ignore[misc]
            self._sources = [RowsInOrder(stream) for stream in self._streams]
        spans = [] if whole else [Span(piece.units, None, False) for piece in plan]
        self._told = announced(spans, self._tables)

    def close(self) -> None:
        """End what is being read."""
        for stream in self._streams:
            stream.close()

    def fill(self, piece: Piece, view: Array) -> int:
        """Put a piece into a buffer; returns how many bytes it takes."""
        *tables, units, branches, used = self._layout(piece)
        count = len(piece.units)
        if not self._whole:
            next(self._told)
        for at, (table, part) in enumerate(zip(self._tables, tables, strict=True)):
            into = view[part].reshape(count, table.row_bytes)
            if self._whole:
                self._sources[at].take(into)
            else:
                table.gather_into(piece.units, into)
        if piece.branches is not None:
            view[units].view(np.int64)[...] = piece.units
            view[branches].view(np.int64)[...] = piece.branches
        return used

    def split(self, piece: Piece, there: torch.Tensor) -> Got:
        """Return the parts of a piece on the GPU."""
        *tables, units, branches, _ = self._layout(piece)
        count = len(piece.units)
        found = [
            there[part].view(dtypes.torch_of(table.dtype)).view(count, table.shape[1])
            for part, table in zip(tables, self._tables, strict=True)
        ]
        torch = libraries().torch
        chosen = piece.branches is not None
        return Got(
            tuple(found),
            there[units].view(torch.int64) if chosen else None,
            there[branches].view(torch.int64) if chosen else None,
        )

    def _layout(self, piece: Piece) -> Any:
        count, at, parts = len(piece.units), 0, []
        lengths = [count * table.row_bytes for table in self._tables]
        if piece.branches is None:
            lengths += [0, 0]
        else:
            lengths += [count * 8, len(piece.branches) * 8]
        for length in lengths:
            parts.append(slice(at, at + length))
            at += -(-length // ALIGNED) * ALIGNED
        return (*parts, at)


def stream(
    ring: Ring, table: Table, step: int, unit: int
) -> Generator[tuple[slice, torch.Tensor], None, None]:
    """Yield all rows of a table that are on their way, ``step`` at a time."""
    count, row = len(table), table.row_bytes
    kind = dtypes.torch_of(table.dtype)
    stream: Any = table.stream(unit=unit)
    with closing(stream) as runs:
        source = RowsInOrder(runs)

        def fill(first: int, view: Array) -> int:
            size = min(step, count - first)
            source.take(view[: size * row].reshape(size, row))
            return size * row

        for first, there in ring.pieces(range(0, count, step), fill):
            size = min(step, count - first)
            yield slice(first, first + size), there.view(kind).view(size, table.shape[1])
