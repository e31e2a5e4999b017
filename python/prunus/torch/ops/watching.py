"""Watching what the gradient would be at blocks that a layer has not: ``torch.ops.prunus.watch``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.torch.ops.operation import operation
from prunus.torch.ops.products import sdd
from prunus.torch.ops.visible import visible

__all__ = ["watch"]


@operation(
    "prunus::watch",
    "(Tensor y, Tensor x, Tensor at, Tensor indices, Tensor indptr) -> Tensor",
)
def watch(y: Tensor, x: Tensor, at: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:
    """Return ``y + x @ A.T`` for blocks A that are all 0, which is ``y``; the gradient of A is the point.

    The product with zeros is left out, forward and in the gradient of x. So values of ``at`` other than 0
    are not seen: they are a place for a gradient, and nothing else.

    Parameters
    ----------
    y : Tensor
        Shape (n, out).
    x : Tensor
        Shape (n, in), of y's dtype.
    at : Tensor
        Zeros, (blocks, br, bc), of y's dtype; its gradient is ``dy.T @ x`` at the pattern.
    indices, indptr : Tensor
        The pattern in a grid of (out, in).

    Returns
    -------
    Tensor
        A copy of y.
    """
    return y.clone()


@watch.register_fake
def _(y: Tensor, x: Tensor, at: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:
    return torch.empty_like(y)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, at, indices, indptr = inputs
    ctx.save_for_backward(x, indices, indptr)
    ctx.block = tuple(at.shape[-2:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, indices, indptr = ctx.saved_tensors
    d_at = sdd(grad.mT, x, indices, indptr, *ctx.block) if ctx.needs_input_grad[2] else None
    return grad, None, d_at, None, None


watch.register_autograd(_backward, setup_context=_save)


visible(watch)
