"""Checks of numbers and names that policies and operations share; messages begin with the argument's name."""

from __future__ import annotations

import math
import operator
from typing import Any, Final

import numpy as np

__all__ = ["NORMS", "SCOPES", "check_bound", "check_count", "check_norm", "check_scope", "check_share"]

NORMS: Final = ("max", "l2")
SCOPES: Final = ("tile", "row", "host")


def check_norm(norm: Any, name: str = "norm") -> str:
    """Return the name of a statistic, or raise ValueError."""
    return _one_of(norm, NORMS, name)


def check_scope(scope: Any, name: str = "scope") -> str:
    """Return what a policy decides by, or raise ValueError."""
    return _one_of(scope, SCOPES, name)


def _one_of(value: Any, known: tuple[str, ...], name: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def check_count(value: Any, name: str) -> int:
    """Return an integer of at least 1.

    Raises
    ------
    TypeError, ValueError
        If it is something else; a boolean counts as something else.
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got a bool")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def check_bound(value: Any, name: str) -> float:
    """Return a finite float of at least 0.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    number = _number(value, name)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return number


def check_share(value: Any, name: str) -> float:
    """Return a float above 0 and at most 1.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    number = _number(value, name)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
    return number


def _number(value: Any, name: str) -> float:
    # float() reads text as well, which nobody means here.
    if not isinstance(value, (str, bytes, bytearray)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} must be finite as a float, got a larger number") from None
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} must be a number, got {value!r}")
