"""Bytes of a file in order, into buffers of any lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from prunus._dtypes import Array
from prunus.cuda.transfer import shared

__all__ = ["InOrder", "copy"]

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
    if len(to) < _MANY:
        to[...] = what
    else:
        shared(to).copy_(shared(what))
