"""Low-rank approximations of ``x @ w.T + b`` over sample inputs: what a predictor predicts with.

Of all approximations of rank r, the one with the least squared error over the samples projects the
pre-activations on the first r left singular vectors of ``w @ C^(1/2)``, where C is the covariance of the
inputs (reduced-rank regression: Izenman, *Journal of Multivariate Analysis* 5, 1975; the projection is Eckart
and Young's). The mean of the inputs costs no rank: it goes into the offset.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from prunus import engines
from prunus._arrays import as_floats
from prunus._dtypes import Array, DType
from prunus.engines.reference import _activate
from prunus.pruning._pieces import factorised, product, strips

__all__ = [
    "LowRank",
    "activate",
    "as_bias",
    "as_matrix",
    "as_samples",
    "fit_low_rank",
    "floored",
    "spread_after",
]

# A residual below this share of a unit's own size is rounding, not knowledge.
_FLOOR = 1e-3
# Activations that NumPy has no functions for: they come with the engine's products by units.
_BY_UNITS = ("gelu",)


class LowRank(NamedTuple):
    """``(x @ narrow.T) @ wide.T + offset``, and how far it is off.

    Attributes
    ----------
    narrow : ndarray of float32 or bfloat16
        Shape (rank, d).
    wide : ndarray of float32 or bfloat16
        Shape (H, rank). In the order that :meth:`ready` gives it, a prediction takes least.
    offset : ndarray of float32
        Shape (H,).
    spread : ndarray of float32
        Shape (H,): root of the mean square of the error over the samples.
    """

    narrow: Array
    wide: Array
    offset: Array
    spread: Array

    @property
    def shapes(self) -> str:
        """Shapes of ``narrow`` and ``wide``, for messages."""
        return f"{self.narrow.shape} and {self.wide.shape}"

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self)

    def predict(self, x: Array, activation: str | None = None) -> Array:
        """Return ``activation`` of the approximation in float32, (rows, H), on the engine in use.

        Each row's result is independent of the other rows.
        """
        engine = engines.active()
        thin = np.empty((len(x), len(self.narrow)), np.float32)
        engine.dots(x, self.narrow, thin)
        result = np.empty((len(x), len(self.wide)), np.float32)
        if activation in _BY_UNITS:
            engine.dots(
                thin, np.ascontiguousarray(self.wide), result, bias=self.offset, activation=activation
            )
            return result
        # Sums of a few long rows: as many short dot products as there are units would each cost more to
        # begin than to do.
        engine.combine(thin, np.ascontiguousarray(self.wide.T), result, bias=self.offset)
        return _activate(result, activation)

    def stored(self, dtype: DType) -> Self:
        """Return the same with both matrices of another dtype: rounding is far below what a guess is off."""
        return self._replace(narrow=self.narrow.astype(dtype), wide=self.wide.astype(dtype))

    def ready(self, activation: str | None) -> Self:
        """Return the same with ``wide`` in the order that :meth:`predict` reads for this activation."""
        order = np.ascontiguousarray if activation in _BY_UNITS else np.asfortranarray
        return self._replace(wide=order(self.wide))

    def power(self, x: Array, activation: str | None) -> Array:
        """Return the expected square of what is predicted, (rows, H)."""
        value = self.predict(x, activation)
        value *= value
        value += self.spread * self.spread
        return value

    def over(self, scale: Array) -> Self:
        """Return the approximation of each unit over ``scale`` (H,)."""
        return self._replace(
            wide=(self.wide.astype(np.float32) / scale[:, None]).astype(self.wide.dtype),
            offset=np.ascontiguousarray(self.offset / scale, np.float32),
            spread=np.ascontiguousarray(self.spread / scale, np.float32),
        )

    def check(self) -> None:
        """Raise ValueError unless the parts are finite, of float32, and fit each other."""
        for name, part in self._asdict().items():
            if part.dtype != np.float32 or not np.isfinite(part).all():
                raise ValueError(f"{name} must hold finite float32 values, got dtype {part.dtype}")
        if self.narrow.ndim != 2 or self.wide.ndim != 2 or self.wide.shape[1] != len(self.narrow):
            raise ValueError(f"narrow {self.narrow.shape} and wide {self.wide.shape} do not fit")
        units = (len(self.wide),)
        if self.offset.shape != units or self.spread.shape != units or not all(self.narrow.shape + units):
            raise ValueError(f"offset {self.offset.shape} and spread {self.spread.shape} are not {units}")


def fit_low_rank(x: Array, w: Array, bias: Array, rank: int) -> LowRank:
    """Return the best approximation of ``x @ w.T + bias`` of a rank.

    Parameters
    ----------
    x : ndarray of float64
        Shape (samples, d).
    w : ndarray of float64
        Shape (H, d).
    bias : ndarray of float64
        Shape (H,).
    rank : int
        From 1 to the least of the three sizes.
    """
    samples = len(x)
    mean = x.mean(axis=0)
    centred = x - mean
    root = centred if samples <= x.shape[1] else _root(product(centred.T, centred))
    z = product(root, w.T)
    size, vectors = factorised(np.linalg.eigh, product(z, z.T))
    size, vectors = size[::-1][:rank], np.ascontiguousarray(vectors[:, ::-1][:, :rank])
    # Directions in which the samples do not reach are left out: their columns are 0.
    reached = size > max(float(size[0]), 0.0) * 1e-10
    across = product(vectors.T, z)
    basis = np.zeros((w.shape[0], rank))
    basis[:, reached] = (across[reached] / np.sqrt(size[reached])[:, None]).T
    left = (z**2).sum(axis=0) - (across[reached] ** 2).sum(axis=0)
    at_mean = w @ mean
    narrow = product(basis.T, w)
    return LowRank(
        np.ascontiguousarray(narrow, np.float32),
        np.asfortranarray(basis, np.float32),
        np.asarray(bias + at_mean - basis @ (narrow @ mean), np.float32),
        np.asarray(np.sqrt(np.maximum(left, 0) / samples), np.float32),
    )


def _root(square: Array) -> Array:
    """Return R with ``R.T @ R`` the positive semi-definite ``square``, but for a part in 10^12."""
    # What is added keeps rounding from making it indefinite, and is far below what float32 can tell.
    least = 1e-12 * float(np.trace(square))
    if not least:
        return square
    lower: Array = factorised(np.linalg.cholesky, square + np.eye(len(square)) * least)
    return lower.T


def floored(low: LowRank, x: Array, w: Array, bias: Array) -> Array:
    """Return the spread, raised to a small share of the unit's own size, and to 1 where that is 0."""
    squares = np.zeros(len(w))
    for rows in strips(len(x), len(w)):
        squares += ((product(x[rows], w.T) + bias) ** 2).sum(axis=0)
    least = _FLOOR * np.sqrt(squares / len(x))
    spread = np.maximum(low.spread, least)
    return np.where(spread > 0, spread, 1.0)


