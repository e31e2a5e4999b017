"""Histograms, quantiles and numbers of distinct values, in one pass and little memory.

Quantiles come from a KLL sketch (Karnin, Lang and Liberty, *Optimal Quantile Approximation in Streams*,
2016) whose levels all have one capacity: where a level is full it is sorted and every second value goes to
the next one, with twice the weight. Up to 65536 values along the reduced axes the result is exact; above
that the rank of what is returned is off by about 1 / capacity of their number (0.02 % over all axes),
and rarely by more than four times that. The sketch draws from a generator with a fixed seed, so results are
the same in every run.

Distinct values are counted exactly up to 65536, and above that with HyperLogLog (Flajolet and others, 2007;
2^14 registers, the estimator of Ertl, 2017), whose standard error is 0.8 %.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus._dtypes import BFLOAT16, Array
from prunus._errors import PrunusError
from prunus.paged.graph import as_node, check, stamps_of
from prunus.paged.operators import Operators
from prunus.paged.reducers import Reducer
from prunus.paged.statistics import axes_of, finish, run, several

__all__ = ["histogram", "median", "np_percentile", "np_quantile", "quantile", "unique_count"]

_EXACT: Final = 1 << 16
_CAPACITY: Final = 8192
_MEMORY: Final = 256 << 20
_BITS: Final = 14


# Histograms --------------------------------------------------------------------------------------------


class _Bins(Reducer):
    """Counts of values between edges."""

    def __init__(self, shape: tuple[int, ...], edges: Array, uniform: bool, limits: tuple[Any, Any]) -> None:
        super().__init__(shape, tuple(range(len(shape))))
        self.edges, self.uniform, self.limits = edges, uniform, limits
        self.total: Any = 0

    def tile(self, values: list[Array], box: Any) -> Any:
        x = values[0].reshape(-1)
        weights = values[1].reshape(-1) if len(values) > 1 else None
        if self.uniform:  # NumPy is faster where it knows that bins are of one width
            return np.histogram(x, len(self.edges) - 1, self.limits, weights=weights)[0]
        return np.histogram(x, self.edges, weights=weights)[0]

    def merge(self, part: Any, box: Any) -> None:
        self.total = self.total + part

    def result(self) -> Array:
        return np.asarray(self.total)


def histogram(
    a: Any,
    bins: Any = 10,
    range: Any = None,
    density: Any = None,
    weights: Any = None,
) -> tuple[Array, Array]:
    """Return counts and edges as ``numpy.histogram``; without ``range`` the values are read twice.

    Raises
    ------
    TypeError
        If ``bins`` is a rule's name: those need all values at once.
    """
    if isinstance(bins, str):
        raise TypeError(f"bins={bins!r} needs all values at once; pass a number or edges")
    if as_node(a).dtype == bool:
        message = f"Converting input from {np.dtype(bool)} to {np.uint8} for compatibility."
        warnings.warn(message, RuntimeWarning, stacklevel=4)  # NumPy's words
        a = np.positive(a, dtype=np.uint8) if isinstance(a, Operators) else np.asarray(a, np.uint8)
    node = as_node(a)
    stamps = stamps_of([a, weights])
    check(stamps)
    uniform = np.ndim(bins) == 0
    if uniform and range is None:
        if math.prod(node.shape):
            found = several(a, ("min", "max"))
            range = (found["min"], found["max"])
        else:
            range = (0.0, 1.0)
    probe = np.empty(0, node.dtype)
    edges = np.histogram_bin_edges(probe, bins, range)
    reducer = _Bins(node.shape, edges, uniform, tuple(range) if range is not None else (0, 1))
    nodes = [node] if weights is None else [node, as_node(weights)]
    if weights is not None and nodes[1].shape != node.shape:
        raise ValueError(f"weights of shape {nodes[1].shape} for values of shape {node.shape}")
    run(nodes, [reducer])
    check(stamps)
    counts = np.zeros(len(edges) - 1, np.int64) + reducer.result()
    if density:
        return counts / np.diff(edges) / counts.sum(), edges
    return counts, edges


# Quantiles ---------------------------------------------------------------------------------------------


class _Sketch:
    """A KLL sketch of the columns of a table: the same number of values in each."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.levels: list[list[Array]] = [[]]
        self.held = [0]
        self.count = 0
        self.random = np.random.default_rng(0x9E3779B9)

    def add(self, rows: Array) -> None:
        """Add rows, shape (n, columns)."""
        self.count += len(rows)
        self._push(0, rows)

    def _push(self, level: int, rows: Array) -> None:
        while True:
            if level == len(self.levels):
                self.levels.append([])
                self.held.append(0)
            self.levels[level].append(rows)
            self.held[level] += len(rows)
            room = (
                max(self.capacity, _EXACT if self.capacity == _CAPACITY else 0)
                if level == 0
                else self.capacity
            )
            if self.held[level] <= room:
                return
            merged = np.sort(np.concatenate(self.levels[level]), axis=0)
            odd = len(merged) % 2
            self.levels[level] = [merged[:1]] if odd else []
            self.held[level] = odd
            rows = merged[odd + int(self.random.integers(2)) :: 2]
            level += 1

    def quantiles(self, q: Array) -> Array:
        """Return values at ranks ``q * (count - 1)``, shape (len(q), columns)."""
        parts = [(np.concatenate(rows), 1 << level) for level, rows in enumerate(self.levels) if rows]
        values = np.concatenate([v for v, _ in parts])
        weights = np.concatenate([np.full(len(v), w, np.int64) for v, w in parts])
        order = np.argsort(values, axis=0, kind="stable")
        ordered = np.take_along_axis(values, order, axis=0)
        ranks = np.cumsum(weights[order], axis=0)  # of the last copy of each value, from 1
        at = q * (self.count - 1)
        low, high = np.floor(at), np.ceil(at)
        out = np.empty((len(q), values.shape[1]), np.result_type(values.dtype, np.float64))
        for column in np.arange(values.shape[1]):
            first = np.searchsorted(ranks[:, column], low, side="right").clip(max=len(values) - 1)
            last = np.searchsorted(ranks[:, column], high, side="right").clip(max=len(values) - 1)
            a, b = ordered[first, column].astype(out.dtype), ordered[last, column].astype(out.dtype)
            with np.errstate(invalid="ignore"):
                out[:, column] = np.where(a == b, a, a + (b - a) * (at - low))
        return out


