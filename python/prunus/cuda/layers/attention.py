"""``attention`` on a device: which blocks of keys are live is decided and listed there."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._mask import BlockMask
from prunus._trace import Span
from prunus.cuda import attention as kernels
from prunus.cuda import dtypes
from prunus.cuda.keeping import kept
from prunus.cuda.operands import as_floats, check_place, where_of
from prunus.cuda.policies import decide
from prunus.cuda.runtime import Place, empty
from prunus.cuda.tracing import traced
from prunus.cuda.versions import libraries
from prunus.pruning.attention import Call, check_blocks, checked, counted, fixed_shape
from prunus.pruning.policies import Fixed, Policy, Threshold, TopK, as_policy

if TYPE_CHECKING:
    import torch

__all__ = ["attention"]


class _Known(NamedTuple):
    """Live blocks that a tensor says, in a policy's place."""

    live: torch.Tensor


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    prune: Any = None,
    causal: bool = False,
    scale: float | None = None,
    blocksize: int = 64,
    where: Place | None = None,
) -> torch.Tensor:
    """Return attention; see :func:`prunus.attention` for the parameters, which are tensors here.

    Nothing waits for the device: policies decide there, and a user's function sees tensors. A mask that is a
    BlockMask, and a fixed mask in NumPy's memory, are uploaded by the first call that has them, which a CUDA
    graph cannot capture, and stay as long as they do; a tensor of booleans on the device is taken for
    ``mask`` or ``prune`` as well. Scores of all blocks of all heads exist at once where a policy sees them.

    A query's result does not depend on the batch. Where a call has few queries, keys are split over programs
    and their sums merged, in an order that depends on the numbers of queries and keys alone.

    Parameters
    ----------
    mask : BlockMask, or Tensor of bool
        As a tensor the grid of blocks (blocks of queries, blocks of keys), with leading dimensions that
        broadcast to (*batch, heads).
    prune : policy, or Tensor of bool
        As a tensor (heads * blocks of queries, blocks of keys) or (blocks of keys,), like ``Fixed``.
    where : Place, optional
        Where the operands live, if that is known.

    Returns
    -------
    Tensor
        Shape (*batch, heads, n, features), on the operands' device.

    Raises
    ------
    ValueError, TypeError
        As :func:`prunus.attention`.
    PrunusError
        If operands live in different places.
    """
    if where is None:
        where = where_of(q, k, v)
    operands = as_floats(q, "q", where), as_floats(k, "k", where), as_floats(v, "v", where)
    call = checked(*operands, scale, causal, blocksize)
    grid = _grid(mask, call, where)
    policy = _policy(prune, where)
    kind = dtypes.result(dtypes.result(call.q.dtype, call.k.dtype), call.v.dtype)
    with traced("attention", where) as t:
        live = grid
        if policy is not None and all(call.q.shape[:-1]) and call.m:
            live = live_blocks(policy, call, grid, where)
        out = empty((*call.q.shape[:-1], call.v.shape[-1]), kind, where)
        if 0 not in out.shape:
            kernels.attention(
                where, call.q, call.k, call.v, out, live, call.scale, call.causal, call.blocksize
            )
            if t:
                _count(t, call, mask, grid, live)
    return out[0] if call.flat else out


def _count(t: Span, call: Call, mask: Any, grid: torch.Tensor | None, live: torch.Tensor | None) -> None:
    """Say what was multiplied and read; of what the device decided, when somebody looks."""
    if live is None:
        t.count(**counted(call, None, None))
        return
    # A tensor of the caller's may be written by then.
    own = None if grid is None else grid if isinstance(mask, BlockMask) else grid.clone()
    decided = live is not grid
    # Of the operands sizes alone are kept.
    sizes = call._replace(q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"))

    def numbers() -> dict[str, int]:
        seen = None if own is None else own.cpu().numpy()
        return counted(sizes, seen, live.cpu().numpy() if decided else seen)

    t.later(numbers)


def _policy(prune: Any, where: Place) -> Policy | _Known | None:
    """Return a policy, or what a tensor on the device says."""
    torch = libraries().torch
    if not isinstance(prune, torch.Tensor):
        return as_policy(prune)
    if prune.dtype != torch.bool:
        raise TypeError(f"prune must be a policy or a tensor of booleans, got dtype {prune.dtype}")
    check_place(prune, "prune", where)
    return _Known(prune)


def _grid(mask: Any, call: Call, where: Place) -> torch.Tensor | None:
    """Return the mask's grid of blocks, expanded to (*batch, heads, blocks of queries, blocks of keys)."""
    torch = libraries().torch
    if mask is None:
        return None
    lead = tuple(call.q.shape[:-2])
    if isinstance(mask, torch.Tensor):
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must hold booleans where it is a tensor, got dtype {mask.dtype}")
        check_place(mask, "mask", where)
        if tuple(mask.shape[-2:]) != call.blocks:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, but there are {call.blocks[0]} blocks of queries and "
                f"{call.blocks[1]} of keys, of {call.blocksize} each"
            )
        given, found = tuple(mask.shape[:-2]), mask
    elif isinstance(mask, BlockMask):
        check_blocks("mask", mask, call)
        given, found = mask.shape[:-2], kept(mask, "blocks", where, mask.to_blocks)
    else:
        raise TypeError(f"mask must be a BlockMask, or a tensor of booleans; got {type(mask).__name__}")
    try:
        return found.broadcast_to((*lead, *call.blocks))
    except RuntimeError:
        raise ValueError(
            f"the leading dimensions {given} of mask do not broadcast to the heads {lead} of q"
        ) from None


