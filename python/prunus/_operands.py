"""What operations take beside a BSR: everything else raises here, naming the conversion."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus import _construct
from prunus._dtypes import check_storage
from prunus._storage import BlockStorage


def as_operand(value: Any, name: str) -> Any:
    """Return a BSR or an ndarray; sequences become ndarrays, other array types raise.

    Raises
    ------
    TypeError
        If ``value`` is something else.
    """
    if type(value) is np.ndarray or isinstance(value, BlockStorage):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; pass {name}.filled(0)")
    if isinstance(value, (np.ndarray, list, tuple, int, float, complex, np.generic)):
        return np.asarray(value)
    if _construct.is_scipy(value):
        raise TypeError(f"{name} is a SciPy sparse array; wrap it with pr.BSR({name})")
    if _construct.is_torch(value):
        raise TypeError(f"{name} is a torch tensor; pass {name}.numpy()")
    raise TypeError(f"{name} must be an ndarray or a BSR, got {type(value).__name__}")


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


__all__ = ["as_factor", "as_operand"]
