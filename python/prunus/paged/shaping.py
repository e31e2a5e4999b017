"""NumPy's calls that give views of another shape, or pick entries; and what the ones that cannot advise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from prunus.paged.array import PagedArray
from prunus.paged.operators import Operators

__all__ = ["ADVICE", "FUNCTIONS"]


# Views -------------------------------------------------------------------------------------------------


def _array(a: Any, name: str) -> PagedArray:
    if not isinstance(a, PagedArray):
        raise TypeError(f"np.{name} of an expression is not supported; reshape its sources")
    return a


def _reshape(
    a: Any, /, shape: Any = None, order: str = "C", *, newshape: Any = None, copy: Any = None
) -> Any:
    given = newshape if shape is None or shape is np._NoValue else shape
    return _array(a, "reshape").reshape(given, order=order)


def _squeeze(a: Any, axis: Any = None) -> PagedArray:
    return _array(a, "squeeze").squeeze(axis)


def _expand_dims(a: Any, axis: Any) -> PagedArray:
    array = _array(a, "expand_dims")
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    new = normalize_axis_tuple(axis, array.ndim + count)
    shape = iter(array.shape)
    # Axes of length 1 are in front in the file, where they are views of any order of the others.
    front, rest = iter(range(count)), iter(range(count, array.ndim + count))
    order = [next(front) if k in new else next(rest) for k in range(len([*shape]) + count)]
    return array._expand(array.ndim + count).transpose(order)


def _moveaxis(a: Any, source: Any, destination: Any) -> Any:
    moved = normalize_axis_tuple(source, a.ndim, "source")
    places = normalize_axis_tuple(destination, a.ndim, "destination")
    if len(moved) != len(places):
        raise ValueError("`source` and `destination` arguments must have the same number of elements")
    order = [n for n in range(a.ndim) if n not in moved]
    for place, axis in sorted(zip(places, moved, strict=True)):
        order.insert(place, axis)
    return a.transpose(order)


def _matrix_transpose(x: Any, /) -> Any:
    if x.ndim < 2:
        raise ValueError(f"Input array must be at least 2-dimensional, but it is {x.ndim}")
    return x.mT


def _atleast(ndim: int, function: Any) -> Callable[..., Any]:
    def one(a: Any) -> Any:
        if not isinstance(a, Operators):
            return function(a)
        if a.ndim >= ndim:
            return a
        # Where NumPy puts the new axes: (1, n), (1, n, 1) and (m, n, 1).
        return _expand_dims(a, {0: tuple(range(ndim)), 1: (0, 2)[: ndim - 1], 2: 2}[a.ndim])

    def run(*arrays: Any) -> Any:
        found = tuple(one(a) for a in arrays)
        return found if len(found) != 1 else found[0]

    return run


# Entries -----------------------------------------------------------------------------------------------


def take(a: Any, indices: Any, axis: int | None = None, out: Any = None, mode: str = "raise") -> Any:
    """Run ``numpy.take``: entries along an axis, or in C order; only their pages are read."""
    if not isinstance(a, Operators):
        raise TypeError(
            "np.take with out= on disk takes an array on disk, too; assign: out[...] = a[indices]"
        )
    at = indices.load() if isinstance(indices, Operators) else np.asarray(indices)
    if at.dtype == bool or not at.size:
        at = at.astype(np.int64)
    if at.dtype.kind not in "iu":
        raise TypeError(f"indices of dtype {at.dtype}, expected integers")
    if axis is not None:
        axis = normalize_axis_index(axis, a.ndim)
    size = a.size if axis is None else a.shape[axis]
    if mode not in ("raise", "wrap", "clip"):
        raise ValueError(f"clipmode must be one of 'clip', 'raise', or 'wrap' (got {mode!r})")
    if at.size and not size:
        raise IndexError("cannot do a non-empty take from an empty axes.")
    if mode != "raise" and size:
        at = at % size if mode == "wrap" else at.clip(0, size - 1)
    elif at.size and (at.min() < -size or at.max() >= size):
        wrong = at[(at < -size) | (at >= size)].flat[0]
        raise IndexError(f"index {wrong} is out of bounds for axis {axis or 0} with size {size}")
    key: Any = (*(slice(None),) * (axis or 0), at)
    if axis is None:
        key = np.unravel_index(np.where(at < 0, at + size, at), a.shape) if at.size else None
    found = np.empty(at.shape, a.dtype) if key is None else a[key]
    if out is None:
        return found[()]  # one value is a scalar
    if out.shape != np.shape(found):
        raise ValueError("output array does not match result of ndarray.take")
    out[...] = found
    return out


def _astype(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Any:
    if device not in (None, "cpu"):
        raise ValueError(f'Device not understood. Only "cpu" is allowed, but received: {device}')
    return x.astype(dtype, copy=copy)


# Advice ------------------------------------------------------------------------------------------------


def _no_save(*_: Any, **__: Any) -> NoReturn:
    raise TypeError("np.save would load the whole array first; a.save(path) writes the same file, streaming")


def _no_copy(a: Any, *_: Any, **__: Any) -> NoReturn:
    raise TypeError(
        f"np.copy would load all {a.nbytes} bytes; call .load() if they fit in memory, or "
        "pr.paged.from_array(a) for a copy on disk"
    )


FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.transpose: lambda a, axes=None: a.transpose(axes),
    np.swapaxes: lambda a, axis1, axis2: a.swapaxes(axis1, axis2),
    np.matrix_transpose: _matrix_transpose,
    np.linalg.matrix_transpose: _matrix_transpose,
    np.moveaxis: _moveaxis,
    np.reshape: _reshape,
    np.ravel: lambda a, order="C": _reshape(a, -1, order=order),
    np.squeeze: _squeeze,
    np.expand_dims: _expand_dims,
    np.atleast_1d: _atleast(1, np.atleast_1d),
    np.atleast_2d: _atleast(2, np.atleast_2d),
    np.atleast_3d: _atleast(3, np.atleast_3d),
    np.take: take,
    np.astype: _astype,
    np.copy: _no_copy,
    np.save: _no_save,
    np.savez: _no_save,
}

_JOIN: Final = "a.append(rows) adds rows at the end of an array on disk"
_MAKE: Final = "pr.paged.zeros(a.shape, a.dtype) makes one on disk"
_NAN: Final = "np.median and np.quantile stream; a[~np.isnan(a)] has the values without NaN in memory"
_SLICE: Final = "a.rows(begin, end) is a slice that is not read"
# What to do in place of a call that takes all values at once.
ADVICE: Final[dict[Any, str]] = {
    np.unique: "a.unique_count() counts different values in one pass",
    np.unique_values: "a.unique_count() counts different values in one pass",
    np.concatenate: _JOIN,
    np.append: _JOIN,
    np.vstack: _JOIN,
    np.hstack: _JOIN,
    np.stack: _JOIN,
    np.diff: "a.rows(1) - a.rows(0, -1) has the differences along the first axis",
    np.nanmedian: _NAN,
    np.nanquantile: _NAN,
    np.nanpercentile: _NAN,
    np.zeros_like: _MAKE,
    np.empty_like: _MAKE.replace("zeros", "empty"),
    np.ones_like: "pr.paged.full(a.shape, 1, a.dtype) makes one on disk",
    np.full_like: "pr.paged.full(a.shape, value, a.dtype) makes one on disk",
    np.split: _SLICE,
    np.array_split: _SLICE,
    np.nonzero: "np.count_nonzero(a) counts, a[a != 0] picks the values",
    np.flatnonzero: "np.count_nonzero(a) counts, a[a != 0] picks the values",
    np.argwhere: "np.count_nonzero(a) counts, a[a != 0] picks the values",
    np.savetxt: "a.save(path) writes a .npy file, streaming",
}
