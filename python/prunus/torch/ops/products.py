"""Products with block-sparse operands as torch operations: ``dsd``, ``sdd``, ``ssd`` and ``ssd_at``.

The first two are closed under differentiation, and so are the last two, so that gradients have gradients:

==============================  ==================================================================
``y = W @ x``                   ``dx = W.T @ dy`` (dsd), ``dW = dy @ x.T`` at W's blocks (sdd)
``S = a @ b`` at some blocks    ``da = dS @ b.T``, ``db = a.T @ dS`` (dsd)
``C = A @ B``, both sparse      ``dA = dC @ B.T`` at A's blocks, ``dB = A.T @ dC`` at B's (ssd_at)
==============================  ==================================================================

Patterns (``indices``, ``indptr``) are saved as tensors: one that is written between forward and backward
raises torch's error about saved tensors that were modified.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.torch.ops import kernels
from prunus.torch.ops.kernels import Parts
from prunus.torch.ops.operation import operation
from prunus.torch.ops.visible import visible

__all__ = ["dsd", "sdd", "ssd", "ssd_at"]

_OPERAND = "Tensor data, Tensor indices, Tensor indptr, SymInt rows, SymInt cols, bool transposed"


# BSR with dense ------------------------------------------------------------------------------------------


@operation("prunus::dsd", f"({_OPERAND}, Tensor x, Tensor? bias, bool flip) -> Tensor")
def dsd(
    data: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rows: int,
    cols: int,
    transposed: bool,
    x: Tensor,
    bias: Tensor | None,
    flip: bool,
) -> Tensor:
    """Return ``W @ x + bias[:, None]``, or with ``flip`` ``x @ W.T + bias``.

    Parameters
    ----------
    data, indices, indptr, rows, cols, transposed
        W, (m, k) after its transposition: see :class:`prunus.torch.ops.kernels.Parts`.
    x : Tensor
        Shape (k, n), with ``flip`` (n, k), of W's dtype; with a batch dimension in front where W has one.
    bias : Tensor, optional
        Shape (m,).
    flip : bool
        Multiply from the right.

    Returns
    -------
    Tensor
        Shape (m, n), with ``flip`` (n, m), contiguous; in front of it W's batch dimension.
    """
    return kernels.dsd(Parts(data, indices, indptr, rows, cols, transposed), x, bias, flip)


@dsd.register_fake
def _(
    data: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rows: int,
    cols: int,
    transposed: bool,
    x: Tensor,
    bias: Tensor | None,
    flip: bool,
) -> Tensor:
    w = Parts(data, indices, indptr, rows, cols, transposed)
    m, n = w.size[0], x.shape[-2 if flip else -1]
    return x.new_empty((*w.members, n, m) if flip else (*w.members, m, n))


def _save_dsd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    data, indices, indptr, rows, cols, transposed, x, _, flip = inputs
    needs_data, needs_x = ctx.needs_input_grad[0], ctx.needs_input_grad[6]
    # What one gradient needs is the other operand.
    ctx.save_for_backward(data if needs_x else None, x if needs_data else None, indices, indptr)
    ctx.meta = rows, cols, transposed, flip, tuple(data.shape[-2:])


def _dsd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    data, x, indices, indptr = ctx.saved_tensors
    rows, cols, transposed, flip, block = ctx.meta
    d_data = d_x = d_bias = None
    if ctx.needs_input_grad[0]:
        # (m, n) and (n, k), whichever way they lie.
        left, right = (grad.mT, x) if flip else (grad, x.mT)
        if transposed:
            left, right = right.mT, left.mT
        d_data = sdd(left, right, indices, indptr, *block)
    if ctx.needs_input_grad[6]:
        d_x = dsd(data, indices, indptr, rows, cols, not transposed, grad, None, flip)
    if ctx.needs_input_grad[7]:
        d_bias = grad.sum([at for at in range(grad.ndim) if at != grad.ndim - (1 if flip else 2)])
    return d_data, None, None, None, None, None, d_x, d_bias, None


dsd.register_autograd(_dsd_backward, setup_context=_save_dsd)


@dsd.register_vmap
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    data: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rows: int,
    cols: int,
    transposed: bool,
    x: Tensor,
    bias: Tensor | None,
    flip: bool,
) -> tuple[Tensor, int]:
    _check_patterns(in_dims[1:3])
    size = info.batch_size
    data, x = _in_front(data, in_dims[0]), _in_front(x, in_dims[6])
    added = None if bias is None or in_dims[7] is None else bias.movedim(in_dims[7], 0)
    kept = bias if added is None else None

    def product(data: Tensor, x: Tensor) -> Tensor:
        return dsd(data, indices, indptr, rows, cols, transposed, x, kept, flip)

    if in_dims[0] is None and in_dims[6] is None:
        made = product(data, x).expand(size, *[-1] * x.ndim)
    elif in_dims[0] is None:  # more columns of one product
        at = -2 if flip else -1
        wide = x.movedim(0, at - 1)
        made = product(data, wide.flatten(at - 1, at))
        made = made.unflatten(at, (size, x.shape[at])).movedim(at - 1, 0)
    else:  # more members that share a pattern
        if indptr.ndim > 1:
            raise NotImplementedError("vmap over values takes one pattern for all members of a batch")
        inner = data.shape[1:-3]
        if in_dims[6] is None:
            x = x.expand(size, *x.shape)
        made = product(data.reshape(-1, *data.shape[-3:]), x.reshape(-1, *x.shape[-2:]))
        made = made.reshape(size, *inner, *made.shape[-2:])
    if added is not None:
        added = added if flip else added[..., None]
        made = made + added.reshape(size, *[1] * (made.ndim - added.ndim), *added.shape[1:])
    return made, 0


# Dense with dense, at chosen blocks ----------------------------------------------------------------------


@operation(
    "prunus::sdd",
    "(Tensor a, Tensor b, Tensor indices, Tensor indptr, SymInt br, SymInt bc) -> Tensor",
)
def sdd(a: Tensor, b: Tensor, indices: Tensor, indptr: Tensor, br: int, bc: int) -> Tensor:
    """Return the blocks of ``a @ b`` at a pattern, with zeros past the edge of the result.

    Parameters
    ----------
    a, b : Tensor
        Shapes (m, k) and (k, n), or (members, m, k) and (members, k, n), of one dtype.
    indices, indptr : Tensor
        Which blocks; indptr (members, rows + 1) for a pattern of each member's own.
    br, bc : int
        Rows and columns of a block.

    Returns
    -------
    Tensor
        Shape (len(indices), br, bc); in front of it the batch dimension where members share a pattern.
    """
    return kernels.sdd(a, b, indices, indptr, (br, bc))


@sdd.register_fake
def _(a: Tensor, b: Tensor, indices: Tensor, indptr: Tensor, br: int, bc: int) -> Tensor:
    shared = a.shape[:-2] if indptr.ndim == 1 else ()
    return a.new_empty((*shared, indices.shape[0], br, bc))


def _save_sdd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, indices, indptr, _, _ = inputs
    needs_a, needs_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(a if needs_b else None, b if needs_a else None, indices, indptr)
    ctx.size = a.shape[-2], b.shape[-1]


def _sdd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, indices, indptr = ctx.saved_tensors
    d_a = d_b = None
    if ctx.needs_input_grad[0]:
        d_a = dsd(grad, indices, indptr, *ctx.size, False, b.mT, None, False)
    if ctx.needs_input_grad[1]:  # a.T @ grad
        d_b = dsd(grad, indices, indptr, *ctx.size, True, a.mT, None, True)
    return d_a, d_b, None, None, None, None


sdd.register_autograd(_sdd_backward, setup_context=_save_sdd)


@sdd.register_vmap
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    a: Tensor,
    b: Tensor,
    indices: Tensor,
    indptr: Tensor,
    br: int,
    bc: int,
) -> tuple[Tensor, int]:
    _check_patterns(in_dims[2:4])
    size = info.batch_size
    if indptr.ndim > 1:
        raise NotImplementedError("vmap takes one pattern for all members of a batch")
    a, b = (
        one.expand(size, *one.shape) if at is None else one.movedim(at, 0)
        for one, at in ((a, in_dims[0]), (b, in_dims[1]))
    )
    inner = a.shape[1:-2]
    made = sdd(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), indices, indptr, br, bc)
    return made.reshape(size, *inner, *made.shape[1:]), 0


def _in_front(tensor: Tensor, at: int | None) -> Tensor:
    return tensor if at is None else tensor.movedim(at, 0)


def _check_patterns(at: tuple[int | None, ...]) -> None:
    if any(one is not None for one in at):
        raise NotImplementedError("vmap takes one pattern; members with patterns of their own are a batch")


# BSR with BSR --------------------------------------------------------------------------------------------

_PAIR = (
    "Tensor a, Tensor a_indices, Tensor a_indptr, SymInt a_rows, SymInt a_cols, bool a_transposed, "
    "Tensor b, Tensor b_indices, Tensor b_indptr, SymInt b_rows, SymInt b_cols, bool b_transposed"
)


@operation("prunus::ssd", f"({_PAIR}) -> (Tensor data, Tensor indices, Tensor indptr)")
def ssd(
    a: Tensor,
    a_indices: Tensor,
    a_indptr: Tensor,
    a_rows: int,
    a_cols: int,
    a_transposed: bool,
    b: Tensor,
    b_indices: Tensor,
    b_indptr: Tensor,
    b_rows: int,
    b_cols: int,
    b_transposed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return data, indices and indptr of ``A @ B``, whose blocks are those that any pair of blocks meets in.

    Both have two dimensions; A's blocks are as wide as B's are high. How many blocks there are is data.
    """
    return kernels.ssd(
        Parts(a, a_indices, a_indptr, a_rows, a_cols, a_transposed),
        Parts(b, b_indices, b_indptr, b_rows, b_cols, b_transposed),
    )


