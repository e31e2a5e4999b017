"""Products with arrays on disk, by panels that the pager reads ahead.

The operand on disk is read once, in the order of storage: by rows where it is stored so, each panel giving
rows of the result, and otherwise by parts of the sum. The engine multiplies panels where they were read to;
dtypes that it does not know, and parts of sums of many columns, are NumPy's, in runs that are put together.
Of two operands on disk the one held is read once, in
parts of up to a quarter of the budget (in memory of their own), and the other one once for each part.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

import numpy as np

from prunus import engines, ops
from prunus._arrays import as_array
from prunus._dtypes import F32, F64, FLOATS, HALVES, I8, I32, OPERANDS, Array, DType, as_dtype, result_dtype
from prunus._storage import BlockStorage
from prunus._trace import span
from prunus.engines.base import Blocks
from prunus.paged import statistics
from prunus.paged.array import PagedArray
from prunus.paged.blocks import stream_panel
from prunus.paged.evaluate import Stream
from prunus.paged.multiplying import Multiplying
from prunus.paged.operators import Operators
from prunus.paged.reading import reading

__all__ = ["dot", "einsum", "matmul", "tensordot", "vdot"]

_PANEL: Final = 1 << 20
# Bytes that are multiplied at a time with at least so many columns. Constants: where sums are cut does not
# depend on a budget.
_GROUP: Final = 16 << 20
_MANY: Final = 8
# Columns of x up to which each panel adds to all sums as rows of a table do; with more, tiles do better.
_ROWS: Final = 128
# Rows of a block as the engine takes a panel, at most: they share what is in the first cache of x.
_HEIGHT: Final = 64


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
    a, b = _operand(a, "a"), _operand(b, "b")
    if not a.ndim or not b.ndim:
        raise ValueError("matmul: an operand has no dimensions; use * for scalars")
    inner, other = a.shape[-1], b.shape[-2] if b.ndim > 1 else b.shape[0]
    if inner != other:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: {inner} is not {other}")
    to, work = _types(a.dtype, b.dtype, dtype)
    if a.ndim == b.ndim == 1:
        return _finish(np.asarray(_inner(a, b, work).astype(to)), out)
    if max(a.ndim, b.ndim) > 2:
        return _finish(_batched(a, b, to), out)
    two_a = a if a.ndim == 2 else a.reshape(1, -1)
    two_b = b if b.ndim == 2 else b.reshape(-1, 1)
    shape = (*a.shape[:-1], *b.shape[1:]) if b.ndim == 2 else a.shape[:-1]
    if out is None or isinstance(out, np.ndarray):
        found = np.empty((two_a.shape[0], two_b.shape[1]), to)
        _product(two_a, two_b, found, work)
        return _finish(found.reshape(shape), out)
    if out.shape != shape or not np.can_cast(to, out.dtype, "same_kind"):
        raise ValueError(f"out is {out.shape} {out.dtype}, expected {shape} {to}")
    if any(isinstance(x, PagedArray) and x._store.version is out._store.version for x in (a, b)):
        raise ValueError("out shares its file's bytes with an operand")
    _product(two_a, two_b, out.reshape(two_a.shape[0], two_b.shape[1]), work)
    return out


def _operand(value: Any, name: str) -> Any:
    if isinstance(value, PagedArray):
        return value
    if isinstance(value, Operators):
        from prunus.paged.working import from_array

        small = value.nbytes <= _PANEL
        return value.load() if small else from_array(value, pager=_pager_of(value))
    return as_array(value, name)


def _pager_of(value: Any) -> Any:
    from prunus.paged.working import _first_pager

    return _first_pager(value)


def _types(a: DType, b: DType, dtype: Any) -> tuple[DType, DType]:
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


def _panels(a: PagedArray, size: int, unit: int = 0) -> Generator[tuple[int, Array], None, None]:
    """Yield runs of about ``size`` bytes of the stored rows of a matrix: the first row's index, and the rows.

    With ``unit``, runs are some multiple of so many rows that lies where it was read to, if it can. A run is
    valid until the next but one is asked for.
    """
    rows, width = a._stored
    row = max(width * a.itemsize, 1)
    step, panel = min(max(size // row, 1), rows), a._store.panel()
    if unit:
        panel = stream_panel(int(a.pager.budget), row * unit)
        step = min(max(panel // row // unit, 1) * unit, rows)
    panel = min(panel, step * row)
    a._store.file.check()
    stream = Stream(a, panel)
    # In memory that is used again: fresh pages cost more than copying to old ones. Two, so that the caller
    # has one while the other is filled.
    buffers = [np.empty(step * row if step * row > panel else 0, np.uint8) for _ in range(2)]
    try:
        for start in range(0, rows, step):
            count = min(step, rows - start)
            buffers.reverse()
            buffer = buffers[0]
            if buffer.size:
                for at in range(0, count * row, panel):
                    part = min(panel, count * row - at)
                    buffer[at : at + part] = stream.take(part)
                run = buffer[: count * row]
            else:
                run = stream.take(count * row)
            values = run.view(a.dtype).reshape(count, width)
            # Kernels read no value across an odd address, which arrays in files of others may begin at.
            yield start, values if values.flags.aligned else values.copy()
    finally:
        stream.close()


def _product(a: Any, b: Any, out: Any, work: DType) -> None:
    """Compute a product of matrices into ``out``, in memory or on disk."""
    if 0 in out.shape:
        return
    if not a.shape[1]:  # sums of nothing, and nothing to read
        out[...] = 0
        return
    stores = [x._store for x in (a, b) if isinstance(x, PagedArray)]
    with span("matmul") as at, reading(at, stores):
        _compute(a, b, out, work)
        if at:
            at.ran("numpy")
            at.count(flops=2 * a.shape[0] * a.shape[1] * b.shape[1])


def _compute(a: Any, b: Any, out: Any, work: DType) -> None:
    if isinstance(a, PagedArray) and isinstance(b, PagedArray):
        if b.nbytes < a.nbytes:
            a, b, out = b.T, a.T, out.T
        budget = int(b.pager.budget) // 4
        rows = max(budget // max(a.shape[1] * work.itemsize + out.shape[1] * work.itemsize, 1), 1)
        for start in range(0, a.shape[0], rows):
            held = a[start : start + rows].astype(work, copy=False)
            part = np.empty((len(held), out.shape[1]), work)
            _stream(b.T, held.T, part.T, work)
            out[start : start + rows] = part
        return
    if isinstance(b, PagedArray):
        a, b, out = b.T, a.T, out.T
    _stream(a, b, out, work)


def _stream(a: PagedArray, x: Array, out: Any, work: DType) -> None:
    """Compute ``a @ x`` with ``a`` on disk and ``x`` in memory."""
    rows = a._perm == (0, 1)  # panels are rows of the result; otherwise they are parts of its sums
    known = a.dtype in OPERANDS and x.dtype in OPERANDS and out.dtype in OPERANDS | {I32}
    if rows and known:
        _by_rows(a, x, out)
    elif not rows and known and a.dtype in FLOATS and x.dtype in FLOATS and x.shape[1] <= _ROWS:
        _by_parts(a, x, out, work)
    else:
        _by_numpy(a, x, out, work, rows)


def _by_rows(a: PagedArray, x: Array, out: Any) -> None:
    """Compute ``a @ x``, some rows of the result from each panel, by the engine and where they were read to.

    To the engine a panel is a block-sparse matrix, all of whose block rows have one block as wide as the
    matrix. Sums run over whole rows in order, so that it does not matter how many of them a panel has.
    """
    engine, width = engines.active(), a.shape[1]
    row = max(width * a.dtype.itemsize, 1)
    height = _height(a._store.panel(), row)
    held = engine.hold(x, a.dtype, out.dtype, (height, width))
    direct = type(out) is np.ndarray
    with closing(_panels(a, 0, height)) as panels:
        for start, panel in panels:
            target = (
                out[start : start + len(panel)] if direct else np.empty((len(panel), x.shape[1]), out.dtype)
            )
            whole = len(panel) // height * height
            for first, stop, each in ((0, whole, height), (whole, len(panel), len(panel) - whole)):
                if first < stop:
                    at = np.arange((stop - first) // each + 1, dtype=np.int64)
                    data = panel[first:stop].reshape(-1, each, width)
                    blocks = Blocks(data, np.zeros_like(at[1:]), at, (stop - first, width), False)
                    engine.dsd(blocks, x, target[first:stop], None, None, held)
            if not direct:
                out[start : start + len(panel)] = target


def _height(panel: int, row: int) -> int:
    """Return how many rows of ``row`` bytes make a block: some blocks a panel, for all threads."""
    if row > panel:  # put together in memory of its own
        return max(min(_GROUP // row, 8), 1)
    height = min(max(panel // row // 4, 1), _HEIGHT)
    return height // 8 * 8 if height > 8 else height


def _by_parts(a: PagedArray, x: Array, out: Any, work: DType) -> None:
    """Compute ``a @ x`` where each panel adds to all sums, which go on from one to the next."""
    sums = np.empty((x.shape[1], a.shape[0]), F64 if F64 in (a.dtype, x.dtype, work) else F32)
    with closing(_panels(a, 0, 1)) as panels:
        for start, panel in panels:
            part = np.ascontiguousarray(x[start : start + len(panel)].T)
            engines.active().combine(part, panel, sums, add=start > 0)
    with np.errstate(all="ignore"):
        out[...] = sums.T


def _by_numpy(a: PagedArray, x: Array, out: Any, work: DType, rows: bool) -> None:
    """Compute ``a @ x`` with NumPy, which takes every dtype."""
    x = x.astype(work, copy=False)
    # Each run packs x anew, so with many columns a run has to be long.
    size = _PANEL if x.shape[1] < _MANY else _GROUP
    total = out if rows else np.zeros((a.shape[0], x.shape[1]), work)

    def multiply(start: int, panel: Array) -> None:
        if rows:
            total[start : start + len(panel)] = np.matmul(panel.astype(work, copy=False), x)
        else:
            np.add(
                total, np.matmul(panel.astype(work, copy=False).T, x[start : start + len(panel)]), out=total
            )

    if a.nbytes <= size:  # nothing to do meanwhile
        with closing(_panels(a, size)) as panels:
            for start, panel in panels:
                multiply(start, panel)
    else:
        # One panel is multiplied while the next one is put together.
        with ThreadPoolExecutor(1) as pool, closing(_panels(a, size)) as panels:
            running: Future[None] | None = None
            for start, panel in panels:
                if running is not None:
                    running.result()
                running = pool.submit(multiply, start, panel)
            if running is not None:
                running.result()
    if not rows:
        out[...] = total


def _batched(a: Any, b: Any, to: DType) -> Array:
    """Return products of stacks of matrices; one that is on disk is taken matrix by matrix."""
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


def _matrix(a: Any, batch: tuple[int, ...], at: tuple[int, ...]) -> Any:
    key = tuple(0 if n == 1 else i for n, i in zip(batch, at[len(at) - len(batch) :], strict=True))
    if isinstance(a, PagedArray) and key:
        from prunus.paged.indexing import parse

        view = a._contiguous(parse(key, a.shape))
        return a[key] if view is None else view
    return a[key] if key else a


def dot(a: Any, b: Any, out: Any = None) -> Any:
    """Run ``numpy.dot``: a product of matrices, vectors or with a scalar."""
    if not np.ndim(a) or not np.ndim(b):
        return np.multiply(a, b) if out is None else np.multiply(a, b, out=out)
    if np.ndim(b) > 2:
        raise TypeError(
            "np.dot with a second operand of more than two dimensions is not supported; use np.matmul"
        )
    return matmul(a, b, out=out)


def vdot(a: Any, b: Any) -> Any:
    """Run ``numpy.vdot``: the inner product of flattened arrays, the first conjugated."""
    from prunus.paged.expr import apply

    a, b = (x if isinstance(x, Operators) else np.asarray(x) for x in (a, b))
    if a.shape != b.shape:
        raise TypeError(f"np.vdot of arrays on disk takes operands of one shape, got {a.shape} and {b.shape}")
    to, work = _types(a.dtype, b.dtype, None)
    x = apply(np.conjugate, [a]) if isinstance(a, Operators) else np.conjugate(a)
    return statistics.reduce(apply(np.multiply, [x.astype(work), b]), "sum").astype(to)


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """Run ``numpy.tensordot`` where the product is one of matrices without moving values on disk.

    Raises
    ------
    TypeError
        If the contracted axes of an operand on disk are neither its first nor its last in the order of
        storage.
    """
    a, b = _operand(a, "a"), _operand(b, "b")
    if isinstance(axes, int):
        axes = (list(range(a.ndim - axes, a.ndim)), list(range(axes)))
    of_a, of_b = ([int(k)] if np.ndim(k) == 0 else [int(i) for i in k] for k in axes)
    of_a, of_b = [k % a.ndim for k in of_a], [k % b.ndim for k in of_b]
    if len(of_a) != len(of_b) or any(a.shape[i] != b.shape[j] for i, j in zip(of_a, of_b, strict=True)):
        raise ValueError("shape-mismatch for sum")
    rest_a = [k for k in range(a.ndim) if k not in of_a]
    rest_b = [k for k in range(b.ndim) if k not in of_b]
    shape = [a.shape[k] for k in rest_a] + [b.shape[k] for k in rest_b]
    left = _as_matrix(a, rest_a, of_a)
    right = _as_matrix(b, of_b, rest_b)
    return np.asarray(matmul(left, right)).reshape(shape)[()]


def _as_matrix(a: Any, rows: list[int], columns: list[int]) -> Any:
    """Return ``a`` as a matrix whose rows and columns are some of its axes, without moving values on disk."""
    m, n = (math.prod(a.shape[k] for k in ks) for ks in (rows, columns))
    if not isinstance(a, PagedArray):
        return a.transpose(rows + columns).reshape(m, n)
    for first, second, turned in ((rows, columns, False), (columns, rows, True)):
        view = a.transpose(*first, *second) if a.ndim else a
        try:
            return view.reshape(n, m).T if turned else view.reshape(m, n)
        except ValueError:
            continue
    raise TypeError(
        "this contraction would have to move values on disk: the contracted axes must come first or last, in "
        "the order of storage; load() one of the operands"
    )


def einsum(subscripts: Any, *operands: Any, out: Any = None, optimize: Any = False, **kwargs: Any) -> Any:
    """Run ``numpy.einsum`` for one or two operands, where it comes down to a sum or a product of matrices.

    Raises
    ------
    TypeError
        For other forms.
    """
    from prunus.paged.expr import apply

    if not isinstance(subscripts, str) or kwargs or "." in subscripts or len(operands) not in (1, 2):
        raise TypeError("np.einsum with arrays on disk takes a string without '...', and one or two operands")
    text = subscripts.replace(" ", "")
    inputs, arrow, result = text.partition("->")
    terms = inputs.split(",")
    if not arrow:
        result = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
    values = [v if isinstance(v, Operators) else np.asarray(v) for v in operands]
    if len(terms) != len(values) or any(len(t) != v.ndim for t, v in zip(terms, values, strict=True)):
        raise ValueError(f"einsum {text!r} does not fit operands of {[v.ndim for v in values]} dimensions")
    if any(len(set(t)) != len(t) for t in (*terms, result)) or not set(result) <= set(inputs):
        raise TypeError(f"einsum {text!r} takes a diagonal, which is not supported for arrays on disk")
    if len(values) == 1:
        return _deliver(_summed(values[0], terms[0], result), out)
    (ta, tb), (a, b) = terms, values
    common = [c for c in ta if c in tb]
    if not set(result) & set(common) and set(ta) | set(tb) == set(result) | set(common):
        found = tensordot(a, b, ([ta.index(c) for c in common], [tb.index(c) for c in common]))
        have = [c for c in ta + tb if c in result]
        return _deliver(np.asarray(found).transpose([have.index(c) for c in result])[()], out)
    if set(tb) > set(ta):
        ta, tb, a, b = tb, ta, b, a
    if not set(tb) <= set(ta):
        raise TypeError(f"einsum {text!r} is neither a sum nor a product of matrices; load() the operands")
    order = [tb.index(c) for c in ta if c in tb]
    turned: Any = np.transpose(b, order)
    spread = [n if c in tb else 1 for c, n in zip(ta, a.shape, strict=True)]
    return _deliver(_summed(apply(np.multiply, [a, turned.reshape(spread)]), ta, result), out)


def _summed(value: Any, term: str, result: str) -> Any:
    gone = tuple(k for k, c in enumerate(term) if c not in result)
    left = [c for c in term if c in result]
    order = [left.index(c) for c in result]
    if gone:
        return np.asarray(statistics.reduce(value, "sum", gone, dtype=value.dtype)).transpose(order)[()]
    return value.transpose(*order) if order else value


def _deliver(value: Any, out: Any) -> Any:
    if out is None:
        return value
    out[...] = value
    return out
