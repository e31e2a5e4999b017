"""Times of the device: replays of CUDA graphs between events, in interleaved rounds, with cold caches."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from prunus.cuda.runtime import Place
from prunus.cuda.versions import libraries

__all__ = ["Call", "DeviceTimer", "HostTimer", "Timed", "Timer", "captured", "refusing_to_wait", "timer_of"]

Call = Callable[[], Any]

# Seconds that the rounds of one contestant may take, and how many there are at least.
_SECONDS: Final = 0.03
_LEAST: Final = 3
# What is read to push everything else out of the second-level cache: several times its size, and enough to
# keep the device busy while the host launches what is timed.
_FLUSH: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class Timed:
    """What the rounds of one contestant took.

    Attributes
    ----------
    seconds : tuple of float
        Of one call, a value for each round.
    how : str
        See :attr:`prunus.bench.gpu.record.Row.how`.
    """

    seconds: tuple[float, ...]
    how: str

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)


class Timer(Protocol):
    """What measures."""

    def race(self, entries: Mapping[int, Sequence[Call]], rounds: int) -> dict[int, Timed]:
        """Time contestants in turn.

        Parameters
        ----------
        entries : mapping
            By contestant, calls that do the same on operands of their own; each was called before.
        rounds : int
            At most so many; fewer for calls that take long.
        """
        ...

    def host(self, call: Call, rounds: int) -> Timed:
        """Time how long the host takes to make a call, which the device may still be working on."""
        ...


class HostTimer:
    """Times by the host's clock: where kernels are interpreted, calls return when they are done."""

    def race(self, entries: Mapping[int, Sequence[Call]], rounds: int) -> dict[int, Timed]:
        """See :meth:`Timer.race`."""
        times: dict[int, list[float]] = {name: [] for name in entries}
        for _ in range(rounds):
            for name, calls in entries.items():
                times[name].append(self._once(calls))
        return {name: Timed(tuple(seconds), "host") for name, seconds in times.items()}

    def host(self, call: Call, rounds: int) -> Timed:
        """See :meth:`Timer.host`."""
        return Timed(tuple(self._once([call]) for _ in range(rounds)), "host")

    @staticmethod
    def _once(calls: Sequence[Call]) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)


def captured(body: Call) -> tuple[Any, Any]:
    """Return a CUDA graph of what a function launches, and what the function returned.

    Raises
    ------
    Exception
        What the function raises, or CUDA where it launched what cannot be captured.
    """
    cuda = libraries().torch.cuda
    stream = cuda.current_stream()
    graph = cuda.CUDAGraph()
    try:
        with cuda.graph(graph):
            result = body()
    except BaseException:
        # torch may leave its own stream current where a capture fails.
        cuda.set_stream(stream)
        raise
    return graph, result


@contextlib.contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Have torch raise where it would wait for the device."""
    cuda = libraries().torch.cuda
    before = cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            cuda.set_sync_debug_mode(before)


class _Prepared:
    """Calls of one contestant, captured in a graph where that can be."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.graph: Any = None
        self.how = "events"
        cuda = libraries().torch.cuda
        cuda.synchronize()
        start = time.perf_counter()
        kept = self._all()
        self.host = time.perf_counter() - start
        cuda.synchronize()
        del kept
        # What waits for the device cannot be captured, and a capture that fails is trouble: it is not tried.
        with contextlib.suppress(Exception):
            with refusing_to_wait():
                calls[0]()
            # Results stay, so that each call has memory of its own to write to.
            graph, self._kept = captured(self._all)
            graph.replay()
            cuda.synchronize()
            self.graph, self.how = graph, "graph"
        cuda.synchronize()

    def _all(self) -> list[Any]:
        return [call() for call in self.calls]

    def run(self) -> None:
        """Do it, without waiting."""
        if self.graph is not None:
            self.graph.replay()
        else:
            for call in self.calls:
                call()


class DeviceTimer:
    """Times of a GPU.

    A round replays a graph that holds one call for each set of operands, between two events, after the
    second-level cache was filled with something else. So launches leave no gaps, and calls find nothing in
    the cache that their own set did not bring. What cannot be captured is called between events, while the
    device is kept busy for as long as the host takes to launch.

    Parameters
    ----------
    where : Place
        Which GPU.
    """

    def __init__(self, where: Place) -> None:
        self._torch = libraries().torch
        # torch collects garbage before each capture: what there is until now need not be looked at again.
        gc.collect()
        gc.freeze()
        # Random values: what is all zeros may be compressed on its way.
        values = {"dtype": self._torch.int32, "device": where.device}
        self._buffer = self._torch.randint(1, 100, (_FLUSH // 4,), **values)
        self._sum = self._torch.empty((), dtype=self._torch.int64, device=where.device)
        self._flush(1)
        self._torch.cuda.synchronize()
        start = time.perf_counter()
        self._flush(10)
        self._torch.cuda.synchronize()
        self._each = (time.perf_counter() - start) / 10

    def _flush(self, times: int) -> None:
        for _ in range(times):
            # Reading, not writing: dirty lines would still be on their way to memory during the timed call.
            self._torch.sum(self._buffer, dim=0, out=self._sum)

    def race(self, entries: Mapping[int, Sequence[Call]], rounds: int) -> dict[int, Timed]:
        """See :meth:`Timer.race`."""
        ready = {name: _Prepared(calls) for name, calls in entries.items()}
        first = {name: self._once(one) for name, one in ready.items()}
        limits = {
            name: min(max(int(_SECONDS / max(seconds, 1e-7)), _LEAST), rounds)
            for name, seconds in first.items()
        }
        times: dict[int, list[float]] = {name: [] for name in entries}
        names = list(entries)
        for turn in range(max(limits.values(), default=0)):
            # Each round begins with another one: nobody always runs in the wake of the same rival.
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                if turn < limits[name]:
                    times[name].append(self._once(ready[name]) / len(ready[name].calls))
        return {name: Timed(tuple(seconds), ready[name].how) for name, seconds in times.items()}

    def _once(self, one: _Prepared) -> float:
        cuda = self._torch.cuda
        start, stop = (cuda.Event(enable_timing=True) for _ in range(2))
        self._flush(1 if one.graph is not None else 1 + int(1.5 * one.host / self._each))
        start.record()
        one.run()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e-3

    def host(self, call: Call, rounds: int) -> Timed:
        """See :meth:`Timer.host`."""
        calls = 200
        seconds = []
        for _ in range(rounds):
            self._torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds.append((time.perf_counter() - start) / calls)
            self._torch.cuda.synchronize()
        return Timed(tuple(seconds), "host")


def timer_of(where: Place) -> Timer:
    """Return what measures at a place."""
    return HostTimer() if where.interpreted else DeviceTimer(where)
