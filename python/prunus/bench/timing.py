"""Fair timing of rivals in one process: interleaved rounds, medians, and caches flushed on request."""

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from prunus._config import cores

__all__ = ["CacheFlush", "Timing", "interleave", "time_loop"]

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Timing:
    """What one contestant's rounds took.

    Attributes
    ----------
    seconds : tuple of float
        One time for each round, in the order they were run.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """Fastest round, in seconds."""
        return min(self.seconds)


class CacheFlush:
    """Pushes everything else out of the caches by reading a buffer that is larger than they are.

    Reading, not writing: dirty lines would still be on their way to memory during the call that is timed.
    One thread for each core reads its own part, so that the private caches of all cores are flushed.

    Parameters
    ----------
    last_level : int
        Bytes of the last-level cache; the buffer is twice that, and never below 64 MiB.
    threads : int, optional
        Number of reading threads; one for each core by default.
    """

    def __init__(self, last_level: int, threads: int | None = None) -> None:
        count = cores() if threads is None else threads
        # Touched with a value that is not zero: untouched pages would all map to one page of zeros.
        self._buffer = np.ones(max(2 * last_level, 64 << 20) // 8, np.int64)
        self._parts = np.array_split(self._buffer, count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="prunus-flush") if count > 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes that one flush reads."""
        return self._buffer.nbytes

    def __call__(self) -> None:
        """Flush: returns when every part has been read."""
        if self._pool is None:
            np.add.reduce(self._buffer)
        else:
            # NumPy releases the GIL in a reduction, so the parts are read at the same time.
            for part in self._pool.map(np.add.reduce, self._parts):
                del part

    def close(self) -> None:
        """Stop the reading threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _spin(seconds: float) -> None:
    """Wait without giving the core away, so that its clock does not fall."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def interleave(
    calls: Mapping[K, Callable[[], object]],
    rounds: int,
    *,
    limits: Mapping[K, int] | None = None,
    before: Callable[[], None] | None = None,
    settle: float = 0.0,
    tick: Callable[[K], None] | None = None,
) -> dict[K, Timing]:
    """Time rivals in turn, round after round, so that a slow minute of the machine hits all of them.

    Parameters
    ----------
    calls : mapping
        What to time, by contestant. Each is called once a round; call each once before, to warm it up.
    rounds : int
        Number of rounds.
    limits : mapping, optional
        Fewer rounds for the contestants named here.
    before : callable, optional
        Called before every timed call, for instance a `CacheFlush`.
    settle : float
        Seconds to wait before a timed call. Thread pools of other libraries keep spinning after a call and
        would take a core from whoever comes next.
    tick : callable, optional
        Called with the contestant after each timed call, to show progress.

    Returns
    -------
    dict
        A `Timing` for each contestant.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    names = list(calls)
    times: dict[K, list[float]] = {name: [] for name in names}
    clock = time.perf_counter_ns
    for turn in range(rounds):
        # Each round starts with another contestant: none always runs in the wake of the same rival.
        shift = turn % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            if limits is not None and turn >= limits.get(name, rounds):
                continue
            call = calls[name]
            if settle > 0:
                _spin(settle)
            if before is not None:
                before()
            start = clock()
            result = call()
            stop = clock()
            # Freed outside the timed region: a contestant isn't charged for giving memory back.
            del result
            times[name].append((stop - start) * 1e-9)
            if tick is not None:
                tick(name)
    return {name: Timing(tuple(seconds)) for name, seconds in times.items()}


def time_loop(call: Callable[[], object], seconds: float = 0.02) -> Callable[[], float]:
    """Make a measurement of calls too short for one reading of the clock.

    Parameters
    ----------
    call : callable
        What to time.
    seconds : float
        About how long one measurement runs.

    Returns
    -------
    callable
        Runs `call` often enough to fill `seconds` and returns the mean seconds of one call.
    """
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-7)
    number = max(1, int(seconds / once))

    def measure() -> float:
        start = time.perf_counter_ns()
        for _ in range(number):
            call()
        return (time.perf_counter_ns() - start) * 1e-9 / number

    return measure
