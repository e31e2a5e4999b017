"""Reading and writing what an index selects, as runs of bytes of a store.

An index selects, along the stored axes, pieces: the axes before ``cut`` are enumerated, each combination of
their indices being the offset of one piece, and from ``cut`` on a piece covers a contiguous run of bytes of
which all, or only some, are wanted. Where to cut is a matter of cost: few long runs that hold what is not
wanted, against many short ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus._dtypes import Array, DType
from prunus.paged.indexing import GROUP, NEW, Index, Whole
from prunus.paged.store import SECTOR, Sink, Store

__all__ = ["Selection", "boxes", "take"]

Offsets = NDArray[np.int64]
_PIECE: Final = 256  # what one piece costs to handle, as bytes that could be read in that time
_STREAM: Final = 1 << 20  # runs of at least this many bytes are streamed
_BATCH: Final = 4 << 20  # bytes that are gathered at once where they must be looked through


def boxes(shape: tuple[int, ...], limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into boxes of about ``limit`` values, each a contiguous run of it in C order.

    Examples
    --------
    >>> list(boxes((2, 5), 3))[:2]
    [(slice(0, 1, None), slice(0, 3, None)), (slice(0, 1, None), slice(3, 5, None))]
    """
    if 0 in shape:
        return
    level, inner = len(shape), 1
    while level > 0 and inner * shape[level - 1] <= limit:
        level -= 1
        inner *= shape[level]
    if level == 0:
        yield tuple(slice(0, n) for n in shape)
        return
    rest = tuple(slice(0, n) for n in shape[level:])
    size, rows = shape[level - 1], max(limit // inner, 1)
    for outer in itertools.product(*(range(n) for n in shape[: level - 1])):
        head = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, size, rows):
            yield (*head, slice(start, min(start + rows, size)), *rest)


