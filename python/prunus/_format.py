"""Upkeep of a BSR in place: order, duplicates, zeros, checks; and how it prints."""

from __future__ import annotations

import numpy as np

from prunus import _layout as lay
from prunus._construct import check_pattern
from prunus._errors import PrunusError
from prunus._storage import BlockStorage


def _thaw(a: BlockStorage, what: str) -> None:
    if a._packed is not None:
        raise PrunusError(f"{what} would change a frozen array; call it before pack(), or on a copy()")


def sum_duplicates(a: BlockStorage) -> None:
    """Replace the arrays by sorted ones without duplicates, if they are not so already."""
    a._check()
    if not lay.is_sorted(a._indices, a._stacked, strictly=True):
        _thaw(a, "sum_duplicates()")
        a._set(*a._merged(), a._stored, a._batch, a._t)


def sort_indices(a: BlockStorage) -> None:
    """Replace the arrays by ones with ascending columns, duplicates kept in stored order."""
    a._check()
    if lay.is_sorted(a._indices, a._stacked):
        return
    _thaw(a, "sort_indices()")
    order = lay.sort_order(a._indices, a._stacked)
    data = np.ascontiguousarray(a._values()[..., order, :, :])
    a._set(data, a._indices[order], a._indptr, a._stored, a._batch, a._t)


def eliminate_zeros(a: BlockStorage) -> None:
    """Drop blocks that hold only zeros (in every member, where a batch shares its pattern)."""
    a._check()
    live = (a._clean() != 0).any(axis=(-1, -2))
    if not a._own and a._batch:
        live = live.any(axis=tuple(range(len(a._batch))))
    if live.all():
        return
    _thaw(a, "eliminate_zeros()")
    kept = np.concatenate([np.zeros(1, np.int64), np.cumsum(live)])
    a._set(
        np.ascontiguousarray(a._values()[..., live, :, :]),
        a._indices[live],
        kept[a._indptr].astype(a._indptr.dtype),
        a._stored,
        a._batch,
        a._t,
    )


def check(a: BlockStorage, full: bool) -> None:
    """Raise ValueError unless the arrays still describe a block-sparse array."""
    rows, cols = a._grid
    n = a._data.shape[-3]
    if a._indices.shape != (n,) or a._indptr.shape[-1] != rows + 1:
        raise ValueError(
            f"expected {n} indices and an indptr of {rows + 1}, got {a._indices.shape} and {a._indptr.shape}"
        )
    if a._indices.dtype != a._indptr.dtype or a._indices.dtype not in (np.int32, np.int64):
        raise ValueError(
            f"indices and indptr must both be int32 or int64, got {a._indices.dtype}, {a._indptr.dtype}"
        )
    if full:
        check_pattern(a._indices, a._indptr, cols)


def size_text(count: int) -> str:
    """Return a number of bytes as people write it.

    Examples
    --------
    >>> size_text(1536)
    '1.5 KiB'
    """
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def describe(a: BlockStorage) -> str:
    """Return the repr: shape, dtype, blocks, density, bytes."""
    br, bc = a.blocksize
    extra = ", transposed view" if a._t else ""
    extra += ", packed" if a._packed is not None else ""
    return (
        f"<prunus.BSR {a.shape} {a.dtype}: {a.nnzb} blocks of {br} x {bc}, density {a.density:.4g}, "
        f"{size_text(a.nbytes)}{extra}>"
    )
