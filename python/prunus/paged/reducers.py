"""What reductions compute for a tile, and how they merge it with those before.

A reducer's state has the shape of the source with the reduced axes of length 1. ``tile`` runs on any
thread, and ``merge`` on one, tile after tile in a fixed order, so that results do not depend on the number
of threads.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from prunus import _core
from prunus._dtypes import BFLOAT16, F16, F32, F64, Array, DType

__all__ = ["Arg", "Count", "Extreme", "Logical", "Moments", "Product", "Reducer", "Sum", "add_up"]

Box = tuple[slice, ...]
# Dtypes that the compiled kernel sums.
_SUMMED: Final = frozenset({F32, F64, F16, BFLOAT16})
# Rows of a tile from which on the kernel sums its columns.
_TALL_SUMS: Final = 256
_TALL_SQUARES: Final = 64
_WIDE: Final = 1024  # narrower rows are put side by side before they are added


def add_up(x: Array, axes: tuple[int, ...], dtype: DType) -> Array:
    """Return sums over ``axes`` of a tile, formed in ``dtype``, the dimensions kept.

    NumPy adds pairwise along contiguous runs; across rows it adds one row after the other, and short rows are
    slow, so those are laid side by side first.
    """
    if axes == (0,) and x.ndim == 2 and x.flags.c_contiguous and x.shape[1]:
        rows, width = x.shape
        group = _WIDE // width
        if group > 1 and rows >= 2 * group:
            whole = rows // group * group
            wide = np.add.reduce(x[:whole].reshape(-1, group * width), axis=0, dtype=dtype)
            total = np.add.reduce(wide.reshape(group, width), axis=0, keepdims=True)
            if whole < rows:
                total = total + np.add.reduce(x[whole:], axis=0, dtype=dtype, keepdims=True)
            return total
    if axes == tuple(range(x.ndim)) and x.ndim > 1 and x.flags.c_contiguous:
        return np.add.reduce(x.reshape(-1), dtype=dtype).reshape((1,) * x.ndim)  # type: ignore[no-any-return]
    return np.add.reduce(x, axis=axes, dtype=dtype, keepdims=True)


def compiled(x: Array, axes: tuple[int, ...], squares: bool) -> tuple[Array, Array] | None:
    """Return sums over ``axes`` of a tile and sums of squares about the mean, by the compiled kernel.

    Both are float64, the dimensions kept. None where the kernel does not take the tile: it sums floats over
    all axes, or over the leading ones.
    """
    lead = len(axes)
    if not lead or axes != tuple(range(lead)):
        return None
    if x.dtype not in _SUMMED or not x.size or not x.flags.c_contiguous:
        return None
    rows = math.prod(x.shape[:lead])
    # Of few rows NumPy's sums are quicker: merging columns costs the kernel as much as some dozens of rows.
    if lead < x.ndim and rows < (_TALL_SQUARES if squares else _TALL_SUMS):
        return None
    flat = x.reshape(rows, -1) if lead < x.ndim else x.reshape(1, -1)
    found = _core.moments(flat, lead < x.ndim, False, squares, 1)
    kept = (1,) * lead + x.shape[lead:]
    return found[:, 2].reshape(kept), found[:, 3].reshape(kept)


class Reducer:
    """State of a reduction over ``axes`` of values of ``shape``."""

    decided = False  # whether the rest of the values cannot change the result

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        self.axes = axes
        self.kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))

    def place(self, box: Box) -> Box:
        """Return where a tile's result goes."""
        return tuple(slice(0, 1) if axis in self.axes else part for axis, part in enumerate(box))

    def first(self, box: Box) -> bool:
        """Say whether no tile before this one had the same place."""
        return all(box[axis].start == 0 for axis in self.axes)

    def tile(self, values: list[Array], box: Box) -> Any:
        """Reduce a tile; ``values`` are its values and, if there is one, its mask."""
        raise NotImplementedError

    def merge(self, part: Any, box: Box) -> None:
        """Take in what :meth:`tile` returned."""
        raise NotImplementedError

    def result(self) -> Array:
        """Return what was reduced."""
        raise NotImplementedError


def _masked(values: list[Array], fill: Any) -> Array:
    """Return the values with ``fill`` where the mask, if there is one, says no."""
    if len(values) == 1:
        return values[0]
    x, keep = values
    return np.where(keep, x, np.asarray(fill, x.dtype))


