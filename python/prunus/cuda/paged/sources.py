"""Bytes of a file in order, into buffers of any lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from prunus._dtypes import Array
from prunus.cuda.transfer import shared

__all__ = ["InOrder", "RowsInOrder", "copy"]

# Bytes from which torch's threads copy sooner than one does.
_MANY = 1 << 18


class InOrder:
    """Takes bytes one run after the other out of panels that come in whatever sizes.

    Parameters
    ----------
    panels : iterable of ndarray of uint8
        The bytes; a panel is used before the next one is asked for.
    """

    def __init__(self, panels: Iterable[Array]) -> None:
        self._panels: Iterator[Array] = iter(panels)
        self._rest: Array = np.empty(0, np.uint8)

    def take(self, into: Array) -> None:
        """Fill a buffer with the next bytes.

        Raises
        ------
        OSError
            If they cannot be read.
        """
        at = 0
        while at < len(into):
            if not len(self._rest):
                self._rest = next(self._panels)
            size = min(len(into) - at, len(self._rest))
            copy(into[at : at + size], self._rest[:size])
            at, self._rest = at + size, self._rest[size:]


def copy(to: Array, what: Array) -> None:
    """Copy bytes within the host's memory, on several threads where they are many."""
    if to.size < _MANY:
        to[...] = what
    else:
        shared(to).copy_(shared(what))


class RowsInOrder:
    """Takes rows one run after the other out of runs that come in whatever numbers.

    Parameters
    ----------
    runs : iterator of (int, ndarray)
        The first row of each run, and its rows, of contiguous values; a run is used before the next one is
        asked for.
    """

    def __init__(self, runs: Iterator[tuple[int, Array]]) -> None:
        self._runs = runs
        self._rest: Array | None = None

    def take(self, into: Array) -> None:
        """Fill ``into`` (rows, bytes of a row) with the bytes of the next rows.

        Raises
        ------
        OSError
            If they cannot be read.
        """
        at = 0
        while at < len(into):
            if self._rest is None or not len(self._rest):
                self._rest = next(self._runs)[1]
            size = min(len(into) - at, len(self._rest))
            part = self._rest[:size]
            copy(into[at : at + size], part.view(np.uint8) if part.shape[1] else part)
            at, self._rest = at + size, self._rest[size:]
