"""Attention over live blocks as torch operations: the forward pass, its gradients, and gradients of these.

Gradients are operations of their own, so that what depends on how many blocks are live stays within them:
every result has a static shape. Queries, keys, values and live blocks are saved, scores are not.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from prunus.pruning.policies import Policy, Threshold, TopK
from prunus.torch.ops import kernels_attention as kernels
from prunus.torch.ops.operation import operation
from prunus.torch.ops.visible import visible

__all__ = ["attention", "attention_live", "encode"]

_OPERANDS: Final = "Tensor q, Tensor k, Tensor v, Tensor? live, float scale, bool causal, SymInt blocksize"


@operation("prunus::attention", f"({_OPERANDS}) -> Tensor")
def attention(
    q: Tensor, k: Tensor, v: Tensor, live: Tensor | None, scale: float, causal: bool, blocksize: int
) -> Tensor:
    """Return ``softmax(scale * q @ k.T) @ v`` over the keys that each query sees; 0 where it sees none.

    Parameters
    ----------
    q : Tensor
        Shape (*batch, heads, n, d).
    k, v : Tensor
        Shapes (*batch, groups, m, d) and (*batch, groups, m, features), of q's dtype; ``groups`` divides
        ``heads``.
    live : Tensor of bool, optional
        Shape (*batch, heads, ceil(n / blocksize), ceil(m / blocksize)). None: all see all.
    scale : float
        Factor of the scores.
    causal : bool
        Query i sees keys j <= i + m - n only.
    blocksize : int
        Rows and columns of a block of ``live``.

    Returns
    -------
    Tensor
        Shape (*batch, heads, n, features), contiguous.
    """
    return kernels.forward(q, k, v, live, scale, causal, blocksize)


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, live: Tensor | None, scale: float, causal: bool, blocksize: int
) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, scale, causal, blocksize = inputs
    ctx.save_for_backward(*tensors)
    ctx.rest = scale, causal, blocksize


def _attention_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    d_q, d_k, d_v = attention_backward(grad, *ctx.saved_tensors, *ctx.rest)
    return d_q, d_k, d_v, None, None, None, None


attention.register_autograd(_attention_backward, setup_context=_save)


@operation(
    "prunus::attention_backward",
    f"(Tensor grad, {_OPERANDS}) -> (Tensor, Tensor, Tensor)",
)
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live: Tensor | None,
    scale: float,
    causal: bool,
    blocksize: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, from the result's; see :func:`attention`."""
    return kernels.backward(grad, q, k, v, live, scale, causal, blocksize)


@attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live: Tensor | None,
    scale: float,
    causal: bool,
    blocksize: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _attention_backward_backward(
    ctx: Any, g_q: Tensor, g_k: Tensor, g_v: Tensor
) -> tuple[Tensor | None, ...]:
    made = attention_double_backward(g_q, g_k, g_v, *ctx.saved_tensors, *ctx.rest)
    return *made, None, None, None, None


attention_backward.register_autograd(_attention_backward_backward, setup_context=_save)


@operation(
    "prunus::attention_double_backward",
    f"(Tensor g_q, Tensor g_k, Tensor g_v, Tensor grad, {_OPERANDS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def attention_double_backward(
    g_q: Tensor,
    g_k: Tensor,
    g_v: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live: Tensor | None,
    scale: float,
    causal: bool,
    blocksize: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of what :func:`attention_backward` takes: grad, q, k and v.

    It has no gradient of its own: third derivatives raise.
    """
    return kernels.double_backward(g_q, g_k, g_v, grad, q, k, v, live, scale, causal, blocksize)


@attention_double_backward.register_fake
def _(
    g_q: Tensor,
    g_k: Tensor,
    g_v: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live: Tensor | None,
    scale: float,
    causal: bool,
    blocksize: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return grad.new_empty(grad.shape), q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _over_batch(op: Any, tensors: int, results: int) -> None:
    """Have vmap see what it maps over as one more batch dimension of all operands."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        given = [
            one if one is None else one.expand(size, *one.shape) if at is None else one.movedim(at, 0)
            for one, at in zip(args[:tensors], in_dims[:tensors], strict=True)
        ]
        made = op(*given, *args[tensors:])
        return (made, 0) if results == 1 else (made, (0,) * results)

    op.register_vmap(rule)


_over_batch(attention, 4, 1)
_over_batch(attention_backward, 5, 3)
_over_batch(attention_double_backward, 8, 4)


# Deciding ------------------------------------------------------------------------------------------------


@operation(
    "prunus::attention_live",
    "(Tensor q, Tensor k, Tensor? grid, str policy, float number, int rows, float scale, bool causal, "
    "SymInt blocksize) -> Tensor",
)
def attention_live(
    q: Tensor,
    k: Tensor,
    grid: Tensor | None,
    policy: str,
    number: float,
    rows: int,
    scale: float,
    causal: bool,
    blocksize: int,
) -> Tensor:
    """Return the blocks (*batch, heads, rows, cols) that a policy keeps, by :func:`prunus.attention`'s rules.

    Parameters
    ----------
    q, k, scale, causal, blocksize
        As in :func:`attention`.
    grid : Tensor of bool, optional
        Which blocks are visible, of the result's shape.
    policy, number, rows
        What :func:`encode` returns.
    """
    return kernels.decide(decode(policy, number, rows), q, k, grid, scale, causal, blocksize)


@attention_live.register_fake
def _(
    q: Tensor,
    k: Tensor,
    grid: Tensor | None,
    policy: str,
    number: float,
    rows: int,
    scale: float,
    causal: bool,
    blocksize: int,
) -> Tensor:
    down, across = ((x.shape[-2] + blocksize - 1) // blocksize for x in (q, k))
    return q.new_empty((*q.shape[:-2], down, across), dtype=torch.bool)


@attention_live.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    given = [
        one if one is None else one.expand(info.batch_size, *one.shape) if at is None else one.movedim(at, 0)
        for one, at in zip(args[:3], in_dims[:3], strict=True)
    ]
    return attention_live(*given, *args[3:]), 0


def encode(policy: Policy) -> tuple[str, float, int] | None:
    """Return a policy as what operations take, or None where it is Python code."""
    select = type(policy).select
    if select is Threshold.select:
        return "threshold", policy.tau, policy.rows  # type: ignore[attr-defined]
    if select is not TopK.select:
        return None
    if policy.count is not None:  # type: ignore[attr-defined]
        return "count", float(policy.count), policy.rows  # type: ignore[attr-defined]
    return "fraction", policy.fraction, policy.rows  # type: ignore[attr-defined]


def decode(policy: str, number: float, rows: int) -> Policy:
    """Return the policy that :func:`encode` was given."""
    if policy == "threshold":
        return Threshold(number, rows=rows)
    if policy == "count":
        return TopK(int(number), rows=rows)
    return TopK(fraction=number, rows=rows)


def _is_wide(scale: float) -> bool:
    """Say whether a compiler would take the bits of a scale, 64 of them, for a number of 32."""
    from torch._inductor import config

    return scale < 0 or bool(config.assume_32bit_indexing)


visible(attention, unless=lambda q, k, v, live, scale, *_: _is_wide(scale))
