"""Arrays larger than memory: statistics, a running mean, a sort and a matrix product on a small budget.

A table four times as large as the budget of memory is worked on through NumPy's own calls. Its pages are
read and written with direct I/O, so that nothing else on the machine loses its page cache to it. Beside each
step is the same one on ``numpy.memmap``, which reads through the page cache and takes as much of it as the
table is long.

The table is made up: normal values, each column with a mean and a spread of its own; column 0 is the key.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import prunus as pr

COLUMNS = 64
WINDOW = 100  # rows of the running mean
MiB = 1 << 20


def fill(table: Any, rows: int, panel: int) -> None:
    """Write the table panel by panel: assignment is all it takes."""
    rng = np.random.default_rng(0)
    centre, spread = rng.uniform(-1, 1, COLUMNS), rng.uniform(0.5, 2, COLUMNS)
    for start in range(0, rows, panel):
        count = min(panel, rows - start)
        values = rng.standard_normal((count, COLUMNS)) * spread + centre
        table[start : start + count] = values.astype(np.float32)
    table.flush()


def statistics(table: Any) -> Any:
    """Mean, standard deviation and extremes of each column; asked for together they take one pass."""
    if hasattr(table, "stats"):
        return np.stack(list(table.stats("mean", "std", "min", "max", axis=0).values()))
    return np.stack([table.mean(axis=0), table.std(axis=0), table.min(axis=0), table.max(axis=0)])


def running_mean(table: Any, out: Any, panel: int) -> None:
    """Mean of each row and of those before it, `WINDOW` in all: panels that overlap by a window."""
    for start in range(0, len(table), panel):
        stop = min(start + panel, len(table))
        first = max(start - WINDOW + 1, 0)
        sums = np.cumsum(np.vstack([np.zeros((1, COLUMNS)), table[first:stop]]), axis=0)
        ends = np.arange(start, stop) + 1
        begins = np.maximum(ends - WINDOW, 0)
        means = (sums[ends - first] - sums[begins - first]) / (ends - begins)[:, None]
        out[start:stop] = means.astype(np.float32)
    out.flush()


def sort_by_key(table: Any, scratch: Any, out: Any, panel: int) -> None:
    """Sort rows by column 0: distribute them over buckets, each of which fits into memory, then sort those.

    All reading and writing is of long runs; each row is read twice and written twice.
    """
    buckets = 16
    sample = np.sort(table[: min(panel, len(table)), 0])
    splitters = sample[np.arange(1, buckets) * len(sample) // buckets]
    counts = np.zeros(buckets, np.int64)
    for start in range(0, len(table), panel):  # how many rows each bucket will have
        keys = table[start : start + panel, 0]
        counts += np.bincount(np.searchsorted(splitters, keys, side="right"), minlength=buckets)
    begins = np.concatenate([[0], np.cumsum(counts)])
    filled = begins[:-1].copy()
    for start in range(0, len(table), panel):
        rows = np.asarray(table[start : start + panel])
        bucket = np.searchsorted(splitters, rows[:, 0], side="right")
        for number in np.unique(bucket):
            part = rows[bucket == number]
            scratch[filled[number] : filled[number] + len(part)] = part
            filled[number] += len(part)
    for number in range(buckets):
        rows = np.asarray(scratch[begins[number] : begins[number + 1]])
        out[begins[number] : begins[number + 1]] = rows[np.argsort(rows[:, 0], kind="stable")]
    out.flush()


def product(table: Any, weights: Any) -> Any:
    """Multiply the table by a small matrix."""
    return table @ weights


def cold(*paths: Path) -> None:
    """Take files out of the page cache, where the system has a call for it: both ways start even."""
    if hasattr(os, "posix_fadvise"):
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def difference(mine: Any, its: Any) -> float:
    """Compare two results in memory, relative to the largest value."""
    return float(np.abs(mine - its).max() / np.abs(its).max())


def compare(folder: Path, budget: int, panel: int) -> dict[str, dict[str, float]]:
    """Do each step both ways; returns differences, times, and how much moved between disk and memory."""
    rows = 4 * budget // (COLUMNS * 4)
    shape = (rows, COLUMNS)
    paths = {name: folder / f"{name}.npy" for name in ("table", "scratch", "ours", "spare", "theirs")}
    table = pr.paged.empty(shape, np.float32, paths["table"], budget=budget)
    pager = table.pager  # one budget for all arrays
    scratch, ours = (
        pr.paged.empty(shape, np.float32, paths[name], pager=pager) for name in ("scratch", "ours")
    )
    fill(table, rows, panel)
    mapped = np.load(paths["table"], mmap_mode="r")  # any program can read the file
    spare, theirs = (
        np.lib.format.open_memmap(paths[name], "w+", np.float32, shape) for name in ("spare", "theirs")
    )
    weights = np.random.default_rng(1).standard_normal((COLUMNS, 8), np.float32)
    found: dict[str, dict[str, float]] = {}

    def files_differ(*_: object) -> float:
        theirs.flush()
        written = np.load(paths["ours"], mmap_mode="r")
        parts = range(0, rows, panel)
        return max(float(np.abs(written[i : i + panel] - theirs[i : i + panel]).max()) for i in parts)

    steps: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[Any, Any], float]]] = {
        "statistics": (lambda: statistics(table), lambda: statistics(mapped), difference),
        "running mean": (
            lambda: running_mean(table, ours, panel),
            lambda: running_mean(mapped, theirs, panel),
            files_differ,
        ),
        "sort by key": (
            lambda: sort_by_key(table, scratch, ours, panel),
            lambda: sort_by_key(mapped, spare, theirs, panel),
            files_differ,
        ),
        "product": (lambda: product(table, weights), lambda: product(mapped, weights), difference),
    }
    print(f"a table of {table.nbytes / MiB:.0f} MiB on a budget of {budget / MiB:.0f} MiB")
    print(f"{'':14} {'prunus s':>9} {'memmap s':>9} {'tables moved':>13} {'difference':>11}")
    for name, (paged, memmap, off_by) in steps.items():
        cold(*paths.values())
        before, began = pager.stats(), time.perf_counter()
        mine = paged()
        seconds, after = time.perf_counter() - began, pager.stats()
        cold(*paths.values())
        began = time.perf_counter()
        its = memmap()
        others = time.perf_counter() - began
        moved = sum(after[key] - before[key] for key in ("bytes_read", "bytes_written")) / table.nbytes
        error = off_by(mine, its)
        found[name] = {"error": error, "moved": moved, "seconds": seconds, "memmap": others}
        print(f"{name:14} {seconds:9.2f} {others:9.2f} {moved:13.2f} {error:11.1e}")
        if name == "sort by key":
            found[name]["sorted"] = float((np.diff(np.load(paths["ours"], mmap_mode="r")[:, 0]) >= 0).all())
    peak = pager.stats()["peak"]
    found["memory"] = {"budget": budget, "table": table.nbytes, "peak": peak}
    print(f"pages in memory at most: {peak / MiB:.1f} MiB")
    for array in (table, scratch, ours):
        array.close()
    return found


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Compare prunus with memmap; ``size`` is "small" or "full"."""
    budget, panel = (2 * MiB, 1 << 10) if size == "small" else (128 * MiB, 1 << 16)
    with tempfile.TemporaryDirectory(prefix="prunus-") as folder:
        return compare(Path(folder), budget, panel)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
