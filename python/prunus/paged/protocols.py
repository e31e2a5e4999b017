"""NumPy's protocols: which NumPy calls take arrays on disk and expressions, and what the others say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from prunus._dtypes import as_dtype
from prunus.paged import contractions, products, running, shaping, sketches, statistics
from prunus.paged.array import PagedArray
from prunus.paged.expr import PagedExpr, apply, assign, astype, into
from prunus.paged.graph import as_node
from prunus.paged.operators import Operators

__all__ = ["array_function", "array_ufunc"]

_REDUCE: Final = {
    np.add: "sum", np.multiply: "prod", np.minimum: "min", np.maximum: "max",
    np.logical_and: "all", np.logical_or: "any",
}  # fmt: skip
_ACCUMULATE: Final = {np.add: "sum", np.multiply: "prod"}


# Ufuncs ------------------------------------------------------------------------------------------------


def array_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a ufunc of which an operand or an output is on disk.

    Raises
    ------
    TypeError
        If it is not supported; the message says what is.
    ValueError
        If a file is closed.
    """
    try:
        return _ufunc(ufunc, method, inputs, kwargs)
    except ValueError:
        _check_open([*inputs, *(kwargs.get("out") or ())])
        raise


def _check_open(values: Iterable[Any]) -> None:
    """Raise the error that names the file, if one of the operands' is closed."""
    for value in values:
        if isinstance(value, PagedArray):
            value._check_open()


def _ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if method == "reduce" and ufunc in _REDUCE:
        options = {"axis": 0, **kwargs}
        options.pop("order", None)
        return statistics.reduce(inputs[0], _REDUCE[ufunc], options.pop("axis"), **options)
    if method == "accumulate" and ufunc in _ACCUMULATE:
        (out,) = kwargs.get("out", (None,))
        return running.cumulative(
            inputs[0], _ACCUMULATE[ufunc], kwargs.get("axis", 0), kwargs.get("dtype"), out
        )
    if method != "__call__":
        raise TypeError(
            f"np.{ufunc.__name__}.{method} is not supported for arrays on disk; call .load() first"
        )
    if ufunc is np.matmul:
        (out,) = kwargs.get("out", (None,))
        a, b = inputs
        return products.matmul(a, b, out=out, dtype=kwargs.get("dtype"))
    if ufunc.signature is not None:
        raise TypeError(f"np.{ufunc.__name__} is not supported for arrays on disk; call .load() first")
    outs = kwargs.pop("out", None)
    where = kwargs.pop("where", True)
    if where is not True and outs is None:
        raise TypeError(
            f"np.{ufunc.__name__} with where= needs out=: elsewhere the result would be undefined"
        )
    casting = kwargs.pop("casting", "same_kind")
    if "dtype" in kwargs and kwargs["dtype"] is not None:
        kwargs["dtype"] = as_dtype(kwargs["dtype"])
    if casting != "same_kind":
        kwargs["casting"] = casting
    found = apply(ufunc, inputs, kwargs)
    if outs is None:
        return found
    results = found if isinstance(found, tuple) else (found,)
    for result, out in zip(results, outs, strict=True):
        if out is not None:
            _check_cast(ufunc, result, out, casting)
    if len([out for out in outs if out is not None]) > 1:
        # One result must not be computed from what another has overwritten.
        results = tuple(into(r, None) for r in results)
    done = tuple(
        result if out is None else _write(result, out, where)
        for result, out in zip(results, outs, strict=True)
    )
    return done if len(done) > 1 else done[0]


def _check_cast(ufunc: np.ufunc, result: Any, out: Any, casting: str) -> None:
    if isinstance(out, PagedExpr):
        raise TypeError("a PagedExpr cannot be out=: it is immutable")
    if isinstance(out, PagedArray):
        out._check_writable()
    if not np.can_cast(result.dtype, out.dtype, casting):  # type: ignore[arg-type]
        raise TypeError(
            f"Cannot cast ufunc '{ufunc.__name__}' output from {result.dtype!r} to {out.dtype!r} "
            f"with casting rule '{casting}'"
        )
    if np.broadcast_shapes(result.shape, out.shape) != out.shape:
        raise ValueError(
            f"non-broadcastable output operand with shape {out.shape} doesn't match the broadcast shape "
            f"{np.broadcast_shapes(result.shape, out.shape)}"
        )


