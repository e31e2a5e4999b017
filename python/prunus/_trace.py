"""``trace()``: a record of what operations did, and what they did not have to do.

An operation that can report opens a :class:`Span` with :func:`span`. While nobody traces, that is one look
at a context variable, and the span is a constant that is false: counting is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from os import PathLike
from threading import get_ident
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

from prunus import _core
from prunus._table import format_table

__all__ = ["ACTIVE", "Record", "Span", "Trace", "is_traced", "span", "trace"]

# What is summed over the records of a trace.
_COUNTERS = ("flops", "flops_skipped", "bytes_loaded", "bytes_skipped", "bytes_io", "cycles")


class Later:
    """Numbers that a device has: asked for once, when somebody looks at them."""

    __slots__ = ("_ask", "_numbers")

    def __init__(self, ask: Callable[[], Mapping[str, float]]) -> None:
        self._ask: Callable[[], Mapping[str, float]] | None = ask
        self._numbers: Mapping[str, float] = {}

    def numbers(self) -> Mapping[str, float]:
        """Return the numbers, by the names of a record's attributes."""
        if self._ask is not None:
            self._numbers, self._ask = self._ask(), None
        return self._numbers


@dataclass(slots=True)
class Record:
    """One operation, as it happened.

    Attributes
    ----------
    name : str
        The operation: "matmul", "linear", "ffn", ...
    path : str
        How the engine did it, with the SIMD level: "panel avx512", ...; where operands are in files, also
        which I/O engine read them: "panel avx512, io_uring".
    start, seconds : float
        Seconds since the trace began, and for how long.
    depth : int
        0 for what the caller called, 1 for what that called, ...
    thread : int
        Identifier of the Python thread.
    flops, flops_skipped : int
        Multiplications and additions done, and those that a dense product would have done as well. Operations
        inside this one count for themselves.
    bytes_loaded, bytes_skipped : int
        Bytes of weights, keys and values that were read from memory, and those that were left alone.
    bytes_io : int
        Bytes read from storage.
    cycles : int
        Cycles of a simulated device.
    live, total : int
        Branches that were live, and that there were: counted for every row.
    union_live, union_total : int
        Branches that were touched because at least one row of a tile needs them, and those there were.
    """

    name: str
    path: str = ""
    start: float = 0.0
    seconds: float = 0.0
    depth: int = 0
    thread: int = 0
    flops: int = 0
    flops_skipped: int = 0
    bytes_loaded: int = 0
    bytes_skipped: int = 0
    bytes_io: int = 0
    cycles: int = 0
    live: int = 0
    total: int = 0
    union_live: int = 0
    union_total: int = 0
    later: tuple[Later, ...] = field(default=(), repr=False, compare=False)

    def resolve(self) -> Self:
        """Add what was left for later, and return this record."""
        while self.later:
            first, *rest = self.later
            self.later = tuple(rest)
            for name, number in first.numbers().items():
                if name == "seconds":  # in place of what the host took
                    self.seconds = float(number)
                else:
                    setattr(self, name, getattr(self, name) + int(number))
        return self

    @property
    def live_fraction(self) -> float:
        """Share of branches that were live, over all rows; 1 where nothing was decided."""
        return self.live / self.total if self.total else 1.0

    @property
    def union_fraction(self) -> float:
        """Share of branches that had to be touched; 1 where nothing was decided."""
        return self.union_live / self.union_total if self.union_total else 1.0


