"""Weights on disk with one row a unit: streamed whole, or only the rows of live units read.

What adds up many units (``combine``) does so by spans of units whose size follows from the table's shape
alone, each going on from the sums of those before. So a row's result depends neither on the rows beside it,
nor on budgets or timing: it is to the bit what memory gives.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final, NamedTuple, Self

import numpy as np

from prunus import engines
from prunus._dtypes import F32, F64, FLOATS, Array, DType
from prunus._errors import PrunusError
from prunus.engines.base import Found
from prunus.paged.array import PagedArray
from prunus.paged.blocks import least_budget, stream_panel
from prunus.paged.expr import PagedExpr
from prunus.paged.store import Store

__all__ = ["SPAN", "Span", "Table", "as_table", "live_units", "spans"]

# Above this share of a table's pages, they are read from end to end: drives give large blocks in order about
# twice as fast as single pages, and a page costs the processor as much as a large block.
MOSTLY: Final = 0.6
_SECTOR: Final = 4096
# What a stream that was begun has under way: less than what the pager allows one with a usual budget.
_COMING: Final = 8 << 20
# Bytes of a span of rows, live or not: what is in memory at a time, beside the pager's budget.
SPAN: Final = 16 << 20


class Span(NamedTuple):
    """Neighbouring units that are summed together, and those of them that are live.

    Attributes
    ----------
    units : ndarray of int64
        The live units, ascending: whole branches.
    live : ndarray of bool, optional
        Shape (rows, branches): the liveness of the live branches; None: all of all rows.
    whole : bool
        Whether these are neighbours without a gap.
    """

    units: Array
    live: Array | None
    whole: bool

    def of(self, h: Array) -> Array:
        """Return the units' columns of ``h`` (rows, all units)."""
        if self.whole:
            return h[:, int(self.units[0]) : int(self.units[-1]) + 1]
        return np.ascontiguousarray(h[:, self.units])

    def part(self, vector: Array | None) -> Array | None:
        """Return the units' values of a vector."""
        return None if vector is None else vector[self.units]


