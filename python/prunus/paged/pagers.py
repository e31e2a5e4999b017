"""The pager that arrays use when they are given none."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Final

from prunus import _core
from prunus._errors import PrunusError

__all__ = ["default_pager", "set_backend"]

_LOCK: Final = threading.Lock()
_FALLBACK_BUDGET: Final = 1 << 30
_state: dict[str, Any] = {"backend": getattr(_core, "Pager", None), "pager": None}


def set_backend(backend: Callable[..., Any] | None) -> None:
    """Make ``backend(budget)`` the class of pagers; None is the compiled one. For tests."""
    with _LOCK:
        _state["backend"] = getattr(_core, "Pager", None) if backend is None else backend
        _state["pager"] = None


def new_pager(budget: int) -> Any:
    """Return a pager of its own with a budget in bytes."""
    backend = _state["backend"]
    if backend is None:
        raise PrunusError("this build has no pager: prunus._core.Pager is missing")
    return backend(budget)


def default_pager() -> Any:
    """Return the process's shared pager; its budget is a quarter of the memory that is free at first use."""
    with _LOCK:
        if _state["pager"] is None:
            _state["pager"] = new_pager(_default_budget())
        return _state["pager"]


def _default_budget() -> int:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _FALLBACK_BUDGET
    return max(free // 4, 64 << 20)
