"""Long work of NumPy and LAPACK that Ctrl-C ends: Python looks for signals between calls, never inside one.

Elementwise work is done strip by strip. Products and factorisations are slower in pieces that are small
enough (tiles of a product of 4096 rows took half as long again), so each is one call in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any, Final

import numpy as np

from prunus._dtypes import Array

__all__ = ["apart", "factorised", "product", "strips"]

# Values that elementwise functions see at once: hundredths of a second, and caches hold a good part of them.
_STRIP: Final = 1 << 21
# Multiply-adds, about, of what ends in some hundredths of a second.
_SHORT: Final = 1 << 27


def strips(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of rows of a matrix with that many columns."""
    height = max(1, _STRIP // max(columns, 1))
    return (slice(at, min(at + height, rows)) for at in range(0, rows, height))


def product(a: Array, b: Array) -> Array:
    """Return ``a @ b`` of two matrices."""
    result: Array = apart(np.matmul, a, b, work=a.shape[0] * a.shape[1] * b.shape[1])
    return result


def factorised(function: Callable[[Array], Any], matrix: Array) -> Any:
    """Return what one of ``np.linalg``'s functions makes of a square matrix."""
    return apart(function, matrix, work=10 * len(matrix) ** 3)


def apart(function: Callable[..., Any], *arrays: Array, work: int) -> Any:
    """Return ``function(*arrays)``, computed in another thread if it is much work.

    If a signal's handler raises meanwhile, the caller is free at once. The thread ends when its call does,
    and nobody looks at its result.
    """
    if work <= _SHORT:
        return function(*arrays)
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(*arrays))
        except BaseException as error:
            errors.append(error)

    # A daemon: who has left need not wait for it to exit either. In the caller's context: ``np.errstate`` is
    # part of it, and must not hold for short work only.
    thread = threading.Thread(target=copy_context().run, args=(run,), name="prunus-apart", daemon=True)
    thread.start()
    # In short waits: on some systems a wait without end is one that signals do not interrupt.
    while thread.is_alive():
        thread.join(0.1)
    if errors:
        raise errors[0]
    return results[0]
