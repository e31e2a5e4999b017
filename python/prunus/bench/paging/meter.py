"""What a process uses while it runs: resident memory, processor time, bytes from the drive (Linux)."""

import gc
import re
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunus.bench.paging.sample import Sample

__all__ = ["Meter", "fields"]

_SELF = Path("/proc/self")


def fields(text: str) -> dict[str, int]:
    r"""Read ``name: number`` lines, as /proc has them; ``kB`` are turned into bytes.

    Examples
    --------
    >>> fields("VmHWM:\t   12 kB\nName:\tpython")
    {'VmHWM': 12288}
    """
    found = {}
    for name, number, unit in re.findall(r"^(\w+):\s+(\d+)(?: (kB))?\s*$", text, re.MULTILINE):
        found[name] = int(number) * (1024 if unit else 1)
    return found


def _status() -> dict[str, int]:
    return fields((_SELF / "status").read_text())


def _io() -> dict[str, int]:
    try:
        return fields((_SELF / "io").read_text())
    except OSError:  # kernels without task accounting, and hardened ones
        return {}


class Meter:
    """Measures one run in a process that does nothing else.

    Make it when everything is imported and before a file is open: from here on memory counts. Calls whose
    time counts go into `timed`.

    Attributes
    ----------
    seconds : float
        Wall time so far.
    read, written : int
        Bytes between the drive and this process so far.
    """

    def __init__(self) -> None:
        gc.collect()
        with suppress(OSError):  # forget the peak: importing takes more than what stays
            (_SELF / "clear_refs").write_text("5")
        self._start = _status()["VmRSS"]
        self.seconds = 0.0
        self._cpu = 0.0
        self._pager: dict[str, float] = {}
        self.read = 0
        self.written = 0

    @contextmanager
    def timed(self, pager: Any = None) -> Iterator[None]:
        """Count what happens inside; may be entered several times.

        Parameters
        ----------
        pager : Pager, optional
            Whose requests are counted.
        """
        stats = dict(pager.stats()) if pager is not None else {}
        io, usage = _io(), resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._cpu += used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime
        now = _io()
        moved = [now.get(name, 0) - io.get(name, 0) for name in ("read_bytes", "write_bytes")]
        if pager is not None:
            after = dict(pager.stats())
            self._count(stats, after)
            # The larger of what the kernel and the pager counted: neither can be forgotten.
            for side, name in enumerate(("bytes_read", "bytes_written")):
                moved[side] = max(moved[side], int(after[name] - stats[name]))
        self.read += moved[0]
        self.written += moved[1]

    def _count(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        for name in ("requests", "calls"):
            self._pager[name] = self._pager.get(name, 0) + after.get(name, 0) - before.get(name, 0)
        # A mean over all requests so far: take out the part of those before.
        weights = [stats.get("requests", 0) for stats in (before, after)]
        depths = [stats.get("mean_depth", 0.0) for stats in (before, after)]
        busy = weights[1] * depths[1] - weights[0] * depths[0]
        self._pager["busy"] = self._pager.get("busy", 0.0) + busy

    def sample(
        self,
        used: int,
        blocks: int,
        engine: str,
        results: int = 0,
        series: dict[str, list[float]] | None = None,
    ) -> Sample:
        """Return what was found.

        Parameters
        ----------
        used, blocks : int
            Bytes and blocks that the caller asked for.
        engine : str
            How the file was read.
        results : int
            Bytes of results that the caller holds, which are no memory of the pager's.
        series : dict, optional
            What else was counted.
        """
        pager = self._pager
        requests = int(pager.get("requests", 0))
        return Sample(
            seconds=self.seconds,
            used=used,
            read=self.read,
            written=self.written,
            blocks=blocks,
            requests=requests,
            calls=int(pager.get("calls", 0)),
            depth=pager.get("busy", 0.0) / requests if requests else 0.0,
            cpu=self._cpu,
            memory=max(_status()["VmHWM"] - self._start - results, 0),
            engine=engine,
            series=dict(series or {}),
        )
