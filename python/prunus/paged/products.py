"""Products with arrays on disk: what operands may be, and who multiplies them.

With one operand on disk it is read once (``one_on_disk``), with two as often as memory asks for
(``two_on_disk``). An expression is computed as it is read; one of up to a MiB is computed beforehand.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from prunus import ops
from prunus._arrays import as_array
from prunus._device import on_device
from prunus._dtypes import F32, HALVES, I8, I32, OPERANDS, Array, DType, as_dtype, result_dtype
from prunus._storage import BlockStorage
from prunus._trace import span
from prunus.paged import one_on_disk, statistics, two_on_disk
from prunus.paged.array import PagedArray
from prunus.paged.expr import PagedExpr
from prunus.paged.graph import as_node, stores_of
from prunus.paged.multiplying import Multiplying
from prunus.paged.operators import Operators
from prunus.paged.panels import is_on_disk, kept
from prunus.paged.reading import reading

__all__ = ["assign_product", "matmul", "member_of", "operand", "types"]

_SMALL: Final = 1 << 20  # bytes up to which an expression is computed beforehand
_VECTOR: Final = 16 << 20  # and one of a single dimension


def matmul(a: Any, b: Any, out: Any = None, dtype: Any = None) -> Any:
    """Return ``a @ b`` where at least one operand is on disk, or write it to ``out``, on disk or in memory.

    Raises
    ------
    TypeError
        If the operands cannot be multiplied panel by panel.
    ValueError
        If their shapes do not fit.
    """
    if isinstance(a, (BlockStorage, Multiplying)) or isinstance(b, (BlockStorage, Multiplying)):
        return ops.matmul(a, b, out, dtype=dtype)
    if on_device(a, b):
        from prunus.cuda.layers.paged import matmul as on_gpu  # torch is only imported where it is used

        return on_gpu(a, b, out, dtype)
    a, b = operand(a, "a"), operand(b, "b")
    if not a.ndim or not b.ndim:
        raise ValueError("matmul: an operand has no dimensions; use * for scalars")
    inner, other = a.shape[-1], b.shape[-2] if b.ndim > 1 else b.shape[0]
    if inner != other:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: {inner} is not {other}")
    to, work = types(a.dtype, b.dtype, dtype)
    if not is_on_disk(a) and not is_on_disk(b):  # computed beforehand
        return _finish(np.asarray(np.matmul(a.astype(work), b.astype(work)).astype(to)), out)
    if a.ndim == b.ndim == 1:
        return _finish(np.asarray(_inner(a, b, work).astype(to)), out)
    if max(a.ndim, b.ndim) > 2:
        return _finish(_batched(a, b, to), out)
    two_a = a if a.ndim == 2 else a.reshape(-1, 1).T
    two_b = b if b.ndim == 2 else b.reshape(-1, 1)
    shape = (*a.shape[:-1], *b.shape[1:]) if b.ndim == 2 else a.shape[:-1]
    if out is None or isinstance(out, np.ndarray):
        found = np.empty((two_a.shape[0], two_b.shape[1]), to)
        _product(two_a, two_b, found, work)
        return _finish(found.reshape(shape), out)
    if out.shape != shape or not np.can_cast(to, out.dtype, "same_kind"):
        raise ValueError(f"out is {out.shape} {out.dtype}, expected {shape} {to}")
    if any(store.version is out._store.version for store in _stores(a, b)):
        raise ValueError("out shares its file's bytes with an operand")
    _product(two_a, two_b, out.reshape(two_a.shape[0], two_b.shape[1]), work)
    return out


def operand(value: Any, name: str) -> Any:
    """Return an operand as products take it: on disk, to be computed as it is read, or in memory."""
    if isinstance(value, PagedArray):
        return value
    if isinstance(value, PagedExpr):
        if value.nbytes <= (_VECTOR if value.ndim == 1 else _SMALL):
            return value.load()
        return value if value.ndim == 2 else kept(value)
    return as_array(value, name)


def types(a: DType, b: DType, dtype: Any) -> tuple[DType, DType]:
    """Return the dtype of the result and that of the arithmetic."""
    if a in OPERANDS and b in OPERANDS:
        to = result_dtype(a, b, dtype)
    else:
        to = (
            as_dtype(dtype)
            if dtype is not None
            else np.matmul(np.empty((1, 1), a), np.empty((1, 1), b)).dtype
        )
    if to in HALVES:
        return to, F32
    return to, I32 if a == b == I8 and to == I32 else to


def _finish(value: Array, out: Any) -> Any:
    if out is None:
        return value[()]
    if out.shape != value.shape or not np.can_cast(value.dtype, out.dtype, "same_kind"):
        raise ValueError(f"out is {out.shape} {out.dtype}, expected {value.shape} {value.dtype}")
    out[...] = value
    return out


def _inner(a: Any, b: Any, work: DType) -> Any:
    from prunus.paged.expr import apply

    wide = np.result_type(work, np.float64) if work.kind == "f" else work
    x = a.astype(wide)
    return np.asarray(statistics.reduce(apply(np.multiply, [x, b]), "sum"))


def _product(a: Any, b: Any, out: Any, work: DType) -> None:
    """Compute a product of matrices into ``out``, in memory or on disk."""
    if 0 in out.shape:
        return
    if not a.shape[1]:  # sums of nothing, and nothing to read
        out[...] = 0
        return
    with span("matmul") as at, reading(at, _stores(a, b)):
        name = _compute(a, b, out, work)
        if at:
            at.ran(name)
            at.count(flops=2 * a.shape[0] * a.shape[1] * b.shape[1])


def _stores(*operands: Any) -> list[Any]:
    return stores_of([as_node(x) for x in operands if is_on_disk(x)])


def _compute(a: Any, b: Any, out: Any, work: DType) -> str:
    if is_on_disk(a) and is_on_disk(b):
        return two_on_disk.multiply(a, b, out, work)
    if is_on_disk(a):
        return one_on_disk.multiply(a, b, out, work)
    return one_on_disk.multiply(b.T, a.T, out.T, work)


def _batched(a: Any, b: Any, to: DType) -> Array:
    """Return products of stacks of matrices; one that is on disk is taken matrix by matrix."""
    a, b = (kept(x) if isinstance(x, PagedExpr) else x for x in (a, b))
    if isinstance(a, PagedArray) and b.ndim <= 2 and a._perm == tuple(range(a.ndim)):
        found = matmul(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), b, dtype=to)
        return np.asarray(found).reshape(*a.shape[:-1], *b.shape[1:])
    vector_a, vector_b = a.ndim == 1, b.ndim == 1
    a_batch, b_batch = a.shape[:-2], b.shape[:-2]
    batch = np.broadcast_shapes(a_batch, b_batch)
    rows = () if vector_a else (a.shape[-2],)
    columns = () if vector_b else (b.shape[-1],)
    out = np.empty((*batch, *rows, *columns), to)
    for at in np.ndindex(*batch):
        out[at] = matmul(_matrix(a, a_batch, at), _matrix(b, b_batch, at), dtype=to)
    return out


def member_of(a: Any, key: tuple[int, ...]) -> Any:
    """Return one matrix of a stack on disk: a view where its bytes lie together, else an ndarray."""
    from prunus.paged.indexing import parse

    view = a._contiguous(parse(key, a.shape))
    return a[key] if view is None else view


def _matrix(a: Any, batch: tuple[int, ...], at: tuple[int, ...]) -> Any:
    key = tuple(0 if n == 1 else i for n, i in zip(batch, at[len(at) - len(batch) :], strict=True))
    if isinstance(a, PagedArray) and key:
        return member_of(a, key)
    return a[key] if key else a


def assign_product(a: PagedArray, b: Any) -> PagedArray:
    """Write ``a @ b`` to ``a``, as ``a @= b`` does: all of it is computed aside first, on disk.

    Raises
    ------
    ValueError
        If the product has another shape, or ``a`` cannot be written.
    TypeError
        If its dtype cannot be cast to that of ``a``.
    """
    a._check_writable()
    shapes = (tuple(a.shape), tuple(np.shape(b)))
    square = a.ndim == 2 and len(shapes[1]) == 2 and shapes[1] == (a.shape[1],) * 2
    if not square:
        raise ValueError(
            f"a @= b with shapes {shapes[0]} and {shapes[1]} does not keep the shape of a; "
            "use np.matmul(a, b, out=...)"
        )
    b = b if isinstance(b, (Operators, BlockStorage, Multiplying)) else as_array(b, "b")
    if not np.can_cast(types(a.dtype, b.dtype, None)[0], a.dtype, "same_kind"):
        raise TypeError(f"cannot cast the product of {a.dtype} and {b.dtype} to a's dtype; use np.matmul")
    from prunus.paged.working import empty

    aside = empty(a.shape, a.dtype, pager=a.pager)
    try:
        matmul(a, b, aside)
        a[...] = aside
    finally:
        aside._store.file.close()
    return a