@ssd.register_fake
def _(
    a: Tensor,
    a_indices: Tensor,
    a_indptr: Tensor,
    a_rows: int,
    a_cols: int,
    a_transposed: bool,
    b: Tensor,
    b_indices: Tensor,
    b_indptr: Tensor,
    b_rows: int,
    b_cols: int,
    b_transposed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    br, bc = a.shape[-1 if a_transposed else -2], b.shape[-2 if b_transposed else -1]
    rows = a_cols if a_transposed else a_rows
    return (
        a.new_empty((count, br, bc)),
        a_indices.new_empty((count,)),
        a_indptr.new_empty(((rows + br - 1) // br + 1,)),
    )


def _save_ssd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    a, a_indices, a_indptr, a_rows, a_cols, a_t, b, b_indices, b_indptr, b_rows, b_cols, b_t = inputs
    _, indices, indptr = output
    ctx.mark_non_differentiable(indices, indptr)
    ctx.save_for_backward(a, a_indices, a_indptr, b, b_indices, b_indptr, indices, indptr)
    ctx.sizes = (a_rows, a_cols, a_t), (b_rows, b_cols, b_t)


def _ssd_backward(ctx: Any, grad: Tensor, _indices: Any, _indptr: Any) -> tuple[Tensor | None, ...]:
    *saved, indices, indptr = ctx.saved_tensors
    d_a, d_b = _pair_gradients(ctx, saved, grad, indices, indptr)
    return d_a, None, None, None, None, None, d_b, None, None, None, None, None


ssd.register_autograd(_ssd_backward, setup_context=_save_ssd)


@ssd.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    _check_patterns((*in_dims[1:3], *in_dims[7:9]))
    data, indices, indptr = ssd._one_by_one(info, in_dims, *args)[0]
    return (data, indices[0], indptr[0]), (0, None, None)  # members have one pattern


@operation(
    "prunus::ssd_at",
    f"({_PAIR}, Tensor indices, Tensor indptr, SymInt br, SymInt bc) -> Tensor",
)
def ssd_at(
    a: Tensor,
    a_indices: Tensor,
    a_indptr: Tensor,
    a_rows: int,
    a_cols: int,
    a_transposed: bool,
    b: Tensor,
    b_indices: Tensor,
    b_indptr: Tensor,
    b_rows: int,
    b_cols: int,
    b_transposed: bool,
    indices: Tensor,
    indptr: Tensor,
    br: int,
    bc: int,
) -> Tensor:
    """Return the blocks of ``A @ B`` at a pattern, zeros where no pair of blocks meets; see :func:`ssd`."""
    return kernels.ssd_at(
        Parts(a, a_indices, a_indptr, a_rows, a_cols, a_transposed),
        Parts(b, b_indices, b_indptr, b_rows, b_cols, b_transposed),
        indices,
        indptr,
        (br, bc),
    )


@ssd_at.register_fake
def _(
    a: Tensor,
    a_indices: Tensor,
    a_indptr: Tensor,
    a_rows: int,
    a_cols: int,
    a_transposed: bool,
    b: Tensor,
    b_indices: Tensor,
    b_indptr: Tensor,
    b_rows: int,
    b_cols: int,
    b_transposed: bool,
    indices: Tensor,
    indptr: Tensor,
    br: int,
    bc: int,
) -> Tensor:
    return a.new_empty((indices.shape[0], br, bc))


def _save_ssd_at(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, a_indices, a_indptr, a_rows, a_cols, a_t, b, b_indices, b_indptr, b_rows, b_cols, b_t, *rest = inputs
    ctx.save_for_backward(a, a_indices, a_indptr, b, b_indices, b_indptr, *rest[:2])
    ctx.sizes = (a_rows, a_cols, a_t), (b_rows, b_cols, b_t)


def _ssd_at_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *saved, indices, indptr = ctx.saved_tensors
    d_a, d_b = _pair_gradients(ctx, saved, grad, indices, indptr)
    return d_a, None, None, None, None, None, d_b, None, None, None, None, None, None, None, None, None


ssd_at.register_autograd(_ssd_at_backward, setup_context=_save_ssd_at)


def _pair_gradients(
    ctx: Any, saved: list[Tensor], grad: Tensor, indices: Tensor, indptr: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of both operands of ``C = A @ B``, at their blocks, from C's at its own."""
    a, b = saved[:3], saved[3:]
    (a_rows, a_cols, a_t), (b_rows, b_cols, b_t) = ctx.sizes
    c = (grad, indices, indptr, a_cols if a_t else a_rows, b_rows if b_t else b_cols)
    d_a = d_b = None
    if ctx.needs_input_grad[0]:  # dC @ B.T; of a transposed A: B @ dC.T
        pair = (*b, b_rows, b_cols, b_t, *c, True) if a_t else (*c, False, *b, b_rows, b_cols, not b_t)
        d_a = ssd_at(*pair, a[1], a[2], *a[0].shape[-2:])
    if ctx.needs_input_grad[6]:  # A.T @ dC; of a transposed B: dC.T @ A
        pair = (*c, True, *a, a_rows, a_cols, a_t) if b_t else (*a, a_rows, a_cols, not a_t, *c, False)
        d_b = ssd_at(*pair, b[1], b[2], *b[0].shape[-2:])
    return d_a, d_b


visible(dsd, sdd, ssd_at)
