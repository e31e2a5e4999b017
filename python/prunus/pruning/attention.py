"""Attention whose branches are blocks of keys: blocks that a block of queries does not need are not read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from prunus import _layout as lay
from prunus import engines
from prunus._arrays import as_floats
from prunus._device import on_device
from prunus._dtypes import Array, DType, result_dtype
from prunus._mask import BlockMask
from prunus._storage import BlockStorage
from prunus._trace import span
from prunus.pruning._checks import check_count
from prunus.pruning.policies import Fixed, Policy, Threshold, TopK, as_policy, decide

__all__ = ["attention"]

# Pooled scores that exist at once, so that what a policy sees does not grow with the square of the length.
_TOGETHER: Final = 1 << 17


@engines.timed
def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: BlockMask | None = None,
    prune: Any = None,
    causal: bool = False,
    scale: float | None = None,
    blocksize: int = 64,
) -> Any:
    """Return ``softmax(scale * q @ k.T) @ v`` over the keys that each query sees.

    Scores are never stored: keys and values stream past each tile of queries, with the softmax normalised
    online, so memory is linear in the length. Blocks of keys that are masked or pruned are neither read nor
    multiplied.

    Parameters
    ----------
    q : array_like
        Queries (*batch, heads, n, d), (heads, n, d) or (n, d), of any strides; float32, float64, float16 or
        bfloat16.
    k, v : array_like
        Keys (*batch, kv_heads, m, d) and values (*batch, kv_heads, m, features), with as many dimensions as
        ``q``. ``heads`` is a multiple of ``kv_heads``: neighbouring heads share keys and values.
    mask : BlockMask, optional
        Which blocks of queries see which blocks of keys at all. Shape (n, m), or with leading dimensions that
        broadcast to (*batch, heads), in blocks of ``blocksize``. On a GPU also a tensor of booleans there, of
        its grid of blocks.
    prune : policy, optional
        Which of the visible blocks take part; see Notes. None: all of them.
    causal : bool, default False
        Query i sees the keys j <= i + m - n: the last query sees all. With a cache of keys and one new query
        (n = 1) that is everything.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(d)`` by default.
    blocksize : int, default 64
        Queries and keys in a block.

    Returns
    -------
    ndarray, or Tensor where the operands are tensors on a GPU
        Shape (*batch, heads, n, features), as many dimensions as ``q``, in the operands' common dtype:
        float64 if one is, else float32 if they differ. Sums are float32, or float64 if an operand is. A query
        that sees nothing gets zeros. NaN and infinities in keys and values that a query sees propagate as in
        NumPy; others do not reach it.

    Raises
    ------
    ValueError
        If shapes or heads do not match, ``scale`` is not finite, ``blocksize`` is below 1, or ``mask`` has
        another shape or other blocks.
    TypeError
        If an operand holds no floats, ``mask`` is no BlockMask, or ``prune`` is no policy or returns anything
        but booleans.

    Notes
    -----
    In other operations a policy decides for each row. Here its rows are blocks of queries, one for each head
    and ``blocksize`` neighbouring queries, heads outermost, and its branches blocks of keys. It sees scores
    (``Statistics.norm == "score"``): the mean of the block's queries times the mean of the block's keys,
    times ``scale``, in float32 (float64 if an operand is); ``visible`` says which blocks at least one query
    of the row sees by ``causal`` and ``mask``. So a query's result depends on its neighbours in the block,
    and on no other query.

    - ``TopK`` keeps the blocks with the highest scores; a fraction is of the visible blocks.
    - ``Threshold(tau)`` keeps those whose share in the softmax of the row's scores over its visible blocks
      exceeds ``tau``.
    - ``Fixed`` takes an array (rows, blocks of keys), the same blocks of keys for all rows as an array
      (blocks of keys,), or the same for all heads as a BlockMask of shape (n, m) in blocks of ``blocksize``.
    - Functions and objects of one's own see the scores of all rows at once.

    The diagonal blocks, which hold the keys i + m - n of the row's own queries, are always kept where they
    are visible; ``TopK`` counts them among its own. Pooled scores are a cheap guess of where attention goes,
    not a bound.

    A query's keys are summed in ascending order, so the result does not depend on the number of threads.
    The normalisation is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018),
    the order of loops that of Dao et al., "FlashAttention" (2022).

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((4, 256, 32), np.float32) for _ in range(3))
    >>> y = pr.attention(q, k, v, causal=True)
    >>> y.shape
    (4, 256, 32)
    >>> np.allclose(y[:, 0], v[:, 0])  # the first query sees the first key alone
    True
    >>> cheap = pr.attention(q, k, v, causal=True, prune=pr.TopK(fraction=0.5), blocksize=16)
    >>> all_of_it = pr.attention(q, k, v, causal=True, prune=pr.TopK(fraction=1.0), blocksize=16)
    >>> np.allclose(all_of_it, y, atol=1e-5)
    True
    """
    if on_device(q, k, v):
        from prunus.cuda.layers.attention import attention as there  # torch may be missing

        return there(q, k, v, mask, prune, causal, scale, blocksize)
    call = _check(q, k, v, scale, causal, blocksize)
    grid = _grid(mask, call)
    policy = as_policy(prune)
    with span("attention") as t:
        live = grid
        if policy is not None and all(call.q.shape[:-1]) and call.m:
            live = live_blocks(policy, call, grid)
        out = np.empty((*call.q.shape[:-1], call.v.shape[-1]), call.dtype)
        if out.size:
            engine = engines.active()
            engine.attention(call.q, call.k, call.v, out, live, call.scale, call.causal, call.blocksize)
            if t:
                t.ran(engine.name)
                t.count(**counted(call, grid, live))
    return out[0] if call.flat else out


class Call(NamedTuple):
    """Checked arguments; operands have a dimension of heads, and are tensors where the call runs on a GPU."""

    q: Any
    k: Any
    v: Any
    scale: float
    causal: bool
    blocksize: int
    flat: bool

    @property
    def dtype(self) -> DType:
        """Dtype of the result."""
        return result_dtype(result_dtype(self.q.dtype, self.k.dtype), self.v.dtype)

    @property
    def n(self) -> int:
        return int(self.q.shape[-2])

    @property
    def m(self) -> int:
        return int(self.k.shape[-2])

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of queries and of keys."""
        return lay.blocks_along(self.n, self.blocksize), lay.blocks_along(self.m, self.blocksize)

    def edges(self) -> tuple[Array, Array]:
        """Return for each block of queries the first and the last key that its queries stand at."""
        first = np.arange(self.blocks[0]) * self.blocksize
        last = np.minimum(first + self.blocksize, self.n) - 1
        return first + (self.m - self.n), last + (self.m - self.n)

    def sees(self) -> Array | None:
        """Return which blocks (queries, keys) are visible by causality; None: all."""
        if not self.causal:
            return None
        seen: Array = np.arange(self.blocks[1]) * self.blocksize <= self.edges()[1][:, None]
        return seen

    def diagonal(self) -> Array:
        """Return which blocks (queries, keys) hold the keys that the queries stand at."""
        first, last = self.edges()
        start = np.arange(self.blocks[1]) * self.blocksize
        on: Array = (start <= last[:, None]) & (start + self.blocksize > first[:, None])
        return on


