"""Values on their way into a file: one face for arrays in memory, on disk, and yet to be computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus._arrays import as_array
from prunus._bsr import BSR
from prunus._dtypes import Array, DType

__all__ = ["Source", "blocks_of", "source_of"]

_PIECE: Final = 8 << 20  # bytes that are taken at a time


@dataclass(frozen=True, slots=True)
class Source:
    """Values in C order, piece by piece.

    Attributes
    ----------
    dtype : dtype
        Of the values, in this machine's byte order.
    shape : tuple of int
        Of the whole array.
    pieces : callable
        Returns an iterator of arrays whose values, one after the other, are all values.
    """

    dtype: DType
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Array]]

    def bytes(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the values as they stand in a file: contiguous and little-endian."""
        little = self.dtype.newbyteorder("<")
        for piece in self.pieces():
            flat = np.ascontiguousarray(piece).reshape(-1)
            if flat.dtype != little:
                flat = flat.astype(little)
            yield flat.view(np.uint8)


def source_of(value: Any, name: str) -> Source:
    """Return a dense array, in memory, on disk or yet to be computed, as a source.

    Raises
    ------
    TypeError
        If it is no array of numbers; as :func:`prunus._arrays.as_array`.
    """
    if is_paged(value):
        return paged_source(value)
    array = as_array(value, name)
    native = array.dtype.newbyteorder("=")
    return Source(native, array.shape, lambda: cut(array, array.shape, array.itemsize))


def is_paged(value: Any) -> bool:
    """Say whether a value is an array on disk or an expression over some."""
    return type(value).__module__.startswith("prunus.paged.") and hasattr(value, "dtype")


def paged_source(value: Any) -> Source:
    """Return an array on disk, or an expression over some, as a source that streams."""
    dtype, shape = value.dtype, tuple(value.shape)
    return Source(dtype, shape, lambda: cut(value, shape, dtype.itemsize))


def blocks_of(value: Any) -> tuple[Source, Array, Array, tuple[int, ...], tuple[int, int]]:
    """Return values, indices, indptr, shape and block size of a block-sparse array.

    What hangs over the edge is 0 in the values. A lazy transpose and a frozen array are copied.
    """
    if not isinstance(value, BSR):  # a PagedBSR: its blocks stay on disk
        return paged_source(value.values), value.indices, value.indptr, value.shape, value.blocksize
    stored = value._physical()
    values = stored._clean()
    source = Source(values.dtype, values.shape, lambda: cut(values, values.shape, values.itemsize))
    return source, stored.indices, stored.indptr, stored.shape, stored.blocksize


def cut(value: Any, shape: tuple[int, ...], itemsize: int) -> Iterator[Array]:
    """Index anything that can be indexed like an array so that all of it comes, in C order, in pieces."""
    if 0 in shape:
        return
    limit, level, inner = max(_PIECE // max(itemsize, 1), 1), len(shape), 1
    while level > 0 and inner * shape[level - 1] <= limit:
        level -= 1
        inner *= shape[level]
    if level == 0:
        yield np.asarray(value[(slice(None),) * len(shape)] if shape else value[()])
        return
    rows = max(limit // inner, 1)
    for outer in itertools.product(*(range(n) for n in shape[: level - 1])):
        for start in range(0, shape[level - 1], rows):
            yield np.asarray(value[(*outer, slice(start, min(start + rows, shape[level - 1])))])
