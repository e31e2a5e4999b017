"""What prunus does in a process of its own; `rivals` has the same for others.

A task takes its arguments, as JSON has them, and a meter; it returns a sample. Results are checked against a
few values that are read from the file in another way.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import prunus as pr
from prunus._dtypes import Array
from prunus.bench.paging.data import HEADER
from prunus.bench.paging.meter import Meter
from prunus.bench.paging.sample import Sample
from prunus.bench.peers import WrongResultError

__all__ = [
    "TASKS",
    "Arguments",
    "Task",
    "batches",
    "check_product",
    "check_rows",
    "check_sum",
    "chosen",
    "engine_of",
    "operand",
]

Arguments = dict[str, Any]
Task = Callable[[Arguments, Meter], Sample]

# Bytes of rows that are asked for at a time: what a caller would hold.
_BATCH = 16 << 20
# Of a set that is revisited: 64 blocks of 64 KiB.
_SMALL_BATCH = 4 << 20
_CHECKED = 8
# Of a matrix in memory: more than caches hold.
_SLAB = 128 << 20
# Sums of float32: NumPy's own, in pairs, are this close.
_CLOSE = 1e-5


def chosen(arguments: Arguments, rows: int) -> Array:
    """Return the numbers of some rows, each once, in random order."""
    count = max(int(rows * arguments["share"]), 1)
    numbers: Array = np.random.default_rng(arguments["seed"]).permutation(rows)[:count]
    return numbers


def batches(rows: Array, size: int, batch: int = _BATCH) -> Iterator[Array]:
    """Cut rows of `size` bytes into what is asked for at a time."""
    step = max(batch // size, 1)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _values(path: str, row: int, columns: int) -> Array:
    """Read one row of an .npy file with plain system calls."""
    size = columns * 4
    start = HEADER + row * size
    with open(path, "rb", buffering=0) as file:
        handle = file.fileno()
        os.posix_fadvise(handle, start, size, os.POSIX_FADV_RANDOM)  # no more than this
        found = np.frombuffer(os.pread(handle, size, start), np.float32)
        os.posix_fadvise(handle, start, size, os.POSIX_FADV_DONTNEED)
    return found


def check_sum(found: float, arguments: Arguments) -> None:
    """Compare a sum over the whole file with the one that was taken when it was written."""
    want = arguments["total"]
    if not abs(found - want) <= _CLOSE * abs(want):
        raise WrongResultError(f"sum: {found!r} instead of {want!r}")


def check_rows(path: str, rows: Array, found: Array) -> None:
    """Compare some rows with what plain system calls read."""
    for place in np.linspace(0, len(rows) - 1, _CHECKED).astype(int):
        if not np.array_equal(found[place], _values(path, int(rows[place]), found.shape[1])):
            raise WrongResultError(f"row {rows[place]} is not what the file has")


def check_product(path: str, x: Array, y: Array) -> None:
    """Compare some rows of ``a @ x`` with sums in double precision."""
    wide = x.astype(np.float64)
    for row in np.linspace(0, len(y) - 1, _CHECKED).astype(int):
        want = _values(path, int(row), len(x)).astype(np.float64) @ wide
        if not np.allclose(y[row], want, rtol=1e-4, atol=1e-4 * np.abs(want).max()):
            raise WrongResultError(f"a @ x: row {row} is off by {np.abs(y[row] - want).max():.1e}")


def _open(arguments: Arguments, path: str | None = None, pager: Any = None) -> Any:
    name = arguments["path"] if path is None else path
    if pager is not None:
        return pr.open(name, pager=pager)
    return pr.open(name, budget=arguments["budget"])


def _warm(arguments: Arguments, pager: Any) -> None:
    """Have the pager use all of its memory, by reading another file.

    The first touch of memory costs time that a long-running program pays once; fio touches its buffers before
    it starts its clock. ``fresh`` leaves this out.
    """
    if arguments.get("fresh"):
        return
    file = pager.open(arguments["other"], "r")
    try:
        segment = file.segment(0, file.size, 1 << 16)
        sink = 0
        for _, panel in segment.reader(0, min(file.size, arguments["budget"]), 2 << 20):
            sink += int(panel[0])
        del panel
    finally:
        file.close()


def engine_of(opened: Any) -> str:
    """Return the name of the I/O engine that reads an array, or a file of several."""
    parts = getattr(opened, "_parts", None)
    return str(parts[0].file.engine if parts else opened._store.file.engine)


def scan(arguments: Arguments, meter: Meter) -> Sample:
    """Sum the whole file: ``a.sum()``."""
    a = _open(arguments)
    _warm(arguments, a.pager)
    with meter.timed(a.pager):
        total = float(a.sum())
    check_sum(total, arguments)
    return meter.sample(a.nbytes, a.nbytes >> 20, engine_of(a))


def _read_rows(a: Any, rows: Array) -> Array:
    """Read rows some at a time, fetching the next ones meanwhile; return the last ones."""
    found = np.empty((0, a.shape[1]), np.float32)
    parts = list(batches(rows, a.shape[1] * 4))
    if parts:
        a.prefetch(parts[0])
    for number, part in enumerate(parts):
        if number + 1 < len(parts):
            a.prefetch(parts[number + 1])
        found = a[part]
    return found


def random(arguments: Arguments, meter: Meter) -> Sample:
    """Read ``a[rows]``: rows in random order, each once."""
    a = _open(arguments)
    _warm(arguments, a.pager)
    rows = chosen(arguments, len(a))
    size = a.shape[1] * 4
    with meter.timed(a.pager):
        found = _read_rows(a, rows)
    check_rows(arguments["path"], rows[-len(found) :], found)
    return meter.sample(len(rows) * size, len(rows), engine_of(a), 2 * _BATCH)


def passes(arguments: Arguments, meter: Meter) -> Sample:
    """Read the same random rows several times; ``series`` has bytes read of those used, and rates."""
    a = _open(arguments)
    rows = chosen(arguments, len(a))
    used = len(rows) * a.shape[1] * 4
    read: list[float] = []
    rates: list[float] = []
    for _ in range(arguments["passes"]):
        before, began = meter.read, meter.seconds
        with meter.timed(a.pager):
            for part in batches(rows, a.shape[1] * 4, _SMALL_BATCH):
                found = a[part]
        read.append((meter.read - before) / used)
        rates.append(used / (meter.seconds - began))
    check_rows(arguments["path"], rows[-len(found) :], found)
    series = {"passes": read, "rates": rates}
    return meter.sample(used * len(read), len(rows) * len(read), engine_of(a), 2 * _SMALL_BATCH, series)


def revisit(arguments: Arguments, meter: Meter) -> Sample:
    """Read pages in the order of a trace; ``series["hits"]`` is the share that came from memory."""
    from prunus.bench.paging.revisits import trace

    a = _open(arguments)
    size = a.shape[1] * 4
    pages = np.asarray(trace(arguments["trace"], arguments["budget"] // size), np.int64)
    if pages.max() >= len(a):
        raise ValueError(f"a trace of {pages.max() + 1} pages and a file of {len(a)}")
    with meter.timed(a.pager):
        # One at a time, as the simulated caches are asked.
        for page in pages.tolist():
            found = a[page]
    check_rows(arguments["path"], pages[-1:], found[None])
    hits = 1 - meter.read / (len(pages) * size)
    return meter.sample(len(pages) * size, len(pages), engine_of(a), 0, {"hits": [hits]})


def operand(columns: int, n: int) -> Array:
    """Return what a matrix is multiplied with."""
    rng = np.random.default_rng(3)
    found: Array = rng.standard_normal((columns, n) if n > 1 else columns, np.float32)
    return found


def product(arguments: Arguments, meter: Meter) -> Sample:
    """Multiply: ``a @ x``."""
    a = _open(arguments)
    x = operand(a.shape[1], arguments["columns"])
    _warm(arguments, a.pager)
    with meter.timed(a.pager):
        y = a @ x
    check_product(arguments["path"], x, y)
    return meter.sample(a.nbytes, a.nbytes >> 20, engine_of(a), x.nbytes + y.nbytes)


def product_in_memory(arguments: Arguments, meter: Meter) -> Sample:
    """Multiply a part of the matrix in NumPy; the time is scaled to all of it."""
    rows, columns = arguments["shape"]
    part = max(min(max(arguments["budget"], _SLAB) // (columns * 4), rows), 1)
    a = np.random.default_rng(5).random((part, columns), np.float32)
    x = operand(columns, arguments["columns"])
    y = a @ x
    best = min(_once(meter, partial(np.matmul, a, x, out=y)) for _ in range(3))
    meter.seconds = best * rows / part
    return meter.sample(rows * columns * 4, rows * columns * 4 >> 20, "memory")


def _once(meter: Meter, call: Callable[[], object]) -> float:
    before = meter.seconds
    with meter.timed():
        call()
    return meter.seconds - before


def add(arguments: Arguments, meter: Meter) -> Sample:
    """Do ``np.add(a, 1, out=b)`` and ``b.flush()``, on disk both."""
    whole = _open(arguments)
    b: Any = pr.paged.open(arguments["out"], mode="r+", pager=whole.pager)
    a = whole.rows(0, len(b))
    _warm(arguments, whole.pager)
    with meter.timed(whole.pager):
        np.add(a, 1, out=b)
        b.flush()
    for row in np.linspace(0, len(b) - 1, _CHECKED).astype(int):
        want = _values(arguments["path"], int(row), a.shape[1]) + np.float32(1)
        if not np.array_equal(_values(arguments["out"], int(row), a.shape[1]), want):
            raise WrongResultError(f"np.add: row {row} on disk is not a + 1")
    used = a.nbytes + b.nbytes
    return meter.sample(used, used >> 20, engine_of(a))


TASKS: dict[str, Task] = {
    "scan": scan,
    "random": random,
    "passes": passes,
    "revisit": revisit,
    "product": product,
    "product in memory": product_in_memory,
    "add": add,
}
