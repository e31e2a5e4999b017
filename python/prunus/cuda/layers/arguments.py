"""What layers take: inputs as rows, tables of weights, biases, checked as for arrays of NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunus.cuda.operands import as_floats
from prunus.cuda.runtime import Place

if TYPE_CHECKING:
    import torch

__all__ = ["as_rows", "as_table", "as_vector"]


def as_rows(x: Any, features: int, where: Place) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return ``x`` (*lead, features) as a matrix, without a copy where its strides allow it, and ``lead``.

    Raises
    ------
    TypeError, PrunusError
        If it is no tensor of floats there.
    ValueError
        If its last axis is not ``features`` long.
    """
    tensor = as_floats(x, "x", where)
    if tensor.ndim == 0:
        raise ValueError("x must have at least one dimension")
    if tensor.shape[-1] != features:
        raise ValueError(f"x has {tensor.shape[-1]} features, the weights expect {features}")
    lead = tuple(int(size) for size in tensor.shape[:-1])
    return tensor if tensor.ndim == 2 else tensor.reshape(math.prod(lead), features), lead


def as_table(w: Any, name: str, where: Place) -> torch.Tensor:
    """Return weights (units, features), any strides.

    Raises
    ------
    TypeError, PrunusError
        If they are no tensor of floats there.
    ValueError
        If they are not two-dimensional.
    """
    tensor = as_floats(w, name, where)
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (out, in), got shape {tuple(tensor.shape)}")
    return tensor


def as_vector(b: Any, length: int, name: str, where: Place) -> torch.Tensor | None:
    """Return a bias (length,), or None.

    Raises
    ------
    TypeError, PrunusError, ValueError
        If it is something else.
    """
    if b is None:
        return None
    vector = as_floats(b, name, where)
    if tuple(vector.shape) != (length,):
        raise ValueError(f"{name} must have shape {(length,)}, got {tuple(vector.shape)}")
    return vector
