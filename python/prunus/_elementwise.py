"""Elementwise arithmetic that keeps sparse things sparse, and refuses what would be dense."""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar

import numpy as np

from prunus import _layout as lay
from prunus._dtypes import HALVES, Array, elementwise_dtype, weak
from prunus._operands import as_factor
from prunus._storage import BlockStorage

S = TypeVar("S", bound=BlockStorage)

# Functions of one argument that NumPy code applies to weights; each is checked to keep 0 at 0.
UNARY: Final[frozenset[np.ufunc]] = frozenset(
    {
        np.negative, np.positive, np.absolute, np.fabs, np.sqrt, np.cbrt, np.square, np.sign, np.conjugate,
        np.rint, np.floor, np.ceil, np.trunc, np.sin, np.tan, np.arcsin, np.arctan, np.sinh, np.tanh,
        np.arcsinh, np.arctanh, np.expm1, np.log1p, np.deg2rad, np.rad2deg, np.isnan, np.isinf, np.signbit,
    }
)  # fmt: skip
BINARY: Final[frozenset[np.ufunc]] = frozenset(
    {
        np.add, np.subtract, np.multiply, np.divide, np.power, np.float_power, np.maximum, np.minimum,
        np.fmax, np.fmin, np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal,
        np.logical_and, np.logical_or, np.logical_xor, np.floor_divide, np.remainder, np.fmod,
        np.copysign, np.hypot, np.bitwise_and, np.bitwise_or, np.bitwise_xor,
    }
)  # fmt: skip


def is_scalar(value: Any) -> bool:
    """Say whether ``value`` is a Python number, a NumPy scalar or an array without dimensions."""
    return isinstance(value, (int, float, complex, np.generic)) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    )


def would_be_dense(what: str) -> TypeError:
    """Return the error for an operation whose result has no zeros to leave out."""
    return TypeError(f"{what} would be dense; call .toarray() on the BSR first if that is what you want")


def unary(ufunc: np.ufunc, a: S, **kwargs: Any) -> S:
    """Apply a function that keeps 0 at 0 to every stored value.

    Raises
    ------
    TypeError
        If the function gives something else for 0, or is not supported.
    """
    if ufunc not in UNARY:
        raise would_be_dense(f"np.{ufunc.__name__} of a BSR")
    a = a._canonical()
    return a._with_data(ufunc(a._clean(), **kwargs))


def scalar(ufunc: np.ufunc, a: S, value: Any, *, left: bool = False) -> S:
    """Apply ``ufunc(a, value)``, or ``ufunc(value, a)`` if ``left``, to the stored values.

    Multiplying or dividing by a scalar keeps the pattern whatever the scalar: absent blocks stay 0, also
    against inf and NaN. Any other function must give 0 for (0, value).

    Raises
    ------
    TypeError
        If the result would be dense.
    """
    if isinstance(value, np.ndarray):
        value = value[()]
    value = weak(value, a.dtype)
    if not (ufunc is np.multiply or (ufunc is np.divide and not left)):
        with np.errstate(all="ignore"):
            zero = np.zeros((), a.dtype)
            image = ufunc(value, zero) if left else ufunc(zero, value)
        if not bool(image == 0):
            order = f"{value!r} and a BSR" if left else f"a BSR and {value!r}"
            raise would_be_dense(f"np.{ufunc.__name__} of {order}")
    data = a._canonical()
    clean = data._clean()
    return data._with_data(np.asarray(ufunc(value, clean) if left else ufunc(clean, value)))


def binary(ufunc: np.ufunc, a: S, b: BlockStorage) -> S:
    """Apply ``ufunc`` to two block-sparse arrays of one shape; patterns and block sizes may differ.

    Products have the common pattern, anything else the union; the block size is ``a``'s.

    Raises
    ------
    ValueError
        If the shapes do not broadcast over the batch, or differ in the last two dimensions.
    TypeError
        If the result would be dense.
    """
    if a.shape[-2:] != b.shape[-2:]:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    if ufunc is np.divide:
        raise would_be_dense("the quotient of two BSRs (0 / 0 outside their blocks)")
    if ufunc is not np.multiply:
        with np.errstate(all="ignore"):
            image = ufunc(np.zeros((), a.dtype), np.zeros((), b.dtype))
        if not bool(image == 0):
            raise would_be_dense(f"np.{ufunc.__name__} of two BSRs")
    a, b = align(a, b)
    left, right = a._clean(), b._clean()
    if {left.dtype, right.dtype} == HALVES:
        wide = elementwise_dtype(left.dtype, right.dtype)
        left, right = left.astype(wide), right.astype(wide)
    keys_a, keys_b = a._keys(), b._keys()
    if np.array_equal(keys_a, keys_b):
        return a._with_data(np.asarray(ufunc(left, right)))
    if ufunc is np.multiply:
        keys, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
        data = ufunc(left[..., at_a, :, :], right[..., at_b, :, :])
    else:
        keys = np.union1d(keys_a, keys_b)
        data = ufunc(_spread(left, keys, keys_a), _spread(right, keys, keys_b))
    indices, indptr = lay.pattern_of(keys, len(a._stacked) - 1, a._grid[1])
    indptr = lay.unstack_indptr(indptr, a._batch if a._own else (), a._grid[0])
    return a._wrap(np.ascontiguousarray(data), indices, indptr, a._stored, a._batch, a._t)


