"""Reductions: which there are, what NumPy says of their results, and one pass for several of them."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import numpy as np

from prunus._dtypes import BFLOAT16, HALVES, Array, DType, as_dtype
from prunus._trace import span
from prunus.paged.evaluate import Pass, Tile
from prunus.paged.graph import Node, as_node, call, check, stamps_of, stores_of
from prunus.paged.reading import reading
from prunus.paged.reducers import Arg, Count, Extreme, Logical, Moments, Product, Reducer, Sum

__all__ = ["axes_of", "finish", "reduce", "run", "several"]

_WHERE: Final = frozenset({"sum", "prod", "mean", "var", "std", "min", "max", "any", "all", "count_nonzero"})


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that ``axis`` names, from 0 and sorted.

    Raises
    ------
    numpy.exceptions.AxisError
        If there is no such axis.
    ValueError
        If one is named twice.
    """
    if axis is None:
        return tuple(range(ndim))
    named = axis if isinstance(axis, tuple) else (axis,)
    out: list[int] = []
    for one in map(operator.index, named):
        if not -ndim <= one < ndim:
            raise np.exceptions.AxisError(one, ndim)
        out.append(one % ndim)
    if len(set(out)) != len(out):
        raise ValueError("duplicate value in 'axis'")
    return tuple(sorted(out))


def run(nodes: Sequence[Node], reducers: Sequence[Reducer], order: tuple[int, ...] | None = None) -> None:
    """Read the sources once and give every tile to every reducer; partial results are merged in order."""
    job = Pass(nodes, order)

    def work(tiles: Iterator[Tile]) -> list[tuple[Any, list[Any]]]:
        return [(box, [r.tile(values, box) for r in reducers]) for box, values in tiles]

    with closing(job.run(work)) as jobs:
        for parts in jobs:
            for box, partial in parts:
                for reducer, part in zip(reducers, partial, strict=True):
                    reducer.merge(part, box)
            if all(r.decided for r in reducers):
                return


def finish(value: Array, axes: tuple[int, ...], keepdims: bool, out: Any) -> Any:
    """Return a result (that has all its dimensions) as NumPy would, or write it to ``out``."""
    if not keepdims:
        value = value.reshape([n for axis, n in enumerate(value.shape) if axis not in axes])
    if out is None:
        return value[()]
    if isinstance(out, tuple):
        (out,) = out
    if out.shape != value.shape:
        raise ValueError(f"output parameter has shape {out.shape}, expected {value.shape}")
    if not np.can_cast(value.dtype, out.dtype, "same_kind"):
        raise TypeError(f"cannot cast the result from {value.dtype} to out's {out.dtype}")
    out[...] = value
    return out


def reduce(
    source: Any, name: str, axis: Any = None, *, keepdims: bool = False, out: Any = None, **kwargs: Any
) -> Any:
    """Return one reduction of an array on disk or an expression."""
    mean = kwargs.pop("mean", None)
    if mean is not None and mean is not np._NoValue and name in ("var", "std"):
        return _about(source, name, mean, axis, keepdims, out, **kwargs)
    return _reduce(source, (name,), axis, keepdims, out, kwargs)[name]


def _about(
    source: Any,
    name: str,
    mean: Any,
    axis: Any,
    keepdims: bool,
    out: Any,
    *,
    dtype: Any = None,
    ddof: Any = 0,
    correction: Any = None,
    where: Any = True,
) -> Any:
    """Return the variance or the standard deviation about a mean that is given, as with ``keepdims=True``."""
    axes = axes_of(axis, source.ndim)
    given = source.dtype if dtype is None else as_dtype(dtype)
    kind = given if given.kind in "fc" or given == BFLOAT16 else np.dtype(np.float64)
    wide = np.dtype(np.complex128 if kind.kind == "c" else np.float64)
    apart = np.subtract(source.astype(wide), mean)
    squares = np.real(np.multiply(apart, np.conj(apart)))
    total = reduce(squares, "sum", axis, keepdims=True, where=where)
    if where is True or where is np._NoValue:
        count: Any = math.prod(source.shape[a] for a in axes)
    else:
        count = np.sum(np.broadcast_to(where, source.shape), axis=axes, keepdims=True)
    ddof = ddof if correction is None or correction is np._NoValue else correction
    if np.any(np.less_equal(count, ddof)):
        warnings.warn("Degrees of freedom <= 0 for slice", RuntimeWarning, stacklevel=5)
    with np.errstate(all="ignore"):
        value = np.true_divide(total, np.maximum(np.subtract(count, ddof), 0))
        value = np.sqrt(value) if name == "std" else value
    to = np.empty(0, kind).real.dtype
    return finish(np.asarray(value).astype(to), axes, bool(keepdims), out)


