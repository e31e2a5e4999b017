"""The registry of engines, and which one the calling context uses."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import wraps
from importlib import import_module
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

import numpy as np

from prunus import _core
from prunus._errors import PrunusError
from prunus.engines.base import Blocks, Engine, Found
from prunus.engines.cpu import CpuEngine
from prunus.engines.reference import ReferenceEngine

__all__ = ["Blocks", "Engine", "Found", "active", "device", "names", "register", "timed"]

CPU: Final[Engine] = CpuEngine()

# A public operation runs, and calls others.
_INSIDE: Final[ContextVar[bool]] = ContextVar("prunus_inside", default=False)

P = ParamSpec("P")
R = TypeVar("R")

# Before the names of simulated chips, and the name of GPUs.
_TENSIX: Final = "tensix:"
_CUDA: Final = "cuda"

# Kept None while nothing is chosen, so that the fast path of a product is one comparison away.
ACTIVE: Final[ContextVar[Engine | None]] = ContextVar("prunus_engine", default=None)

_MAKERS: Final[dict[str, Callable[..., Engine]]] = {"cpu": lambda: CPU, "reference": ReferenceEngine}


def register(name: str, make: Callable[..., Engine]) -> None:
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
    """Return the names that :func:`device` takes, sorted; with simulated chips of the package."""
    cuda = [_CUDA] if import_module("prunus.cuda.runtime").is_usable() else []
    return sorted([*_MAKERS, *cuda, *(f"{_TENSIX}{chip}" for chip in _core.chip_names())])


def active() -> Engine:
    """Return the engine that products started here run on."""
    return ACTIVE.get() or CPU


def make(name: str, **options: Any) -> Engine:
    """Return the engine called ``name``, made with ``options``.

    Raises
    ------
    PrunusError
        If there is none.
    """
    if not isinstance(name, str):
        raise TypeError(f"an engine is chosen by its name, got {type(name).__name__}")
    if name.startswith(_TENSIX):
        # Imported where it is used: most programs never simulate a chip.
        made: Engine = import_module("prunus.tensix.engine").make(name, **options)
        return made
    if options:
        raise TypeError(f"{name} takes no options, got {', '.join(options)}")
    if name == _CUDA or name.startswith(f"{_CUDA}:"):
        gpu: Engine = import_module("prunus.cuda.engine").make(name)
        return gpu
    try:
        return _MAKERS[name]()
    except KeyError:
        raise PrunusError(f"no device {name!r}: this build has {', '.join(names())}") from None


def timed(function: Callable[P, R]) -> Callable[P, R]:
    """Have a public operation return None where the active engine only takes time.

    What it calls itself still gets arrays, and block-sparse results stay: their pattern is what comes next.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        engine = ACTIVE.get()
        if engine is None or engine.computes or _INSIDE.get():
            return function(*args, **kwargs)
        token = _INSIDE.set(True)
        try:
            result = function(*args, **kwargs)
        finally:
            _INSIDE.reset(token)
        hollow = isinstance(result, np.ndarray | tuple)
        return cast(R, None) if hollow else result

    return call


class device:  # noqa: N801 - a context manager that reads as a function
    """Run the products of a ``with`` block on a named engine.

    Parameters
    ----------
    name : str
        One of :func:`prunus.engines.names`; or "tensix:" and the path of a chip's description, ending in
        ".toml".
    **options
        Of a simulated chip: ``mode``, "full" or "timing", and ``mesh``, rows and columns of chips that
        Ethernet joins; see :class:`prunus.tensix.TensixEngine`. Others have none.

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

    def __init__(self, name: str, **options: Any) -> None:
        self._engine = make(name, **options)
        self._tokens: list[Token[Engine | None]] = []

    def __enter__(self) -> Engine:
        # The CPU is what an unset variable means, and the quickest to find.
        self._tokens.append(ACTIVE.set(None if self._engine is CPU else self._engine))
        begin = getattr(self._engine, "entered", None)
        # A block within its own goes on with the report.
        if begin is not None and len(self._tokens) == 1:
            begin()
        return self._engine

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ACTIVE.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"device({self._engine.name!r})"
