"""What operands are on a chip: formats of tiles, patterns of products, useful operations."""

from __future__ import annotations

from typing import Final

import numpy as np

from prunus import _layout as lay
from prunus._dtypes import BFLOAT16, F16, F32, I8, I32, Array, DType
from prunus._layout import Index
from prunus.engines.base import Blocks
from prunus.tensix.errors import UnsupportedError

__all__ = ["FORMATS", "extent", "formats", "given", "known", "like", "pattern", "useful", "wide"]

#: Formats of the dtypes that tiles have.
FORMATS: Final = {F32: "float32", BFLOAT16: "bfloat16", F16: "float16", I8: "int8", I32: "int32"}


def given(*operands: Array | None) -> list[DType]:
    """Return the dtypes of those operands that there are."""
    return [one.dtype for one in operands if one is not None]


def extent(w: Blocks, axis: int) -> int:
    """Return rows (0) or columns (1) of an operand, transposed if it is."""
    return w.shape[1 - axis if w.transposed else axis]


def useful(a: Blocks, b: Blocks) -> float:
    """Return the operations of ``a @ b``, block by block."""
    inner = lay.block_rows(a.indptr) if a.transposed else np.asarray(a.indices)
    rows = np.asarray(b.indices) if b.transposed else lay.block_rows(b.indptr)
    size = 1 + max(int(inner.max(initial=0)), int(rows.max(initial=0)))
    pairs = np.bincount(inner, minlength=size) @ np.bincount(rows, minlength=size)
    each = a.data.shape[-2] * a.data.shape[-1] * b.data.shape[1 if b.transposed else 2]
    return 2.0 * float(pairs) * float(each)


def formats(a: DType, b: DType, out: DType) -> tuple[str, str, str]:
    """Return formats of operands and of the result.

    The unpackers take formats of one width of exponents at a time: float16 beside another one becomes
    float32, which is exact. Integers beside floats, or for a float result, become floats, which is exact too.
    """
    if a == b == I8 and out == I32:
        return "int8", "int8", "int32"
    narrow = {F16, I8}
    if a in narrow and b in narrow and F16 in (a, b):
        return "float16", "float16", FORMATS[out]
    of = {F32: "float32", BFLOAT16: "bfloat16", F16: "float32", I8: "bfloat16"}
    return of[a], of[b], FORMATS[out]


def wide(format: str) -> str:
    """Return the format in which what is added to sums comes."""
    return "int32" if format == "int32" else "float32"


def like(bias: Array, format: str) -> Array:
    """Return a bias of the dtype that sums of a result of ``format`` have."""
    return bias.astype(I32 if format == "int32" else F32)


def known(activation: str | None, format: str) -> str | None:
    """Return the activation, which a result of ``format`` must have."""
    if activation not in (None, "relu") and format == "int32":
        raise UnsupportedError(f"unsupported: {activation} of integers; ask for a float result by dtype=")
    return activation


def pattern(a: Blocks, b: Blocks) -> tuple[Index, Index]:
    """Return where ``a @ b`` has blocks."""
    rows, inner = (lay.block_rows(a.indptr), np.asarray(a.indices, np.int64))
    if a.transposed:
        rows, inner = inner, rows
    rows_b, cols = (lay.block_rows(b.indptr), np.asarray(b.indices, np.int64))
    if b.transposed:
        rows_b, cols = cols, rows_b
    m = lay.blocks_along(a.shape[1 if a.transposed else 0], a.data.shape[2 if a.transposed else 1])
    n = lay.blocks_along(b.shape[0 if b.transposed else 1], b.data.shape[1 if b.transposed else 2])
    order = np.argsort(rows_b, kind="stable")
    rows_b, cols = rows_b[order], cols[order]
    first, last = np.searchsorted(rows_b, inner), np.searchsorted(rows_b, inner, side="right")
    count = last - first
    at = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    keys = np.unique(np.repeat(rows, count) * max(n, 1) + cols[at])
    return lay.pattern_of(keys, m, n)
