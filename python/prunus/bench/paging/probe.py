"""The drive's own rate where fio is not installed: direct reads and writes from as many threads.

Threads that wait in ``preadv`` keep as many requests in flight as an asynchronous engine would; the
interpreter's lock is released while they wait. Held against fio once, by ``bench paging --only probe``.
"""

import errno
import mmap
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from prunus.bench.paging.fio import Job
from prunus.bench.paging.sample import Sample

__all__ = ["run"]


@contextmanager
def _opened(path: str, write: bool) -> Iterator[tuple[int, bool]]:
    """Open a file for direct I/O, or through the page cache where the file system knows no other way."""
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0)
    try:
        file = os.open(path, flags | direct)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        direct, file = 0, os.open(path, flags)
    try:
        yield file, bool(direct)
    finally:
        os.close(file)


def offsets(job: Job) -> list[int]:
    """Return where the requests of a job begin, in order; of "rw" every other one writes."""
    there = job.size // job.block
    count = job.amount // job.block
    if job.pattern == "randread":
        chosen = np.random.default_rng(job.seed).permutation(there)[:count]
        return [int(number) * job.block for number in chosen]
    if job.pattern == "rw":
        return [number // 2 * job.block for number in range(min(count, 2 * there))]
    return [number * job.block for number in range(min(count, there))]


class _Worker(threading.Thread):
    """Takes the next request until there is none."""

    def __init__(self, file: int, todo: Iterator[tuple[int, int]], lock: threading.Lock, job: Job) -> None:
        super().__init__(name="prunus-probe", daemon=True)
        self._file, self._todo, self._lock = file, todo, lock
        self._mixed = job.pattern == "rw"
        # Anonymous maps begin at a page, as direct I/O wants it. What is written is random, so that no drive
        # can take it for less than it is.
        self._buffer = mmap.mmap(-1, job.block)
        self._source = mmap.mmap(-1, job.block if self._mixed else 1)
        self._source.write((os.urandom(1 << 16) * -(-job.block // (1 << 16)))[: len(self._source)])
        self.moved = [0, 0]
        self.waited = 0.0
        self.error: OSError | None = None

    def run(self) -> None:
        into, source = [self._buffer], [self._source]
        try:
            while True:
                with self._lock:
                    number, offset = next(self._todo, (-1, 0))
                if number < 0:
                    return
                write = self._mixed and number % 2 == 1
                began = time.perf_counter()
                moved = (
                    os.pwritev(self._file, source, offset) if write else os.preadv(self._file, into, offset)
                )
                self.waited += time.perf_counter() - began
                if moved != len(self._buffer):
                    raise OSError(errno.EIO, f"{moved} of {len(self._buffer)} bytes at {offset}")
                self.moved[write] += moved
        except OSError as error:
            self.error = error


def run(job: Job) -> Sample:
    """Do a job: the same as `prunus.bench.paging.fio.run` does.

    Raises
    ------
    OSError
        If a request fails or comes back short.
    ValueError
        If the job has no request.
    """
    places = offsets(job)
    if not places:
        raise ValueError(f"{job}: nothing to do")
    with _opened(job.path, job.pattern == "rw") as (file, direct):
        if not direct:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        todo, lock = iter(enumerate(places)), threading.Lock()
        workers = [_Worker(file, todo, lock, job) for _ in range(min(job.depth, len(places)))]
        before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if job.pattern == "rw":
            os.fsync(file)
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF)
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    read, written = (sum(worker.moved[side] for worker in workers) for side in (0, 1))
    return Sample(
        seconds=seconds,
        used=read + written,
        read=read,
        written=written,
        blocks=len(places),
        requests=len(places),
        calls=len(places),
        depth=sum(worker.waited for worker in workers) / max(seconds, 1e-9),
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        engine="probe " + ("direct" if direct else "buffered"),
    )
