"""NumPy's protocols: which NumPy calls take a BSR, and what the others say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from prunus import _elementwise, _reduce, ops
from prunus._storage import BlockStorage


def array_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a NumPy ufunc of which at least one operand or output is block-sparse.

    Raises
    ------
    TypeError
        If it is not supported, naming what to call instead.
    """
    if method == "reduce" and len(inputs) == 1:
        return _reduce_with(ufunc, inputs[0], kwargs)
    if method != "__call__":
        raise TypeError(f"np.{ufunc.__name__}.{method} is not supported for BSR; call W.toarray() first")
    if ufunc is np.matmul:
        return _matmul(inputs, dict(kwargs))
    out = kwargs.pop("out", None)
    if out is not None:
        raise TypeError(
            f"np.{ufunc.__name__} with a BSR takes no out=; use its result, or W *= s for an in-place product"
        )
    if kwargs.pop("where", True) is not True:
        raise TypeError(f"np.{ufunc.__name__} with a BSR takes no where=; call W.toarray() first")
    dtype = kwargs.pop("dtype", None)
    if kwargs:
        raise TypeError(f"np.{ufunc.__name__} with a BSR does not take {', '.join(kwargs)}=")
    if len(inputs) == 1:
        result: Any = _elementwise.unary(ufunc, inputs[0])
    elif len(inputs) == 2:
        result = _elementwise.apply(ufunc, *inputs)
    else:
        raise TypeError(f"np.{ufunc.__name__} is not supported for BSR; call W.toarray() first")
    return result if dtype is None else result.astype(dtype, copy=False)


def _matmul(inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``np.matmul`` with keywords: out= and dtype= are ours, others must be at their defaults."""
    out = kwargs.pop("out", None)
    if isinstance(out, tuple):
        (out,) = out
    dtype = kwargs.pop("dtype", None)
    if kwargs.get("axes") == [(-2, -1)] * 3:
        del kwargs["axes"]  # what ``x @= W`` passes: the usual ones
    if kwargs.pop("casting", "same_kind") not in ("same_kind", "unsafe") or kwargs:
        raise TypeError(f"np.matmul with a BSR takes out= and dtype=, not {', '.join(kwargs) or 'casting'}=")
    a, b = inputs
    return ops.matmul(a, b, out=out, dtype=dtype)


_REDUCTIONS: Final[dict[np.ufunc, str]] = {np.add: "sum", np.maximum: "max", np.minimum: "min"}


def _reduce_with(ufunc: np.ufunc, a: Any, kwargs: dict[str, Any]) -> Any:
    name = _REDUCTIONS.get(ufunc)
    if name is None or not isinstance(a, BlockStorage):
        raise TypeError(f"np.{ufunc.__name__}.reduce is not supported for BSR; call W.toarray() first")
    kwargs = {key: value for key, value in kwargs.items() if value is not None or key == "axis"}
    kwargs.setdefault("axis", 0)  # the default of a ufunc's reduce
    out = kwargs.pop("out", None)
    return _call(getattr(a, name), name, (), {**kwargs, "out": out[0] if isinstance(out, tuple) else out})


_WRITERS: Final = frozenset({np.save, np.savez, np.savez_compressed, np.savetxt})


def _name(func: Callable[..., Any]) -> str:
    """Return how a NumPy function is called: np.linalg.norm, not norm."""
    module = str(getattr(func, "__module__", None) or "numpy")
    return f"{module.replace('numpy', 'np', 1)}.{getattr(func, '__name__', func)}"


def array_function(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a NumPy function that was called with a BSR.

    Raises
    ------
    TypeError
        If it is not supported, naming what to call instead.
    """
    handler = _FUNCTIONS.get(func)
    if handler is None:
        name = _name(func)
        if func in _WRITERS:
            raise TypeError(
                f"{name} of a BSR would write a dense array, which W.toarray() gives; to keep the blocks, "
                "use pickle, or scipy.sparse.save_npz(path, W.to_scipy())"
            )
        raise TypeError(f"{name} is not supported for BSR; call W.toarray() first")
    return handler(*args, **kwargs)


def _call(method: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method with the keywords NumPy passes along; those left at their default are dropped."""
    kept = {key: value for key, value in kwargs.items() if value is not np._NoValue and value is not None}
    for key in ("where", "initial"):
        if kept.pop(key, True) is not True:
            raise TypeError(f"np.{name} of a BSR takes no {key}=; call W.toarray() first")
    if "axis" in kwargs:
        kept["axis"] = kwargs["axis"]
    return method(*args, **kept)


def _method(name: str) -> Callable[..., Any]:
    def run(a: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(a, BlockStorage):
            raise TypeError(f"np.{name} takes a BSR as its first argument only")
        return _call(getattr(a, name), name, args, kwargs)

    return run


def _dot(a: Any, b: Any, out: Any = None) -> Any:
    if _elementwise.is_scalar(a) or _elementwise.is_scalar(b):
        if out is not None:
            raise TypeError("np.dot of a BSR and a scalar takes no out=")
        return _elementwise.apply(np.multiply, a, b)
    if max(np.ndim(a), np.ndim(b)) > 2:
        raise TypeError("np.dot of more than two dimensions is not supported for BSR; use np.matmul or @")
    return ops.matmul(a, b, out=out)


def _transpose(a: Any, axes: Any = None) -> Any:
    return a.transpose(axes)


def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    n = a.ndim
    one, two = sorted((axis1 % n, axis2 % n))
    if one == two:
        return a
    if (one, two) != (n - 2, n - 1):
        raise TypeError("np.swapaxes of a BSR swaps its last two axes only; call W.toarray() first")
    return a.T


def _check_axes(a: Any, axis1: int, axis2: int) -> None:
    n = a.ndim
    if (axis1 % n, axis2 % n) != (n - 2, n - 1):
        raise TypeError("diagonals of a BSR are those of its last two axes; call W.toarray() first")


def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    _check_axes(a, axis1, axis2)
    return a.diagonal(offset)


def _trace(
    a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None
) -> Any:
    if dtype is not None or out is not None:
        raise TypeError("np.trace of a BSR takes no dtype= and no out=; use np.diagonal(W).sum(dtype=...)")
    _check_axes(a, axis1, axis2)
    return a.trace(offset)


def _size(a: Any, axis: Any = None) -> int:
    return int(a.size) if axis is None else int(np.prod([a.shape[x] for x in _reduce.axes_of(axis, a.ndim)]))


def _copy(a: Any, order: str = "K", subok: bool = False) -> Any:
    return a.copy()


def _result_type(*args: Any) -> Any:
    return np.result_type(*(a.dtype if isinstance(a, BlockStorage) else a for a in args))


def _count_nonzero(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    if axis is None and not keepdims:
        return a.count_nonzero()
    return (a != 0).sum(axis=axis, keepdims=keepdims)


_FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {
    np.dot: _dot,
    np.sum: _method("sum"),
    np.mean: _method("mean"),
    np.max: _method("max"),
    np.amax: _method("max"),
    np.min: _method("min"),
    np.amin: _method("min"),
    np.transpose: _transpose,
    np.swapaxes: _swapaxes,
    np.diagonal: _diagonal,
    np.trace: _trace,
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: _size,
    np.copy: _copy,
    np.result_type: _result_type,
    np.count_nonzero: _count_nonzero,
}
if hasattr(np, "matrix_transpose"):  # NumPy 2
    _FUNCTIONS[np.matrix_transpose] = lambda a: a.T
