"""The registry of engines, and which one the calling context uses."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final

from prunus._errors import PrunusError
from prunus.engines.base import Blocks, Engine, Found
from prunus.engines.cpu import CpuEngine
from prunus.engines.reference import ReferenceEngine

__all__ = ["Blocks", "Engine", "Found", "active", "device", "names", "register"]

CPU: Final[Engine] = CpuEngine()

# Kept None while nothing is chosen, so that the fast path of a product is one comparison away.
ACTIVE: Final[ContextVar[Engine | None]] = ContextVar("prunus_engine", default=None)

_MAKERS: Final[dict[str, Callable[[], Engine]]] = {"cpu": lambda: CPU, "reference": ReferenceEngine}


def register(name: str, make: Callable[[], Engine]) -> None:
    """Make an engine available to :func:`device` under ``name``.

    Parameters
    ----------
    name : str
        What callers pass to ``device``.
    make : callable
        Called once for every ``with device(name)``; returns the engine.
    """
    _MAKERS[name] = make


def names() -> list[str]:
    """Return the names that :func:`device` takes, sorted."""
    return sorted(_MAKERS)


def active() -> Engine:
    """Return the engine that products started here run on."""
    return ACTIVE.get() or CPU


def make(name: str) -> Engine:
    """Return the engine called ``name``.

    Raises
    ------
    PrunusError
        If there is none.
    """
    if not isinstance(name, str):
        raise TypeError(f"an engine is chosen by its name, got {type(name).__name__}")
    try:
        return _MAKERS[name]()
    except KeyError:
        raise PrunusError(f"no device {name!r}: this build has {', '.join(names())}") from None


class device:  # noqa: N801 - a context manager that reads as a function
    """Run the products of a ``with`` block on a named engine.

    Parameters
    ----------
    name : str
        One of :func:`prunus.engines.names`.

    Raises
    ------
    PrunusError
        If there is no engine of that name; the message lists those there are.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> W = pr.BSR(np.eye(4, dtype=np.float32), blocksize=2)
    >>> with pr.device("reference"):
    ...     float((W @ np.ones(4, np.float32)).sum())
    4.0
    """

    __slots__ = ("_engine", "_tokens")

    def __init__(self, name: str) -> None:
        self._engine = make(name)
        self._tokens: list[Token[Engine | None]] = []

    def __enter__(self) -> Engine:
        # The CPU is what an unset variable means, and the quickest to find.
        self._tokens.append(ACTIVE.set(None if self._engine is CPU else self._engine))
        return self._engine

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ACTIVE.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"device({self._engine.name!r})"
