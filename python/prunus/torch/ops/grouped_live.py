"""Products of rows sorted by group that leave out each row's dead units, as torch operations: pruned experts.

As in :mod:`prunus.torch.ops.live`, but with a matrix W[e] for each group of rows, as in
:mod:`prunus.torch.ops.grouped`. M is what ``live`` says of each unit; outer products are sums over a group's
rows:

==================================  ================================================================
``Z = M * (X @ W[e].T)``  (linear)  ``dX = (M * dZ) @ W[e]``, ``dW[e] = (M * dZ).T @ X`` (combine, outer)
``Y = (M * H) @ W[e]``   (combine)  ``dH = M * (dY @ W[e].T)``, ``dW[e] = (M * H).T @ dY`` (linear, outer)
``O[e] = (M * H).T @ X``   (outer)  ``dH = M * (X @ dO[e].T)``, ``dX = (M * H) @ dO[e]`` (linear, combine)
==================================  ================================================================

Matrices come as a list: of all groups' matrices, or of one tensor (E, n, k). In all of them

* ``live`` is a tensor of booleans (rows, branches), ``branch`` how many units are in a branch;
* ``offsets`` (E + 1,), int32, says where each group's rows begin; rows past the last group give 0;
* ``zeroed`` and ``flip`` are as in :mod:`prunus.torch.ops.live`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.torch.ops import kernels_grouped_live as kernels
from prunus.torch.ops.kernels_live import spread

__all__ = [
    "grouped_live_combine",
    "grouped_live_known",
    "grouped_live_linear",
    "grouped_live_outer",
    "grouped_live_sums",
]


# Units from inputs ---------------------------------------------------------------------------------------


@torch.library.custom_op(
    "prunus::grouped_live_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor[] w, Tensor live, int branch, Tensor offsets, bool zeroed=False) -> Tensor",
)
def grouped_live_linear(
    x: Tensor, w: Sequence[Tensor], live: Tensor, branch: int, offsets: Tensor, zeroed: bool = False
) -> Tensor:
    """Return ``x @ w[e].T`` where it is live, and 0 elsewhere.

    ``x`` (rows, d), W (E, units, d); the result is (rows, units).
    """
    return kernels.linear(x, w, live, branch, offsets, x.dtype)


@grouped_live_linear.register_fake
def _(
    x: Tensor, w: Sequence[Tensor], live: Tensor, branch: int, offsets: Tensor, zeroed: bool = False
) -> Tensor:
    return x.new_empty((x.shape[0], w[0].shape[-2]))


def _save(
    ctx: Any, first: int, one: Tensor, w: Sequence[Tensor], live: Tensor, branch: int, offsets: Tensor
) -> None:
    """Keep what gradients of a product need, whose rows and matrices are inputs from ``first`` on."""
    needs = ctx.needs_input_grad  # here of all tensors in line, in the backward pass as they are nested
    needs_one, needs_w = needs[first], any(needs[first + 1 : first + 1 + len(w)])
    ctx.save_for_backward(one if needs_w else None, live, offsets, *(w if needs_one else []))
    ctx.branch, ctx.stacked = branch, w[0].ndim == 3


def _each(ctx: Any, made: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Return a gradient (E, n, k) as matrices came."""
    every = [made] if ctx.stacked else made.unbind(0)
    return [one if wanted else None for one, wanted in zip(every, needed, strict=True)]


def _gradients(ctx: Any, first: int, grad: Tensor) -> tuple[Any, Any]:
    """Return the gradients of units' inputs and matrices."""
    x, live, offsets, *w = ctx.saved_tensors
    needs_x, needs_w = ctx.needs_input_grad[first : first + 2]
    rest = live, ctx.branch, offsets, ctx.zeroed
    d_x = grouped_live_combine(grad, w, *rest) if needs_x else None
    d_w = _each(ctx, grouped_live_outer(grad, x, *rest), needs_w) if any(needs_w) else [None] * len(needs_w)
    return d_x, d_w


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *rest, ctx.zeroed = inputs
    _save(ctx, 0, *rest)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_gradients(ctx, 0, grad), None, None, None, None


grouped_live_linear.register_autograd(_linear_backward, setup_context=_save_linear)


@torch.library.custom_op(
    "prunus::grouped_live_sums",
    mutates_args=(),
    schema="(Tensor x, Tensor[] w, Tensor? live, int branch, Tensor offsets) -> Tensor",
)
def grouped_live_sums(
    x: Tensor, w: Sequence[Tensor], live: Tensor | None, branch: int, offsets: Tensor
) -> Tensor:
    """Return ``x @ w[e].T`` in float32, or float64, where it may be live: what decides; it has no gradient.

    :func:`grouped_live_known` makes of it what gradients flow through. ``live`` None: everywhere.
    """
    return kernels.linear(x, w, live, branch, offsets, _sums_dtype(x))


@grouped_live_sums.register_fake
def _(x: Tensor, w: Sequence[Tensor], live: Tensor | None, branch: int, offsets: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], w[0].shape[-2]), dtype=_sums_dtype(x))


