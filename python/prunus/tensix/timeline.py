"""What the threads of cores did, and files of it for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Final

from prunus.tensix.cores import Core
from prunus.tensix.mesh import ChipAt

if TYPE_CHECKING:
    from prunus.tensix.report import Operation

__all__ = ["MOST", "THREADS", "Interval", "Timeline", "save"]

#: Threads of a core. The last three run the compute kernel.
THREADS: Final = ("data movement 0", "data movement 1", "unpack", "math", "pack")
#: Intervals that a run records where the caller does not say how many.
MOST: Final = 1 << 20


@dataclass(frozen=True)
class Interval:
    """A stretch of a thread's time.

    Attributes
    ----------
    core : tuple of int
        Logical coordinates.
    chip : tuple of int
        Row and column of its chip in a mesh.
    thread : str
        One of "data movement 0", "data movement 1", "unpack", "math" and "pack".
    kernel : str
        Name of the kernel that runs on it.
    what : str
        The call, with its circular buffer or semaphore. Math also waits for "operands", unpack for "source
        registers".
    waits : bool
        The thread waited; else it worked.
    calls : int
        Equal calls in a row that it stands for.
    start, end : float
        Cycles since the run began.
    busy : float
        Cycles of them in which the thread or its unit worked.
    """

    core: Core
    chip: ChipAt
    thread: str
    kernel: str
    what: str
    waits: bool
    calls: int
    start: float
    end: float
    busy: float


class Timeline:
    """The intervals of a run: a sequence of :class:`Interval`, in order for each thread."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._columns = {
            name: found[name] for name in ("core", "thread", "label", "calls", "start", "end", "busy")
        }
        self._labels: list[tuple[str, bool]] = found["labels"]
        self._places: dict[int, tuple[Core, ChipAt]] = dict(found["places"])
        self._kernels = {(core, thread): name for core, thread, name in found["kernels"]}
        self._dropped: int = found["dropped"]

    @property
    def dropped(self) -> int:
        """Intervals for which there was no room."""
        return self._dropped

    @property
    def cores(self) -> list[Core]:
        """Cores that have a kernel; in a mesh there may be several with the same coordinates."""
        return [core for core, _ in self._places.values()]

    @property
    def places(self) -> list[tuple[ChipAt, Core]]:
        """Chip and core, where there is a kernel."""
        return [(chip, core) for core, chip in self._places.values()]

    def __len__(self) -> int:
        return len(self._columns["start"])

    def __iter__(self) -> Iterator[Interval]:
        columns = [column.tolist() for column in self._columns.values()]
        for core, thread, label, calls, start, end, busy in zip(*columns, strict=True):
            what, waits = self._labels[label]
            # Unpack, math and pack run one kernel, which is entered for the first of them.
            kernel = self._kernels[core, min(thread, 2)]
            at = self._places[core]
            yield Interval(*at, THREADS[thread], kernel, what, waits, calls, start, end, busy)

    def __repr__(self) -> str:
        more = f", {self._dropped} dropped" if self._dropped else ""
        return f"<Timeline of {len(self._places)} cores: {len(self)} intervals{more}>"


def save(path: str | PathLike[str], operations: Sequence[Operation]) -> None:
    """Write operations and their timelines as Chrome trace events."""
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ns", "traceEvents": [')
        # One at a time: a timeline may have a million.
        for i, event in enumerate(_events(operations)):
            file.write(",\n" if i else "\n")
            json.dump(event, file)
        file.write("\n]}\n")


def _events(operations: Sequence[Operation]) -> Iterator[dict[str, Any]]:
    places = sorted({place for one in operations if one.timeline for place in one.timeline.places})
    processes = {place: number for number, place in enumerate(places, 1)}
    several = len({chip for chip, _ in places}) > 1
    yield _name("process_name", 0, 0, "operations")
    for (chip, core), process in processes.items():
        yield _name("process_name", process, 0, f"chip {chip} core {core}" if several else f"core {core}")
        for thread, called in enumerate(THREADS):
            yield _name("thread_name", process, thread, called)
    begin = 0.0
    for one in operations:
        yield {
            **_span(one.name, "operation", (begin, begin + one.cycles), one.clock_ghz),
            "pid": 0,
            "tid": 0,
            "args": {
                "cycles": one.cycles,
                "flops": one.flops,
                "dram_bytes": one.dram_bytes,
                "noc_bytes": one.noc_bytes,
                "hop_bytes": one.hop_bytes,
                "bound": one.bound,
                "dropped": one.timeline.dropped if one.timeline else 0,
            },
        }
        for interval in one.timeline or ():
            name = f"wait: {interval.what}" if interval.waits else interval.what
            kind = "wait" if interval.waits else "work"
            yield {
                **_span(name, kind, (begin + interval.start, begin + interval.end), one.clock_ghz),
                "pid": processes[interval.chip, interval.core],
                "tid": THREADS.index(interval.thread),
                "args": {
                    "kernel": interval.kernel,
                    "operation": one.name,
                    "calls": interval.calls,
                    "cycles": interval.end - interval.start,
                    "busy_cycles": interval.busy,
                },
            }
        begin += one.cycles


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _span(name: str, kind: str, cycles: tuple[float, float], clock_ghz: float) -> dict[str, Any]:
    """Return the part of an event that says what and when.

    Times are whole nanoseconds, which is what Perfetto keeps: ends that are rounded with the next one's
    start do not make intervals overlap.
    """
    start, end = (round(at / clock_ghz) for at in cycles)
    return {"name": name, "cat": kind, "ph": "X", "ts": start / 1e3, "dur": (end - start) / 1e3}
