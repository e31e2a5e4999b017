"""Attention of tensors: which tile, whether keys are split over programs, and the lists of live blocks."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import attention_configs as configs
from prunus.cuda.products import flat, operands_of, precision, triton_of
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["attention", "pooled_scores"]


class _Lists(NamedTuple):
    """Which blocks of keys each block of queries walks; see ``kernels.attention_lists``."""

    table: torch.Tensor
    counts: torch.Tensor
    clear: torch.Tensor
    columns: int
    batch: int
    head: int
    """Rows from a member of the batch, and from a head, to the next; 0 where they share lists."""


def attention(
    where: Place,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    live: torch.Tensor | None,
    scale: float,
    causal: bool,
    blocksize: int,
) -> None:
    """Write ``softmax(scale * q @ k.T) @ v`` over the keys that each query sees; 0 where it sees none.

    A query's sums do not depend on other queries of the call, nor on the batch. How many queries a call has
    decides on a GPU whether keys are split over programs, whose sums are merged in a fixed order: with one
    query bits may differ from those of the same query among hundreds.

    Parameters
    ----------
    where : Place
        Where the operands live.
    q : Tensor
        Shape (*batch, heads, n, d), any strides; float32, float64, float16 or bfloat16.
    k, v : Tensor
        Shapes (*batch, groups, m, d) and (*batch, groups, m, features), any strides.
    out : Tensor
        Shape (*batch, heads, n, features), with one stride for the batch: written.
    live : Tensor of bool, optional
        Shape (*batch, heads, ceil(n / blocksize), ceil(m / blocksize)), any strides; expanded ones make lists
        once. None: all see all.
    scale : float
        Factor of the scores, finite.
    causal : bool
        Query i sees keys j <= i + m - n only.
    blocksize : int
        Rows and columns of a block of ``live``.
    """
    from prunus.cuda.kernels import attention as kernels

    if 0 in out.shape:
        return
    q, k, v, out = (flat(x, 3) for x in (q, k, v, out))
    members, heads, n, d = q.shape
    groups, m, features = v.shape[1:]
    share = heads // groups
    causal = causal and n > 1
    torch = libraries().torch
    wide = torch.float64 in (q.dtype, k.dtype, v.dtype)
    sums = torch.float64 if wide else torch.float32
    # Halves that stay halves are multiplied as they are; what meets another dtype, in float32.
    kind = sums if wide or q.dtype != k.dtype else q.dtype
    values = sums if wide or out.dtype != v.dtype else v.dtype
    found = None if live is None else _lists(where, flat(live, 3), n, m, causal, blocksize)
    together = 1 if found is not None else share
    bits = 8 * max(kind.itemsize, values.itemsize)
    plan = configs.attention(where, n, m, n * together, d, features, blocksize if found else 0, bits)
    tile = plan.tile
    if found is None:
        tiles = blocks_along(n * together, tile.m)
    else:
        tiles = blocks_along(n, blocksize) * blocks_along(blocksize, tile.m)
    split = plan.splits > 1
    feature_tiles = blocks_along(features, plan.features)
    rows = members * heads * n
    # Without splits, and without lists, nothing looks at these.
    partial = peaks = out
    if split:
        partial = empty((rows, plan.splits, features), sums, where)
        peaks = empty((rows, plan.splits, 2), sums, where)
    table, counts, clear = (out, out, out) if found is None else found[:3]
    pattern = (0, 0, 0) if found is None else found[3:]
    common = {
        "BS": 0 if found is None else blocksize,
        "LIVE": found is not None,
        "CAUSAL": causal,
        "SUMS": triton_of(sums),
    }
    strides = tuple(
        0 if axis == 0 and members == 1 else x.stride(axis) for x in (q, k, v, out) for axis in range(4)
    )
    launch(
        where,
        kernels.attention,
        (members * groups * (share // together) * tiles * plan.splits * feature_tiles,),
        q,
        k,
        v,
        out,
        table,
        counts,
        clear,
        partial,
        peaks,
        _bits(scale),
        groups,
        share,
        together,
        n,
        m,
        d,
        features,
        tiles,
        feature_tiles,
        plan.splits,
        *pattern,
        *strides,
        **common,
        SPLIT=split,
        WHOLE=d <= tile.k,
        EVEN_D=d == tile.k,
        EVEN_F=features % plan.features == 0,
        COMPUTE=operands_of(kind, where),
        VALUES=operands_of(values, where),
        RANGE=operands_of(torch.bfloat16, where),
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        TF=plan.features,
        **tile.options,
    )
    if split:
        merged = configs.merge(where, features)
        launch(
            where,
            kernels.merge,
            (blocks_along(rows, merged.m) * blocks_along(features, merged.n),),
            partial,
            peaks,
            out,
            table,
            counts,
            groups,
            share,
            together,
            n,
            m,
            features,
            rows,
            blocks_along(features, merged.n),
            plan.splits,
            *pattern,
            *strides[12:],
            **common,
            TM=merged.m,
            TF=merged.n,
            **merged.options,
        )


def _lists(where: Place, live: torch.Tensor, n: int, m: int, causal: bool, blocksize: int) -> _Lists:
    """Return the lists of a grid (batch, heads, blocks of queries, blocks of keys)."""
    from prunus.cuda.kernels import attention_lists as kernels

    torch = libraries().torch
    # What was expanded is the same for all: one list serves.
    shared = [live.stride(axis) == 0 or live.shape[axis] == 1 for axis in (0, 1)]
    live = live[: 1 if shared[0] else None, : 1 if shared[1] else None]
    members, heads, blocks, columns = live.shape
    rows = members * heads * blocks
    table = empty((rows, columns), torch.int32, where)
    counts = empty((rows,), torch.int32, where)
    clear = empty((rows,), torch.int32, where)
    tile = configs.attention_lists(where, columns)
    launch(
        where,
        kernels.lists,
        (blocks_along(rows, tile.m),),
        live,
        table,
        counts,
        clear,
        heads,
        blocks,
        columns,
        rows,
        n,
        m,
        *live.stride(),
        BS=blocksize,
        CAUSAL=causal,
        TM=tile.m,
        TN=tile.n,
        **tile.options,
    )
    return _Lists(
        table, counts, clear, columns, 0 if shared[0] else heads * blocks, 0 if shared[1] else blocks
    )


def pooled_scores(
    where: Place,
    q: torch.Tensor,
    k: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    blocksize: int,
    causal: bool = False,
) -> None:
    """Write ``scale`` times the means of blocks of queries times those of blocks of keys.

    Each value is the same whatever else is computed with it.

    Parameters
    ----------
    where : Place
        Where the operands live.
    q, k : Tensor
        Shapes (*batch, heads, n, d) and (*batch, groups, m, d), as in :func:`attention`.
    out : Tensor
        Shape (*batch, heads, ceil(n / blocksize), ceil(m / blocksize)), float32, or float64 if an operand is,
        in C order: written.
    scale : float
        Factor of the scores, finite.
    blocksize : int
        Rows in a block; the last one may have fewer.
    causal : bool
        A block of keys whose end no query of a block sees by causality is pooled over the keys before that.
    """
    from prunus.cuda.kernels import pooling as kernels

    if 0 in out.shape:
        return
    q, k, out = (flat(x, 3) for x in (q, k, out))
    heads, n, d = q.shape[1:]
    groups, m = k.shape[1:3]
    rows, columns = out.shape[-2:]
    seen = causal and bool((m - n) % blocksize)
    pooled = _means(where, q, n, blocksize, rows, out.dtype)
    keys = _means(where, k, m, blocksize, columns, out.dtype)
    cut = _means(where, k, n, blocksize, rows, out.dtype, True) if seen else keys
    tile = configs.pooled_scores(where, rows, columns, out.dtype.itemsize * 8)
    down, across = blocks_along(rows, tile.m), blocks_along(columns, tile.n)
    launch(
        where,
        kernels.scores,
        (len(q) * heads * down * across,),
        pooled,
        keys,
        cut,
        out,
        _bits(scale),
        heads // groups,
        rows,
        columns,
        n,
        m,
        d,
        down,
        across,
        BS=blocksize if seen else 1,
        SEEN=seen,
        SUMS=triton_of(out.dtype),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        **tile.options,
    )


def _means(
    where: Place, x: torch.Tensor, n: int, blocksize: int, blocks: int, dtype: object, seen: bool = False
) -> torch.Tensor:
    """Return the means (batch, heads, blocks, d) of blocks of rows; with ``seen`` of what n queries see."""
    from prunus.cuda.kernels import pooling as kernels

    members, heads, m, d = x.shape
    out = empty((members, heads, blocks, d), dtype, where)
    tile = configs.means(where, blocksize, d)
    total, depth_tiles = members * heads * blocks, blocks_along(d, tile.k)
    launch(
        where,
        kernels.means,
        (blocks_along(total, tile.m) * depth_tiles,),
        x,
        out,
        heads,
        blocks,
        total,
        n,
        m,
        d,
        depth_tiles,
        *x.stride(),
        BS=blocksize,
        SEEN=seen,
        SUMS=triton_of(dtype),
        TB=tile.m,
        TR=tile.n,
        TK=tile.k,
        **tile.options,
    )
    return out


def _bits(value: float) -> int:
    """Return a double's bits: Triton takes Python's floats for float32."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits
