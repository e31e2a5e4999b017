"""Products of rows that are sorted by group with a matrix of each group, as torch operations: experts.

Dropless, and without copies that pad (MegaBlocks: Gale et al., 2022, arXiv:2211.15841). ``offsets`` (E + 1,),
int32, says where each group's rows begin; rows past the last group give 0. Shapes do not depend on how many
rows a group has. They are closed under differentiation:

================================  ===========================================================
``y = x @ W[e].T``  (grouped_mm)  ``dx = dy @ W[e]`` (grouped_mm), ``dW[e] = dy.T @ x`` (grouped_outer)
``D[e] = a.T @ b``                ``da = b @ dD[e].T``, ``db = a @ dD[e]`` (grouped_mm)
================================  ===========================================================

and so are ``grouped_dsd`` and ``grouped_sdd``, which are the same for block-sparse matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.torch.ops import kernels_grouped as kernels
from prunus.torch.ops.kernels import Parts
from prunus.torch.ops.operation import operation
from prunus.torch.ops.visible import visible

__all__ = ["grouped_dsd", "grouped_mm", "grouped_mm_each", "grouped_outer", "grouped_sdd", "route"]

_OPERAND = "Tensor data, Tensor indices, Tensor indptr, SymInt rows, SymInt cols, bool transposed"


# Dense matrices ------------------------------------------------------------------------------------------


@operation("prunus::grouped_mm", "(Tensor x, Tensor w, Tensor offsets) -> Tensor")
def grouped_mm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """Return ``x @ w[e].T`` for the rows of each group.

    Parameters
    ----------
    x : Tensor
        Shape (rows, k).
    w : Tensor
        Shape (E, n, k), any strides.
    offsets : Tensor of int32
        Shape (E + 1,).

    Returns
    -------
    Tensor
        Shape (rows, n).
    """
    return kernels.mm(x, w, offsets, int(w.shape[1]))


@grouped_mm.register_fake
def _(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], w.shape[1]))


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    one, other, offsets = inputs
    # What one gradient needs is the other operand.
    needs = ctx.needs_input_grad
    ctx.save_for_backward(one if needs[1] else None, other if needs[0] else None, offsets)


def _mm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w, offsets = ctx.saved_tensors
    d_x = grouped_mm(grad, w.mT, offsets) if ctx.needs_input_grad[0] else None
    d_w = grouped_outer(grad, x, offsets) if ctx.needs_input_grad[1] else None
    return d_x, d_w, None


grouped_mm.register_autograd(_mm_backward, setup_context=_save_pair)


@operation("prunus::grouped_mm_each", "(Tensor x, Tensor[] w, Tensor offsets) -> Tensor")
def grouped_mm_each(x: Tensor, w: Sequence[Tensor], offsets: Tensor) -> Tensor:
    """Return what :func:`grouped_mm` does, of matrices (n, k) that stand by themselves."""
    return kernels.mm(x, w, offsets, int(w[0].shape[0]))


@grouped_mm_each.register_fake
def _(x: Tensor, w: Sequence[Tensor], offsets: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], w[0].shape[0]))


def _save_each(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, offsets = inputs
    needs = ctx.needs_input_grad  # here of all tensors in line, in the backward pass as they are nested
    needs_x, needs_w = needs[0], any(needs[1 : 1 + len(w)])
    ctx.save_for_backward(x if needs_w else None, offsets, *(w if needs_x else []))
    ctx.count = len(w)


def _each_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, offsets, *w = ctx.saved_tensors
    needs_x, needs_w, _ = ctx.needs_input_grad
    d_x = grouped_mm_each(grad, [one.mT for one in w], offsets) if needs_x else None
    d_w: list[Tensor | None] = [None] * ctx.count
    if any(needs_w):
        every = grouped_outer(grad, x, offsets).unbind(0)
        d_w = [one if needed else None for one, needed in zip(every, needs_w, strict=True)]
    return d_x, d_w, None


grouped_mm_each.register_autograd(_each_backward, setup_context=_save_each)


@operation("prunus::grouped_outer", "(Tensor a, Tensor b, Tensor offsets) -> Tensor")
def grouped_outer(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """Return ``a.T @ b`` over the rows of each group, 0 of a group without rows.

    Parameters
    ----------
    a, b : Tensor
        Shapes (rows, n) and (rows, k).
    offsets : Tensor of int32
        Shape (E + 1,).

    Returns
    -------
    Tensor
        Shape (E, n, k).
    """
    return kernels.outer(a, b, offsets)


@grouped_outer.register_fake
def _(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    return a.new_empty((offsets.shape[0] - 1, a.shape[1], b.shape[1]))


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, offsets = ctx.saved_tensors
    d_a = grouped_mm(b, grad, offsets) if ctx.needs_input_grad[0] else None
    d_b = grouped_mm(a, grad.mT, offsets) if ctx.needs_input_grad[1] else None
    return d_a, d_b, None


grouped_outer.register_autograd(_outer_backward, setup_context=_save_pair)


# Block-sparse matrices -----------------------------------------------------------------------------------


@operation("prunus::grouped_dsd", f"({_OPERAND}, Tensor x, Tensor offsets) -> Tensor")
def grouped_dsd(
    data: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rows: int,
    cols: int,
    transposed: bool,
    x: Tensor,
    offsets: Tensor,
) -> Tensor:
    """Return ``x @ W[e].T`` for the rows of each group, W (E, n, k): see :class:`ops.kernels.Parts`."""
    return kernels.dsd(Parts(data, indices, indptr, rows, cols, transposed), x, offsets)


@grouped_dsd.register_fake
def _(
    data: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rows: int,
    cols: int,
    transposed: bool,
    x: Tensor,
    offsets: Tensor,
) -> Tensor:
    return x.new_empty((x.shape[0], cols if transposed else rows))


def _save_dsd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    data, indices, indptr, rows, cols, transposed, x, offsets = inputs
    needs_data, needs_x = ctx.needs_input_grad[0], ctx.needs_input_grad[6]
    ctx.save_for_backward(data if needs_x else None, x if needs_data else None, indices, indptr, offsets)
    ctx.meta = rows, cols, transposed, tuple(data.shape[-2:])


def _dsd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    data, x, indices, indptr, offsets = ctx.saved_tensors
    rows, cols, transposed, block = ctx.meta
    d_data = d_x = None
    if ctx.needs_input_grad[0]:
        left, right = (x, grad) if transposed else (grad, x)
        d_data = grouped_sdd(left, right, offsets, indices, indptr, *block)
    if ctx.needs_input_grad[6]:
        d_x = grouped_dsd(data, indices, indptr, rows, cols, not transposed, grad, offsets)
    return d_data, None, None, None, None, None, d_x, None


grouped_dsd.register_autograd(_dsd_backward, setup_context=_save_dsd)


@operation(
    "prunus::grouped_sdd",
    "(Tensor a, Tensor b, Tensor offsets, Tensor indices, Tensor indptr, SymInt br, SymInt bc) -> Tensor",
)
def grouped_sdd(
    a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, indptr: Tensor, br: int, bc: int
) -> Tensor:
    """Return the blocks of ``a.T @ b`` over the rows of each group, 0 of a group without rows.

    Returns
    -------
    Tensor
        Shape (blocks, br, bc), where groups have patterns of their own; else (E, blocks, br, bc).
    """
    return kernels.sdd(a, b, offsets, indices, indptr, br, bc)


@grouped_sdd.register_fake
def _(a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, indptr: Tensor, br: int, bc: int) -> Tensor:
    shared = (offsets.shape[0] - 1,) if indptr.ndim == 1 else ()
    return a.new_empty((*shared, indices.shape[0], br, bc))


def _save_sdd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, *pattern = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(a if needs[1] else None, b if needs[0] else None, *pattern[:3])
    ctx.size = a.shape[1], b.shape[1]


def _sdd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, offsets, indices, indptr = ctx.saved_tensors
    w = (grad, indices, indptr, *ctx.size)
    d_a = grouped_dsd(*w, False, b, offsets) if ctx.needs_input_grad[0] else None
    d_b = grouped_dsd(*w, True, a, offsets) if ctx.needs_input_grad[1] else None
    return d_a, d_b, None, None, None, None, None


grouped_sdd.register_autograd(_sdd_backward, setup_context=_save_sdd)


# Routing -------------------------------------------------------------------------------------------------


@operation(
    "prunus::route",
    "(Tensor logits, SymInt top) -> (Tensor experts, Tensor order, Tensor place, Tensor offsets)",
)
def route(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return which experts rows choose: the ``top`` with the largest logits, of equal ones the first.

    A row has a copy for each expert that it chose.

    Parameters
    ----------
    logits : Tensor
        Shape (T, E).
    top : int
        Experts for each row, at most E.

    Returns
    -------
    experts : Tensor of int64
        Shape (T, top), ascending; E where there are fewer whose logit is above -inf.
    order : Tensor of int64
        Shape (T * top,): the copies, counted along ``experts``, sorted by expert.
    place : Tensor of int64
        Shape (T, top): where in that order each copy is.
    offsets : Tensor of int32
        Shape (E + 1,): where the copies of each expert begin.

    Raises
    ------
    ValueError
        If a row's logits are all -inf, or hold NaN or +inf. On a GPU nothing is raised: nothing waits for it.
    """
    return kernels.route(logits, top)


@route.register_fake
def _(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, experts = logits.shape
    chosen = logits.new_empty((count, top), dtype=torch.int64)
    order = logits.new_empty((count * top,), dtype=torch.int64)
    return (
        chosen,
        order,
        logits.new_empty((count, top), dtype=torch.int64),
        logits.new_empty((experts + 1,), dtype=torch.int32),
    )


def _save_route(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _route_backward(ctx: Any, *grads: Any) -> tuple[None, None]:
    return None, None


route.register_autograd(_route_backward, setup_context=_save_route)


visible(grouped_mm, grouped_outer, route)