def _write(result: Any, out: Any, where: Any) -> Any:
    if where is not True:
        result = apply(np.where, [where, result, out])
        result = astype(result, out.dtype)
    if isinstance(out, PagedArray):
        if isinstance(result, Operators):
            assign(out, result)
        else:
            out[...] = result
    elif isinstance(result, Operators):
        if result.shape == out.shape and not _shares(result, out):
            into(result, out)
        else:
            out[...] = result.load()
    else:
        out[...] = result
    return out


def _shares(result: Any, out: Any) -> bool:
    """Say whether an expression has an operand in memory that writing ``out`` could change."""
    from prunus.paged.graph import Call, Const, Pick

    stack = [as_node(result)]
    while stack:
        node = stack.pop()
        if (
            isinstance(node, Const)
            and isinstance(node.value, np.ndarray)
            and np.may_share_memory(node.value, out)
        ):
            return True
        stack.extend(node.args if isinstance(node, Call) else [node.call] if isinstance(node, Pick) else [])
    return False


# Functions ---------------------------------------------------------------------------------------------


def _name(func: Any) -> str:
    module = str(getattr(func, "__module__", None) or "numpy")
    return f"{module.replace('numpy', 'np', 1)}.{getattr(func, '__name__', func)}"


def array_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a NumPy function that was called with an array on disk.

    Raises
    ------
    TypeError
        If it is not supported, naming what to call instead.
    """
    handler = _FUNCTIONS.get(func)
    if handler is None:
        advice = shaping.ADVICE.get(func)
        advice = "call .load() first" if advice is None else f"{advice}; if it fits, call .load() first"
        raise TypeError(f"{_name(func)} is not supported for arrays on disk; {advice}")
    try:
        return handler(*args, **kwargs)
    except ValueError:
        _check_open([*args, *kwargs.values()])
        raise


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if v is not np._NoValue and (v is not None or k == "axis")}


_POSITIONAL: Final = {
    "sum": ("dtype", "out"),
    "prod": ("dtype", "out"),
    "mean": ("dtype", "out"),
    "var": ("dtype", "out", "ddof"),
    "std": ("dtype", "out", "ddof"),
}


def _reduction(name: str) -> Callable[..., Any]:
    def run(a: Any, axis: Any = None, *args: Any, **kwargs: Any) -> Any:
        names = _POSITIONAL.get(name, ("out",))
        kwargs.update(zip(names, args, strict=False))
        _check_first(a, name)
        return statistics.reduce(a, name, axis, **_given(kwargs))

    return run


def _nan_reduction(name: str) -> Callable[..., Any]:
    def run(
        a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = None, **kwargs: Any
    ) -> Any:
        _check_first(a, f"nan{name}")
        return statistics.without_nan(
            a, name, axis, **_given({"dtype": dtype, "out": out, "ddof": ddof, **kwargs})
        )

    return run


def _check_first(a: Any, name: str) -> None:
    if not isinstance(a, Operators):
        raise TypeError(f"np.{name} takes an array on disk as its first argument only; load() the others")


def _elementwise(func: Any, operands: int) -> Callable[..., Any]:
    """Return a handler that applies an elementwise NumPy function whose first arguments are arrays."""

    def run(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        inputs, rest = args[:operands], args[operands:]

        def tiled(*values: Any) -> Any:
            return func(*values, *rest, **kwargs)

        tiled.__name__ = func.__name__
        found = apply(tiled, inputs)
        return found if out is None else _write(found, out, True)

    return run


def _clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, **kwargs: Any) -> Any:
    low = kwargs.pop("min", None) if a_min is None or a_min is np._NoValue else a_min
    high = kwargs.pop("max", None) if a_max is None or a_max is np._NoValue else a_max
    for name in ("min", "max"):
        kwargs.pop(name, None)
    low, high = (None if x is np._NoValue else x for x in (low, high))
    found: Any = a
    if low is not None:
        found = np.maximum(found, low)
    if high is not None:
        found = np.minimum(found, high)
    if found is a:
        found = np.positive(a)
    if kwargs:
        raise TypeError(f"np.clip of arrays on disk does not take {', '.join(kwargs)}=")
    return found if out is None else _write(found, out if not isinstance(out, tuple) else out[0], True)


def _where(condition: Any, *args: Any) -> Any:
    if len(args) != 2:
        raise TypeError("np.where with one argument returns indices of all values; call .load() first")
    return apply(np.where, [condition, *args])


def _interp(x: Any, xp: Any, fp: Any, *args: Any, **kwargs: Any) -> Any:
    return apply(lambda v: np.interp(v, xp, fp, *args, **kwargs), [x])


def _isin(element: Any, test_elements: Any, **kwargs: Any) -> Any:
    if isinstance(test_elements, Operators):
        test_elements = test_elements.load()
    return apply(lambda v: np.isin(v, test_elements, **kwargs), [element])


def _searchsorted(a: Any, v: Any, side: Any = "left", sorter: Any = None) -> Any:
    if isinstance(a, Operators):
        raise TypeError("np.searchsorted in an array on disk is not supported; call .load() first")
    return apply(lambda x: np.searchsorted(a, x, side, sorter), [v])


def _digitize(x: Any, bins: Any, right: bool = False) -> Any:
    return apply(lambda v: np.digitize(v, bins, right), [x])


def _average(
    a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False
) -> Any:
    keep = keepdims if keepdims is not np._NoValue else False
    if weights is None:
        value = statistics.reduce(a, "mean", axis, keepdims=keep)
        scale: Any = np.full(np.shape(value), a.size / max(np.size(value), 1))[()]
        return (value, scale) if returned else value
    w: Any = weights if isinstance(weights, Operators) else np.asarray(weights)
    if w.shape != a.shape:
        if not isinstance(axis, int) or w.ndim != 1 or w.shape[0] != a.shape[axis]:
            raise ValueError(f"weights of shape {w.shape} fit neither {a.shape} nor its axis {axis}")
        w = w.reshape([-1 if k == axis % a.ndim else 1 for k in range(a.ndim)])
    total = statistics.reduce(apply(np.multiply, [a, w]), "sum", axis, keepdims=keep)
    spread = w if isinstance(w, Operators) else apply(np.multiply, [apply(np.ones_like, [a]), w])
    scale = statistics.reduce(spread, "sum", axis, keepdims=keep)
    if np.any(scale == 0):
        raise ZeroDivisionError("Weights sum to zero, can't be normalized")
    value = np.divide(total, scale)
    return (value, scale) if returned else value


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    axes = statistics.axes_of(axis, x.ndim)
    if len(axes) == 1 or ord is None or (ord == "fro" and len(axes) == 2):
        return _vector_norm(x, axis=axis, keepdims=keepdims, ord=2 if len(axes) != 1 or ord is None else ord)
    raise TypeError(f"np.linalg.norm with ord={ord!r} over axes {axes} is not supported for arrays on disk")


def _vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    to = x.dtype if x.dtype.kind in "fc" else np.dtype(np.float64)
    real = np.empty(0, to).real.dtype
    size = np.abs(x.astype(to))
    if ord in (np.inf, -np.inf):
        return statistics.reduce(size, "max" if ord > 0 else "min", axis, keepdims=keepdims)
    if ord == 0:
        return statistics.reduce(x != 0, "sum", axis, keepdims=keepdims).astype(real)
    if isinstance(ord, str):
        raise ValueError(f"Invalid norm order '{ord}' for vectors")
    powers = size.astype(np.float64)  # so that squares of what is in range are, too
    if ord != 1:
        powers = np.square(powers) if ord == 2 else np.power(powers, ord)
    total = statistics.reduce(powers, "sum", axis, keepdims=keepdims)
    if ord != 1:
        total = np.sqrt(total) if ord == 2 else np.power(total, np.true_divide(1, ord))
    return total.astype(real)


def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    if isinstance(dst, PagedArray):
        dst._check_writable()
    if not isinstance(src, (Operators, np.ndarray)):  # numbers: NumPy says whether they fit
        given, src = src, np.empty(np.shape(src), dst.dtype)
        np.copyto(src, given, casting=casting)  # type: ignore[arg-type]
    elif not np.can_cast(src.dtype, dst.dtype, casting):  # type: ignore[arg-type]
        raise TypeError(f"cannot cast from {src.dtype} to {dst.dtype} according to the rule {casting!r}")
    if where is not True:
        src = apply(np.where, [where, src, dst]).astype(dst.dtype)
    _write(src, dst, True)


def _cumulative(name: str) -> Callable[..., Any]:
    def run(
        x: Any, /, *, axis: Any = None, dtype: Any = None, out: Any = None, include_initial: bool = False
    ) -> Any:
        if axis is None and x.ndim != 1:
            raise ValueError("For arrays which have more than one dimension ``axis`` argument is required.")
        if include_initial:
            raise TypeError("running sums of arrays on disk do not take include_initial=")
        return running.cumulative(x, name, 0 if axis is None else axis, dtype, out)

    return run


def _result_type(*args: Any) -> Any:
    return np.result_type(*(a.dtype if isinstance(a, Operators) else a for a in args))


def _size(a: Any, axis: Any = None) -> int:
    return (
        int(a.size) if axis is None else int(np.prod([a.shape[k] for k in statistics.axes_of(axis, a.ndim)]))
    )


_FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {
    **shaping.FUNCTIONS,
    np.where: _where,
    np.clip: _clip,
    np.interp: _interp,
    np.isin: _isin,
    np.searchsorted: _searchsorted,
    np.digitize: _digitize,
    np.average: _average,
    np.linalg.norm: _norm,
    np.linalg.vector_norm: _vector_norm,
    np.copyto: _copyto,
    np.size: _size,
    np.result_type: _result_type,
    np.can_cast: lambda a, to, casting="safe": np.can_cast(a.dtype, to, casting),
    np.iscomplexobj: lambda x: x.dtype.kind == "c",
    np.isrealobj: lambda x: x.dtype.kind != "c",
    np.array_equal: lambda a, b, equal_nan=False: _array_equal(a, b, equal_nan),
    np.allclose: lambda a, b, rtol=1e-5, atol=1e-8, equal_nan=False: bool(
        statistics.reduce(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan), "all")
    ),
    np.isclose: lambda a, b, rtol=1e-5, atol=1e-8, equal_nan=False: apply(
        lambda x, y: np.isclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan), [a, b]
    ),
    np.cumsum: lambda a, axis=None, dtype=None, out=None: running.cumulative(a, "sum", axis, dtype, out),
    np.cumprod: lambda a, axis=None, dtype=None, out=None: running.cumulative(a, "prod", axis, dtype, out),
    np.cumulative_sum: _cumulative("sum"),
    np.cumulative_prod: _cumulative("prod"),
    np.histogram: sketches.histogram,
    np.median: sketches.median,
    np.quantile: sketches.np_quantile,
    np.percentile: sketches.np_percentile,
    np.dot: contractions.dot,
    np.vdot: contractions.vdot,
    np.tensordot: contractions.tensordot,
    np.einsum: contractions.einsum,
}
for _func, _handled in {
    np.sum: "sum", np.prod: "prod", np.mean: "mean", np.var: "var", np.std: "std", np.min: "min", np.max:
    "max", np.amin: "min", np.amax: "max", np.ptp: "ptp", np.argmin: "argmin", np.argmax: "argmax", np.any:
    "any", np.all: "all", np.count_nonzero: "count_nonzero",
}.items():  # fmt: skip
    _FUNCTIONS[_func] = _reduction(_handled)
for _func, _handled in {
    np.nansum: "sum", np.nanprod: "prod", np.nanmean: "mean", np.nanvar: "var", np.nanstd: "std",
    np.nanmin: "min", np.nanmax: "max", np.nanargmin: "argmin", np.nanargmax: "argmax",
}.items():  # fmt: skip
    _FUNCTIONS[_func] = _nan_reduction(_handled)
for _func in (
    np.nan_to_num, np.round, np.around, np.real, np.imag, np.angle, np.iscomplex, np.isreal, np.isneginf,
    np.isposinf, np.sinc, np.i0, np.fix, np.real_if_close, np.ones_like,
):  # fmt: skip
    _FUNCTIONS[_func] = _elementwise(_func, 1)
del _FUNCTIONS[np.ones_like], _FUNCTIONS[np.real_if_close]  # these make arrays, or look at all values


def _array_equal(a: Any, b: Any, equal_nan: bool) -> bool:
    b = b if isinstance(b, Operators) else np.asarray(b)
    a = a if isinstance(a, Operators) else np.asarray(a)
    if a.shape != b.shape:
        return False
    same = np.equal(a, b)
    if equal_nan:
        same = same | (np.not_equal(a, a) & np.not_equal(b, b))
    return bool(statistics.reduce(same, "all"))
