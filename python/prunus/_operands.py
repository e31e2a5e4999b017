"""What operations take beside a BSR: everything else raises here, naming the conversion."""

from __future__ import annotations

from typing import Any

from prunus._arrays import as_array
from prunus._dtypes import check_storage
from prunus._storage import BlockStorage

__all__ = ["as_factor", "as_operand", "is_on_disk"]


def is_on_disk(value: Any) -> bool:
    """Say whether operations hand ``value`` to ``prunus.paged``, without importing it."""
    return type(value).__module__.startswith("prunus.paged.")


def as_operand(value: Any, name: str) -> Any:
    """Return a BSR as it is, and anything else as :func:`as_array` does.

    Raises
    ------
    TypeError, ValueError, PrunusError
        As :func:`as_array`.
    """
    return value if isinstance(value, BlockStorage) else as_array(value, name, "an array of numbers or a BSR")


def as_factor(value: Any) -> Any:
    """Return an operand of elementwise functions: a Python number, or an ndarray of numbers or booleans.

    Raises
    ------
    TypeError
        If ``value`` is something else, or an array of objects.
    """
    if isinstance(value, (int, float, complex)):
        return value  # as it is: a Python number does not change an array's dtype
    array = as_operand(value, "other")
    check_storage(array.dtype, "other")
    return array
