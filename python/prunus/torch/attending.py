"""``attention`` and ``softmax`` with gradients: arguments are checked here, and live blocks decided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus._layout import blocks_along
from prunus._mask import BlockMask
from prunus.pruning.attention import Call, check_blocks, checked, fixed_shape
from prunus.pruning.policies import Fixed, Policy, as_policy
from prunus.torch.arrays import BSR
from prunus.torch.blocks import rows_of
from prunus.torch.functional import as_operand, cast, check_alike
from prunus.torch.ops import attention as ops
from prunus.torch.ops import kernels_attention as kernels
from prunus.torch.rows import softmax as softmax_of

__all__ = ["attention", "grid_of", "softmax"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | Tensor | None = None,
    prune: Any = None,
    causal: bool = False,
    scale: float | None = None,
    blocksize: int = 64,
) -> Tensor:
    """Return ``softmax(scale * q @ k.T) @ v`` over the keys that each query sees, with gradients.

    As :func:`prunus.attention`: blocks of keys that are masked or pruned are neither read nor multiplied, and
    neither are they in the backward pass. Scores are not kept for it: it computes those of live blocks anew,
    of a few heads at a time (FlashAttention: Dao et al., 2022, appendix B).

    Parameters
    ----------
    q : Tensor
        Queries (*batch, heads, n, d), (heads, n, d) or (n, d), of any strides.
    k, v : Tensor
        Keys (*batch, kv_heads, m, d) and values (*batch, kv_heads, m, features), of q's dtype. ``heads`` is a
        multiple of ``kv_heads``: neighbouring heads share keys and values.
    mask : BlockMask or Tensor of bool, optional
        Which blocks of queries see which blocks of keys: a BlockMask (n, m), or its grid of blocks as a
        tensor, each with leading dimensions that broadcast to (*batch, heads).
    prune : policy or Tensor of bool, optional
        Which visible blocks take part: ``TopK`` and ``Threshold`` by pooled scores, ``Fixed``, a function of
        ``Statistics``, or a tensor (heads * rows of blocks, blocks of keys) or (blocks of keys,). What it
        decides has no gradient. Functions do not compile.
    causal : bool, default False
        Query i sees the keys j <= i + m - n.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(d)`` by default.
    blocksize : int, default 64
        Queries and keys in a block.

    Returns
    -------
    Tensor
        Shape (*batch, heads, n, features), as many dimensions as ``q``. A query that sees nothing gets
        zeros, and so do its gradients.

    Raises
    ------
    ValueError
        If shapes, heads, masks or devices do not match.
    TypeError
        If dtypes differ or are no floats. Under autocast all three are converted to its dtype.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> q, k, v = (torch.randn(2, 256, 16, requires_grad=True) for _ in range(3))
    >>> y = pt.attention(q, k, v, causal=True, prune=pr.TopK(2), blocksize=32)
    >>> y.sum().backward()
    >>> torch.allclose(v.grad.sum(-2), torch.tensor(256.0))  # each query gives away a weight of 1
    True
    """
    if isinstance(scale, Tensor) and scale.requires_grad:
        raise TypeError("scale is a number, without a gradient: for a learnt one, multiply q by it")
    for x, name in ((q, "q"), (k, "k"), (v, "v")):
        if isinstance(x, BSR):
            raise TypeError(f"{name} is a BSR: attention takes dense tensors")
        as_operand(x, name)
    q, k, v = cast(q, k, v)
    check_alike(q, k, v)
    call = checked(q, k, v, scale, causal, blocksize)
    live = _grid(mask, call)
    policy = None if isinstance(prune, Tensor) else as_policy(prune)
    if prune is not None:
        live = _decide(prune if policy is None else policy, call, live)
    y = ops.attention(call.q, call.k, call.v, live, call.scale, call.causal, call.blocksize)
    return y[0] if call.flat else y


def grid_of(mask: BlockMask, device: torch.device | str | None = None) -> Tensor:
    """Return a mask's grid of blocks as a tensor of booleans."""
    return torch.from_numpy(mask.to_blocks()).to(device)


def _grid(mask: Any, call: Call) -> Tensor | None:
    """Return a mask as a grid (*batch, heads, rows, cols)."""
    if mask is None:
        return None
    lead, blocks = tuple(call.q.shape[:-2]), tuple(call.blocks)
    if isinstance(mask, BlockMask):
        check_blocks("mask", mask, call)
        grid = grid_of(mask, call.q.device)
    elif isinstance(mask, Tensor):
        grid = _booleans(mask, "mask", call)
        if tuple(grid.shape[-2:]) != blocks:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, but there are {blocks[0]} blocks of queries and "
                f"{blocks[1]} of keys, of {call.blocksize} each"
            )
    else:
        raise TypeError(f"mask must be a BlockMask, or a tensor of booleans; got {type(mask).__name__}")
    try:
        return grid.broadcast_to((*lead, *blocks))
    except RuntimeError:
        raise ValueError(
            f"the leading dimensions {tuple(grid.shape[:-2])} of mask do not broadcast to the heads {lead} "
            "of q"
        ) from None