def _spread(data: Array, keys: Array, own: Array) -> Array:
    """Return the blocks at all ``keys``, zero where ``own`` has none."""
    out = np.zeros((*data.shape[:-3], len(keys), *data.shape[-2:]), data.dtype)
    out[..., np.searchsorted(keys, own), :, :] = data
    return out


def align(a: S, b: BlockStorage) -> tuple[S, BlockStorage]:
    """Bring two arrays to one orientation, block size (``a``'s), batch and form, with canonical patterns."""
    if a._t != b._t:
        a, b = a._physical(), b._physical()
    a, b = a._canonical(), b._canonical()
    if a._data.shape[-2:] != b._data.shape[-2:]:
        b = reblock(b, a.blocksize)
    if a._batch != b._batch:
        batch = np.broadcast_shapes(a._batch, b._batch)
        a, b = broadcast(a, batch), broadcast(b, batch)
    if a._own != b._own:
        a, b = a._with_own(), b._with_own()
    return a, b


def reblock(a: S, blocksize: tuple[int, int]) -> S:
    """Return an equal array in blocks of another size, orientation kept; a copy."""
    a = a._canonical()
    size = (blocksize[1], blocksize[0]) if a._t else blocksize
    data, keys = lay.reblock(a._clean(), a._stacked_rows(), a._indices, a._stored, size)
    rows, cols = (lay.blocks_along(n, b) for n, b in zip(a._stored, size, strict=True))
    members = math.prod(a._batch) if a._own else 1
    lay.check_positions(members, rows, cols)
    indices, indptr = lay.pattern_of(keys, members * rows, cols)
    indptr = lay.unstack_indptr(indptr, a._batch if a._own else (), rows)
    return a._wrap(data, indices, indptr, a._stored, a._batch, a._t)


def stack(members: list[S], batch: tuple[int, ...], like: S) -> S:
    """Put two-dimensional arrays of one stored shape, block size and orientation into a batch."""
    n = np.cumsum([0] + [len(one._indices) for one in members])
    dtype = lay.index_dtype(int(n[-1]))
    indptr = (
        np.stack([one._indptr + start for one, start in zip(members, n, strict=False)]) if members else None
    )
    like = members[0] if members else like
    if indptr is None:
        indptr = np.zeros((0, like._grid[0] + 1), dtype)
        data, indices = np.zeros((0, *like._data.shape[-2:]), like.dtype), np.zeros(0, dtype)
    else:
        data = np.concatenate([one._values() for one in members])
        indices = np.concatenate([one._indices for one in members]).astype(dtype, copy=False)
    indptr = indptr.astype(dtype, copy=False).reshape(*batch, -1 if members else indptr.shape[-1])
    return like._wrap(data, indices, indptr, like._stored, batch, like._t)


def broadcast(a: S, batch: tuple[int, ...]) -> S:
    """Repeat an array along new or one-long batch dimensions; a copy unless nothing changes."""
    if a._batch == batch:
        return a
    if not a._own:
        data = np.broadcast_to(a._values(), (*batch, *a._data.shape[-3:])).copy()
        return a._wrap(data, a._indices, a._indptr, a._stored, batch, a._t)
    ids = np.broadcast_to(np.arange(math.prod(a._batch)).reshape(a._batch), batch)
    members = [a._member(tuple(map(int, np.unravel_index(int(b), a._batch)))) for b in ids.flat]
    return stack(members, batch, a)


