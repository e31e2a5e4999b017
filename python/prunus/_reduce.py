"""Reductions by axis. Absent blocks count as zeros, what hangs over the edge does not count."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from prunus._dtypes import BFLOAT16, HALVES, Array, DType, as_dtype, sum_dtype
from prunus._storage import BlockStorage


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return ``axis`` as sorted, distinct, non-negative numbers; None means all.

    Raises
    ------
    TypeError, ValueError
        If an axis is no integer, out of range or given twice.
    """
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = []
    for one in given:
        number = operator.index(one)
        if not -ndim <= number < ndim:
            raise np.exceptions.AxisError(number, ndim)
        axes.append(number % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis {axis} names an axis twice")
    return tuple(sorted(axes))


def _split(a: BlockStorage, axis: Any) -> tuple[tuple[int, ...], list[int]]:
    """Return all axes, and those of the last two as stored axes (0 rows, 1 columns)."""
    axes = axes_of(axis, a.ndim)
    matrix = [x - (a.ndim - 2) for x in axes if x >= a.ndim - 2]
    if not matrix:
        raise TypeError(f"reducing only batch axes {axis} of a BSR would be dense; call .toarray() first")
    a._check()
    # Columns first where both go: there is memory for every row already, but perhaps not for every column.
    return axes, sorted((1 - x if a._t else x for x in matrix), reverse=True)


def _segments(ufunc: np.ufunc, values: Array, target: Array, count: int, fill: Any) -> Array:
    """Reduce (..., n, w) by ``target`` (n,) to (..., count, w) in stored order, ``fill`` where none is."""
    out = np.full((*values.shape[:-2], count, values.shape[-1]), fill, values.dtype)
    if len(target):
        order = np.argsort(target, kind="stable")
        ranked = target[order]
        first = np.flatnonzero(np.concatenate([np.ones(1, bool), ranked[1:] != ranked[:-1]]))
        out[..., ranked[first], :] = ufunc.reduceat(values[..., order, :], first, axis=-2, dtype=values.dtype)
    return out


def _along(a: BlockStorage, ufunc: np.ufunc, data: Array, stored_axis: int, fill: Any) -> tuple[Array, Array]:
    """Reduce members along a stored axis: (*batch, length), and how many blocks met in every block line."""
    rows, cols = a._grid
    lines = cols if stored_axis == 0 else rows
    row = a._stacked_rows()
    members = math.prod(a._batch) if a._own else 1
    if stored_axis == 1:
        target = row
    else:
        target = row // max(rows, 1) * cols + a._indices if a._own else a._indices.astype(np.int64)
    partial = ufunc.reduce(data, axis=-1 if stored_axis == 1 else -2, dtype=data.dtype)
    reduced = _segments(ufunc, partial, target, members * lines, fill)
    met = np.bincount(target, minlength=members * lines).reshape(*(a._batch if a._own else ()), lines)
    width = reduced.shape[-1]
    return reduced.reshape(*a._batch, lines * width)[..., : a._stored[1 - stored_axis]], met


def _finish(
    ufunc: np.ufunc, a: BlockStorage, vector: Array, axes: tuple[int, ...], both: bool, keepdims: bool
) -> Array:
    """Reduce what is left of ``axes`` after one matrix axis, and put reduced axes back if asked."""
    n = a.ndim
    rest = [x for x in axes if x < n - 2]
    if both:
        rest.append(n - 2)  # the vector's own axis
    if rest:
        vector = ufunc.reduce(vector, axis=tuple(rest), dtype=vector.dtype)
    if keepdims:
        vector = np.asarray(vector).reshape(tuple(1 if x in axes else s for x, s in enumerate(a.shape)))
    return vector


def _deliver(result: Array, dtype: DType, out: Array | None) -> Any:
    """Return ``result`` as ``dtype``, a scalar where nothing is left, or written to ``out``."""
    if out is not None:
        np.copyto(out, result, casting="same_kind")
        return out
    array = np.asarray(result).astype(dtype, copy=False)
    return array[()] if array.ndim == 0 else array


def total(a: BlockStorage, axis: Any, dtype: DTypeLike | None, out: Array | None, keepdims: bool) -> Any:
    """Sum over ``axis``; see ``BSR.sum``."""
    wide, natural = sum_dtype(a.dtype)
    if dtype is not None:
        natural = as_dtype(dtype)
        wide = sum_dtype(natural)[0] if natural in HALVES else natural
    axes, matrix = _split(a, axis)
    data = a._clean().astype(wide, copy=False)
    vector, _ = _along(a, np.add, data, matrix[0], 0)
    return _deliver(_finish(np.add, a, vector, axes, len(matrix) == 2, keepdims), natural, out)


def mean(a: BlockStorage, axis: Any, dtype: DTypeLike | None, out: Array | None, keepdims: bool) -> Any:
    """Return the mean over all elements along ``axis``, absent blocks included; see ``BSR.mean``."""
    wide, natural = sum_dtype(a.dtype)
    if a.dtype.kind in "biu":
        wide = natural = np.dtype(np.float64)
    if dtype is not None:
        natural = as_dtype(dtype)
        wide = sum_dtype(natural)[0]
    sums = total(a, axis, wide, None, keepdims)
    count = math.prod(a.shape[x] for x in axes_of(axis, a.ndim))
    return _deliver(np.true_divide(sums, np.asarray(count, wide)), natural, out)


def extreme(a: BlockStorage, ufunc: np.ufunc, axis: Any, out: Array | None, keepdims: bool) -> Any:
    """Return the maximum or minimum along ``axis``, absent blocks counting as 0; see ``BSR.max``."""
    axes, matrix = _split(a, axis)
    if math.prod(a.shape[x] for x in axes) == 0:
        raise ValueError(f"zero-size array to reduction operation {ufunc.__name__} which has no identity")
    dtype = a.dtype
    a = a._canonical()
    data = a._values().astype(np.float32) if dtype == BFLOAT16 else a._values()
    over = a._padding()
    if over:
        data = data.copy() if data is a._data else data
        for which, part in over:
            data[(..., which, *part)] = _neutral(ufunc, data.dtype)
    first = matrix[0]
    vector, met = _along(a, ufunc, data, first, 0)
    # A line that is not covered by blocks throughout also holds zeros.
    lines = a._grid[first]
    width = data.shape[-1] if first == 0 else data.shape[-2]
    gaps = np.repeat(met < lines, width, axis=-1)[..., : vector.shape[-1]]
    vector = np.where(gaps, ufunc(vector, np.zeros((), data.dtype)), vector)
    return _deliver(_finish(ufunc, a, vector, axes, len(matrix) == 2, keepdims), dtype, out)


def _neutral(ufunc: np.ufunc, dtype: DType) -> Any:
    """Return the value that never wins a maximum or minimum."""
    largest = ufunc is np.minimum
    if dtype.kind == "b":
        return largest
    if dtype.kind in "iu":
        return np.iinfo(dtype).max if largest else np.iinfo(dtype).min
    return np.inf if largest else -np.inf


def count_nonzero(a: BlockStorage) -> int:
    """Return how many values are not zero, what hangs over the edge left out."""
    return int(np.count_nonzero(a._canonical()._clean()))


__all__ = ["axes_of", "count_nonzero", "extreme", "mean", "total"]
