"""Products over a liveness mask as torch operations: what is dead is neither computed nor added.

``live`` (rows, branches) says which ``branch`` neighbouring units of each row are live; below, M is what it
says of each unit. The three products are closed under differentiation, so that gradients have gradients:

===============================  =====================================================================
``Z = M * (X @ W.T + b)``        ``dX = (M * dZ) @ W``, ``dW = (M * dZ).T @ X`` (combine, outer)
``Y = (M * H) @ W``              ``dH = M * (dY @ W.T)``, ``dW = (M * H).T @ dY`` (linear, outer)
``O = (M * H).T @ X``            ``dH = M * (X @ dO.T)``, ``dX = (M * H) @ dO`` (linear, combine)
===============================  =====================================================================

``live_known`` is the first of them where all sums had to be computed to decide what is live: its gradients
are as sparse. Without a mask everything is live. A mask that is written between forward and backward raises
torch's error about saved tensors that were modified.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunus.torch.ops import kernels_live as kernels
from prunus.torch.ops.kernels_live import spread
from prunus.torch.ops.operation import operation
from prunus.torch.ops.visible import visible

__all__ = [
    "above",
    "largest",
    "live_combine",
    "live_known",
    "live_linear",
    "live_outer",
    "live_sums",
    "step",
    "straight",
]


# Units from inputs ---------------------------------------------------------------------------------------


@operation(
    "prunus::live_linear",
    "(Tensor x, Tensor w, Tensor? bias, Tensor? live, int branch, bool zeroed=False) -> Tensor",
)
def live_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor | None, branch: int, zeroed: bool = False
) -> Tensor:
    """Return ``x @ w.T + bias`` where it is live, and 0 elsewhere.

    Parameters
    ----------
    x, w : Tensor
        Shapes (rows, d) and (units, d), of one dtype.
    bias : Tensor, optional
        Shape (units,).
    live : Tensor of bool, optional
        Shape (rows, branches); None: all.
    branch : int
        Units in a branch; the last one may have fewer.
    zeroed : bool
        A promise that the gradient which comes back is 0 where it is dead, so that nobody has to clear it.

    Returns
    -------
    Tensor
        Shape (rows, units).
    """
    return kernels.live_linear(x, w, bias, live, branch)


@live_linear.register_fake
def _(
    x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor | None, branch: int, zeroed: bool = False
) -> Tensor:
    return x.new_empty((x.shape[0], w.shape[0]))


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, live, branch, zeroed = inputs
    ctx.save_for_backward(
        x if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None, live
    )
    ctx.branch, ctx.first, ctx.zeroed = branch, 0, zeroed


def _linear_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, w and bias; ``ctx.first`` is where they begin among the inputs."""
    x, w, live = ctx.saved_tensors
    needs_x, needs_w, needs_bias = ctx.needs_input_grad[ctx.first : ctx.first + 3]
    d_x = live_combine(grad, w, live, ctx.branch, ctx.zeroed) if needs_x else None
    d_w = live_outer(grad, x, live, ctx.branch, ctx.zeroed) if needs_w else None
    d_bias = None
    if needs_bias:
        whole = live is None or ctx.zeroed
        d_bias = (grad if whole else _masked(grad, live, ctx.branch)).sum(0)
    return d_x, d_w, d_bias


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_linear_gradients(ctx, grad), None, None, None


live_linear.register_autograd(_linear_backward, setup_context=_save_linear)