def live_blocks(policy: Policy | _Known, call: Call, grid: torch.Tensor | None, where: Place) -> torch.Tensor:
    """Return which blocks are live, (*batch, heads, blocks of queries, blocks of keys)."""
    torch = libraries().torch
    lead, (rows, cols) = tuple(call.q.shape[:-2]), call.blocks
    heads = math.prod(lead)
    diagonal, seen = _diagonal(call, where), _sees(call, where)
    visible = seen if grid is None else grid if seen is None else grid & seen
    if isinstance(policy, _Known):
        live = policy.live.reshape(fixed_shape(tuple(policy.live.shape), call, heads))
    elif isinstance(policy, Fixed):
        live = _fixed(policy, call, heads, where)
    else:
        wide = torch.float64 in (call.q.dtype, call.k.dtype)
        scores = empty((*lead, rows, cols), torch.float64 if wide else torch.float32, where)
        kernels.pooled_scores(where, call.q, call.k, scores, call.scale, call.blocksize, call.causal)
        if isinstance(policy, TopK):
            scores = torch.where(diagonal, torch.inf, scores)
        elif isinstance(policy, Threshold):
            hidden = scores if visible is None else torch.where(visible, scores, -torch.inf)
            # Infinities and NaN give NaN, which is live.
            weights = torch.exp(hidden - hidden.amax(-1, keepdim=True))
            scores = weights / weights.sum(-1, keepdim=True)
        every = None if visible is None else visible.broadcast_to(scores.shape)
        live = _ask(policy, scores.reshape(heads, rows, cols), every, where)
    live = (live | diagonal).broadcast_to((heads, rows, cols)).reshape(*lead, rows, cols)
    return live if visible is None else live & visible


def _fixed(policy: Fixed, call: Call, heads: int, where: Place) -> torch.Tensor:
    """Return a fixed mask as :func:`prunus.pruning.attention.fixed` does."""
    blocks = policy.blocks
    if blocks is not None:
        check_blocks("Fixed's mask", blocks, call)
        return kept(policy, "blocks", where, blocks.to_blocks)[None]
    mask = policy.mask
    return kept(policy, "mask", where, lambda: mask, mask).reshape(fixed_shape(mask.shape, call, heads))


def _ask(policy: Policy, scores: torch.Tensor, visible: torch.Tensor | None, where: Place) -> torch.Tensor:
    """Return what a policy says of scores (heads, rows, blocks of keys)."""
    torch = libraries().torch
    heads, rows, cols = scores.shape
    seen = None if visible is None else visible.reshape(heads, rows, cols)
    if policy.rows == 1:
        flat = None if seen is None else seen.reshape(heads * rows, cols)
        each = scores.reshape(heads * rows, cols)
        return decide(policy, each, flat, "score", where).reshape(scores.shape)
    if type(policy) not in (Threshold, TopK):
        # Python code decides rows of one head at a time: rows of two are never pooled with each other.
        shown = [None if seen is None else seen[h] for h in range(heads)]
        return torch.stack([decide(policy, scores[h], shown[h], "score", where) for h in range(heads)])
    # Rows are pooled here, those of each head by themselves, and decided as one.
    group = min(policy.rows, rows)
    short = -rows % group
    pad = torch.nn.functional.pad
    pooled = pad(scores, (0, 0, 0, short), value=-torch.inf).reshape(heads, -1, group, cols).amax(2)
    both = None
    if seen is not None:
        both = pad(seen, (0, 0, 0, short)).reshape(heads, -1, group, cols).any(2).reshape(-1, cols)
    alone = copy.copy(policy)
    alone.rows = 1
    live = decide(alone, pooled.reshape(-1, cols), both, "score", where).reshape(pooled.shape)
    return live.repeat_interleave(group, 1)[:, :rows]


def _edges(call: Call, where: Place) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each block of queries the first and the last key that its queries stand at, (rows, 1)."""
    torch = libraries().torch
    first = torch.arange(call.blocks[0], device=where.device)[:, None] * call.blocksize
    last = (first + call.blocksize).clamp(max=call.n) - 1
    return first + (call.m - call.n), last + (call.m - call.n)


def _sees(call: Call, where: Place) -> torch.Tensor | None:
    """Return which blocks (queries, keys) are visible by causality; None: all."""
    if not call.causal:
        return None
    torch = libraries().torch
    return torch.arange(call.blocks[1], device=where.device) * call.blocksize <= _edges(call, where)[1]


def _diagonal(call: Call, where: Place) -> torch.Tensor:
    """Return which blocks (queries, keys) hold the keys that the queries stand at."""
    first, last = _edges(call, where)
    start = libraries().torch.arange(call.blocks[1], device=where.device) * call.blocksize
    return (start <= last) & (start + call.blocksize > first)