def _sums_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op(
    "prunus::grouped_live_known",
    mutates_args=(),
    schema="(Tensor sums, Tensor x, Tensor[] w, Tensor live, int branch, Tensor offsets, bool zeroed=False)"
    " -> Tensor",
)
def grouped_live_known(
    sums: Tensor,
    x: Tensor,
    w: Sequence[Tensor],
    live: Tensor,
    branch: int,
    offsets: Tensor,
    zeroed: bool = False,
) -> Tensor:
    """Return :func:`grouped_live_linear` of the rest, whose sums :func:`grouped_live_sums` gave.

    Nothing is multiplied. Gradients go to ``x`` and ``w``, not to ``sums``.
    """
    return torch.where(spread(live, branch, sums.shape[1]), sums, 0).to(x.dtype)


@grouped_live_known.register_fake
def _(
    sums: Tensor,
    x: Tensor,
    w: Sequence[Tensor],
    live: Tensor,
    branch: int,
    offsets: Tensor,
    zeroed: bool = False,
) -> Tensor:
    return x.new_empty(sums.shape)


def _save_known(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *rest, ctx.zeroed = inputs
    _save(ctx, 1, *rest)


def _known_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return None, *_gradients(ctx, 1, grad), None, None, None, None


grouped_live_known.register_autograd(_known_backward, setup_context=_save_known)


# What units contribute -----------------------------------------------------------------------------------


@torch.library.custom_op(
    "prunus::grouped_live_combine",
    mutates_args=(),
    schema="(Tensor h, Tensor[] w, Tensor live, int branch, Tensor offsets, bool zeroed=False,"
    " bool flip=False) -> Tensor",
)
def grouped_live_combine(
    h: Tensor,
    w: Sequence[Tensor],
    live: Tensor,
    branch: int,
    offsets: Tensor,
    zeroed: bool = False,
    flip: bool = False,
) -> Tensor:
    """Return ``h @ w[e]`` (rows, d) where only live units take part, also against infinities and NaN.

    ``h`` (rows, units), W (E, units, d), with ``flip`` (E, d, units). What dead units hold is not looked at.
    """
    return kernels.combine(h, w, live, branch, offsets, zeroed, flip)


@grouped_live_combine.register_fake
def _(
    h: Tensor,
    w: Sequence[Tensor],
    live: Tensor,
    branch: int,
    offsets: Tensor,
    zeroed: bool = False,
    flip: bool = False,
) -> Tensor:
    return h.new_empty((h.shape[0], w[0].shape[-2 if flip else -1]))


def _save_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *rest, ctx.zeroed, ctx.flip = inputs
    _save(ctx, 0, *rest)


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    h, live, offsets, *w = ctx.saved_tensors
    needs_h, needs_w = ctx.needs_input_grad[:2]
    d_h, d_w = None, [None] * len(needs_w)
    if needs_h:
        turned = [one.mT for one in w] if ctx.flip else w
        d_h = grouped_live_linear(grad, turned, live, ctx.branch, offsets)
    if any(needs_w):
        made = grouped_live_outer(h, grad, live, ctx.branch, offsets, ctx.zeroed, ctx.flip)
        d_w = _each(ctx, made, needs_w)
    return d_h, d_w, None, None, None, None, None


grouped_live_combine.register_autograd(_combine_backward, setup_context=_save_combine)


# Weights from both ---------------------------------------------------------------------------------------


@torch.library.custom_op(
    "prunus::grouped_live_outer",
    mutates_args=(),
    schema="(Tensor h, Tensor x, Tensor live, int branch, Tensor offsets, bool zeroed=False,"
    " bool flip=False) -> Tensor",
)
def grouped_live_outer(
    h: Tensor,
    x: Tensor,
    live: Tensor,
    branch: int,
    offsets: Tensor,
    zeroed: bool = False,
    flip: bool = False,
) -> Tensor:
    """Return ``h.T @ x`` (E, units, d) over each group's rows, where only live units of a row take part.

    ``h`` (rows, units), ``x`` (rows, d); with ``flip`` the result is (E, d, units). Without rows it is 0.
    """
    return kernels.outer(h, x, live, branch, offsets, zeroed, flip)


@grouped_live_outer.register_fake
def _(
    h: Tensor,
    x: Tensor,
    live: Tensor,
    branch: int,
    offsets: Tensor,
    zeroed: bool = False,
    flip: bool = False,
) -> Tensor:
    size = (x.shape[1], h.shape[1]) if flip else (h.shape[1], x.shape[1])
    return h.new_empty((offsets.shape[0] - 1, *size))


def _save_outer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, x, live, ctx.branch, offsets, ctx.zeroed, ctx.flip = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(h if needs[1] else None, x if needs[0] else None, live, offsets)


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    h, x, live, offsets = ctx.saved_tensors
    d_h = d_x = None
    if ctx.needs_input_grad[0]:
        d_h = grouped_live_linear(x, [grad.mT if ctx.flip else grad], live, ctx.branch, offsets)
    if ctx.needs_input_grad[1]:
        d_x = grouped_live_combine(h, [grad], live, ctx.branch, offsets, ctx.zeroed, ctx.flip)
    return d_h, d_x, None, None, None, None, None


grouped_live_outer.register_autograd(_outer_backward, setup_context=_save_outer)