def spread_after(low: LowRank, x: Array, w: Array, bias: Array, activation: str | None) -> LowRank:
    """Return ``low`` with the spread of the error that remains after ``activation``."""
    if activation is None:
        return low
    squares = np.zeros(len(w))
    for rows in strips(len(x), len(w)):
        exact = activate(product(x[rows], w.T) + bias, activation)
        squares += ((low.predict(x[rows].astype(np.float32), activation) - exact) ** 2).sum(axis=0)
    return low._replace(spread=np.asarray(np.sqrt(squares / len(x)), np.float32))


def activate(value: Array, activation: str | None) -> Array:
    """Return an activation of float64 values."""
    return _activate(value, activation)


def as_matrix(value: ArrayLike, name: str) -> Array:
    """Return a float64 matrix that holds something and is finite.

    Raises
    ------
    TypeError, ValueError
        If it holds no floats; has not two dimensions, is empty or not finite.
    """
    return _finite(as_floats(value, name), name)


def as_samples(value: ArrayLike, name: str) -> Array:
    """Return samples (*lead, features) as :func:`as_matrix` does, a row for each; one vector is one row.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_matrix`.
    """
    array = as_floats(value, name)
    if array.ndim and array.size:
        array = array.reshape(-1, array.shape[-1])
    return _finite(array, name)


def _finite(array: Array, name: str) -> Array:
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be a matrix that is not empty, got shape {array.shape}")
    array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise ValueError(f"{name} must be finite, but row {int(bad[0])} is not")
    return array


def as_bias(value: Any, units: int) -> Array:
    """Return a float64 bias of shape (units,); zeros for None.

    Raises
    ------
    ValueError
        If it has another shape or is not finite.
    """
    if value is None:
        return np.zeros(units)
    array = as_floats(value, "b_up").astype(np.float64)
    if array.shape != (units,) or not np.isfinite(array).all():
        raise ValueError(f"b_up must have {units} finite values, got shape {array.shape}")
    return array
