"""Bias and activation in NumPy, for engines and dtypes whose kernels do not fuse them."""

from __future__ import annotations

import math

import numpy as np

from prunus._dtypes import Array

__all__ = ["activate", "finish"]

# NumPy has no erf of its own.
_erf = np.vectorize(math.erf, otypes=[np.float64])


def finish(sums: Array, bias: Array | None, activation: str | None) -> Array:
    """Return ``activation(sums + bias[:, None])`` in float64, for results the kernels do not store."""
    value = sums.astype(np.float64)
    if bias is not None:
        value += np.asarray(bias, dtype=np.float64)[:, None]
    return activate(value, activation)


def activate(value: Array, activation: str | None) -> Array:
    """Apply an activation by name to a float array; NaN stays NaN."""
    if activation == "relu":
        return np.maximum(value, 0)
    if activation == "gelu":
        return np.asarray(0.5 * value * (1 + _erf(value * np.sqrt(0.5))))
    if activation == "silu":
        with np.errstate(over="ignore"):
            return np.asarray(value / (1 + np.exp(-value)))
    return value