class Sum(Reducer):
    """Sums; those of tiles are added with Neumaier's compensation (Neumaier 1974)."""

    def __init__(
        self, shape: tuple[int, ...], axes: tuple[int, ...], dtype: DType, cast: DType | None = None
    ) -> None:
        super().__init__(shape, axes)
        self.dtype, self.cast = dtype, cast
        self.total = np.zeros(self.kept, dtype)
        self.exact = dtype.kind in "iu"
        self.lost = np.zeros((1,) * len(shape) if self.exact else self.kept, dtype)

    def tile(self, values: list[Array], box: Box) -> Array:
        """Reduce a tile."""
        x = _masked(values, 0)
        if self.dtype == F64 and self.cast is None and (found := compiled(x, self.axes, False)):
            return found[0]
        return add_up(x if self.cast is None else x.astype(self.cast), self.axes, self.dtype)

    def merge(self, part: Array, box: Box) -> None:
        """Take in a tile's part."""
        at = self.place(box)
        if self.exact:
            self.total[at] += part
            return
        if self.first(box):
            self.total[at] = part
            return
        old = self.total[at]
        with np.errstate(all="ignore"):
            new = old + part
            rest = new - old
            self.lost[at] += (old - (new - rest)) + (part - rest)
        self.total[at] = new

    def result(self) -> Array:
        """Return what was reduced."""
        if self.exact:
            return self.total
        with np.errstate(all="ignore"):
            return np.where(
                np.isfinite(self.total) & np.isfinite(self.lost), self.total + self.lost, self.total
            )


class Product(Reducer):
    """Products."""

    def __init__(
        self, shape: tuple[int, ...], axes: tuple[int, ...], dtype: DType, cast: DType | None = None
    ) -> None:
        super().__init__(shape, axes)
        self.dtype, self.cast = dtype, cast
        self.total = np.ones(self.kept, dtype)

    def tile(self, values: list[Array], box: Box) -> Array:
        """Reduce a tile."""
        x = _masked(values, 1)
        x = x if self.cast is None else x.astype(self.cast)
        return np.multiply.reduce(x, axis=self.axes, dtype=self.dtype, keepdims=True)

    def merge(self, part: Array, box: Box) -> None:
        """Take in a tile's part."""
        self.total[self.place(box)] *= part

    def result(self) -> Array:
        """Return what was reduced."""
        return self.total


class Count(Reducer):
    """How many values there are, or how many are not zero."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], nonzero: bool = True) -> None:
        super().__init__(shape, axes)
        self.nonzero = nonzero
        self.total = np.zeros(self.kept, np.int64)

    def tile(self, values: list[Array], box: Box) -> Any:
        """Reduce a tile."""
        if self.nonzero:
            x = values[0] != 0
            x = x if len(values) == 1 else x & values[1]
        elif len(values) == 1:
            return math.prod(box[axis].stop - box[axis].start for axis in self.axes)
        else:
            x = values[1]
        return np.add.reduce(x, axis=self.axes, dtype=np.int64, keepdims=True)

    def merge(self, part: Any, box: Box) -> None:
        """Take in a tile's part."""
        self.total[self.place(box)] += part

    def result(self) -> Array:
        """Return what was reduced."""
        return self.total


class Moments(Reducer):
    """Sums of squared differences from the mean, merged as Chan, Golub and LeVeque (1983) do."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], is_complex: bool) -> None:
        super().__init__(shape, axes)
        self.dtype = np.dtype(np.complex128 if is_complex else np.float64)
        self.count = np.zeros(self.kept, np.int64)
        self.mean = np.zeros(self.kept, self.dtype)
        self.squares = np.zeros(self.kept, np.float64)

    def tile(self, values: list[Array], box: Box) -> tuple[Any, Array, Array]:
        """Reduce a tile."""
        with np.errstate(all="ignore"):
            if len(values) == 1 and self.dtype == F64 and (found := compiled(values[0], self.axes, True)):
                many = math.prod(box[axis].stop - box[axis].start for axis in self.axes)
                return many, found[0] / many, found[1]
            x = values[0].astype(self.dtype, order="C")  # a copy, worked on in place
            if len(values) == 1:
                n: Any = math.prod(box[axis].stop - box[axis].start for axis in self.axes)
            else:
                x[~values[1]] = 0
                n = np.add.reduce(values[1], axis=self.axes, dtype=np.int64, keepdims=True)
            mean = add_up(x, self.axes, self.dtype) / np.maximum(n, 1)
            x -= mean
            if len(values) > 1:
                x[~values[1]] = 0
            squares = np.multiply(x, x, out=x) if self.dtype.kind == "f" else x.real**2 + x.imag**2
            return n, mean, add_up(squares, self.axes, np.dtype(np.float64))

    def merge(self, part: tuple[Any, Array, Array], box: Box) -> None:
        """Take in a tile's part."""
        at = self.place(box)
        n, mean, squares = part
        with np.errstate(all="ignore"):
            old = self.count[at]
            total = old + n
            share = n / np.maximum(total, 1)
            delta = mean - self.mean[at]
            self.mean[at] = np.where(old == 0, mean, self.mean[at] + delta * share)
            cross = np.where(old == 0, 0, (delta.real**2 + delta.imag**2) * old * share)
            self.squares[at] += squares + np.where(n == 0, 0, cross)
        self.count[at] = total

    def result(self) -> Array:
        """Return what was reduced."""
        return self.squares