class Selection:
    """What an index selects from an array that a store holds.

    Parameters
    ----------
    store, start : Store, int
        Where the array's bytes are: in ``store``, from ``start`` on.
    stored : tuple of int
        The array's shape as it is stored, in C order.
    perm : tuple of int
        Which stored axis each of the index's axes is.
    dtype : dtype
        The array's dtype.
    index : Index
        The resolved index.
    exact : bool
        Whether only the bytes that are selected may be touched: writing needs that.
    """

    def __init__(
        self,
        store: Store,
        start: int,
        stored: tuple[int, ...],
        perm: tuple[int, ...],
        dtype: DType,
        index: Index,
        exact: bool = False,
    ) -> None:
        self.store, self.start, self.dtype, self.index = store, start, dtype, index
        self.axes = [index.axes[perm.index(axis)] for axis in range(len(stored))]
        self.stored, self.perm = stored, perm
        strides = [dtype.itemsize * math.prod(stored[k + 1 :]) for k in range(len(stored))]
        self.strides = strides
        self.count = math.prod(index.group) if index.group is not None else 1
        self.cut = self._choose(exact)
        self.low = 0  # the first index along the cut axis that a piece covers
        self.rows = 1  # how many indices along it a piece covers
        if self.cut < len(stored):
            self.low, self.rows = _cover(self.axes[self.cut])
        self.size = self.rows * (strides[self.cut] if self.cut < len(stored) else dtype.itemsize)
        self.outer, self.inner = self._dimensions()

    # Where to cut --------------------------------------------------------------------------------------

    def _choose(self, exact: bool) -> int:
        n = len(self.stored)
        groups = [k for k in range(n) if isinstance(self.axes[k], np.ndarray)]
        best, best_cost = n, math.inf
        pieces_at = self._pieces()
        transfer = math.inf
        for k in range(n + 1):
            pieces = pieces_at[k]
            rows = _cover(self.axes[k])[1] if k < n else 1
            size = rows * (self.strides[k] if k < n else self.dtype.itemsize)
            transfer = min(transfer, pieces * (size + SECTOR))
            whole = all(_full(self.axes[j], self.stored[j]) for j in range(k + 1, n))
            if exact and not (whole and (k == n or _contiguous(self.axes[k]))):
                continue
            if groups and k < n and groups[-1] >= k and (len(groups) > 1 or not self._alone(groups[0])):
                continue  # index arrays that go together are enumerated together
            if not whole and self.strides[k] > _STREAM:
                continue  # too long to be looked through row by row
            cost = pieces * _PIECE + transfer + pieces * size / 8
            if cost < best_cost:
                best, best_cost = k, cost
        return best

    def _alone(self, axis: int) -> bool:
        """Say whether one axis' index array is all that the group is."""
        return self.axes[axis].size == self.count  # type: ignore[union-attr]

    def _pieces(self) -> list[int]:
        """Return for each place to cut how many pieces there are."""
        counts, grouped = [1], False
        for axis in self.axes:
            more = axis.size if isinstance(axis, Whole) else 1
            if isinstance(axis, np.ndarray) and not grouped:
                more, grouped = self.count, True
            counts.append(counts[-1] * more)
        return counts

    def _dimensions(self) -> tuple[list[tuple[int, Offsets]], list[tuple[int, Any]]]:
        """Return the enumerated dimensions, each with its offsets, and the selections inside a piece."""
        outer: list[tuple[int, Offsets]] = []
        base = np.full(
            1, self.start + self.low * (self.strides[self.cut] if self.cut < len(self.stored) else 0)
        )
        group: Offsets | None = None
        place = 0
        for k, axis in enumerate(self.axes[: self.cut]):
            stride = self.strides[k]
            if isinstance(axis, Whole):
                outer.append((k, (axis.start + axis.step * np.arange(axis.size)) * stride))
            elif isinstance(axis, int):
                base += axis * stride
            elif group is None:
                group, place = axis * stride, len(outer)
            else:
                group = group + axis * stride
        inner: list[tuple[int, Any]] = []
        inside = False
        for k, axis in enumerate(self.axes[self.cut :], self.cut):
            low = self.low if k == self.cut else 0
            if isinstance(axis, Whole):
                inner.append((k, _as_slice(axis, low)))
            elif isinstance(axis, int):
                inner.append((k, slice(axis - low, axis - low + 1)))
            else:
                inner.append((GROUP, axis - low))
                inside = True
        if group is not None:
            outer.insert(place, (GROUP, group))
        elif self.index.group is not None and not inside:
            outer.insert(0, (GROUP, np.zeros(self.count, np.int64)))
        outer.insert(0, (-3, base))  # of length 1: carries what all offsets have in common
        return outer, inner

    # Shapes --------------------------------------------------------------------------------------------

    @property
    def _outer_shape(self) -> tuple[int, ...]:
        return tuple(len(offsets) for _, offsets in self.outer)

    @property
    def _piece_shape(self) -> tuple[int, ...]:
        """The shape of all that a piece covers."""
        return (self.rows, *self.stored[self.cut + 1 :]) if self.cut < len(self.stored) else ()

    @property
    def _inner_shape(self) -> tuple[int, ...]:
        """The shape of what is wanted of a piece."""
        sizes = zip(self._piece_shape, (what for _, what in self.inner), strict=True)
        return tuple(len(range(*w.indices(n))) if isinstance(w, slice) else len(w) for n, w in sizes)

    @property
    def _whole(self) -> bool:
        """Whether all that a piece covers is wanted, in its order."""
        pairs = zip(self._piece_shape, self.inner, strict=True)
        return all(isinstance(w, slice) and range(*w.indices(n)) == range(n) for n, (_, w) in pairs)

    def _offsets(self, box: tuple[slice, ...]) -> Offsets:
        parts = [offsets[part] for (_, offsets), part in zip(self.outer, box, strict=True)]
        total: Offsets = parts[0]
        for part in parts[1:]:
            total = total[..., None] + part
        return np.ascontiguousarray(total.reshape(-1), dtype=np.int64)

    def _dims(self) -> list[int]:
        """Return what the dimensions of the array in order of storage are."""
        return [d for d, _ in self.outer[1:]] + [d for d, _ in self.inner]

    def _to_result(self, found: Array) -> Array:
        """Rearrange values in order of storage into the shape that the index gives."""
        axis_of = [self.perm.index(k) for k in range(len(self.stored))]
        dims = [d if d == GROUP else axis_of[d] for d in self._dims()]
        return _arrange(found.reshape(found.shape[1:]), dims, self.index)

    def _from_result(self, values: Array) -> Array:
        """Rearrange values of the index's shape into the order of storage."""
        dims, index, at = self._dims(), self.index, 0
        for dim in index.order:
            if dim == NEW:
                values = values[(slice(None),) * at + (0,)]
            else:
                if dim == GROUP:
                    shape = index.group or ()
                    values = values.reshape(
                        (*values.shape[:at], self.count, *values.shape[at + len(shape) :])
                    )
                at += 1
        kept = [d if d == GROUP else self.perm[d] for d in index.order if d != NEW]
        values = values.transpose([kept.index(d) for d in dims if d in kept])
        for at, dim in enumerate(dims):
            if dim not in kept:
                values = np.expand_dims(values, at)
        return values[None]

    # Reading -------------------------------------------------------------------------------------------

    def read(self) -> Array:
        """Return what is selected, as an array of the index's shape."""
        found = np.empty((*self._outer_shape, *self._inner_shape), self.dtype)
        if found.size:
            if self.size >= _STREAM:
                self._read_streams(found)
            elif self._whole:
                flat = found.reshape(-1).view(np.uint8).reshape(-1, self.size)
                everything = tuple(slice(0, n) for n in self._outer_shape)
                self.store.segment.gather(self._offsets(everything), self.size, flat)
            else:
                self._read_batches(found)
        return self._to_result(found)

    def prefetch(self) -> None:
        """Ask the pager to fetch what the index selects, and return at once."""
        everything = tuple(slice(0, n) for n in self._outer_shape)
        if self.size and math.prod(self._outer_shape):
            self.store.segment.prefetch(self._offsets(everything), self.size)

    def _read_batches(self, found: Array) -> None:
        inner = (slice(None), *(what for _, what in self.inner))
        shape = self._piece_shape
        for box in boxes(self._outer_shape, max(_BATCH // self.size, 1)):
            offsets = self._offsets(box)
            raw = np.empty((len(offsets), self.size), np.uint8)
            self.store.segment.gather(offsets, self.size, raw)
            part = raw.reshape(-1).view(self.dtype).reshape(-1, *shape)[inner]
            found[box] = part.reshape(found[box].shape)

    def _read_streams(self, found: Array) -> None:
        """Stream each piece, some rows along the cut axis at a time."""
        flat = found.reshape(-1, *self._inner_shape)
        everything = tuple(slice(0, n) for n in self._outer_shape)
        whole = self._whole
        for number, offset in enumerate(self._offsets(everything).tolist()):
            if whole:
                self._copy_stream(offset, flat[number : number + 1].reshape(-1).view(np.uint8))
            else:
                self._pick_stream(offset, flat[number])

    def _copy_stream(self, offset: int, out: Array) -> None:
        reader = self.store.segment.reader(offset, offset + len(out), self.store.panel())
        try:
            for at, panel in reader:
                out[at - offset : at - offset + len(panel)] = panel
        finally:
            reader.close()

    def _pick_stream(self, offset: int, out: Array) -> None:
        stride, shape = self.strides[self.cut], self._piece_shape
        rows = max(self.store.panel() // stride, 1)
        what, rest = self.inner[0][1], tuple(w for _, w in self.inner[1:])
        wanted = np.arange(self.rows)[what]
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        reader = self.store.segment.reader(offset, offset + self.size, rows * stride)
        try:
            for at, panel in reader:
                first = (at - offset) // stride
                values = panel.view(self.dtype).reshape(-1, *shape[1:])
                lo, hi = np.searchsorted(ordered, (first, first + len(values)))
                if hi > lo:
                    out[order[lo:hi]] = values[(slice(None), *rest)][ordered[lo:hi] - first]
        finally:
            reader.close()

    # Writing -------------------------------------------------------------------------------------------

    def write(self, values: Array) -> None:
        """Store ``values`` (of the index's shape, any dtype that casts) where the index points."""
        if not values.size:
            return
        values = self._from_result(values)
        if self.size >= _STREAM:
            everything = tuple(slice(0, n) for n in self._outer_shape)
            at = np.ndindex(*self._outer_shape)
            for offset, place in zip(self._offsets(everything).tolist(), at, strict=True):
                self._write_stream(offset, values[(*place, Ellipsis)])
            return
        inner = math.prod(self._inner_shape)
        for box in boxes(self._outer_shape, max(_BATCH // self.size, 1)):
            offsets = self._offsets(box)
            part = _cast(values[box], self.dtype).reshape(len(offsets), inner)
            raw = part.reshape(-1).view(np.uint8).reshape(len(offsets), self.size)
            if self.index.group is not None:
                offsets, raw = _last_of_each(offsets, raw)
            self.store.segment.scatter(offsets, self.size, raw)

    def _write_stream(self, offset: int, values: Array) -> None:
        with Sink(self.store, offset, offset + self.size) as sink:
            for box in boxes(values.shape, (1 << 20) // self.dtype.itemsize):
                key: Any = (*box, ...)  # with the Ellipsis one value stays an array
                sink.write(_cast(values[key], self.dtype))


def _arrange(found: Array, dims: list[int], index: Index) -> Array:
    """Give what was found, whose dimensions are ``dims``, the index's order and shape, without a copy."""
    order = [dims.index(d) for d in index.order if d != NEW]
    gone = [i for i in range(len(dims)) if i not in order]  # axes that an int took
    found = found.transpose([*gone, *order])
    if not found.size:
        return found.reshape(index.shape)
    key: Any = (*(0,) * len(gone), ...)  # with the Ellipsis one value stays an array
    found = found[key]
    at = 0
    for dim in index.order:
        if dim == NEW:
            found = np.expand_dims(found, at)
            at += 1
        elif dim == GROUP:
            shape = index.group or ()
            found = found.reshape((*found.shape[:at], *shape, *found.shape[at + 1 :]))
            at += len(shape)
        else:
            at += 1
    return found


def take(array: Array, index: Index) -> Array:
    """Return what a resolved index selects of an array in memory."""
    dims = list(range(array.ndim))
    key: list[Any] = []
    for axis in index.axes:
        if isinstance(axis, Whole):
            key.append(_as_slice(axis, 0))
        else:
            key.append(slice(axis, axis + 1) if isinstance(axis, int) else axis)
    found = array[tuple(key)]
    places = [k for k, axis in enumerate(index.axes) if isinstance(axis, np.ndarray)]
    if places:
        together = places == list(range(places[0], places[-1] + 1))
        dims = [d for d in dims if d not in places]
        dims.insert(places[0] if together else 0, GROUP)
    elif index.group is not None:
        found, dims = np.repeat(found[None], math.prod(index.group), 0), [GROUP, *dims]
    return _arrange(found, dims, index)


def _cast(values: Array, dtype: DType) -> Array:
    return np.ascontiguousarray(values.astype(dtype, copy=False))


def _last_of_each(offsets: Offsets, raw: Array) -> tuple[Offsets, Array]:
    """Keep the last of several values for one place, as NumPy does in effect."""
    unique, first = np.unique(offsets[::-1], return_index=True)
    if len(unique) == len(offsets):
        return offsets, raw
    return unique, np.ascontiguousarray(raw[::-1][first])


def _cover(axis: Any) -> tuple[int, int]:
    """Return the first index that a selection covers and how many from there on."""
    if isinstance(axis, Whole):
        if not axis.size:
            return 0, 0
        last = axis.start + axis.step * (axis.size - 1)
        return min(axis.start, last), abs(last - axis.start) + 1
    if isinstance(axis, int):
        return axis, 1
    if not axis.size:
        return 0, 0
    low = int(axis.min())
    return low, int(axis.max()) - low + 1


def _full(axis: Any, size: int) -> bool:
    return isinstance(axis, Whole) and axis.size == size and (axis.step == 1 or size <= 1)


def _contiguous(axis: Any) -> bool:
    return isinstance(axis, int) or (isinstance(axis, Whole) and (axis.step == 1 or axis.size <= 1))


def _as_slice(axis: Whole, low: int) -> slice:
    """Return a selection as a slice of what is covered from ``low`` on."""
    start = axis.start - low
    if axis.size == 0:
        return slice(0, 0)
    if axis.step > 0:
        return slice(start, start + axis.step * (axis.size - 1) + 1, axis.step)
    stop = start + axis.step * (axis.size - 1) - 1
    return slice(start, stop if stop >= 0 else None, axis.step)