def spans(units: int, size: int, live: Array, branch: int) -> Iterator[Span]:
    """Cut units into spans of ``size``, rounded to whole branches; those without a live unit are left out."""
    step = max(size // branch, 1)
    needed = np.logical_or.reduce(live, axis=0)
    for first in range(0, live.shape[1], step):
        at = first + np.flatnonzero(needed[first : first + step])
        if len(at):
            every = live_units(at, branch, units)
            together = int(every[-1]) - int(every[0]) + 1 == len(every)
            yield Span(every, np.ascontiguousarray(live[:, at]), together)


def live_units(branches: Array, branch: int, units: int) -> Array:
    """Return the units of some branches, ascending."""
    if branch == 1:
        return branches
    every: Array = (branches[:, None] * branch + np.arange(branch)).reshape(-1)
    return every[every < units]


class Table:
    """Rows of one length in a file, the padding between them included.

    Parameters
    ----------
    store : Store
        Where they are.
    start : int
        Byte of the store where the first row begins.
    shape : tuple of int
        Rows, and values of each.
    dtype : dtype
        Of the values.
    pitch : int
        Bytes from one row to the next.
    """

    ndim: Final = 2

    def __init__(self, store: Store, start: int, shape: tuple[int, int], dtype: DType, pitch: int) -> None:
        self.store, self.start, self.shape, self.dtype, self.pitch = store, start, shape, dtype, pitch
        # What nobody reads yet: who began it knows it by a number; its panels' size, and a reader.
        self._begun: list[tuple[int, int, Any]] = []
        # Reentrant: the end of a generation, which forgets, may come by the collector at any allocation.
        self._turn, self._count = threading.RLock(), 0

    @classmethod
    def of(cls, array: PagedArray) -> Self:
        """Return the table that a matrix on disk is, whose rows must be contiguous.

        Raises
        ------
        ValueError
            If they are not.
        """
        rows, width = array.shape
        if array._perm != (0, 1) and rows > 1 and width > 1:
            raise ValueError("the rows are not contiguous in the file")
        return cls(array._store, array._start, (rows, width), array.dtype, width * array.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's values."""
        return self.shape[1] * self.dtype.itemsize

    @property
    def like(self) -> Array:
        """An array of the table's shape and dtype without memory, to count with."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)

    @property
    def span(self) -> int:
        """Units that are summed together."""
        return max(SPAN // max(self.pitch, 1), 1)

    # Reading -------------------------------------------------------------------------------------------

    def _view(self, raw: Array) -> Array:
        """Return the rows that bytes hold, without the padding between them."""
        rows = raw.reshape(-1, self.pitch)[:, : self.row_bytes].view(self.dtype)
        return rows if rows.flags.aligned else rows.copy()

    def _offsets(self, units: Array) -> Array:
        offsets: Array = self.start + units.astype(np.int64) * self.pitch
        return offsets

    def stream(self, rows: int | None = None, unit: int = 1) -> Iterator[tuple[int, Array]]:
        """Read all rows in order, the next ones being read while some are used.

        Parameters
        ----------
        rows : int, optional
            How many to yield at a time, put together in memory that is used again; without it, as many as a
            panel of the stream holds, where they were read to.
        unit : int
            Without ``rows``, a multiple of this many are yielded, but for the last ones.

        Yields
        ------
        int
            The first row.
        ndarray
            The rows, until the next ones are asked for.
        """
        count = len(self)
        if not self.nbytes:
            if count:
                yield 0, np.zeros(self.shape, self.dtype)
            return
        budget = int(self.store.pager.budget)
        if budget < least_budget():
            raise PrunusError(
                f"a pager with a budget of {budget} bytes cannot stream {self.store.name or 'an array'}: it "
                f"takes at least {least_budget()}"
            )
        panel = stream_panel(budget, self.pitch * unit)
        with closing(self._reader(panel)) as reader:
            if rows is None and panel >= self.pitch * unit:
                for at, raw in reader:
                    yield (at - self.start) // self.pitch, self._view(raw)
                return
            room = min(rows or unit, count) * self.pitch
            buffer, filled, row = np.empty(room, np.uint8), 0, 0
            for _, raw in reader:
                at = 0
                while at < len(raw):
                    size = min(room - filled, len(raw) - at)
                    buffer[filled : filled + size] = raw[at : at + size]
                    at, filled = at + size, filled + size
                    if filled == room:
                        yield row, self._view(buffer)
                        row, filled = row + room // self.pitch, 0
            if filled:
                yield row, self._view(buffer[:filled])

    def _reader(self, panel: int) -> Any:
        """Return a reader of all rows: one that was begun, if its panels are of the wanted size."""
        with self._turn:  # whoever comes first has it
            begun = self._begun.pop() if self._begun else None
        if begun is not None:
            _, size, reader = begun
            if size == panel:
                return reader
            reader.close()
        return self._new_reader(panel)

    def _new_reader(self, panel: int) -> Any:
        return self.store.segment.reader(self.start, self.start + len(self) * self.pitch, panel)

    def begin(self, unit: int = 1) -> int | None:
        """Have the next :meth:`stream` of whole panels read already; returns at once.

        What is read shows the file as it is when the panel is used. :meth:`forget` ends it.

        Returns
        -------
        int or None
            What :meth:`forget` knows it by; None if nothing was begun, because there is nothing to read or
            it is coming already.
        """
        budget = int(self.store.pager.budget)
        if not self.nbytes or budget < least_budget():
            return None
        panel = stream_panel(budget, self.pitch * unit)
        with self._turn:
            if self._begun:
                return None
            self._count += 1
            self._begun.append((self._count, panel, self._new_reader(panel)))
            return self._count

    @property
    def is_coming(self) -> bool:
        """Whether :meth:`begin` began all of it: what is on its way is not worth picking from."""
        return bool(self._begun) and len(self) * self.pitch <= _COMING

    def forget(self, begun: int | None = None) -> None:
        """Leave what :meth:`begin` began: what it called ``begun``, if nobody reads that yet, or anything."""
        with self._turn:
            left = [one for one in self._begun if begun in (None, one[0])]
            for one in left:
                self._begun.remove(one)
        for _, _, reader in left:
            reader.close()

    def gather(self, units: Array) -> Array:
        """Return rows, in a new array."""
        raw = np.empty((len(units), self.row_bytes), np.uint8)
        Table.gather_into(self, units, raw)
        return raw.view(self.dtype)

    def gather_into(self, units: Array, raw: Array) -> None:
        """Write the bytes of rows to ``raw`` (units, bytes of a row), in C order."""
        if raw.size:
            self.store.segment.gather(self._offsets(units), self.row_bytes, raw)

    def prefetch(self, units: Array) -> None:
        """Have the pager read rows, as far as its budget goes; returns at once."""
        if len(units) and self.row_bytes:
            self.store.segment.prefetch(self._offsets(units), self.row_bytes)

    def chunks(self, every: list[Span]) -> Iterator[tuple[Span, Array]]:
        """Read spans of live units: rows that are dead for all are never read."""
        for _, part in zip(announced(every, [self]), every, strict=True):
            yield part, self.gather(part.units)

    def panels(self, live: Array | None = None, branch: int = 1) -> Iterator[tuple[Span, Array]]:
        """Read all units, where each panel is a span: sums that go on need no larger ones.

        Those that are dead for all rows are read too: see :meth:`is_mostly`.
        """
        for first, rows in self.stream(unit=branch):
            part = None
            if live is not None:
                part = np.ascontiguousarray(live[:, first // branch : -(-(first + len(rows)) // branch)])
            yield Span(np.arange(first, first + len(rows)), part, True), rows

    def is_mostly(self, units: Array) -> bool:
        """Say whether pages with some units, ascending, are so many that reading all in order is quicker."""
        if not len(units):
            return False
        begins = self.start + units * self.pitch
        first, last = begins // _SECTOR, (begins + self.row_bytes - 1) // _SECTOR
        pages = int((last - first).sum()) + len(units) - int((first[1:] == last[:-1]).sum())
        return pages * _SECTOR > MOSTLY * len(self) * self.pitch

    # Arithmetic ----------------------------------------------------------------------------------------

    def dots(
        self,
        x: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        bias: Array | None = None,
        activation: str | None = None,
        scale: Array | None = None,
        found: Found | None = None,
    ) -> None:
        """Write ``activation(x @ w.T + bias) * scale``; as :meth:`prunus.engines.base.Engine.dots`."""
        engine = engines.active()
        if live is not None:
            out[...] = 0
            for part, rows in self.chunks(list(spans(len(self), self.span, live, branch))):
                h = np.empty((len(x), len(rows)), out.dtype)
                factor = None if scale is None else part.of(scale)
                engine.dots(x, rows, h, part.live, branch, part.part(bias), activation, factor)
                out[:, part.units] = h
            return
        # Branches are judged as they are stored, so that each must be there whole.
        for first, rows in self.stream(unit=1 if found is None else found.branch):
            at = slice(first, first + len(rows))
            factor = None if scale is None else scale[:, at]
            judged = None if found is None else _part_of(found, at)
            engine.dots(
                x,
                rows,
                out[:, at],
                None,
                branch,
                None if bias is None else bias[at],
                activation,
                factor,
                judged,
            )
            if found is not None and judged is not None:
                _store(judged, found, at)

    def combine(
        self,
        h: Array,
        out: Array,
        live: Array | None = None,
        branch: int = 1,
        bias: Array | None = None,
    ) -> None:
        """Write ``h @ w + bias`` over live units; as :meth:`prunus.engines.base.Engine.combine`."""
        every = [] if live is None else list(spans(len(self), self.span, live, branch))
        total = Total(out, bias, len(every) == 1)
        for part, rows in self.panels() if live is None else self.chunks(every):
            total.add(part.of(h), rows, part.live, branch)
        total.finish()

    def contribute_again(self, h: Array, out: Array, live: Array, bias: Array | None, wrong: Array) -> None:
        """Compute some rows of ``h @ w.T + bias`` with their live units (rows, units) only, in one pass."""
        for first, rows in self.stream():
            at = slice(first, first + len(rows))
            for row in wrong:
                units = np.flatnonzero(live[row])
                engines.active().dots(
                    h[row : row + 1, units],
                    np.ascontiguousarray(rows[:, units]),
                    out[row : row + 1, at],
                    None,
                    1,
                    None if bias is None else bias[at],
                )


class Total:
    """Sums that go on from span to span, in float32, or float64 where anything is of that.

    Parameters
    ----------
    out : ndarray
        The result.
    bias : ndarray, optional
        One value a column.
    alone : bool
        Whether there is one span only: it is computed to the result at once.
    """

    def __init__(self, out: Array, bias: Array | None, alone: bool) -> None:
        self.out, self.bias, self.alone = out, bias, alone
        self.sums: Array | None = None

    def add(self, h: Array, w: Array, live: Array | None, branch: int) -> None:
        """Add ``h @ w`` over live units."""
        engine = engines.active()
        if self.alone:
            engine.combine(h, w, self.out, live, branch, self.bias)
            self.sums = self.out
            return
        if self.sums is None:
            wide = F64 in (h.dtype, w.dtype, self.out.dtype)
            self.sums = np.empty(self.out.shape, F64 if wide else F32)
            engine.combine(h, w, self.sums, live, branch, None)
        else:
            engine.combine(h, w, self.sums, live, branch, None, add=True)

    def finish(self) -> None:
        """Write the result."""
        sums = self.sums
        if sums is self.out:
            return
        if sums is None:
            sums = np.zeros(self.out.shape, F64 if self.out.dtype == F64 else F32)
        with np.errstate(all="ignore"):
            if self.bias is not None:
                sums += self.bias.astype(sums.dtype)
            self.out[...] = sums


def announced(every: list[Span], tables: list[Table]) -> Iterator[None]:
    """Tell the pager of all that will be read; yields once a span.

    At least the next span, of which the pager reads what it has room for, and more as long as that is within
    the tenth of the budget that it sets aside.
    """
    tables = [table for table in tables if table.row_bytes]
    each = sum(-(-table.row_bytes // table.store.page) * table.store.page for table in tables)
    window = min((int(table.store.pager.budget) for table in tables), default=0) // 10
    ahead, told = 0, 0
    for at, part in enumerate(every):
        told = max(told, at)
        fresh = []
        while told < len(every) and (ahead + len(every[told].units) * each <= window or told <= at + 1):
            fresh.append(every[told].units)
            ahead += len(every[told].units) * each
            told += 1
        if fresh:
            units = np.concatenate(fresh)
            for table in tables:
                table.prefetch(units)
        yield
        ahead -= len(part.units) * each


def _part_of(found: Found, at: slice) -> Found:
    """Return where the liveness of some units, whole branches, is written for now."""
    rows, branches = len(found.norms), -(-(at.stop - at.start) // found.branch)
    norms = np.empty((rows, branches), found.norms.dtype)
    live = None if found.live is None else np.empty((rows, branches), bool)
    return found._replace(norms=norms, live=live)


def _store(part: Found, found: Found, at: slice) -> None:
    first = at.start // found.branch
    branches = slice(first, first + part.norms.shape[1])
    found.norms[:, branches] = part.norms
    if found.live is not None and part.live is not None:
        found.live[:, branches] = part.live


def as_table(w: Any, name: str) -> Table:
    """Return weights (units, features) on disk as a table.

    Raises
    ------
    TypeError
        If they are an expression, or no floats.
    ValueError
        If they have no two dimensions, or lie by columns.
    """
    if isinstance(w, Table):
        return w
    if isinstance(w, PagedExpr):
        raise TypeError(f"{name} is an expression over arrays on disk; save it, or call {name}.load()")
    if not isinstance(w, PagedArray):
        raise TypeError(f"{name} must be a dense array, got {type(w).__name__}")
    if w.dtype not in FLOATS:
        raise TypeError(
            f"{name} must hold floats (float32, float64, float16 or bfloat16), got dtype {w.dtype}"
        )
    if w.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (out, in), got shape {w.shape}")
    try:
        return Table.of(w)
    except ValueError:
        raise ValueError(
            f"{name} {w.shape} is stored by columns, and its rows cannot be read one by one: save it "
            f"transposed, or call {name}.load()"
        ) from None