class Extreme(Reducer):
    """The smallest or largest value; NaN wins."""

    def __init__(
        self, shape: tuple[int, ...], axes: tuple[int, ...], dtype: DType, name: str, fill: Any = None
    ) -> None:
        super().__init__(shape, axes)
        self.ufunc = np.minimum if name == "min" else np.maximum
        self.fill = fill
        self.best = np.empty(self.kept, dtype.newbyteorder("="))
        if fill is not None:
            self.best[...] = fill

    def tile(self, values: list[Array], box: Box) -> Array:
        """Reduce a tile."""
        x = _masked(values, self.fill)
        return self.ufunc.reduce(x, axis=self.axes, keepdims=True)

    def merge(self, part: Array, box: Box) -> None:
        """Take in a tile's part."""
        at = self.place(box)
        self.best[at] = part if self.first(box) else self.ufunc(self.best[at], part)

    def result(self) -> Array:
        """Return what was reduced."""
        return self.best


class Arg(Reducer):
    """The index of the first smallest or largest value; the first NaN wins."""

    def __init__(
        self, shape: tuple[int, ...], axes: tuple[int, ...], dtype: DType, name: str, axis: Any
    ) -> None:
        super().__init__(shape, axes)
        self.func: Any = np.argmin if name == "argmin" else np.argmax
        self.better: Any = np.less if name == "argmin" else np.greater
        self.shape = shape
        self.axis = None if axis is None else axes[0]
        self.best = np.empty(self.kept, dtype.newbyteorder("="))
        self.index = np.zeros(self.kept, np.intp)

    def tile(self, values: list[Array], box: Box) -> tuple[Array, Array]:
        """Reduce a tile."""
        (x,) = values
        if self.axis is not None:
            index = self.func(x, axis=self.axis, keepdims=True)
            return np.take_along_axis(x, index, self.axis), index + box[self.axis].start
        at = np.unravel_index(int(self.func(x)), x.shape)
        whole = [int(i) + part.start for i, part in zip(at, box, strict=True)]
        flat = 0
        for i, n in zip(whole, self.shape, strict=True):
            flat = flat * n + i
        ones = (1,) * x.ndim
        return np.asarray(x[at]).reshape(ones), np.full(ones, flat, np.intp)

    def merge(self, part: tuple[Array, Array], box: Box) -> None:
        """Take in a tile's part."""
        at = self.place(box)
        value, index = part
        if not self.first(box):
            best, known = self.best[at], self.index[at]
            nan, was = np.not_equal(value, value), np.not_equal(best, best)
            wins = np.where(
                nan | was, nan & (~was | (index < known)),
                self.better(value, best) | ((value == best) & (index < known)),
            )  # fmt: skip
            value, index = np.where(wins, value, best), np.where(wins, index, known)
        self.best[at], self.index[at] = value, index

    def result(self) -> Array:
        """Return what was reduced."""
        return self.index


class Logical(Reducer):
    """Whether any, or all, values are true."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], name: str) -> None:
        super().__init__(shape, axes)
        self.end = name == "any"  # the value that decides
        self.ufunc = np.logical_or if self.end else np.logical_and
        self.state = np.full(self.kept, not self.end)
        self.alone = len(axes) == len(shape)

    def tile(self, values: list[Array], box: Box) -> Array:
        """Reduce a tile."""
        x = values[0] if values[0].dtype == bool else values[0] != 0
        if len(values) > 1:
            x = x & values[1] if self.end else x | ~values[1]
        return self.ufunc.reduce(x, axis=self.axes, keepdims=True)

    def merge(self, part: Array, box: Box) -> None:
        """Take in a tile's part."""
        at = self.place(box)
        self.state[at] = self.ufunc(self.state[at], part)
        self.decided = self.alone and bool(self.state.all() if self.end else not self.state.any())

    def result(self) -> Array:
        """Return what was reduced."""
        return self.state
