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

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.torch.ops import kernels_grouped_live as kernels
from prunus.torch.ops.kernels_live import spread
from prunus.torch.ops.operation import operation
from prunus.torch.ops.visible import visible

__all__ = [
    "grouped_live_combine",
    "grouped_live_known",
    "grouped_live_linear",
    "grouped_live_outer",
    "grouped_live_sums",
]


class _Forms:
    """An operation twice: of one tensor of all groups' matrices, and of a list, which ``torch.func`` refuses.

    Parameters
    ----------
    name : str
        Of the first; "_each" follows in the other's.
    schema : str
        With ``Matrices`` where these are.
    at : int
        Which argument they are.
    compute, fake : callable
        Of arguments with a list there.
    """

    def __init__(
        self, name: str, schema: str, at: int, compute: Callable[..., Tensor], fake: Callable[..., Tensor]
    ) -> None:
        self.at = at

        def taking(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda *args: function(*args[:at], _listed(args[at]), *args[at + 1 :])

        self.forms = tuple(
            operation(f"prunus::{name}{suffix}", schema.replace("Matrices", kind))(taking(compute))
            for suffix, kind in (("", "Tensor"), ("_each", "Tensor[]"))
        )
        for form in self.forms:
            form.register_fake(taking(fake))

    def __call__(self, *args: Any) -> Any:
        w = args[self.at]
        if w[0].ndim == 3:
            return self.forms[0](*args[: self.at], w[0], *args[self.at + 1 :])
        return self.forms[1](*args)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        for form in self.forms:
            form.register_autograd(backward, setup_context=setup_context)


def _listed(w: Any) -> list[Tensor]:
    return [w] if isinstance(w, Tensor) else list(w)


# Units from inputs ---------------------------------------------------------------------------------------


def grouped_live_linear(
    x: Tensor, w: Sequence[Tensor], live: Tensor, branch: int, offsets: Tensor, zeroed: bool = False
) -> Tensor:
    """Return ``x @ w[e].T`` where it is live, and 0 elsewhere.

    ``x`` (rows, d), W (E, units, d); the result is (rows, units).
    """
    made: Tensor = _LINEAR(x, w, live, branch, offsets, zeroed)
    return made


_LINEAR = _Forms(
    "grouped_live_linear",
    "(Tensor x, Matrices w, Tensor live, int branch, Tensor offsets, bool zeroed) -> Tensor",
    1,
    lambda x, w, live, branch, offsets, zeroed: kernels.linear(x, w, live, branch, offsets, x.dtype),
    lambda x, w, *rest: x.new_empty((x.shape[0], w[0].shape[-2])),
)


def _save(ctx: Any, first: int, one: Tensor, w: Any, live: Tensor, branch: int, offsets: Tensor) -> None:
    """Keep what gradients of a product need, whose rows and matrices are inputs from ``first`` on."""
    ctx.stacked = isinstance(w, Tensor)
    w = _listed(w)
    needs = ctx.needs_input_grad  # here of all tensors in line, in the backward pass as they are nested
    needs_one, needs_w = needs[first], any(needs[first + 1 : first + 1 + len(w)])
    ctx.save_for_backward(one if needs_w else None, live, offsets, *(w if needs_one else []))
    ctx.branch, ctx.first = branch, first


def _needs(ctx: Any) -> tuple[bool, bool]:
    """Return whether rows and any matrices need gradients."""
    needs_one, needs_w = ctx.needs_input_grad[ctx.first : ctx.first + 2]
    return needs_one, needs_w if ctx.stacked else any(needs_w)


def _each(ctx: Any, made: Tensor | None) -> Any:
    """Return a gradient (E, n, k), or none, as matrices came."""
    if ctx.stacked:
        return made
    needed = ctx.needs_input_grad[ctx.first + 1]
    every = [None] * len(needed) if made is None else made.unbind(0)
    return [one if wanted else None for one, wanted in zip(every, needed, strict=True)]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, Any]:
    """Return the gradients of units' inputs and matrices."""
    x, live, offsets, *w = ctx.saved_tensors
    needs_x, needs_w = _needs(ctx)
    rest = live, ctx.branch, offsets, ctx.zeroed
    d_x = grouped_live_combine(grad, w, *rest) if needs_x else None
    return d_x, _each(ctx, grouped_live_outer(grad, x, *rest) if needs_w else None)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *rest, ctx.zeroed = inputs
    _save(ctx, 0, *rest)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_gradients(ctx, grad), None, None, None, None


