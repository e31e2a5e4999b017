"""Attention as a program: scores, running maxima and sums of a row of tiles of queries stay on its core.

After Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, and Dao and others,
"FlashAttention", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prunus._dtypes import BFLOAT16, F16, F32, Array
from prunus.tensix.mapping import tiles
from prunus.tensix.mapping.job import CHUNK, Job, Outcome, Run, hand_over, in_turn
from prunus.tensix.mapping.products import Epilogue, Steps, multiply

__all__ = ["attend", "pool"]

_TILE = tiles.TILE
# Circular buffers: queries, keys, values, what is seen, the result; scores, maxima, what old ones count,
# weights, sums, the result so far, and maxima that are being made.
_Q, _K, _V, _SEES, _OUT, _S, _M, _ALPHA, _P, _L, _ACC, _NEW = 0, 1, 2, 3, 16, 24, 25, 26, 27, 28, 29, 30
# Lower than scores that are seen, and finite: differences of it are no NaN. A power of 2, which tf32 has too.
_LOW = -(2.0**127)
# A reduction takes values as tf32, of 11 bits: what the largest one lost is found from what is left, until
# float32's 24 bits are there. Without, weights of scores above 2^17 would be exp of the rest: infinite.
_REFINED = 2


@dataclass(frozen=True)
class _Sizes:
    """Tiles along the inner dimension, along keys and along features."""

    inner: int
    keys: int
    features: int


def _format(*arrays: Array) -> str:
    """Return the format of operands that meet in a product."""
    kinds = {array.dtype for array in arrays}
    if kinds == {F16}:
        return "float16"
    return "bfloat16" if kinds == {BFLOAT16} else "float32"


def _rings(unit: int) -> int:
    """Return pages for a circular buffer that is used in units, and filled in chunks."""
    return unit * math.ceil((unit + 2 * CHUNK) / unit)


def _text(job: Job, sizes: _Sizes, scale: float) -> None:
    """Write the text of a row of tiles of queries: once for each tile of keys that some of them see."""
    k, d, f = job.k, sizes.inner, sizes.features
    job.first = [k.cb_wait_front(_Q, d), k.tile_regs_acquire(), k.add_unary_tile(0, _LOW)]
    job.first += [
        k.tile_regs_commit(),
        k.cb_reserve_back(_M, 1),
        k.cb_reserve_back(_L, 1),
        k.cb_reserve_back(_ACC, f),
        k.tile_regs_wait(),
        k.pack_tile(0, _M, 0),
        k.pack_tile(1, _L, 0),
        *(k.pack_tile(1, _ACC, j) for j in range(f)),
        k.tile_regs_release(),
        k.cb_push_back(_M, 1),
        k.cb_push_back(_L, 1),
        k.cb_push_back(_ACC, f),
    ]
    scores = [
        k.cb_wait_front(_K, d),
        k.cb_wait_front(_SEES, 1),
        k.tile_regs_acquire(),
        *(k.matmul_tiles(_Q, _K, t, t, 0) for t in range(d)),
        k.cb_pop_front(_K, d),
        k.mul_unary_tile(0, scale),
        # What is not seen: 0, and then the lowest.
        k.copy_tile(_SEES, 0, 1),
        k.mask_tile(0, 1),
        k.add_unary_tile(1, -1.0),
        k.mul_unary_tile(1, -_LOW),
        k.add_binary_tile(0, 1),
        *hand_over(k, (0, _S)),
    ]
    maxima = [
        k.cb_wait_front(_S, 1),
        k.cb_wait_front(_M, 1),
        k.tile_regs_acquire(),
        k.reduce_tile("max", "row", _S, 0, 0),
        k.copy_tile(_M, 0, 1),
        k.binary_max_tile(0, 1),
        *hand_over(k, (0, _NEW)),
    ]
    for _ in range(_REFINED):
        maxima += [
            k.cb_wait_front(_NEW, 1),
            k.tile_regs_acquire(),
            k.copy_tile(_S, 0, 0),
            k.unary_bcast("col", _NEW, 0, 1),
            k.sub_binary_tile(0, 1),
            *hand_over(k, (0, _P)),
            k.cb_wait_front(_P, 1),
            k.tile_regs_acquire(),
            k.reduce_tile("max", "row", _P, 0, 0),
            k.copy_tile(_NEW, 0, 1),
            k.add_binary_tile(0, 1),
            k.copy_tile(_M, 0, 1),
            k.binary_max_tile(0, 1),
            k.cb_pop_front(_NEW, 1),
            k.cb_pop_front(_P, 1),
            *hand_over(k, (0, _NEW)),
        ]
    maxima += [
        k.cb_wait_front(_NEW, 1),
        k.tile_regs_acquire(),
        k.copy_tile(_NEW, 0, 0),
        k.copy_tile(_M, 0, 1),
        k.sub_binary_tile(1, 0),
        k.exp_tile(1),
        k.cb_pop_front(_M, 1),
        k.cb_pop_front(_NEW, 1),
        *hand_over(k, (0, _M), (1, _ALPHA)),
    ]
    weights = [
        k.cb_wait_front(_M, 1),
        k.tile_regs_acquire(),
        k.copy_tile(_S, 0, 0),
        k.unary_bcast("col", _M, 0, 1),
        k.sub_binary_tile(0, 1),
        k.exp_tile(0),
        k.copy_tile(_SEES, 0, 1),
        k.mask_tile(0, 1),
        k.cb_pop_front(_S, 1),
        k.cb_pop_front(_SEES, 1),
        *hand_over(k, (0, _P)),
    ]
    sums = [
        k.cb_wait_front(_P, 1),
        k.cb_wait_front(_ALPHA, 1),
        k.cb_wait_front(_L, 1),
        k.tile_regs_acquire(),
        k.reduce_tile("sum", "row", _P, 0, 0),
        k.copy_tile(_L, 0, 1),
        k.copy_tile(_ALPHA, 0, 2),
        k.mul_binary_tile(1, 2),
        k.add_binary_tile(0, 1),
        k.cb_pop_front(_L, 1),
        *hand_over(k, (0, _L)),
    ]
    job.again = [*scores, *maxima, *weights, *sums, k.cb_wait_front(_V, f)]
    for j in range(f):
        job.again += [
            k.cb_wait_front(_ACC, 1),
            k.tile_regs_acquire(),
            k.matmul_tiles(_P, _V, 0, j, 0),
            k.copy_tile(_ACC, 0, 1),
            k.unary_bcast("col", _ALPHA, 0, 2),
            k.mul_binary_tile(1, 2),
            k.add_binary_tile(0, 1),
            k.cb_pop_front(_ACC, 1),
            *hand_over(k, (0, _ACC)),
        ]
    job.again += [k.cb_pop_front(_V, f), k.cb_pop_front(_P, 1), k.cb_pop_front(_ALPHA, 1)]
    job.last = [k.cb_wait_front(_L, 1), k.cb_wait_front(_SEES, 1)]
    for _ in range(f):
        job.last += [
            k.cb_wait_front(_ACC, 1),
            k.tile_regs_acquire(),
            k.copy_tile(_ACC, 0, 0),
            k.unary_bcast("col", _L, 0, 1),
            k.recip_tile(1),
            k.mul_binary_tile(0, 1),
            # Rows that see nothing are 0.
            k.copy_tile(_SEES, 0, 2),
            k.mask_tile(0, 2),
            k.cb_pop_front(_ACC, 1),
            *hand_over(k, (0, _OUT)),
        ]
    job.last += [
        k.cb_pop_front(_L, 1),
        k.cb_pop_front(_M, 1),
        k.cb_pop_front(_Q, d),
        k.cb_pop_front(_SEES, 1),
    ]


class _Seen:
    """Tiles of what is seen, each kind once."""

    def __init__(self) -> None:
        self._pages = {np.ones((_TILE, _TILE), bool).tobytes(): 0}

    def page(self, sees: Array) -> int:
        return self._pages.setdefault(sees.tobytes(), len(self._pages))

    def tiles(self) -> tiles.Tiles:
        every = [np.frombuffer(one, bool).reshape(_TILE, _TILE) for one in self._pages]
        return tiles.stacked(np.stack(every).astype(F32), "bfloat16")


@in_turn
def _softmax(
    run: Run,
    operands: tuple[tiles.Tiles, tiles.Tiles, tiles.Tiles],
    sizes: _Sizes,
    rows: list[tuple[int, int, list[tuple[int, int]], int]],
    seen: _Seen,
    format: str,
    scale: float,
) -> Outcome:
    """Run rows of tiles of queries.

    Each has a number, a member of the keys, tiles of keys with what is seen of them, and which rows see
    anything.
    """
    job = Job(run)
    q = job.input(_Q, operands[0], _rings(sizes.inner))
    keys = job.input(_K, operands[1], _rings(sizes.inner))
    values = job.input(_V, operands[2], _rings(sizes.features))
    sees = job.input(_SEES, seen.tiles())
    out = job.output(_OUT, format, (len(rows), sizes.features))
    for cb, pages in ((_S, 1), (_M, 2), (_ALPHA, 1), (_P, 1), (_L, 2), (_ACC, sizes.features), (_NEW, 1)):
        job.cb(cb, "float32", pages)
    _text(job, sizes, scale)
    d, f = sizes.inner, sizes.features
    one = np.array([keys] * d + [sees] + [values] * f, np.uint8)
    for number, (query, member, visible, some) in enumerate(rows):
        table = np.empty((len(visible), d + 1 + f), np.uint32)
        for line, (j, page) in zip(table, visible, strict=True):
            line[:d] = (member * d + np.arange(d)) * sizes.keys + j
            line[d] = page
            line[d + 1 :] = (member * sizes.keys + j) * f + np.arange(f)
        streams = np.concatenate([np.full(d, q, np.uint8), np.tile(one, len(visible)), [sees]])
        reads = streams, np.concatenate([query * d + np.arange(d), table.reshape(-1), [some]])
        job.piece(reads, ([out] * f, number * f + np.arange(f)), len(visible))
    return job.run()


def attend(
    run: Run,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    live: Array | None,
    scale: float,
    causal: bool,
    blocksize: int,
) -> Iterator[tuple[Outcome, float]]:
    """Write what :meth:`prunus.engines.base.Engine.attention` says; yield what ran, and its useful FLOPs."""
    (n, depth), (m, features), heads, groups = q.shape[-2:], v.shape[-2:], q.shape[-3], k.shape[-3]
    if not out.size:
        return
    sizes = _Sizes(*(max(1, tiles.ceil_tiles(length)) for length in (depth, m, features)))
    batch = list(np.ndindex(*q.shape[:-2]))
    down = tiles.ceil_tiles(n)
    clean = v if tiles.finite(v) else tiles.cleaned(v)
    seen, rows, pairs = _Seen(), [], 0
    # Rows that see an infinity or NaN among values, whose hidden neighbours would meet it times 0.
    # Those of a member of the keys for which these are the same can share tiles.
    apart: dict[tuple[int, bytes], list[tuple[tuple[int, ...], int, Array]]] = {}
    for member, at in enumerate(batch):
        own = member // heads * groups + at[-1] * groups // heads
        bad: Array = np.zeros(m, bool)
        if clean is not v:
            bad = ~np.isfinite(v[(*at[:-1], at[-1] * groups // heads)]).all(axis=1)
        for i in range(down):
            here = np.arange(i * _TILE, (i + 1) * _TILE)
            sees: Array = np.zeros((_TILE, sizes.keys * _TILE), bool)
            sees[here < n, :m] = True
            if causal:
                sees &= np.arange(sizes.keys * _TILE) <= here[:, None] + (m - n)
            if live is not None:
                blocks = live[at][np.minimum(here, n - 1) // blocksize]
                sees[:, :m] &= np.repeat(blocks, blocksize, axis=1)[:, :m]
            pairs += int(sees.sum())
            by_tile = sees.reshape(_TILE, sizes.keys, _TILE).swapaxes(0, 1)
            visible = [(int(j), seen.page(by_tile[j])) for j in np.flatnonzero(by_tile.any(axis=(1, 2)))]
            some = np.repeat(sees.max(axis=1, keepdims=True), _TILE, axis=1)
            rows.append((member * down + i, own, visible, seen.page(some)))
            for line in np.flatnonzero((sees[:, :m] & bad).max(axis=1, initial=False)):
                which = own, (sees[line, :m] & bad).tobytes()
                apart.setdefault(which, []).append((at, i * _TILE + int(line), sees[line]))
    operands = (
        tiles.dense(q, _format(q, k), sizes.inner),
        _keys(k, _format(q, k), sizes),
        tiles.dense(clean, "bfloat16" if v.dtype == BFLOAT16 else "float32", sizes.features),
    )
    format = "float32" if out.dtype == F32 else out.dtype.name
    outcome = _softmax(run, operands, sizes, rows, seen, format, scale)
    if outcome.outputs:
        whole = outcome.outputs[0].reshape(len(batch), down * _TILE, -1)
        for member, at in enumerate(batch):
            out[at] = whole[member, :n, :features]
    yield outcome, 2.0 * pairs * (depth + features)
    together = max(1, _TOGETHER // max(1, m * (depth + features)))
    parts = list(apart.items())
    for first in range(0, len(parts), together):
        yield _apart(run, parts[first : first + together], (q, k, v, clean), sizes, out, scale, format), 0.0


#: Values of keys and of values that are copied at a time for rows that see infinities or NaN.
_TOGETHER = 1 << 24


def _apart(
    run: Run,
    parts: list[tuple[tuple[int, bytes], list[tuple[tuple[int, ...], int, Array]]]],
    operands: tuple[Array, Array, Array, Array],
    sizes: _Sizes,
    out: Array,
    scale: float,
    format: str,
) -> Outcome:
    """Attend again for rows that see infinities or NaN among values.

    Each part is a member of the keys, which of its values that are not finite some rows see, and these rows
    with what they see. The other ones that are not finite are 0 for it. Of the results, what is not finite
    counts.
    """
    q, k, v, clean = operands
    (m, features), depth = v.shape[-2:], q.shape[-1]
    own_keys, own_values = (np.empty((len(parts), m, x.shape[-1]), x.dtype) for x in (k, v))
    seen, queries = _Seen(), []
    rows: list[tuple[int, int, list[tuple[int, int]], int]] = []
    for number, ((member, which), lines) in enumerate(parts):
        there = np.frombuffer(which, bool)
        own_keys[number] = k.reshape(-1, m, k.shape[-1])[member]
        every = v.reshape(-1, m, features)[member]
        own_values[number] = np.where(there[:, None], every, clean.reshape(-1, m, features)[member])
        for first in range(0, len(lines), _TILE):
            some = lines[first : first + _TILE]
            tile, sees = np.zeros((_TILE, depth), q.dtype), np.zeros((_TILE, sizes.keys * _TILE), bool)
            for line, (at, row, own) in enumerate(some):
                tile[line], sees[line] = q[at][row], own
            # Padding sees what the first row does: what it sees of infinities must be the same.
            sees[len(some) :] = sees[0]
            by_tile = sees.reshape(_TILE, sizes.keys, _TILE).swapaxes(0, 1)
            visible = [(int(j), seen.page(by_tile[j])) for j in np.flatnonzero(by_tile.any(axis=(1, 2)))]
            rows.append((len(rows), number, visible, 0))
            queries.append(tile)
    tiled = (
        tiles.dense(np.stack(queries), _format(q, k), sizes.inner),
        _keys(own_keys, _format(q, k), sizes),
        tiles.dense(own_values, "bfloat16" if v.dtype == BFLOAT16 else "float32", sizes.features),
    )
    outcome = _softmax(run, tiled, sizes, rows, seen, format, scale)
    if outcome.outputs:
        whole, at_tile = outcome.outputs[0][:, :features].reshape(len(rows), _TILE, features), 0
        for _, lines in parts:
            alone = whole[at_tile : at_tile + tiles.ceil_tiles(len(lines))].reshape(-1, features)
            for (at, row, _), own in zip(lines, alone, strict=False):
                out[at][row] = np.where(np.isfinite(own), out[at][row], own)
            at_tile += tiles.ceil_tiles(len(lines))
    return outcome


def _keys(k: Array, format: str, sizes: _Sizes) -> tiles.Tiles:
    """Return the tiles of transposed keys; where there is no inner dimension, one row of tiles of zeros."""
    if k.shape[-1]:
        return tiles.dense(k.swapaxes(-1, -2), format, sizes.keys)
    return tiles.dense(np.zeros((*k.shape[:-2], 1, k.shape[-2]), k.dtype), format, sizes.keys)


def _means(run: Run, x: Array, blocksize: int) -> tuple[Array, Outcome]:
    """Return the means of blocks of rows (members, blocks, d) in float32.

    Each block's rows lie in tiles of their own, and a tile of ones adds them up: an infinity stays in its
    block.
    """
    n, d = x.shape[-2:]
    members = x.reshape(-1, n, d)
    blocks, high, across = -(-n // blocksize), tiles.ceil_tiles(blocksize), max(1, tiles.ceil_tiles(d))
    spread = np.stack([tiles.spread_rows(one, blocksize) for one in members])
    count = len(members) * blocks
    rows = [Steps(np.zeros(high, int), i * high + np.arange(high)) for i in range(count)]
    sizes = np.minimum(n - np.arange(blocks) * blocksize, blocksize)
    shares = np.repeat(np.tile(1 / sizes, len(members)), _TILE)[:, None]
    e = Epilogue(
        scale=tiles.dense(np.broadcast_to(shares, (len(shares), across * _TILE)).astype(F32), "float32")
    )
    ones = tiles.dense(np.ones((_TILE, _TILE), F32), "float16" if x.dtype == F16 else "bfloat16")
    format = {F16: "float16", BFLOAT16: "bfloat16"}.get(x.dtype, "float32")
    outcome = multiply(run, ones, tiles.dense(spread, format, across), across, rows, "float32", e)
    if not outcome.outputs:
        return np.zeros((len(members), blocks, d), F32), outcome
    return outcome.outputs[0][::_TILE, :d].reshape(len(members), blocks, d), outcome


def pool(
    run: Run, q: Array, k: Array, out: Array, scale: float, blocksize: int
) -> Iterator[tuple[Outcome, float]]:
    """Write what :meth:`prunus.engines.base.Engine.pooled_scores` says; yield what ran, and FLOPs."""
    if not out.size:
        return
    if not q.shape[-1]:
        out[...] = 0
        return
    heads, groups, d = q.shape[-3], k.shape[-3], q.shape[-1]
    queries, first = _means(run, q, blocksize)
    yield first, float(q.size)
    keys, second = _means(run, k, blocksize)
    yield second, float(k.size)
    down, inner, across = (tiles.ceil_tiles(x) for x in (queries.shape[1], d, keys.shape[1]))
    rows = []
    for member in range(len(queries)):
        own = member // heads * groups + member % heads * groups // heads
        for i in range(down):
            steps = np.arange(inner)
            rows.append(Steps((member * down + i) * inner + steps, own * inner + steps))
    left, right = tiles.dense(queries, "float32"), tiles.dense(keys.swapaxes(1, 2), "float32")
    outcome = multiply(run, left, right, across, rows, "float32", Epilogue(factor=scale))
    if outcome.outputs:
        whole = outcome.outputs[0].reshape(len(queries), down * _TILE, -1)
        out[...] = whole[:, : out.shape[-2], : out.shape[-1]].reshape(out.shape)
    yield outcome, 2.0 * out.size * d