def _check(q: Any, k: Any, v: Any, scale: float | None, causal: bool, blocksize: int) -> Call:
    for name, value in (("q", q), ("k", k), ("v", v)):
        if isinstance(value, BlockStorage):
            raise TypeError(f"{name} is a BSR: attention takes dense arrays")
    return checked(as_floats(q, "q"), as_floats(k, "k"), as_floats(v, "v"), scale, causal, blocksize)


def checked(q: Any, k: Any, v: Any, scale: float | None, causal: bool, blocksize: int) -> Call:
    """Return the arguments of a call on arrays, or on tensors, whose shapes match.

    Raises
    ------
    ValueError, TypeError
        As :func:`attention`.
    """
    if q.ndim < 2 or not q.ndim == k.ndim == v.ndim:
        raise ValueError(
            f"attention takes (*batch, heads, length, dim), (heads, length, dim) or (length, dim), the same "
            f"number of dimensions for all three; got {_shapes(q, k, v)}"
        )
    flat = q.ndim == 2
    if flat:
        q, k, v = q[None], k[None], v[None]
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"k and v must have the same heads and length, got {_shapes(q, k, v)}")
    if q.shape[:-3] != k.shape[:-3]:
        raise ValueError(f"q, k and v must have the same batch dimensions, got {_shapes(q, k, v)}")
    heads, groups = q.shape[-3], k.shape[-3]
    if heads != groups and (groups == 0 or heads % groups):
        raise ValueError(f"the heads of q must be a multiple of those of k and v, got {heads} and {groups}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q and k must have the same last dimension, got {_shapes(q, k, v)}")
    factor = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else float(scale)
    if not math.isfinite(factor):
        raise ValueError(f"scale must be finite, got {scale!r}")
    size = check_count(blocksize, "blocksize")
    # Larger than both lengths is the same as the larger of them, and no sum overflows.
    size = min(size, max(q.shape[-2], k.shape[-2], 1))
    return Call(q, k, v, factor, bool(causal), size, flat)