def several(
    source: Any, names: Sequence[str], axis: Any = None, *, keepdims: bool = False, **kwargs: Any
) -> dict[str, Any]:
    """Return some reductions, by name, from one pass."""
    return _reduce(source, tuple(names), axis, keepdims, None, kwargs)


class _Request:
    """What is asked of the values: their node, the axes, and the keywords of the reduction."""

    def __init__(self, source: Any, axis: Any, kwargs: dict[str, Any]) -> None:
        kept = {k: v for k, v in kwargs.items() if v is not None and v is not np._NoValue}
        self.node = as_node(source)
        self.axes = axes_of(axis, len(self.node.shape))
        self.axis = axis
        dtype = kept.pop("dtype", None)
        self.dtype: DType | None = None if dtype is None else as_dtype(dtype)
        self.ddof = kept.pop("correction", None)
        self.ddof = kept.pop("ddof", 0) if self.ddof is None else self.ddof
        self.initial = kept.pop("initial", None)
        where = kept.pop("where", True)
        self.where: Node | None = None if where is True else as_node(where)
        if kept:
            raise TypeError(f"reductions of arrays on disk do not take {', '.join(kept)}=")
        if self.where is not None:
            if self.where.dtype != bool:
                raise TypeError(f"where= has dtype {self.where.dtype}, expected bool")
            if np.broadcast_shapes(self.where.shape, self.node.shape) != self.node.shape:
                raise ValueError(
                    f"where= of shape {self.where.shape} does not broadcast to {self.node.shape}"
                )
        self.count = math.prod(self.node.shape[a] for a in self.axes)


def _reduce(
    source: Any, names: tuple[str, ...], axis: Any, keepdims: bool, out: Any, kwargs: dict[str, Any]
) -> dict[str, Any]:
    stamps = stamps_of([source, kwargs.get("where")])
    check(stamps)
    request = _Request(source, axis, kwargs)
    makers = [_Maker(name, request) for name in names]
    nodes = [request.node] if request.where is None else [request.node, request.where]
    reducers: dict[Any, Reducer] = {}
    for maker in makers:
        for key, reducer in maker.wanted():
            reducers.setdefault(key, reducer)
    with span("+".join(names)) as at, reading(at, stores_of(nodes)):
        run(nodes, list(reducers.values()))
    check(stamps)
    return {m.name: finish(m.result(reducers), request.axes, bool(keepdims), out) for m in makers}


def _sum_dtype(dtype: DType) -> DType:
    """Return the dtype in which sums over ``dtype`` are formed."""
    if dtype.kind in "bi":
        return np.dtype(np.int64)
    if dtype.kind == "u":
        return np.dtype(np.uint64)
    if dtype.kind == "c":
        return np.result_type(dtype, np.complex128)
    return np.dtype(np.float64) if dtype in HALVES else np.result_type(dtype, np.float64)


