"""Products of a block-sparse array in memory with a dense one on disk: rows that no block needs stay there.

Where the file's rows lie along the inner dimension, as weights that are stored by hidden unit do, only rows
are read that meet a stored block, by spans of rows whose size follows from the shape; sums go on from span to
span. Where they lie along the outer one, the file streams once, and each panel gives rows or columns of the
result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus import _layout as lay
from prunus import engines, ops
from prunus._dtypes import F32, F64, I32, Array, DType, check_operand
from prunus._layout import blocks_along
from prunus._storage import BlockStorage
from prunus._trace import span
from prunus.engines.base import Blocks
from prunus.paged.array import PagedArray
from prunus.paged.panels import is_on_disk, kept
from prunus.paged.reading import reading
from prunus.paged.sparse_products import finish
from prunus.paged.tables import Table, announced, spans

__all__ = ["sparse_with_rows"]


def sparse_with_rows(
    w: BlockStorage,
    x: Any,
    out: Any,
    kind: DType,
    bias: Array | None,
    activation: str | None,
    *,
    flip: bool,
) -> Any:
    """Return ``w @ x``, or ``x @ w`` with ``flip``, for ``x`` on disk.

    Parameters
    ----------
    w : BSR
        Shape (*B, m, k): two dimensions, unless ``x`` has one.
    x : PagedArray or PagedExpr
        Shape (k, n), or (n, m) with ``flip``; or a vector.
    out : ndarray or PagedArray, optional
        Where to write.
    kind : dtype
        Of the result.
    bias, activation
        As :func:`prunus.matmul`.

    Raises
    ------
    ValueError
        If shapes do not fit.
    TypeError
        If either has a batch.
    """
    left = w.T if flip else w
    if is_on_disk(x) and x.ndim > 1:
        x = kept(x)  # rows are read as blocks ask for them: an expression is computed into a file
    if not isinstance(x, PagedArray) or x.ndim == 1:
        # A vector, or an expression over some: as large as one side of w.
        return _deliver(
            ops.matmul(*((x.load(), w) if flip else (w, x.load())), **_options(kind, bias, activation)), out
        )
    if w._batch or x.ndim != 2:
        raise TypeError(
            f"a BSR of shape {w.shape} and an array on disk of shape {x.shape}: such products take "
            "two dimensions; index or load() it"
        )
    dense = x.T if flip else x
    if dense.shape[0] != left._cols:
        a, b = (x.shape[1], w._rows) if flip else (w._cols, x.shape[0])
        raise ValueError(f"matmul: the inner sizes differ, a has {a} columns and b has {b} rows")
    check_operand(x.dtype, "the array on disk")
    shape = (x.shape[0], left._rows) if flip else (left._rows, x.shape[1])
    if bias is not None:
        bias = ops._bias(bias, left._rows, kind)
    if isinstance(out, np.ndarray):
        ops._check_out(out, shape, kind)
    result = np.empty(shape, kind)
    view = result.T if flip else result
    with span("matmul") as at, reading(at, [x._store]):
        if dense._perm == (0, 1):
            read = _by_inner(left, Table.of(dense), view, bias, activation)
        else:
            read = _by_outer(left, Table.of(dense.T), view, bias, activation)
        if at:
            at.ran(engines.active().name)
            ops.count(at, w, view.shape[1])
            at.count(bytes_skipped=x.nbytes - read)
    return _deliver(result, out)


def _options(kind: DType, bias: Array | None, activation: str | None) -> dict[str, Any]:
    return {"dtype": kind, "bias": bias, "activation": activation}


def _deliver(result: Any, out: Any) -> Any:
    if out is None:
        return result
    if out.shape != result.shape:
        raise ValueError(f"out has shape {out.shape}, the result has {result.shape}")
    out[...] = result
    return out


def _by_outer(w: BlockStorage, x: Table, out: Array, bias: Array | None, activation: str | None) -> int:
    """Write ``w @ x.T``: a row of the file gives a column of the result. Returns the bytes that were used."""
    engine = engines.active()
    for first, rows in x.stream():
        engine.dsd(w._blocks(), rows.T, out[:, first : first + len(rows)], bias, activation)
    return x.nbytes


def _by_inner(w: BlockStorage, x: Table, out: Array, bias: Array | None, activation: str | None) -> int:
    """Write ``w @ x``, of whose rows only those are read that a block of ``w`` meets. Returns their bytes."""
    parts = _Columns(w)
    sums: Array | None = None
    kind = out.dtype if out.dtype in (F64, I32) else F32
    every = list(spans(len(x), x.span, parts.needed[None, :], parts.width))
    # What one span holds is written at once, rounded as in memory.
    if len(every) == 1:
        (part,) = every
        engines.active().dsd(parts.of(part.units), x.gather(part.units), out, bias, activation)
        return len(part.units) * x.row_bytes
    used = 0
    for _, part in zip(announced(every, [x]), every, strict=True):
        blocks, rows = parts.of(part.units), x.gather(part.units)
        if sums is None:
            sums = np.empty(out.shape, kind)
            engines.active().dsd(blocks, rows, sums, None, None)
        else:
            engines.active().dsd(blocks, rows, sums, None, None, add=True)
        used += len(part.units) * x.row_bytes
    finish(np.zeros(out.shape, kind) if sums is None else sums, out, bias, activation)
    return used


class _Columns:
    """A block-sparse matrix whose block columns are taken some at a time."""

    def __init__(self, w: BlockStorage) -> None:
        self.w, self.t = w, w._t
        br, bc = w._data.shape[-2:]
        self.values = w._values()
        self.width = br if self.t else bc
        count = blocks_along(w._cols, self.width)
        # Of a lazy transpose the stored rows are the columns.
        rows = lay.block_rows(w._indptr)
        self.column = rows if self.t else w._indices.astype(np.int64)
        self.row = w._indices.astype(np.int64) if self.t else rows
        self.needed = np.zeros(count, bool)
        self.needed[self.column] = True

    def of(self, units: Array) -> Blocks:
        """Return the blocks in some columns, whole block columns that ascend, as if there were no others."""
        w, width = self.w, self.width
        columns = np.unique(units // width)
        place = np.full(len(self.needed), -1, np.int64)
        place[columns] = np.arange(len(columns))
        kept = np.flatnonzero(place[self.column] >= 0)
        column = place[self.column[kept]]
        if self.t:
            indptr = np.searchsorted(column, np.arange(len(columns) + 1))
            shape = (len(units), w._rows)
            return Blocks(self.values[kept], self.row[kept], indptr, shape, True)
        indptr = np.searchsorted(self.row[kept], np.arange(len(w._indptr)))
        return Blocks(self.values[kept], column, indptr, (w._rows, len(units)), False)
