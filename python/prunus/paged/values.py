"""What NumPy makes of a value that is assigned or appended, before any of it is written to a file."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from prunus._dtypes import Array, DType

__all__ = ["appended", "check_kind", "converted"]

# What has no dtype of its own, so that NumPy checks it value by value against the dtype it goes into.
_PYTHON: Final = (bool, int, float, complex, list, tuple, range, np.generic)


def converted(value: Any, dtype: DType) -> Array:
    """Return a value in memory as an array that can be stored as ``dtype``, as in ``x[...] = value``.

    Python numbers (also in sequences) become ``dtype`` here, and NumPy refuses those that do not fit. Arrays
    are left as they are, to be cast where they are written.

    Raises
    ------
    OverflowError
        If an integer is out of the dtype's range.
    ValueError
        If NaN or infinity should become an integer, or the shape is no box.
    TypeError
        If it is no number, or a complex one should become real.
    """
    if isinstance(value, np.ndarray):
        return value
    if dtype.names is not None:  # a tuple is one record here
        return np.array(value, dtype)
    found = np.asarray(value)
    if not isinstance(value, _PYTHON) and found.dtype.kind != "O":
        return found
    small = np.empty(found.shape, dtype)
    small[...] = value
    return small


def appended(value: Any, dtype: DType) -> Array:
    """Return rows in memory as :func:`converted` does, if their kind may be appended to ``dtype``.

    That is what ``np.concatenate`` casts to a dtype that is asked for ("same_kind"); Python integers may go
    into unsigned ones if they are in range.

    Raises
    ------
    TypeError
        If NumPy would not cast them.
    OverflowError, ValueError
        As :func:`converted`.
    """
    found = np.asarray(value)
    weak = isinstance(value, _PYTHON) and found.dtype.kind in "iuO" and dtype.kind in "iu"
    if not weak and dtype.names is None and found.size:
        check_kind(found.dtype, dtype)
    return converted(value, dtype)


def check_kind(source: DType, dtype: DType) -> None:
    """Raise TypeError if values of ``source`` may not be appended to an array of ``dtype``."""
    if not np.can_cast(source, dtype, "same_kind"):
        raise TypeError(
            f"cannot append values of {source} to an array of {dtype} according to the rule 'same_kind'; "
            f"convert them with astype({dtype.name!r}) if that is meant"
        )