_LINEAR.register_autograd(_linear_backward, setup_context=_save_linear)


def grouped_live_sums(
    x: Tensor, w: Sequence[Tensor], live: Tensor | None, branch: int, offsets: Tensor
) -> Tensor:
    """Return ``x @ w[e].T`` in float32, or float64, where it may be live: what decides; it has no gradient.

    :func:`grouped_live_known` makes of it what gradients flow through. ``live`` None: everywhere.
    """
    made: Tensor = _SUMS(x, w, live, branch, offsets)
    return made


_SUMS = _Forms(
    "grouped_live_sums",
    "(Tensor x, Matrices w, Tensor? live, int branch, Tensor offsets) -> Tensor",
    1,
    lambda x, w, live, branch, offsets: kernels.linear(x, w, live, branch, offsets, _sums_dtype(x)),
    lambda x, w, *rest: x.new_empty((x.shape[0], w[0].shape[-2]), dtype=_sums_dtype(x)),
)


def _sums_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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
    made: Tensor = _KNOWN(sums, x, w, live, branch, offsets, zeroed)
    return made


_KNOWN = _Forms(
    "grouped_live_known",
    "(Tensor sums, Tensor x, Matrices w, Tensor live, int branch, Tensor offsets, bool zeroed) -> Tensor",
    2,
    lambda sums, x, w, live, branch, *rest: torch.where(spread(live, branch, sums.shape[1]), sums, 0).to(
        x.dtype
    ),
    lambda sums, x, *rest: x.new_empty(sums.shape),
)


def _save_known(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *rest, ctx.zeroed = inputs
    _save(ctx, 1, *rest)


def _known_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return None, *_gradients(ctx, grad), None, None, None, None


_KNOWN.register_autograd(_known_backward, setup_context=_save_known)


# What units contribute -----------------------------------------------------------------------------------


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
    made: Tensor = _COMBINE(h, w, live, branch, offsets, zeroed, flip)
    return made


_COMBINE = _Forms(
    "grouped_live_combine",
    "(Tensor h, Matrices w, Tensor live, int branch, Tensor offsets, bool zeroed, bool flip) -> Tensor",
    1,
    kernels.combine,
    lambda h, w, *rest: h.new_empty((h.shape[0], w[0].shape[-2 if rest[-1] else -1])),
)


def _save_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *rest, ctx.zeroed, ctx.flip = inputs
    _save(ctx, 0, *rest)


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    h, live, offsets, *w = ctx.saved_tensors
    needs_h, needs_w = _needs(ctx)
    d_h = d_w = None
    if needs_h:
        turned = [one.mT for one in w] if ctx.flip else w
        d_h = grouped_live_linear(grad, turned, live, ctx.branch, offsets)
    if needs_w:
        d_w = grouped_live_outer(h, grad, live, ctx.branch, offsets, ctx.zeroed, ctx.flip)
    return d_h, _each(ctx, d_w), None, None, None, None, None


_COMBINE.register_autograd(_combine_backward, setup_context=_save_combine)


# Weights from both ---------------------------------------------------------------------------------------


@operation(
    "prunus::grouped_live_outer",
    "(Tensor h, Tensor x, Tensor live, int branch, Tensor offsets, bool zeroed=False,"
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


visible(*(one.forms[0] for one in (_LINEAR, _SUMS, _KNOWN, _COMBINE)), grouped_live_outer)