def _shapes(q: Any, k: Any, v: Any) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}"


def _grid(mask: Any, call: Call) -> Array | None:
    """Return the mask's grid of blocks, broadcast to (*batch, heads, blocks of queries, blocks of keys)."""
    if mask is None:
        return None
    if isinstance(mask, np.ndarray):
        raise TypeError(
            "mask is an array: pass a BlockMask, such as pr.BlockMask(grid, blocksize, shape=(n, m))"
        )
    if not isinstance(mask, BlockMask):
        raise TypeError(f"mask must be a BlockMask, got {type(mask).__name__}")
    check_blocks("mask", mask, call)
    lead = call.q.shape[:-2]
    try:
        return np.broadcast_to(mask.to_blocks(), (*lead, *call.blocks))
    except ValueError:
        raise ValueError(
            f"the leading dimensions {mask.shape[:-2]} of mask do not broadcast to the heads {lead} of q"
        ) from None


def check_blocks(name: str, mask: BlockMask, call: Call) -> None:
    """Raise ValueError unless the mask is one of these queries and keys, in blocks of the operation."""
    n, m, size = call.n, call.m, call.blocksize
    if mask.shape[-2:] != (n, m):
        raise ValueError(f"{name} has shape {mask.shape}, but there are {n} queries and {m} keys")
    # Blocks that reach past both lengths are one block, whatever their size.
    if mask.blocksize != (size, size) and not (mask.grid[-2:] == call.blocks and min(mask.blocksize) >= size):
        raise ValueError(
            f"{name} is in blocks of {mask.blocksize}, attention in blocks of {(size, size)}: pass "
            f"blocksize={mask.blocksize[0]}, or a mask in blocks of {size}"
        )


# Deciding ------------------------------------------------------------------------------------------------


def live_blocks(policy: Policy, call: Call, grid: Array | None) -> Array:
    """Return which blocks are live, (*batch, heads, blocks of queries, blocks of keys)."""
    lead, (rows, cols) = call.q.shape[:-2], call.blocks
    heads = math.prod(lead)
    live = np.empty((*lead, rows, cols), bool)
    flat = live.reshape(heads, rows, cols)
    if isinstance(policy, Fixed):
        flat[...] = fixed(policy, call, heads)
    else:
        for at, part in _pieces(policy, heads, rows, cols):
            visible = _visible(call, grid, at, part)
            flat[at, part] = _ask(policy, _scores(call, at, part), visible, call.diagonal()[part])
    seen = call.sees()
    live |= call.diagonal()
    if seen is not None:
        live &= seen
    if grid is not None:
        live &= grid
    return live