class Span:
    """An operation in progress. True while somebody traces: only then is anything worth counting."""

    __slots__ = ("_began", "_record", "_token", "_trace")

    def __init__(self, owner: Trace | None, name: str, depth: int = 0) -> None:
        self._trace = owner
        self._record = Record(name, depth=depth)
        self._token: Token[tuple[Trace, int] | None] | None = None
        self._began = 0.0

    def __bool__(self) -> bool:
        return self._trace is not None

    def __enter__(self) -> Self:
        if self._trace is not None:
            self._token = ACTIVE.set((self._trace, self._record.depth + 1))
            self._began = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._trace is None or self._token is None:
            return
        record = self._record
        record.seconds = perf_counter() - self._began
        record.cycles += _CYCLES.get()
        _CYCLES.set(0)
        record.thread = get_ident()
        ACTIVE.reset(self._token)
        self._trace._add(record, self._began)

    def count(self, **numbers: int) -> None:
        """Add to counters of the record by name."""
        for name, number in numbers.items():
            setattr(self._record, name, getattr(self._record, name) + int(number))

    def add(
        self,
        flops: int,
        flops_skipped: int,
        bytes_loaded: int,
        bytes_skipped: int,
        live: int = 0,
        total: int = 0,
        union_live: int = 0,
        union_total: int = 0,
    ) -> None:
        """Add to what every operation counts; quicker than :meth:`count`."""
        record = self._record
        record.flops += flops
        record.flops_skipped += flops_skipped
        record.bytes_loaded += bytes_loaded
        record.bytes_skipped += bytes_skipped
        if total:
            record.live += live
            record.total += total
            record.union_live += union_live
            record.union_total += union_total

    def later(self, ask: Callable[[], Mapping[str, float]]) -> None:
        """Have numbers added when somebody looks at them: what they are is known to a device until then.

        Parameters
        ----------
        ask : callable
            Called once, without arguments; returns numbers by the names that :meth:`count` takes, and
            "seconds" in place of what the host took.
        """
        self._record.later = (*self._record.later, Later(ask))

    def ran(self, engine: str) -> None:
        """Say who did the operation; of the CPU engine, the path that it took last on this thread."""
        self._record.path = _core.last_path() if engine == "cpu" else engine

    def read_by(self, engine: str) -> None:
        """Say which I/O engine read the operands, after who did the operation."""
        path = self._record.path
        self._record.path = f"{path}, {engine}" if path else engine


_OFF: Final = Span(None, "")
# The innermost trace of the calling context and the depth of the next operation.
ACTIVE: Final[ContextVar[tuple[Trace, int] | None]] = ContextVar("prunus_trace", default=None)


# Cycles that a simulated chip took since the last record was made.
_CYCLES: Final[ContextVar[int]] = ContextVar("prunus_cycles", default=0)


def spend(cycles: float) -> None:
    """Count cycles of a simulated chip for the operation that runs, if anybody traces."""
    if ACTIVE.get() is not None:
        _CYCLES.set(_CYCLES.get() + round(cycles))


def span(name: str) -> Span:
    """Return a context manager that times and counts an operation, if anybody traces."""
    at = ACTIVE.get()
    return _OFF if at is None else Span(at[0], name, at[1])


def is_traced() -> bool:
    """Return whether anybody traces."""
    return ACTIVE.get() is not None


