"""How many threads a product may use, as a property of the calling context."""

from __future__ import annotations

import operator
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final, Self

from prunus import _core

__all__ = ["get_num_threads", "num_threads"]

# 0: PRUNUS_NUM_THREADS, else as many as torch uses where prunus.torch is imported, else as there are CPUs.
THREADS: Final[ContextVar[int]] = ContextVar("prunus_threads", default=0)

_LIMIT = 1 << 16


def get_num_threads() -> int:
    """Return the number of threads that products started here use.

    Examples
    --------
    >>> import prunus as pr
    >>> with pr.num_threads(1):
    ...     pr.get_num_threads()
    1
    """
    return THREADS.get() or _core.default_threads()


class num_threads:  # noqa: N801 - reads as a function, as threadpoolctl and torch have it
    """Set the number of threads, for a ``with`` block or from now on.

    The number belongs to the calling context (a thread, an asyncio task): other Python threads keep theirs.
    Results do not depend on it.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If ``n`` is not an integer.
    ValueError
        If ``n`` is below 1 or absurdly large.

    Examples
    --------
    >>> import prunus as pr
    >>> before = pr.get_num_threads()
    >>> with pr.num_threads(2):
    ...     pr.get_num_threads()
    2
    >>> pr.get_num_threads() == before
    True
    """

    __slots__ = ("_n", "_token")

    def __init__(self, n: int) -> None:
        if isinstance(n, bool):
            raise TypeError("num_threads expects an integer, got a bool")
        try:
            count = operator.index(n)
        except TypeError:
            raise TypeError(f"num_threads expects an integer, got {type(n).__name__}") from None
        if not 1 <= count <= _LIMIT:
            raise ValueError(f"num_threads expects a number from 1 to {_LIMIT}, got {count}")
        self._n = count
        # Set at once, so that a plain call works as well; leaving a with block puts the old number back.
        self._token: Token[int] | None = THREADS.set(count)

    def __enter__(self) -> Self:
        if self._token is None:
            self._token = THREADS.set(self._n)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            THREADS.reset(self._token)
            self._token = None

    def __repr__(self) -> str:
        return f"num_threads({self._n})"