class _Quantiles(Reducer):
    """Quantiles of each place, from a sketch that lives until the place's last tile."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], q: Array, itemsize: int) -> None:
        super().__init__(shape, axes)
        self.q, self.shape = q, shape
        self.need = math.prod(shape[a] for a in axes)
        self.columns = math.prod(self.kept)
        self.capacity = min(
            _CAPACITY, max(_MEMORY // (24 * self.columns * itemsize), 1) if self.columns else 1
        )
        self.open: dict[Any, _Sketch] = {}
        self.nan: dict[Any, Array] = {}
        self.values = np.empty((len(q), *self.kept), np.float64)

    def tile(self, values: list[Array], box: Any) -> tuple[Array, Array]:
        (x,) = values
        kept = [a for a in range(x.ndim) if a not in self.axes]
        table = x.transpose([*self.axes, *kept]).reshape(math.prod(x.shape[a] for a in self.axes), -1)
        rows = np.sort(table, axis=0)
        return rows, (rows[-1] != rows[-1])

    def merge(self, part: tuple[Array, Array], box: Any) -> None:
        rows, nan = part
        at = self.place(box)
        key = tuple((b.start, b.stop) for b in at)
        sketch = self.open.get(key)
        if sketch is None:
            if len(rows) < self.need and self.capacity < 128:
                raise PrunusError(
                    f"a sketch of {self.columns} columns does not fit in {_MEMORY} bytes; take quantiles "
                    "of fewer columns at a time"
                )
            sketch = self.open[key] = _Sketch(self.capacity)
            self.nan[key] = nan
        if len(rows) == self.need:
            sketch.capacity = max(self.need, 1)  # all there: exact
        self.nan[key] = self.nan[key] | nan
        sketch.add(rows)
        if sketch.count == self.need:
            found = sketch.quantiles(self.q)
            found[:, self.nan[key]] = np.nan
            place = (slice(None), *at)
            self.values[place] = found.reshape(self.values[place].shape)
            del self.open[key], self.nan[key]

    def result(self) -> Array:
        return self.values


def quantile(
    source: Any,
    q: Any,
    axis: Any = None,
    keepdims: bool = False,
    out: Any = None,
    scale: int = 1,
) -> Any:
    """Return quantiles by linear interpolation, as ``numpy.quantile``; the module says how exact they are.

    ``scale`` is what ``q`` counts to: 1, or 100 for percentiles.

    Raises
    ------
    ValueError
        If ``q`` is not from 0 to 1, or there are no values.
    PrunusError
        If so many columns are reduced over at once that their sketches do not fit in 256 MiB.
    """
    points = np.atleast_1d(np.true_divide(np.asarray(q, np.float64), scale))
    if not ((points >= 0) & (points <= 1)).all():
        raise ValueError("Quantiles must be in the range [0, 1]")
    node = as_node(source)
    if node.dtype.kind not in "biuf" and node.dtype != BFLOAT16:
        raise TypeError(f"quantiles of dtype {node.dtype} are not defined")
    if node.dtype == bool:
        raise TypeError("quantiles of booleans are not defined; use mean()")
    axes = axes_of(axis, len(node.shape))
    if not math.prod(node.shape):
        raise ValueError("quantiles of no values are not defined")
    stamps = stamps_of([source])
    check(stamps)
    reducer = _Quantiles(node.shape, axes, points.reshape(-1), node.dtype.itemsize)
    run([node], [reducer])
    check(stamps)
    dtype = np.dtype(np.float64) if node.dtype.kind in "iu" else node.dtype
    if node.dtype.kind in "iuf":  # whether points are weak beside the values is for NumPy to say
        asked = (np.quantile if scale == 1 else np.percentile)(np.zeros(1, node.dtype), q).dtype
        dtype = asked if asked.kind == "f" else dtype
    found = [finish(v.astype(dtype), axes, keepdims, None) for v in reducer.result()]
    value = np.stack(found).reshape(np.shape(q) + np.shape(found[0]))[()]
    if out is None:
        return value
    out[...] = value
    return out


def np_quantile(
    a: Any, q: Any, axis: Any = None, out: Any = None, *_: Any, scale: int = 1, **kwargs: Any
) -> Any:
    """Run ``numpy.quantile``: only its linear method."""
    keepdims = kwargs.pop("keepdims", False)
    if _ or any(v not in (None, False, "linear", np._NoValue) for v in kwargs.values()):
        raise TypeError(
            "quantiles of arrays on disk are by linear interpolation, without weights; load() for others"
        )
    return quantile(a, q, axis, bool(keepdims) if keepdims is not np._NoValue else False, out, scale)


def np_percentile(a: Any, q: Any, *args: Any, **kwargs: Any) -> Any:
    """Run ``numpy.percentile``."""
    return np_quantile(a, q, *args, scale=100, **kwargs)


def median(
    a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False
) -> Any:
    """Run ``numpy.median``."""
    return quantile(a, 0.5, axis, keepdims is True, out)


# Distinct values ---------------------------------------------------------------------------------------


def _bits(x: Array) -> NDArray[np.uint64]:
    """Return equal numbers for equal values."""
    if x.dtype.kind == "c":
        return _hash(_bits(x.real)) ^ (_hash(_hash(_bits(x.imag))))
    if x.dtype.kind == "f" or x.dtype == BFLOAT16:
        x = x.astype(np.float64)
        x = np.where(np.isnan(x), np.nan, x + 0.0)  # one NaN, one zero
        return x.view(np.uint64)
    return x.astype(np.uint64) if x.dtype.kind in "bu" else x.astype(np.int64).view(np.uint64)


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of 64-bit numbers (the finaliser of SplitMix64; Steele and others, 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Distinct(Reducer):
    """The set of values while it is small, and registers of HyperLogLog."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, tuple(range(len(shape))))
        self.known: NDArray[np.uint64] | None = np.empty(0, np.uint64)
        self.registers = np.zeros(1 << _BITS, np.uint8)

    def tile(self, values: list[Array], box: Any) -> Any:
        bits = _bits(np.ascontiguousarray(values[0]).reshape(-1))
        found = np.unique(bits) if self.known is not None else None
        hashed = _hash(bits if found is None else found)
        slot = (hashed >> np.uint64(64 - _BITS)).astype(np.intp)
        rest = (hashed << np.uint64(_BITS)) >> np.uint64(_BITS)  # the other bits, as a number below 2^50
        rank = (64 - _BITS + 1) - np.frexp(rest.astype(np.float64))[1]
        registers = np.zeros(1 << _BITS, np.uint8)
        np.maximum.at(registers, slot, rank.astype(np.uint8))
        return found, registers

    def merge(self, part: Any, box: Any) -> None:
        found, registers = part
        np.maximum(self.registers, registers, out=self.registers)
        if self.known is not None and found is not None:
            self.known = np.union1d(self.known, found)
            if len(self.known) > _EXACT:
                self.known = None

    def estimate(self) -> int:
        """Return the number of distinct values."""
        if self.known is not None:
            return len(self.known)
        m, q = 1 << _BITS, 64 - _BITS
        counts = np.bincount(self.registers, minlength=q + 2).tolist()
        z = m * _tau(1 - counts[q + 1] / m)
        for k in range(q, 0, -1):
            z = 0.5 * (z + counts[k])
        z += m * _sigma(counts[0] / m)
        return round(m * m / (2 * math.log(2) * z))


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x, before, y = math.sqrt(x), z, y * 0.5
        z -= (1 - x) ** 2 * y
    return z / 3


def _sigma(x: float) -> float:
    if x == 1.0:
        return math.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x, before = x * x, z
        z += x * y
        y += y
    return z


def unique_count(source: Any) -> int:
    """Return the number of distinct values; see :meth:`PagedArray.unique_count`."""
    node, stamps = as_node(source), stamps_of([source])
    check(stamps)
    reducer = _Distinct(node.shape)
    run([node], [reducer])
    check(stamps)
    return reducer.estimate()
