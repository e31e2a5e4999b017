"""A run of bytes in a file that holds one array, and the counter that says when it was written."""

from __future__ import annotations

import math
import os
import threading
import weakref
from contextlib import suppress
from typing import Any, Final

import numpy as np

from prunus._dtypes import Array, DType
from prunus._errors import PrunusError
from prunus.paged.plans import ACTIVE

__all__ = ["LARGEST", "SECTOR", "Sink", "Store", "Version", "choose_page"]

SECTOR: Final = 4096
LARGEST: Final = (
    2 << 20
) - 2 * SECTOR  # bytes of a panel of a stream that may begin within a sector, at most
_LARGEST_PAGE: Final = 1 << 20


class Version:
    """How often a run of bytes was written by this process; shared by all who have opened it."""

    __slots__ = ("__weakref__", "value")

    def __init__(self) -> None:
        self.value = 0


_VERSIONS: Final[weakref.WeakValueDictionary[tuple[int, int, int], Version]] = weakref.WeakValueDictionary()
_LOCK: Final = threading.Lock()


def _version(path: bytes, start: int) -> Version:
    try:
        state = os.stat(path)
    except OSError:
        return Version()  # a file without a name: nobody else can open it
    key = (state.st_dev, state.st_ino, start)
    with _LOCK:
        version = _VERSIONS.get(key)
        if version is None:
            version = _VERSIONS[key] = Version()
        return version


def choose_page(shape: tuple[int, ...], dtype: DType, writable: bool, budget: int) -> int:
    """Return the size in bytes of the pages in which an array is read at random places.

    Parameters
    ----------
    shape : tuple of int
        The shape as it is stored, in C order.
    writable : bool
        Pages of writable arrays are whole sectors, so that they can be written in place.
    budget : int
        Bytes of memory of the pager; a page takes at most a sixteenth of it.
    """
    row = math.prod(shape[1:]) * dtype.itemsize
    most = max(min(_LARGEST_PAGE, budget // 16 // SECTOR * SECTOR), SECTOR)
    if row < SECTOR:
        page = SECTOR
    elif row % SECTOR == 0 or not writable:
        unit = SECTOR if row % SECTOR == 0 else 1
        page = row if row <= most else _divisor(row // unit, most // unit) * unit
        if page < SECTOR:
            page = min(16 * SECTOR, most)
    else:
        page = SECTOR if row < 16 * SECTOR else min(4 * SECTOR, most)
    return page


def _divisor(n: int, most: int) -> int:
    """Return the largest divisor of ``n`` that is at most ``most``."""
    best = 1
    for small in range(1, math.isqrt(n) + 1):
        if n % small == 0:
            best = max([best, *(d for d in (small, n // small) if d <= most)])
        if small > 1 << 16:  # what is left to find is not worth the search
            break
    return best


class Store:
    """Bytes ``start`` to ``start + nbytes`` of an open file, seen through the pager.

    Parameters
    ----------
    file : DiskFile
        The open file.
    start : int
        Where the bytes begin.
    nbytes : int
        How many there are.
    page : int
        Bytes of a page in random access.
    writable : bool
        Whether the array may be written.
    name : str
        What messages call it.
    header : int
        Bytes of a .npy header before the data if the file is one such array and nothing else, or 0.
    """

    def __init__(
        self,
        pager: Any,
        file: Any,
        start: int,
        nbytes: int,
        page: int,
        writable: bool,
        name: str,
        header: int = 0,
    ) -> None:
        if start < 0 or start + nbytes > file.size:
            raise PrunusError(
                f"{name or 'the array'} takes bytes {start} to {start + nbytes} of "
                f"{os.fsdecode(file.path)}, which has {file.size}"
            )
        if writable and not file.writable:
            raise ValueError(f"{os.fsdecode(file.path)} was opened for reading only")
        self.pager = pager
        self.file = file
        self.start = start
        self.nbytes = nbytes
        self.page = page
        self.writable = writable
        self.name = name
        self.header = header
        self._segment = file.segment(start, nbytes, page)
        self.version = _version(file.path, start)
        self.lock = threading.RLock()  # held while the file grows

    @property
    def segment(self) -> Any:
        """The bytes as the pager sees them; while reads are recorded or foreseen, they are told of."""
        session = ACTIVE.get()
        return self._segment if session is None else session.watch(self, self._segment)

    def wrote(self) -> None:
        """Note that bytes have changed, or may have."""
        with _LOCK:
            self.version.value += 1

    def grow(self, nbytes: int) -> None:
        """Make the run longer, to ``nbytes``, or shorter again; the file is resized.

        What was written beyond a new end and not flushed is forgotten, also where the disk refused it.
        """
        if nbytes > self.nbytes:
            self.segment.flush()
        self.file.resize(self.start + nbytes)
        self.nbytes = nbytes
        self._segment = self.file.segment(self.start, nbytes, self.page)

    def panel(self, streams: int = 1) -> int:
        """Return how many bytes a panel of one of ``streams`` streams should have."""
        share = int(self.pager.budget) // (16 * max(streams, 1))
        # The sectors that a panel begins and ends in are in its frame too, which has at most 2 MiB.
        most = LARGEST if self.start % SECTOR else 2 << 20
        return max(min(share, most), SECTOR) // SECTOR * SECTOR


class Sink:
    """Writes bytes of any lengths, in order, as the panels of one writer.

    It is a context manager: leaving it waits for all writes, and an error while writing is raised there.
    """

    def __init__(self, store: Store, begin: int, end: int, streams: int = 1) -> None:
        self._writer = store.segment.writer(begin, end, store.panel(streams))
        self._left = end - begin
        self._panel: Array | None = None
        self._at = 0

    def write(self, values: Array) -> None:
        """Append the bytes of a C-contiguous array."""
        raw = values.reshape(-1).view(np.uint8)
        while len(raw):
            if self._panel is None:
                self._panel, self._at = self._writer.panel(), 0
            room = self._panel[self._at : self._at + len(raw)]
            room[...] = raw[: len(room)]
            self._at += len(room)
            raw = raw[len(room) :]
            if self._at == len(self._panel):
                self._panel = None
                self._writer.put()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._panel = None
        if kind is None:
            self._writer.close()
            return
        with suppress(OSError):  # the error that ended the work is the one to tell
            self._writer.close()