class _Maker:
    """One reduction: which reducers it needs, and what is made of them."""

    def __init__(self, name: str, request: _Request) -> None:
        self.name, self.ask = name, request
        dtype = request.node.dtype
        if dtype.kind not in "biufc" and dtype != BFLOAT16:
            raise TypeError(
                f"{name} of dtype {dtype} is not supported for arrays on disk; call .load() first"
            )
        if request.initial is not None and name not in ("sum", "prod", "min", "max"):
            raise TypeError(f"{name} takes no initial=")
        if request.where is not None and name not in _WHERE:
            raise TypeError(f"{name} takes no where=")
        if request.dtype is not None and name not in ("sum", "prod", "mean", "var", "std"):
            raise TypeError(f"{name} takes no dtype=")
        if name in ("argmin", "argmax") and isinstance(request.axis, tuple):
            raise TypeError(f"{name} takes one axis, got {request.axis}")
        if name in ("min", "max", "ptp", "argmin", "argmax"):
            if request.count == 0 and (request.initial is None or name == "ptp"):
                raise ValueError(f"zero-size array to reduction operation {name} which has no identity")
            if request.where is not None and request.initial is None:
                raise ValueError(
                    f"reduction operation {name} does not have an identity: where= needs initial="
                )

    def wanted(self) -> list[tuple[Any, Reducer]]:
        """Return the reducers needed, by a key that is equal where they are the same."""
        ask, name = self.ask, self.name
        shape, axes, dtype = ask.node.shape, ask.axes, ask.node.dtype
        asked = ask.dtype or dtype
        wide = _sum_dtype(asked)
        if name == "sum":
            cast = asked if asked.kind in "biu" and dtype.kind not in "biu" else None
            return [(("sum", wide, cast), Sum(shape, axes, wide, cast))]
        if name == "mean":
            wide = wide if asked.kind in "fc" or asked == BFLOAT16 else np.dtype(np.float64)
            return [(("sum", wide, None), Sum(shape, axes, wide)), self._counter()]
        if name == "prod":
            cast = asked if asked.kind in "biu" and dtype.kind not in "biu" else None
            return [(("prod", wide, cast), Product(shape, axes, wide, cast))]
        if name in ("var", "std"):
            return [(("moments",), Moments(shape, axes, dtype.kind == "c"))]
        if name in ("min", "max"):
            fill = None if ask.where is None else np.asarray(ask.initial, dtype)
            return [((name, "fill"), Extreme(shape, axes, dtype, name, fill))]
        if name == "ptp":
            if dtype.kind == "b":
                raise TypeError("ptp of booleans is not defined: numpy boolean subtract is not supported")
            return [((n, "fill"), Extreme(shape, axes, dtype, n)) for n in ("min", "max")]
        if name in ("argmin", "argmax"):
            return [((name,), Arg(shape, axes, dtype, name, ask.axis))]
        if name in ("any", "all"):
            return [((name,), Logical(shape, axes, name))]
        if name == "count_nonzero":
            return [(("count_nonzero",), Count(shape, axes))]
        raise ValueError(f"there is no reduction {name!r}")

    def _counter(self) -> tuple[Any, Reducer]:
        return ("count",), Count(self.ask.node.shape, self.ask.axes, nonzero=False)

    def result(self, reducers: dict[Any, Reducer]) -> Array:
        """Return the value, with all its dimensions, in NumPy's dtype."""
        ask, name = self.ask, self.name
        dtype = ask.node.dtype.newbyteorder("=")
        done = [reducers[key].result() for key, _ in self.wanted()]
        if name in ("sum", "prod"):
            value = done[0]
            to = ask.dtype or (dtype if dtype.kind not in "biu" else np.add.reduce(np.empty(0, dtype)).dtype)
            if ask.initial is not None:
                value = value + ask.initial if name == "sum" else value * ask.initial
            return value.astype(to)
        if name in ("mean", "var", "std"):
            exact = dtype.kind in "biu"
            to = ask.dtype or (np.dtype(np.float64) if exact else dtype)
            if name == "mean":
                return self._mean(*done).astype(to)
            return self._spread(reducers[("moments",)]).astype(
                to if to.kind != "c" else np.empty(0, to).real.dtype
            )
        if name in ("min", "max"):
            best = np.minimum if name == "min" else np.maximum
            return done[0] if ask.initial is None else best(done[0], np.asarray(ask.initial, dtype))
        if name == "ptp":
            return done[1] - done[0]
        return done[0]

    def _mean(self, total: Array, count: Array) -> Array:
        if not count.all():
            warnings.warn("Mean of empty slice.", RuntimeWarning, stacklevel=6)
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / count

    def _spread(self, moments: Any) -> Array:
        if (moments.count <= self.ask.ddof).any():
            warnings.warn("Degrees of freedom <= 0 for slice", RuntimeWarning, stacklevel=6)
        with np.errstate(invalid="ignore", divide="ignore"):
            value: Array = moments.result() / np.maximum(moments.count - self.ask.ddof, 0)
        return np.asarray(np.sqrt(value)) if self.name == "std" else value


def without_nan(source: Any, name: str, axis: Any, **kwargs: Any) -> Any:
    """Return a reduction that leaves NaN out, as ``numpy.nansum`` and the others do."""
    node = as_node(source)
    if node.dtype.kind not in "fc" and node.dtype != BFLOAT16:
        return reduce(source, name, axis, **kwargs)
    from prunus.paged.expr import PagedExpr, apply

    given = kwargs.pop("where", True)
    number = apply(np.logical_not, [PagedExpr(call(np.isnan, [source])[0], stamps_of([source]))])
    keep = number if given is True or given is np._NoValue else apply(np.logical_and, [number, given])
    if name in ("sum", "prod", "mean", "var", "std"):
        return reduce(source, name, axis, where=keep, **kwargs)
    low = name in ("min", "argmin")
    if name in ("min", "max"):
        _check_all_nan(keep, axis, "All-NaN axis encountered", error=False)
        filled = apply(np.where, [keep, source, np.asarray(math.inf if low else -math.inf, node.dtype)[()]])
        found = reduce(filled, name, axis, **kwargs)
        some = reduce(keep, "any", axis, keepdims=kwargs.get("keepdims", False))
        return np.where(some, found, np.asarray(np.nan, node.dtype))[()] if not np.all(some) else found
    _check_all_nan(keep, axis, "All-NaN slice encountered", error=True)
    filled = apply(np.where, [keep, source, np.asarray(math.inf if low else -math.inf, node.dtype)[()]])
    return reduce(filled, name, axis, **kwargs)


def _check_all_nan(keep: Any, axis: Any, message: str, error: bool) -> None:
    if not np.all(reduce(keep, "any", axis)):
        if error:
            raise ValueError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