def times_dense(a: S, dense: Array, *, ufunc: np.ufunc = np.multiply) -> S:
    """Multiply by a dense array that broadcasts to ``a``'s shape; the result keeps ``a``'s pattern.

    Only the values under stored blocks are read: absent blocks stay 0, also against inf and NaN.

    Raises
    ------
    ValueError
        If ``dense`` does not broadcast to ``a.shape``.
    """
    try:
        fits = np.broadcast_shapes(a.shape, dense.shape) == a.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"an array of shape {dense.shape} does not broadcast to the BSR's shape {a.shape}")
    a = a._canonical()
    flat = dense.reshape((1,) * max(0, 2 - dense.ndim) + dense.shape)
    flat = np.swapaxes(flat, -1, -2) if a._t else flat
    row, col = a._stacked_rows(), a._indices
    if a._own:
        # Every member has blocks of its own, so each looks into its own part of ``dense``.
        rows = a._grid[0]
        every = np.broadcast_to(flat, (*a._batch, *flat.shape[-2:]))
        edges = np.searchsorted(row, np.arange(math.prod(a._batch) + 1) * rows)
        parts = [
            _factors(one, row[p:q] - b * rows, col[p:q], a)
            for b, (one, p, q) in enumerate(
                zip((every[at] for at in np.ndindex(*a._batch)), edges[:-1], edges[1:], strict=True)
            )
        ]
        factor = np.concatenate(parts) if parts else np.zeros((0, 1, 1), flat.dtype)
    elif flat.ndim == 2:
        factor = _factors(flat, row, col, a)
    else:
        lead = flat.shape[:-2]
        parts = [_factors(flat[at], row, col, a) for at in np.ndindex(*lead)]
        shape = parts[0].shape if parts else (len(row), 1, 1)
        factor = np.stack(parts).reshape(*lead, *shape) if parts else np.zeros((*lead, *shape), flat.dtype)
    return a._with_data(np.asarray(ufunc(a._clean(), factor)))


def _factors(dense: Array, row: Array, col: Array, a: BlockStorage) -> Array:
    """Return what multiplies each block: (n, br, bc), with 1 for an axis of which ``dense`` has one."""
    br, bc = a._data.shape[-2:]
    if dense.shape[0] == 1 and a._stored[0] != 1:
        row, br = np.zeros_like(row), 1
    if dense.shape[1] == 1 and a._stored[1] != 1:
        col, bc = np.zeros_like(col), 1
    return lay.gather(dense, row, col, br, bc)


def multiply(a: S, other: Any) -> S:
    """Multiply elementwise by a BSR, a scalar or a dense array that broadcasts."""
    if isinstance(other, BlockStorage):
        return binary(np.multiply, a, other)
    other = as_factor(other)
    return scalar(np.multiply, a, other) if is_scalar(other) else times_dense(a, other)


def apply(ufunc: np.ufunc, a: Any, b: Any) -> Any:
    """Apply a binary function of which at least one operand is block-sparse.

    Raises
    ------
    TypeError
        If it is not supported or would be dense, or an operand is no array of numbers.
    """
    if ufunc not in BINARY:
        raise TypeError(f"np.{ufunc.__name__} is not supported for BSR; call .toarray() first")
    if isinstance(a, BlockStorage) and isinstance(b, BlockStorage):
        return binary(ufunc, a, b)
    sparse, other, left = (a, b, False) if isinstance(a, BlockStorage) else (b, a, True)
    other = as_factor(other)
    if is_scalar(other):
        return scalar(ufunc, sparse, other, left=left)
    if ufunc is np.multiply:
        return times_dense(sparse, other)
    if ufunc is np.divide and not left:
        raise TypeError(
            "a BSR is not divided by an array: 0 / 0 outside its blocks would be dense. W.multiply(1 / x) "
            "keeps the pattern, W.toarray() / x is the dense quotient"
        )
    raise would_be_dense(f"np.{ufunc.__name__} of a BSR and a dense array")


def in_place(ufunc: np.ufunc, a: S, value: Any) -> S:
    """Apply ``ufunc(a, value)`` into ``a``'s own values, so that every view of them sees it.

    Raises
    ------
    TypeError
        If ``value`` is no number.
    ValueError
        If the values are read-only.
    """
    value = as_factor(value)
    value = weak(value[()] if isinstance(value, np.ndarray) else value, a.dtype)
    if a.frozen:
        raise ValueError("a frozen array is read-only; W.copy() is not")
    data = a._values()
    if a._padding() and not np.array_equal(a._clean(), data, equal_nan=a.dtype.kind in "fc"):
        with np.errstate(all="ignore"):  # garbage in the padding must not warn
            ufunc(data, value, out=data, casting="same_kind")
    else:
        ufunc(data, value, out=data, casting="same_kind")
    return a