def _booleans(tensor: Tensor, name: str, call: Call) -> Tensor:
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name} must hold booleans where it is a tensor, got {tensor.dtype}")
    if tensor.device != call.q.device:
        raise ValueError(f"{name} lives on {tensor.device}, the operands on {call.q.device}")
    return tensor


@torch.no_grad()
def _decide(prune: Policy | Tensor, call: Call, grid: Tensor | None) -> Tensor:
    """Return live blocks (*batch, heads, rows, cols)."""
    rest = call.scale, call.causal, call.blocksize
    q, k = call.q.detach(), call.k.detach()
    if isinstance(prune, Tensor):
        return _known(_booleans(prune, "prune", call), call, grid)
    if isinstance(prune, Fixed):
        if prune.blocks is not None:
            check_blocks("Fixed's mask", prune.blocks, call)
            known = grid_of(prune.blocks, q.device)[None]
            return _known(known, call, grid)
        return _known(torch.from_numpy(prune.mask).to(q.device), call, grid)
    code = ops.encode(prune)
    if code is None:
        return _ask(prune, q, k, grid, *rest)
    return ops.attention_live(q, k, grid, *code, *rest)


@torch.compiler.disable
def _ask(prune: Policy, q: Tensor, k: Tensor, grid: Tensor | None, *rest: Any) -> Tensor:
    """Return what Python code says, which no compiler looks into."""
    return kernels.decide(prune, q, k, grid, *rest)


def _known(known: Tensor, call: Call, grid: Tensor | None) -> Tensor:
    """Return the live blocks that a tensor says: with the diagonal, and no more than is visible."""
    lead, (rows, cols) = tuple(call.q.shape[:-2]), call.blocks
    heads = 1
    for size in lead:
        heads *= size
    if known.shape != (1, rows, cols):  # the same for all heads
        known = known.reshape(fixed_shape(tuple(known.shape), call, heads))
    size, shift = call.blocksize, call.m - call.n
    first = torch.arange(rows, device=known.device)[:, None] * size
    last = (first + size).clamp(max=call.n) - 1 + shift
    start = torch.arange(cols, device=known.device) * size
    live = known | ((start <= last) & (start + size > first + shift))
    if call.causal:
        live = live & (start <= last)
    live = live.expand(heads, rows, cols).reshape(*lead, rows, cols)
    return live if grid is None else live & grid


def softmax(w: BSR) -> BSR:
    """Return the softmax along rows, in which absent blocks count as -inf; with gradients.

    Parameters
    ----------
    w : BSR
        Scores, of any shape and pattern, each block at most once; such as :func:`sddmm` gives.

    Returns
    -------
    BSR
        Of the same pattern. Rows sum to 1; one in which nothing but -inf is stored holds 0. Under autocast in
        float32, as torch's.

    Raises
    ------
    TypeError
        If ``w`` is no BSR.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> scores = pt.BSR.zeros(pr.BlockMask.causal(4, blocksize=2))
    >>> pt.softmax(scores).toarray()[-1]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    if not isinstance(w, BSR):
        raise TypeError(f"w must be a prunus.torch.BSR, got {type(w).__name__}; torch.softmax takes tensors")
    data, kind = w.data, w.dtype
    if kind in (torch.float16, torch.bfloat16):
        data = data.float()
        kind = torch.float32 if torch.is_autocast_enabled(w.device.type) else kind
    m, n = w._stored[-2:]
    br, bc = data.shape[-2:]
    down, across = blocks_along(m, br), blocks_along(n, bc)
    members = w.indptr.shape[:-1].numel() if w.indptr.ndim > 1 else 1
    rows = rows_of(w.indices, w.indptr)
    data = data.movedim(-3, 0)
    if m % br or n % bc:  # what hangs over
        inner = [1] * (data.ndim - 3)
        i = (rows % down * br)[:, None] + torch.arange(br, device=data.device)
        j = (w.indices * bc)[:, None] + torch.arange(bc, device=data.device)
        inside = (i < m)[:, :, None] & (j < n)[:, None, :]
        data = data.masked_fill(~inside.reshape(-1, *inner, br, bc), -torch.inf)
    if w._t:
        columns = rows // down * across + w.indices
        made = softmax_of(data.mT, columns, members * across).mT
    else:
        made = softmax_of(data, rows, members * down)
    return w._with(made.movedim(0, -3).to(kind))
