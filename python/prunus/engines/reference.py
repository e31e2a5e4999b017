"""The reference engine: plain loops over blocks in NumPy, for tests and for reading.

It is slow and exact: floats accumulate in float64, int8 in int64, and one rounding gives the result.
"""

from __future__ import annotations

import math

import numpy as np

from prunus import _layout as lay
from prunus._dtypes import I8, Array, DType
from prunus._layout import Index
from prunus.engines.base import Blocks

__all__ = ["ReferenceEngine"]


# NumPy has no erf of its own.
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _wide(a: DType, b: DType) -> DType:
    return np.dtype(np.int64 if a == b == I8 else np.float64)


def _finish(sums: Array, bias: Array | None, activation: str | None) -> Array:
    """Return ``activation(sums + bias[:, None])`` in float64."""
    value = sums.astype(np.float64)
    if bias is not None:
        value += np.asarray(bias, dtype=np.float64)[:, None]
    return _activate(value, activation)


def _activate(value: Array, activation: str | None) -> Array:
    """Apply an activation by name to a float array; NaN stays NaN."""
    if activation == "relu":
        return np.maximum(value, 0)
    if activation == "gelu":
        return np.asarray(0.5 * value * (1 + _erf(value * np.sqrt(0.5))))
    if activation == "silu":
        with np.errstate(over="ignore"):
            return np.asarray(value / (1 + np.exp(-value)))
    return value


class ReferenceEngine:
    """Products as a reader would write them down."""

    name = "reference"

    def dsd(self, w: Blocks, x: Array, out: Array, bias: Array | None, activation: str | None) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        wide = _wide(w.data.dtype, x.dtype)
        br, bc = w.data.shape[1:]
        m, k = w.shape
        sums = np.zeros(out.shape, wide)
        values, right = w.data.astype(wide), x.astype(wide)
        for block, i, j in zip(values, lay.block_rows(w.indptr), w.indices, strict=True):
            rows, cols = slice(i * br, min((i + 1) * br, m)), slice(j * bc, min((j + 1) * bc, k))
            part = block[: rows.stop - rows.start, : cols.stop - cols.start]
            target, source = (cols, rows) if w.transposed else (rows, cols)
            with np.errstate(all="ignore"):  # infinities and NaN propagate without a word
                sums[target] += (part.T if w.transposed else part) @ right[source]
        plain = bias is None and activation is None
        with np.errstate(all="ignore"):
            out[...] = sums if plain else _finish(sums, bias, activation)

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """See :class:`prunus.engines.base.Engine`."""
        wide = _wide(a.data.dtype, b.data.dtype)
        left, right = a.data.astype(wide), b.data.astype(wide)
        columns: list[int] = []
        blocks: list[Array] = []
        ends = [0]
        for row in range(len(a.indptr) - 1):
            sums: dict[int, Array] = {}
            for p in range(int(a.indptr[row]), int(a.indptr[row + 1])):
                inner = int(a.indices[p])
                for q in range(int(b.indptr[inner]), int(b.indptr[inner + 1])):
                    col = int(b.indices[q])
                    with np.errstate(all="ignore"):
                        product = left[p] @ right[q]
                        sums[col] = sums[col] + product if col in sums else product
            columns.extend(sorted(sums))
            blocks.extend(sums[col] for col in sorted(sums))
            ends.append(len(columns))
        data = np.zeros((len(blocks), a.data.shape[1], b.data.shape[2]), dtype)
        for target, block in zip(data, blocks, strict=True):
            target[...] = block
        return data, np.array(columns, np.int64), np.array(ends, np.int64)

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        wide = _wide(a.dtype, b.dtype)
        br, bc = out.shape[1:]
        for target, i, j in zip(out, lay.block_rows(indptr), indices, strict=True):
            left, right = a[i * br : (i + 1) * br].astype(wide), b[:, j * bc : (j + 1) * bc].astype(wide)
            with np.errstate(all="ignore"):
                target[: len(left), : right.shape[1]] = left @ right