@operation("prunus::live_sums", "(Tensor x, Tensor w, Tensor? bias) -> Tensor")
def live_sums(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Return all of ``x @ w.T + bias`` in float32, or float64: what decides; it has no gradient.

    See :func:`live_linear`; :func:`live_known` makes of it what gradients flow through.
    """
    return kernels.live_sums(x, w, bias)


@live_sums.register_fake
def _(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((x.shape[0], w.shape[0]), dtype=kind)


@operation(
    "prunus::live_known",
    "(Tensor sums, Tensor x, Tensor w, Tensor? bias, Tensor live, int branch, bool zeroed=False) -> Tensor",
)
def live_known(
    sums: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor, branch: int, zeroed: bool = False
) -> Tensor:
    """Return :func:`live_linear` of the rest, of which ``sums`` is what :func:`live_sums` gave.

    Nothing is multiplied. Gradients go to ``x``, ``w`` and ``bias``, not to ``sums``.
    """
    return _masked(sums, live, branch).to(x.dtype)


@live_known.register_fake
def _(
    sums: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor, branch: int, zeroed: bool = False
) -> Tensor:
    return x.new_empty((x.shape[0], w.shape[0]))


def _save_known(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, w, _, live, branch, zeroed = inputs
    ctx.save_for_backward(
        x if ctx.needs_input_grad[2] else None, w if ctx.needs_input_grad[1] else None, live
    )
    ctx.branch, ctx.first, ctx.zeroed = branch, 1, zeroed


def _known_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, *_linear_gradients(ctx, grad), None, None, None


live_known.register_autograd(_known_backward, setup_context=_save_known)


# What units contribute -----------------------------------------------------------------------------------


@operation(
    "prunus::live_combine",
    "(Tensor h, Tensor w, Tensor? live, int branch, bool zeroed=False, bool flip=False) -> Tensor",
)
def live_combine(
    h: Tensor, w: Tensor, live: Tensor | None, branch: int, zeroed: bool = False, flip: bool = False
) -> Tensor:
    """Return ``h @ w`` where only live units take part, also against infinities and NaN.

    Parameters
    ----------
    h, w : Tensor
        Shapes (rows, units) and (units, d), of one dtype. What dead units hold is not looked at.
    live : Tensor of bool, optional
        Shape (rows, branches); None: all.
    branch : int
        Units in a branch.
    zeroed : bool
        A promise that dead units hold 0, so that nobody has to clear them.
    flip : bool
        ``w`` lies by outputs: (d, units), and so does its gradient.

    Returns
    -------
    Tensor
        Shape (rows, d).
    """
    return kernels.live_combine(h, w.mT if flip else w, live, branch, zeroed)


@live_combine.register_fake
def _(
    h: Tensor, w: Tensor, live: Tensor | None, branch: int, zeroed: bool = False, flip: bool = False
) -> Tensor:
    return h.new_empty((h.shape[0], w.shape[0 if flip else 1]))


def _save_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, w, live, branch, zeroed, flip = inputs
    ctx.save_for_backward(
        h if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None, live
    )
    ctx.branch, ctx.zeroed, ctx.flip = branch, zeroed, flip


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    h, w, live = ctx.saved_tensors
    d_h = d_w = None
    if ctx.needs_input_grad[0]:
        d_h = live_linear(grad, w.mT if ctx.flip else w, None, live, ctx.branch)
    if ctx.needs_input_grad[1]:
        d_w = live_outer(h, grad, live, ctx.branch, ctx.zeroed, ctx.flip)
    return d_h, d_w, None, None, None, None


live_combine.register_autograd(_combine_backward, setup_context=_save_combine)


# Weights from both ---------------------------------------------------------------------------------------


@operation(
    "prunus::live_outer",
    "(Tensor h, Tensor x, Tensor? live, int branch, bool zeroed=False, bool flip=False) -> Tensor",
)
def live_outer(
    h: Tensor, x: Tensor, live: Tensor | None, branch: int, zeroed: bool = False, flip: bool = False
) -> Tensor:
    """Return ``h.T @ x`` where only live units of each row take part.

    Parameters
    ----------
    h, x : Tensor
        Shapes (rows, units) and (rows, d), of one dtype. What dead units hold is not looked at.
    live : Tensor of bool, optional
        Shape (rows, branches); None: all.
    branch : int
        Units in a branch.
    zeroed : bool
        A promise that dead units hold 0, so that nobody has to clear them.
    flip : bool
        Return the transpose.

    Returns
    -------
    Tensor
        Shape (units, d), with ``flip`` (d, units).
    """
    return kernels.live_outer(h, x, live, branch, zeroed, flip)


@live_outer.register_fake
def _(
    h: Tensor, x: Tensor, live: Tensor | None, branch: int, zeroed: bool = False, flip: bool = False
) -> Tensor:
    return h.new_empty((x.shape[1], h.shape[1]) if flip else (h.shape[1], x.shape[1]))


def _save_outer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, x, live, branch, zeroed, flip = inputs
    ctx.save_for_backward(
        h if ctx.needs_input_grad[1] else None, x if ctx.needs_input_grad[0] else None, live
    )
    ctx.branch, ctx.zeroed, ctx.flip = branch, zeroed, flip


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    h, x, live = ctx.saved_tensors
    d_h = d_x = None
    if ctx.needs_input_grad[0]:
        d_h = live_linear(x, grad.mT if ctx.flip else grad, None, live, ctx.branch)
    if ctx.needs_input_grad[1]:
        d_x = live_combine(h, grad, live, ctx.branch, ctx.zeroed, ctx.flip)
    return d_h, d_x, None, None, None, None


live_outer.register_autograd(_outer_backward, setup_context=_save_outer)


# Estimates -----------------------------------------------------------------------------------------------


@operation("prunus::straight", "(Tensor h, Tensor live, int branch) -> Tensor")
def straight(h: Tensor, live: Tensor, branch: int) -> Tensor:
    """Return ``h`` (rows, units) where it is live, and 0 elsewhere, with the gradient of ``h`` itself.

    The straight-through estimator of Bengio, Léonard and Courville (2013, arXiv:1308.3432).
    """
    return _masked(h, live, branch)


@straight.register_fake
def _(h: Tensor, live: Tensor, branch: int) -> Tensor:
    return h.new_empty(h.shape)


def _straight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad.clone(), None, None


straight.register_autograd(_straight_backward)


@operation("prunus::step", "(Tensor norms, Tensor tau, float bandwidth) -> Tensor")
def step(norms: Tensor, tau: Tensor, bandwidth: float) -> Tensor:
    """Return 1 where ``not (norms <= tau)`` and 0 elsewhere, with an estimated gradient for ``tau``.

    The step has no derivative. Its mean over inputs has: minus the density of norms at the threshold, which
    a rectangular window estimates: ``-1 / bandwidth`` where a norm is within half a bandwidth of ``tau``
    (Rajamanoharan et al., *Jumping Ahead*, 2024, arXiv:2407.14435, equations 11 and 12). ``norms`` get none.

    Parameters
    ----------
    norms : Tensor
        Shape (rows, branches).
    tau : Tensor
        Shape () or (branches,), of the same dtype.
    bandwidth : float
        Width of the window, above 0.
    """
    return (~(norms <= tau)).to(norms.dtype).contiguous()  # as the fake kernel says, whatever norms' strides


@step.register_fake
def _(norms: Tensor, tau: Tensor, bandwidth: float) -> Tensor:
    return norms.new_empty(norms.shape)


def _save_step(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    norms, tau, ctx.bandwidth = inputs
    ctx.save_for_backward(norms, tau)


def _step_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    norms, tau = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return None, None, None
    near = (norms - tau).abs() < ctx.bandwidth / 2
    return None, (torch.where(near, grad, 0) / -ctx.bandwidth).sum_to_size(tau.shape), None


step.register_autograd(_step_backward, setup_context=_save_step)


# Which are live ------------------------------------------------------------------------------------------


@operation("prunus::largest", "(Tensor values, SymInt count) -> Tensor")
def largest(values: Tensor, count: int) -> Tensor:
    """Return where each row of ``values`` (rows, n) has its ``count`` largest, in booleans.

    Of equal ones the first; NaN before all.
    """
    return kernels.largest(values, count)


@largest.register_fake
def _(values: Tensor, count: int) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.bool)


@operation("prunus::above", "(Tensor norms, float tau) -> Tensor")
def above(norms: Tensor, tau: float) -> Tensor:
    """Return ``not (norms <= tau)`` in booleans, compared in double precision: NaN is above."""
    return kernels.above(norms, tau)


@above.register_fake
def _(norms: Tensor, tau: float) -> Tensor:
    return norms.new_empty(norms.shape, dtype=torch.bool)


def _masked(h: Tensor, live: Tensor, branch: int) -> Tensor:
    """Return ``h`` where it is live; dead infinities and NaN are 0 as well."""
    return torch.where(spread(live, branch, h.shape[1]), h, 0)


# Batches -------------------------------------------------------------------------------------------------


def _by_rows(op: Callable[..., Tensor], rows: tuple[int, ...]) -> Callable[..., tuple[Tensor, int]]:
    """Return vmap's rule of an operation whose arguments ``rows`` have rows, as its result has.

    Where nothing else has a batch dimension, members are more rows of one product; else each is a product.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        batched = [at for at, dim in enumerate(in_dims) if dim is not None]
        moved = [one if dim is None else one.movedim(dim, 0) for one, dim in zip(args, in_dims, strict=True)]
        if all(at in rows for at in batched):
            flat = list(moved)
            for at in rows:
                if flat[at] is not None:
                    one = flat[at] if at in batched else flat[at].expand(size, *flat[at].shape)
                    flat[at] = one.reshape(-1, *one.shape[2:])
            made = op(*flat)
            return made.reshape(size, -1 if size else 0, *made.shape[1:]), 0
        each = [op(*(one[i] if at in batched else one for at, one in enumerate(moved))) for i in range(size)]
        return torch.stack(each), 0

    return rule


live_linear.register_vmap(_by_rows(live_linear, (0, 3)))
live_sums.register_vmap(_by_rows(live_sums, (0,)))
live_known.register_vmap(_by_rows(live_known, (0, 1, 4)))
live_combine.register_vmap(_by_rows(live_combine, (0, 2)))
live_outer.register_vmap(_by_rows(live_outer, ()))
straight.register_vmap(_by_rows(straight, (0, 1)))
above.register_vmap(_by_rows(above, (0,)))
largest.register_vmap(_by_rows(largest, (0,)))
step.register_vmap(_by_rows(step, (0,)))


visible(live_linear, live_sums, live_known, live_combine, live_outer, straight, step, largest, above)
