"""What an index asks for: NumPy's rules, as selections along the axes of an array."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Index", "Whole", "parse"]

Indices = NDArray[np.int64]
GROUP: Final = -1  # stands for the dimensions of the index arrays
NEW: Final = -2  # stands for a new axis


@dataclass(frozen=True)
class Whole:
    """A slice in canonical form: ``start + step * i`` for i below ``size``; a kept axis."""

    start: int
    step: int
    size: int


@dataclass(frozen=True)
class Index:
    """An index, resolved against a shape.

    Attributes
    ----------
    axes : tuple
        For each axis a :class:`Whole`, an int, or the flat array of indices (int64, not negative).
    group : tuple of int or None
        The shape that the index arrays have together; None where there are none.
    order : tuple of int
        The result's dimensions: an axis, ``NEW``, or ``GROUP`` for those of the index arrays.
    scalar : bool
        Whether the result is one value, which NumPy returns as a scalar.
    """

    axes: tuple[Whole | int | Indices, ...]
    group: tuple[int, ...] | None
    order: tuple[int, ...]
    scalar: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's shape."""
        sizes: list[int] = []
        for dim in self.order:
            if dim == GROUP:
                sizes.extend(self.group or ())
            else:
                axis = self.axes[dim] if dim >= 0 else None
                sizes.append(axis.size if isinstance(axis, Whole) else 1)
        return tuple(sizes)


def _entries(key: Any, ndim: int) -> list[Any]:
    """Return the parts of a key with arrays converted and the Ellipsis spelled out."""
    parts = list(key) if isinstance(key, tuple) else [key]
    out: list[Any] = []
    used = 0
    ellipsis: int | None = None
    for given in parts:
        part = given
        if part is None:
            out.append(None)
        elif part is Ellipsis:
            if ellipsis is not None:
                raise IndexError("an index can only have a single ellipsis ('...')")
            ellipsis = len(out)
        elif isinstance(part, slice):
            out.append(part)
            used += 1
        else:
            part = _array_or_int(part)
            out.append(part)
            used += part.ndim if isinstance(part, np.ndarray) and part.dtype == bool else 1
    if used > ndim:
        raise IndexError(f"too many indices for array: array is {ndim}-dimensional, but {used} were indexed")
    at = len(out) if ellipsis is None else ellipsis
    # An Ellipsis separates index arrays even where it stands for no axis.
    missing: list[Any] = [slice(None)] * (ndim - used)
    out[at:at] = missing if missing or ellipsis is None else [Ellipsis]
    return out


def _array_or_int(part: Any) -> Any:
    if not isinstance(part, (bool, np.bool_, np.ndarray, list)):
        try:
            return operator.index(part)
        except TypeError:
            pass
    load = getattr(part, "load", None)
    array = load() if callable(load) and not isinstance(part, np.ndarray) else np.asarray(part)
    if array.dtype != bool and array.dtype.kind not in "iu":
        if array.size == 0 and isinstance(part, (list, tuple)):
            return array.astype(np.int64)
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or boolean "
            f"arrays are valid indices, got {type(part).__name__} of dtype {array.dtype}"
        )
    return array


def _checked(array: Indices, axis: int, size: int) -> Indices:
    """Return indices as int64 from 0, or raise as NumPy does."""
    array = array.astype(np.int64, copy=False)
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < -size or high >= size:
            raise IndexError(
                f"index {high if high >= size else low} is out of bounds for axis {axis} with size {size}"
            )
        if low < 0:
            array = np.where(array < 0, array + size, array)
    return array


def parse(key: Any, shape: tuple[int, ...]) -> Index:  # noqa: PLR0915 - one rule after the other
    """Resolve ``key`` against ``shape`` by NumPy's rules for basic and advanced indexing.

    Raises
    ------
    IndexError
        Where NumPy raises one.
    """
    entries = _entries(key, len(shape))
    advanced = any(isinstance(e, np.ndarray) for e in entries)
    axes: list[Any] = []
    arrays: list[Indices] = []  # index arrays, to be broadcast together
    holders: list[int | None] = []  # the axis each belongs to; None for a boolean scalar
    order: list[int] = []
    places: list[int] = []  # where in the key the entries stand that count as index arrays
    for place, entry in enumerate(entries):
        axis = len(axes)
        if entry is Ellipsis:
            continue
        if entry is None:
            order.append(NEW)
        elif isinstance(entry, slice):
            start, stop, step = entry.indices(shape[axis])
            axes.append(Whole(start, step, len(range(start, stop, step))))
            order.append(axis)
        elif isinstance(entry, int):
            if not -shape[axis] <= entry < shape[axis]:
                raise IndexError(f"index {entry} is out of bounds for axis {axis} with size {shape[axis]}")
            axes.append(entry % shape[axis])
            if advanced:
                places.append(place)
                order.append(GROUP)
        else:
            places.append(place)
            order.append(GROUP)
            if entry.dtype == bool:
                if entry.shape != shape[axis : axis + entry.ndim]:
                    raise IndexError(
                        f"boolean index did not match indexed array along axes {axis} to "
                        f"{axis + entry.ndim - 1}; shape is {shape[axis : axis + entry.ndim]} but the "
                        f"boolean array has {entry.shape}"
                    )
                if entry.ndim == 0:
                    arrays.append(np.zeros(int(entry), np.int64))
                    holders.append(None)
                for found in entry.nonzero() if entry.ndim else ():
                    arrays.append(found.astype(np.int64, copy=False))
                    holders.append(len(axes))
                    axes.append(None)
            else:
                arrays.append(_checked(entry, axis, shape[axis]))
                holders.append(axis)
                axes.append(None)
    group: tuple[int, ...] | None = None
    if advanced:
        try:
            group = np.broadcast_shapes(*(a.shape for a in arrays))
        except ValueError:
            shapes = " ".join(str(a.shape) for a in arrays)
            raise IndexError(
                f"shape mismatch: indexing arrays could not be broadcast together with shapes {shapes}"
            ) from None
        for array, holder in zip(arrays, holders, strict=True):
            if holder is not None:
                axes[holder] = np.broadcast_to(array, group).reshape(-1)
        together = places == list(range(places[0], places[-1] + 1))
        first = order.index(GROUP) if together else 0
        rest = [d for d in order if d != GROUP]
        before = sum(d != GROUP for d in order[:first])
        order = [*rest[:before], GROUP, *rest[before:]]
    dotted = any(part is Ellipsis for part in (key if isinstance(key, tuple) else (key,)))
    scalar = not dotted and all(_is_scalar(e) for e in entries)
    return Index(tuple(axes), group, tuple(order), scalar)


def _is_scalar(entry: Any) -> bool:
    return isinstance(entry, int) or (
        isinstance(entry, np.ndarray) and entry.ndim == 0 and entry.dtype != bool
    )