def _pieces(policy: Policy, heads: int, rows: int, cols: int) -> Iterator[tuple[slice, slice]]:
    """Yield the heads and rows that are decided together."""
    if policy.rows > 1:
        # Rows of two heads are never pooled with each other.
        yield from ((slice(h, h + 1), slice(0, rows)) for h in range(heads))
        return
    if policy.scope == "host":
        yield slice(0, heads), slice(0, rows)
        return
    few = max(1, _TOGETHER // max(rows * cols, 1))
    low = rows if few > 1 else max(1, _TOGETHER // max(cols, 1))
    for h in range(0, heads, few):
        yield from (
            (slice(h, min(h + few, heads)), slice(r, min(r + low, rows))) for r in range(0, rows, low)
        )


def _visible(call: Call, grid: Array | None, at: slice, part: slice) -> Array | None:
    """Return what the rows see, (heads, rows, blocks of keys); None: everything."""
    seen = call.sees()
    count = at.stop - at.start
    if grid is None:
        return None if seen is None else np.broadcast_to(seen[part], (count, *seen[part].shape))
    lead = grid.shape[:-2]
    own = np.stack([grid[np.unravel_index(h, lead)][part] for h in range(at.start, at.stop)])
    return own if seen is None else own & seen[part]


def _ask(policy: Policy, scores: Array, visible: Array | None, diagonal: Array) -> Array:
    """Return what the policy says of scores (heads, rows, blocks of keys)."""
    if isinstance(policy, TopK):
        scores[:, diagonal] = np.inf
    elif isinstance(policy, Threshold):
        scores = _shares(scores, visible)
    flat = scores.reshape(-1, scores.shape[-1])
    seen = None if visible is None else visible.reshape(flat.shape)
    return decide(policy, flat, seen, norm="score").reshape(scores.shape)


def _shares(scores: Array, visible: Array | None) -> Array:
    """Return the softmax over visible blocks."""
    with np.errstate(all="ignore"):  # infinities and NaN give NaN, which is live
        if visible is not None:
            scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares: Array = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def fixed(policy: Fixed, call: Call, heads: int) -> Array:
    """Return a fixed mask as (heads or 1, blocks of queries or 1, blocks of keys)."""
    blocks: BlockMask | None = getattr(policy, "blocks", None)
    if blocks is not None:
        check_blocks("Fixed's mask", blocks, call)
        return blocks.to_blocks()[None]
    grid: Array = policy.mask.reshape(fixed_shape(policy.mask.shape, call, heads))
    return grid


def fixed_shape(shape: tuple[int, ...], call: Call, heads: int) -> tuple[int, int, int]:
    """Return the shape (heads or 1, blocks of queries or 1, blocks of keys) of what a fixed mask says.

    Raises
    ------
    ValueError
        If it is a mask of something else.
    """
    rows, cols = call.blocks
    if shape == (cols,):
        return 1, 1, cols
    if shape == (heads * rows, cols):
        return heads, rows, cols
    raise ValueError(
        f"Fixed has a mask of shape {shape}, but {heads} heads of {rows} blocks of queries and {cols} "
        f"blocks of keys take {(heads * rows, cols)} or {(cols,)}; for all heads alike, pass a BlockMask of "
        f"shape {(call.n, call.m)}"
    )


def _scores(call: Call, at: slice, part: slice) -> Array:
    """Return pooled scores of some heads, counted through the batch: (heads, rows, blocks of keys)."""
    wide = np.float64 in (call.q.dtype, call.k.dtype)
    size, cols = call.blocksize, call.blocks[1]
    lead, share = call.q.shape[:-2], call.q.shape[-3] // max(call.k.shape[-3], 1)
    out = np.empty((at.stop - at.start, part.stop - part.start, cols), np.float64 if wide else np.float32)
    rows = slice(part.start * size, min(part.stop * size, call.n))
    engine = engines.active()
    if at == slice(0, math.prod(lead)):
        own = out.reshape(*lead, *out.shape[1:])
        engine.pooled_scores(call.q[..., rows, :], call.k, own, call.scale, size)
        _narrow(call, call.q, call.k, own, part)
        return out
    for h, scores in enumerate(out, at.start):
        one = np.unravel_index(h, lead)
        keys = call.k[(*one[:-1], one[-1] // share)]
        engine.pooled_scores(call.q[one][None, rows], keys[None], scores[None], call.scale, size)
        _narrow(call, call.q[one][None], keys[None], scores[None], part)
    return out


def _narrow(call: Call, q: Array, k: Array, scores: Array, part: slice) -> None:
    """Pool a block of keys whose end no query of a block sees, by causality, over the keys before it.

    That happens where lengths differ by something else than whole blocks. What is in the future must not
    reach a decision.
    """
    size, shift = call.blocksize, call.m - call.n
    if not call.causal or shift % size == 0:
        return
    for i in range(part.start, part.stop):
        last = min((i + 1) * size, call.n)
        end = last + shift
        first = (end - 1) // size * size
        if 0 < end < min(first + size, call.m):
            one = np.empty((*scores.shape[:-2], 1, 1), scores.dtype)
            queries, keys = q[..., i * size : last, :], k[..., first:end, :]
            engines.active().pooled_scores(queries, keys, one, call.scale, size)
            scores[..., i - part.start, first // size] = one[..., 0, 0]


# Counting ------------------------------------------------------------------------------------------------


class _Tally(NamedTuple):
    """What some blocks of queries and keys come to, over all heads."""

    blocks: int
    pairs: int
    """Queries and keys that meet in the blocks."""
    read: int
    """Blocks of keys that at least one query reads, each counted once for all heads that share it."""
    keys: int
    """Keys in those blocks."""


def counted(call: Call, grid: Array | None, live: Array | None) -> dict[str, int]:
    """Return how many pairs of queries and keys were multiplied, and which keys and values were read.

    ``grid`` is what a mask shows, and ``live`` what takes part of that; for :meth:`prunus._trace.Span.count`.
    """
    if grid is not None:
        pairs = _pairs(call)
        visible = used = _tally(call, grid & (pairs > 0), pairs)
        if live is not None and live is not grid:
            used = _tally(call, live, pairs)
    else:
        visible = used = _tally_all(call)
        if live is not None:
            used = _tally_decided(call, live, visible)
    each = 2 * (call.k.shape[-1] + call.v.shape[-1])
    width = call.k.shape[-1] * call.k.dtype.itemsize + call.v.shape[-1] * call.v.dtype.itemsize
    return {
        "flops": each * used.pairs,
        "flops_skipped": each * (visible.pairs - used.pairs),
        "bytes_loaded": width * used.keys,
        "bytes_skipped": width * (visible.keys - used.keys),
        "live": used.blocks,
        "total": visible.blocks,
        "union_live": used.read,
        "union_total": visible.read,
    }


def _pairs(call: Call) -> Array:
    """Return how many queries and keys meet in each block (queries, keys)."""
    (rows, cols), size = call.blocks, call.blocksize
    # Edges between blocks, both counted in keys.
    above = np.minimum(np.arange(rows + 1) * size, call.n) + (call.m - call.n)
    left = np.minimum(np.arange(cols + 1) * size, call.m)
    if not call.causal:
        return np.multiply.outer(np.diff(above), np.diff(left))
    # Queries above an edge and keys right of one meet in a triangle; a block is what four of them differ by.
    side = np.maximum(np.subtract.outer(above, left), 0)
    triangles = side * (side + 1) >> 1
    strips = triangles[1:] - triangles[:-1]
    pairs: Array = strips[:, :-1] - strips[:, 1:]
    return pairs


def _tally_all(call: Call) -> _Tally:
    """Count what is visible without a mask."""
    (rows, cols), n, m = call.blocks, call.n, call.m
    blocks, pairs = rows * cols, n * m
    if call.causal:
        # Query i sees i + 1 + m - n keys; a row of blocks those blocks that its last query sees.
        ahead = -((n - m) // call.blocksize)
        pairs = _triangle(m) - _triangle(m - n)
        blocks = _triangle(rows - 1 + ahead) - _triangle(ahead) + cols
    heads, members = math.prod(call.q.shape[:-2]), math.prod(call.k.shape[:-2])
    return _Tally(heads * blocks, heads * pairs, members * cols, members * m)


def _tally_decided(call: Call, live: Array, visible: _Tally) -> _Tally:
    """Count what a policy left of all that is visible, without looking at each block."""
    (rows, cols), size, heads = call.blocks, call.blocksize, math.prod(call.q.shape[:-2])
    blocks = int(np.count_nonzero(live))
    # The diagonal is live, so what is dead is whole: but for what hangs over the lower edge and, if anybody
    # sees that far, the right one. The corner of both is on the diagonal.
    low, right = rows * size - call.n, cols * size - call.m
    pairs = visible.pairs - (visible.blocks - blocks) * size * size
    if low:
        pairs += (heads * cols - int(np.count_nonzero(live[..., -1, :]))) * low * size
    if right and not call.causal:
        pairs += (heads * rows - int(np.count_nonzero(live[..., -1]))) * right * size
    return _Tally(blocks, pairs, *_read(call, live))


def _tally(call: Call, used: Array, pairs: Array) -> _Tally:
    """Count blocks (*batch, heads, blocks of queries, blocks of keys), all visible."""
    each = np.add.reduce(used.reshape(-1, *pairs.shape), axis=0, dtype=np.int64)
    return _Tally(int(np.add.reduce(each, axis=None)), int(np.vdot(each, pairs)), *_read(call, used))


def _read(call: Call, used: Array) -> tuple[int, int]:
    """Return how many blocks of keys the heads that share them read, and how many keys those hold."""
    members, cols = math.prod(call.k.shape[:-2]), call.blocks[1]
    read = np.logical_or.reduce(used.reshape(members, -1, cols), axis=1)
    blocks, right = int(np.count_nonzero(read)), cols * call.blocksize - call.m
    if right:
        return blocks, blocks * call.blocksize - int(np.count_nonzero(read[:, -1])) * right
    return blocks, blocks * call.blocksize


def _triangle(n: int) -> int:
    """Return 1 + 2 + ... + n."""
    return n * (n + 1) // 2 if n > 0 else 0
