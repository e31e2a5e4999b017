"""The same work by NumPy's memory maps and by TensorStore, in a process of their own."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from prunus._dtypes import Array
from prunus.bench.machine import optional
from prunus.bench.paging.meter import Meter
from prunus.bench.paging.sample import Sample
from prunus.bench.paging.tasks import (
    Arguments,
    Task,
    batches,
    check_product,
    check_rows,
    check_sum,
    chosen,
    operand,
)
from prunus.bench.peers import WrongResultError

__all__ = ["TASKS", "tensorstore_missing"]

# Rows of a panel, in bytes: what a careful user of a map takes at a time.
_PANEL = 64 << 20
_CHUNK = 4 << 20


def _map(arguments: Arguments) -> Array:
    found: Array = np.load(arguments["path"], mmap_mode="r")
    return found


def memmap_scan(arguments: Arguments, meter: Meter) -> Sample:
    """Sum a map."""
    a = _map(arguments)
    with meter.timed():
        total = float(a.sum())
    check_sum(total, arguments)
    return meter.sample(a.nbytes, a.nbytes >> 20, "memmap")


def memmap_random(arguments: Arguments, meter: Meter) -> Sample:
    """Read ``a[rows]`` of a map, until all are read or the time is over."""
    a = _map(arguments)
    rows = chosen(arguments, len(a))
    done = 0
    with meter.timed():
        end = time.perf_counter() + arguments["seconds"]
        # Smaller parts than prunus gets, so that the time can be kept: a map reads one row at a time anyway.
        for part in batches(rows, a.shape[1] * 4 * 16):
            found = a[part]
            done += len(part)
            if time.perf_counter() > end:
                break
    check_rows(arguments["path"], part, found)
    return meter.sample(done * a.shape[1] * 4, done, "memmap", found.nbytes)


def memmap_product(arguments: Arguments, meter: Meter) -> Sample:
    """Multiply a map, handed to the BLAS as it is: ``a @ x``."""
    a = _map(arguments)
    x = operand(a.shape[1], arguments["columns"])
    with meter.timed():
        y = a @ x
    check_product(arguments["path"], x, y)
    return meter.sample(a.nbytes, a.nbytes >> 20, "memmap", x.nbytes + y.nbytes)


def tensorstore_missing() -> str:
    """Return why TensorStore takes no part, or "" if it does."""
    return "" if optional("tensorstore") is not None else "tensorstore is not installed"


def _store(arguments: Arguments, mode: str, **more: Any) -> Any:
    module: Any = optional("tensorstore")
    specification = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": arguments["store"]},
        "context": {
            "file_io_mode": {"mode": mode},
            "file_io_concurrency": {"limit": 32},
            "file_io_sync": False,
            "cache_pool": {"total_bytes_limit": 0},
        },
    }
    return module.open(specification, **more).result()


def tensorstore_make(arguments: Arguments, meter: Meter) -> Sample:
    """Copy the first values of the file to a zarr array, uncompressed; once."""
    module: Any = optional("tensorstore")
    count = arguments["values"]
    flat = _map(arguments).reshape(-1)[:count]
    if not (Path(arguments["store"]) / "zarr.json").exists():
        store = _store(
            arguments,
            "default",
            create=True,
            dtype=module.float32,
            shape=[count],
            chunk_layout=module.ChunkLayout(chunk_shape=[_CHUNK // 4]),
        )
        for start in range(0, count, _PANEL // 4):
            stop = min(start + _PANEL // 4, count)
            store[start:stop].write(flat[start:stop]).result()
    total = 0.0
    for start in range(0, count, _PANEL // 4):
        total += float(flat[start : min(start + _PANEL // 4, count)].sum(dtype=np.float64))
    return meter.sample(count * 4, 0, "tensorstore", 0, {"total": [total]})


def tensorstore_scan(arguments: Arguments, meter: Meter) -> Sample:
    """Sum the zarr array in panels, the next one on its way while one is summed."""
    store = _store(arguments, arguments["mode"], open=True, read=True)
    count = store.shape[0]
    step = _PANEL // 4
    with meter.timed():
        total = 0.0
        ahead = [store[start : min(start + step, count)].read() for start in (0, step) if start < count]
        for start in range(0, count, step):
            panel = ahead.pop(0).result()
            after = start + 2 * step
            if after < count:
                ahead.append(store[after : min(after + step, count)].read())
            total += float(panel.sum())
    if not abs(total - arguments["total"]) <= 1e-5 * arguments["total"]:
        raise WrongResultError(f"tensorstore: sum {total!r} instead of {arguments['total']!r}")
    return meter.sample(count * 4, count * 4 >> 20, f"tensorstore {arguments['mode']}")


TASKS: dict[str, Task] = {
    "memmap scan": memmap_scan,
    "memmap random": memmap_random,
    "memmap product": memmap_product,
    "tensorstore make": tensorstore_make,
    "tensorstore scan": tensorstore_scan,
}
