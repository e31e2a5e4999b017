"""Pagers: who holds pages in memory, and how much of it.

A process has one default pager. Its budget is a quarter of the memory that was free when it was first needed
(``MemAvailable``, or what the control group leaves, whichever is less), and at least 64 MiB.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final, SupportsIndex

from prunus import _core
from prunus._errors import PrunusError
from prunus._format import size_text
from prunus.paged.plans import Following, Plan, Recording, follow, record
from prunus.paged.sizes import parse_bytes

__all__ = ["Pager", "default_pager", "new_pager", "panel_of", "parse_bytes", "pick_pager", "set_backend"]

SHARE: Final = 4  # the default budget is the free memory divided by this
_LEAST: Final = 64 << 20
_SECTOR: Final = 4096
_PANEL: Final = 1 << 20
_FALLBACK: Final = 1 << 30  # where the system does not tell what is free
_LOCK: Final = threading.Lock()
_FACES: Final = threading.Lock()  # of its own: default_pager holds the other one
_KNOWN: Final[weakref.WeakValueDictionary[int, Pager]] = weakref.WeakValueDictionary()
_state: dict[str, Any] = {"backend": getattr(_core, "Pager", None), "pager": None}


def free_memory() -> int | None:
    """Return the bytes of memory that this process could still take; None if the system does not tell."""
    free = _available()
    limits = [left for left in map(_left_in, _groups()) if left is not None]
    return min([*([] if free is None else [free]), *limits], default=None)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _groups() -> list[tuple[Path, Path]]:
    """Return the files that hold the limit and the use of memory of each control group this process is in."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    root, found = Path("/sys/fs/cgroup"), []
    for line in lines:
        _, controllers, inside = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # A limit holds for all groups below; inside a container only the last of these exists, at the root.
        path = PurePosixPath(inside.lstrip("/"))
        found += [(base / at / names[0], base / at / names[1]) for at in (path, *path.parents)]
    return found


def _left_in(group: tuple[Path, Path]) -> int | None:
    """Return what a control group's limit leaves, page cache not counted; None if there is no limit."""
    try:
        limit = int(group[0].read_text(encoding="ascii"))
        used = int(group[1].read_text(encoding="ascii"))
        stat = (group[0].parent / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # "max" is no number
        return None
    counts = dict(line.split() for line in stat if len(line.split()) == 2)
    cache = int(counts.get("inactive_file", 0))
    return max(limit - max(used - cache, 0), 0)


def default_budget() -> int:
    """Return the budget of the default pager in bytes: a quarter of the free memory, at least 64 MiB."""
    free = free_memory()
    return _FALLBACK if free is None else max(free // SHARE, _LEAST)


def set_backend(backend: Callable[..., Any] | None) -> None:
    """Make ``backend(budget)`` the class of pagers; None is the compiled one. For tests."""
    with _LOCK:
        _state["backend"] = getattr(_core, "Pager", None) if backend is None else backend
        _state["pager"] = None


def new_pager(budget: int, io: str | None = None, depth: int | None = None) -> Any:
    """Return a pager of its own with a budget in bytes.

    Parameters
    ----------
    budget : int
        Bytes of memory that pages may take.
    io : {"io_uring", "direct", "buffered"}, optional
        Pins the I/O engine; otherwise the best that works is chosen for each file.
    depth : int, optional
        How many requests are in flight at most.

    Raises
    ------
    MemoryError
        If there is no memory for the budget.
    """
    backend = _state["backend"]
    if backend is None:
        raise PrunusError("this build has no pager: prunus._core.Pager is missing")
    more = {key: value for key, value in (("io", io), ("depth", depth)) if value is not None}
    try:
        return backend(budget, **more)
    except MemoryError as error:
        free = free_memory()
        has = "" if free is None else f", about {size_text(free)} are free"
        raise MemoryError(
            f"there is no memory for a budget of {size_text(budget)}{has}: choose a smaller budget"
        ) from error


def default_pager() -> Pager:
    """Return the process's shared pager; its budget is settled at first use.

    That is a quarter of the memory that is free then, and at least 64 MiB.
    """
    with _LOCK:
        if _state["pager"] is None:
            _state["pager"] = Pager.of(new_pager(default_budget()))
        found: Pager = _state["pager"]
        return found


def panel_of(pager: Any) -> int:
    """Return the bytes of a panel for streams through a pager: 1 MiB, or less of a small budget."""
    share = int(pager.budget) // 32 // _SECTOR * _SECTOR
    return max(min(_PANEL, share), _SECTOR)


def pick_pager(budget: SupportsIndex | str | None, pager: Any) -> Any:
    """Return the pager that a call's ``budget=`` and ``pager=`` mean, as it was compiled.

    Raises
    ------
    ValueError
        If both are given, or the budget is no number of bytes.
    """
    if pager is None:
        return default_pager()._pager if budget is None else new_pager(parse_bytes(budget))
    if budget is not None:
        raise ValueError("budget= makes a new pager and pager= names one: expected only one of them")
    return compiled(pager)


def compiled(pager: Any) -> Any:
    """Return what a :class:`Pager` holds; stores and files know that alone."""
    return pager._pager if isinstance(pager, Pager) else pager


class Pager:
    """A budget of memory that files share: ``pr.open(path, pager=pager)``.

    Parameters
    ----------
    budget : int or str, optional
        Bytes of memory for pages, such as ``"512 MiB"``; a quarter of the free memory by default.
    io : {"io_uring", "direct", "buffered"}, optional
        Pins the I/O engine.
    depth : int, optional
        How many requests are in flight at most.
    """

    __slots__ = ("__weakref__", "_pager")

    def __init__(
        self, budget: SupportsIndex | str | None = None, io: str | None = None, depth: int | None = None
    ) -> None:
        self._pager = new_pager(default_budget() if budget is None else parse_bytes(budget), io, depth)
        _KNOWN[id(self._pager)] = self

    @classmethod
    def of(cls, pager: Any) -> Pager:
        """Return the one object of this class that stands for a compiled pager."""
        if isinstance(pager, cls):
            return pager
        with _FACES:
            found = _KNOWN.get(id(pager))
            if found is None:
                found = cls.__new__(cls)
                found._pager = pager  # held, so that its id is no other's while this object lives
                _KNOWN[id(pager)] = found
            return found

    def open(self, path: str | os.PathLike[str], mode: str = "r", size: int = 0) -> Any:
        """Return an open file, as :func:`prunus.paged.from_file` takes one.

        Parameters
        ----------
        path : path
            The file.
        mode : {"r", "r+", "w+", "x+"}
            As in Python; the last two make a file of ``size`` bytes.
        size : int
            Bytes of a new file.

        Raises
        ------
        OSError
            If it cannot be opened.
        """
        return self._pager.open(path, mode, size)

    @property
    def budget(self) -> int:
        """Bytes of memory for pages."""
        return int(self._pager.budget)

    def flush(self) -> None:
        """Write back all pages that were changed, and wait until they are on the disk."""
        self._pager.flush()

    def stats(self) -> dict[str, int | float]:
        """Return counts since the pager was made: hits, misses, bytes read and written, and others."""
        return dict(self._pager.stats())

    def record(self) -> Recording:
        """Record what arrays of this pager read: ``with pager.record() as plan``; see :func:`record`."""
        return record(self)

    def follow(self, plan: Plan) -> Following:
        """Fetch what a plan says comes next while the same calls run again; see :func:`follow`."""
        return follow(plan, self)

    def __repr__(self) -> str:
        from prunus._format import size_text

        return f"<prunus.paged.Pager with a budget of {size_text(self.budget)}>"