class Trace:
    """What :func:`trace` collects. Counters are sums over all records; see :class:`Record` for their units.

    Traces nest: an inner one's records also belong to the outer one. Several threads may report to one trace;
    a thread takes part if it was started with a copy of the context (``contextvars.copy_context().run``).
    """

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._outer: tuple[Trace, int] | None = None
        self._tokens: list[Token[tuple[Trace, int] | None]] = []
        self._began = perf_counter()
        self._ended: float | None = None

    def __enter__(self) -> Self:
        if self._tokens:
            raise RuntimeError("this trace is recording already: nest another one")
        self._outer = ACTIVE.get()
        self._tokens.append(ACTIVE.set((self, 0)))
        # A trace may go on: its clock runs from the first time.
        if self._ended is None:
            self._began = perf_counter()
        self._ended = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = perf_counter()
        ACTIVE.reset(self._tokens.pop())

    @property
    def records(self) -> list[Record]:
        """What was done, in the order in which it ended; looking waits for devices that have not finished."""
        for record in self._records:
            record.resolve()
        return self._records

    def _add(self, record: Record, began: float) -> None:
        record.start = began - self._began
        # No lock: a list's append is atomic, and readers take what is there.
        self._records.append(record)
        if self._outer is not None:
            owner, depth = self._outer
            copy = Record(**{name: getattr(record, name) for name in Record.__slots__})
            copy.depth += depth
            owner._add(copy, began)

    def _sum(self, name: str) -> int:
        return sum(getattr(record, name) for record in self.records)

    @property
    def flops(self) -> int:
        """Multiplications and additions that were done."""
        return self._sum("flops")

    @property
    def flops_skipped(self) -> int:
        """Multiplications and additions that dense operations would have done as well."""
        return self._sum("flops_skipped")

    @property
    def bytes_loaded(self) -> int:
        """Bytes of operands read from memory."""
        return self._sum("bytes_loaded")

    @property
    def bytes_skipped(self) -> int:
        """Bytes of operands that were not read."""
        return self._sum("bytes_skipped")

    @property
    def bytes_io(self) -> int:
        """Bytes read from storage."""
        return self._sum("bytes_io")

    @property
    def cycles(self) -> int:
        """Cycles of simulated devices."""
        return self._sum("cycles")

    @property
    def seconds(self) -> float:
        """Wall-clock seconds in the ``with`` block; until now, while it runs."""
        return (perf_counter() if self._ended is None else self._ended) - self._began

    @property
    def live_fraction(self) -> float:
        """Share of branches that were live, over all rows of all operations; 1 where nothing was decided."""
        total = self._sum("total")
        return self._sum("live") / total if total else 1.0

    @property
    def union_fraction(self) -> float:
        """Share of branches that had to be touched, over all tiles; 1 where nothing was decided."""
        total = self._sum("union_total")
        return self._sum("union_live") / total if total else 1.0

    def table(self) -> str:
        """Return a table with one line an operation, in the order in which they began."""
        rows = [
            [
                "  " * record.depth + record.name,
                record.path,
                f"{record.seconds * 1e3:.3f}",
                _short(record.flops),
                _short(record.flops_skipped),
                _short(record.bytes_loaded + record.bytes_io),
                _short(record.bytes_skipped),
                f"{record.live_fraction:.1%}" if record.total else "",
                f"{record.union_fraction:.1%}" if record.union_total else "",
            ]
            for record in self._ordered()
        ]
        head = ["operation", "path", "ms", "flops", "skipped", "bytes", "skipped", "live", "union"]
        return format_table(head, rows)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draw the live fraction and the time of each operation; needs matplotlib.

        Parameters
        ----------
        path : path-like, optional
            Where to save the picture; its ending says in which format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        from matplotlib.figure import Figure

        records = [record for record in self._ordered() if record.depth == 0]
        labels = [f"{i} {record.name}" for i, record in enumerate(records)]
        figure = Figure(figsize=(8, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        at = list(range(len(records)))
        above.bar([i - 0.2 for i in at], [r.live_fraction for r in records], 0.4, label="live")
        above.bar([i + 0.2 for i in at], [r.union_fraction for r in records], 0.4, label="union")
        above.set(ylabel="share of branches", ylim=(0, 1.05))
        # Beside the axes: bars may be anywhere inside.
        above.legend(loc="upper left", bbox_to_anchor=(1, 1))
        below.bar(at, [r.seconds * 1e3 for r in records])
        below.set(ylabel="ms")
        below.set_xticks(at, labels, rotation=90)
        if path is not None:
            figure.savefig(path)
        return figure

    def save(self, path: str | PathLike[str]) -> None:
        """Write the records as Chrome trace events, which Perfetto and chrome://tracing open.

        Parameters
        ----------
        path : path-like
            File to write, usually ``*.json``.
        """
        events = [
            {
                "name": record.name,
                "cat": record.path or "prunus",
                "ph": "X",
                "ts": record.start * 1e6,
                "dur": record.seconds * 1e6,
                "pid": 0,
                "tid": record.thread,
                "args": {
                    **{name: getattr(record, name) for name in _COUNTERS},
                    "path": record.path,
                    "live_fraction": record.live_fraction,
                    "union_fraction": record.union_fraction,
                },
            }
            for record in self._ordered()
        ]
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)

    def _ordered(self) -> list[Record]:
        return sorted(self.records, key=lambda record: (record.start, record.depth))

    def __repr__(self) -> str:
        return (
            f"<Trace of {len(self.records)} operations, {self.seconds * 1e3:.3f} ms, live "
            f"{self.live_fraction:.1%}, union {self.union_fraction:.1%}>"
        )


def trace() -> Trace:
    """Record what operations do inside a ``with`` block, in this thread and what it starts.

    Returns
    -------
    Trace
        Counters, ``table()``, ``plot()`` and ``save("trace.json")``.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> x, w = np.ones((2, 8), np.float32), np.eye(8, dtype=np.float32)
    >>> with pr.trace() as t:
    ...     h = pr.linear(x, w, activation="relu", prune=pr.Threshold(1.0), branch=2)
    >>> t.live_fraction
    0.0
    """
    return Trace()


def _short(number: int) -> str:
    """Return a number with an SI prefix, as '12.3 M'."""
    if not number:
        return ""
    size = float(number)
    for prefix in ("", "k", "M", "G"):
        if size < 1000:
            return f"{size:.3g} {prefix}".rstrip()
        size /= 1000
    return f"{size:.3g} T"
