"""Products and layers of tensors and :class:`prunus.torch.BSR`: arguments are checked here, once."""

from __future__ import annotations

import math
import operator
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from prunus._mask import BlockMask
from prunus.engines.base import ACTIVATIONS
from prunus.torch import blocks
from prunus.torch.arrays import BSR
from prunus.torch.ops import products

__all__ = ["linear", "matmul", "sddmm"]

# Where operands live that are computed with; there is no autocast on others, such as "meta". Torch 2.11's
# compiler cannot trace the question whether there is.
_AUTOCAST: Final = ("cpu", "cuda")


def matmul(a: Tensor | BSR, b: Tensor | BSR) -> Any:
    """Return the matrix product of tensors and block-sparse operands, in any mix, with gradients for both.

    Parameters
    ----------
    a, b : Tensor or BSR
        Shapes (*A, m, k) or (k,), and (*B, k, n) or (k,), of one floating dtype and on one device. Batch
        dimensions broadcast as in ``torch.matmul``; a BSR with a pattern for each member keeps its own.

    Returns
    -------
    Tensor or BSR
        Shape (*broadcast(A, B), m, n), without the axis of a one-dimensional operand. Of two BSRs a BSR,
        whose pattern has every block in which blocks meet. The gradient of a BSR's values is the product of
        the other operand and the result's gradient at its blocks only.

    Raises
    ------
    ValueError
        If shapes do not match, or operands live on different devices.
    TypeError
        If dtypes differ, or an operand is none. Under autocast both are converted to its dtype.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> W = pt.BSR.from_dense(torch.eye(4), blocksize=2)
    >>> pt.matmul(torch.arange(8.0).reshape(2, 4), W)
    tensor([[0., 1., 2., 3.],
            [4., 5., 6., 7.]])
    """
    a, b = (as_operand(one, name) for one, name in ((a, "a"), (b, "b")))
    a, b = cast(a, b)
    check_alike(a, b)
    if isinstance(a, BSR) and isinstance(b, BSR):
        return _sparse(a, b)
    if isinstance(a, BSR):
        return product(a, b, None, flip=False)
    if isinstance(b, BSR):
        return product(b.T, a, None, flip=True)
    return torch.matmul(a, b)


def linear(
    x: Tensor,
    w: Tensor | BSR,
    b: Tensor | None = None,
    *,
    activation: str | None = None,
    prune: Any = None,
    branch: int = 32,
    blockrows: int = 16,
) -> Any:
    """Return ``activation(x @ w.T + b)``; with a policy, as a BSR of its live branches.

    Parameters
    ----------
    x : Tensor
        Shape (*lead, in).
    w : BSR or Tensor
        Weights, (out, in).
    b : Tensor, optional
        Bias, (out,).
    activation : {"relu", "gelu", "silu"}, optional
        Applied to the sums; None is the identity.
    prune : policy, mask or function, optional
        Decides for every row which branches of the output are live, as in :func:`prunus.torch.ffn`. A row
        that is dead in a stored block holds 0 there; gradients flow through what is live only.
    branch : int, default 32
        Neighbouring outputs that live and die together: the width of the result's blocks.
    blockrows : int, default 16
        Rows in a block of the result.

    Returns
    -------
    Tensor or BSR
        Shape (*lead, out). A BSR has two dimensions at least, (1, out) for a vector, and a pattern for each
        leading index but the last; how many blocks it has is data.

    Raises
    ------
    ValueError, TypeError
        As :func:`matmul`.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> W = pt.BSR.from_dense(torch.eye(4), blocksize=2)
    >>> pt.linear(torch.tensor([-1.0, 2.0, -3.0, 4.0]), W, torch.ones(4), activation="relu")
    tensor([0., 3., 0., 5.])
    >>> import prunus as pr
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> w = torch.tensor([[1.0, 1.0], [2.0, 0.0], [-1.0, -1.0], [0.0, -3.0]])
    >>> h = pt.linear(x, w, activation="relu", prune=pr.Threshold(0.0), branch=2)
    >>> h.nnzb, h @ torch.ones(4, 1)
    (1, tensor([[5.]]))
    """
    act = activate(activation)
    w = as_operand(w, "w")
    if isinstance(x, BSR):
        raise TypeError("x must be a tensor; x @ W.T multiplies two BSRs")
    x = as_operand(x, "x")
    if b is not None:
        b = as_operand(b, "b")
    x, w, b = cast(x, w, b)
    if w.ndim != 2:
        raise ValueError(f"w must have two dimensions (out, in), got shape {tuple(w.shape)}")
    if b is not None and tuple(b.shape) != (w.shape[0],):
        raise ValueError(f"b must have shape ({w.shape[0]},), got {tuple(b.shape)}")
    check_alike(x, w, b)
    if prune is not None:
        from prunus.torch.pruned import linear as pruned  # it builds on this module

        if x.ndim == 0 or x.shape[-1] != w.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}, the weights expect {w.shape[1]} features")
        return pruned(x, w, b, activation, prune, branch, blockrows)
    if not isinstance(w, BSR):
        return act(torch.nn.functional.linear(x, w, b))
    return act(product(w, x, b, flip=True))


def sddmm(a: Tensor, b: Tensor, mask: BlockMask | BSR) -> BSR:
    """Return ``a @ b`` at the blocks of ``mask`` only, with gradients for both.

    Parameters
    ----------
    a, b : Tensor
        Shapes (*A, m, k) and (*B, k, n), of one floating dtype and on one device.
    mask : BlockMask or BSR
        Shape (m, n): one pattern for all members. Or (*C, m, n) with a pattern for each, where A and B
        broadcast to C. Of a BSR only the pattern counts.

    Returns
    -------
    BSR
        Shape (*broadcast(A, B, C), m, n) in ``mask``'s blocks.

    Raises
    ------
    ValueError, TypeError
        As :func:`matmul`.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> pt.sddmm(torch.ones(4, 3), torch.ones(3, 4), pr.BlockMask.causal(4, blocksize=2)).data.shape
    torch.Size([3, 2, 2])
    """
    a, b = as_operand(a, "a"), as_operand(b, "b")
    if isinstance(a, BSR) or isinstance(b, BSR):
        raise TypeError("sddmm multiplies dense tensors; (a @ b) of BSRs is a BSR already")
    if not isinstance(mask, (BlockMask, BSR)):
        raise TypeError(f"mask must be a BlockMask or a BSR, got {type(mask).__name__}")
    a, b = cast(a, b)
    check_alike(a, b)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"sddmm takes a (*batch, m, k) and b (*batch, k, n), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    m, n = int(a.shape[-2]), int(b.shape[-1])
    at = _pattern(mask, a) if isinstance(mask, BlockMask) else mask
    if tuple(at.shape[-2:]) != (m, n):
        raise ValueError(f"sddmm: the product has shape {(m, n)}, the mask {tuple(at.shape[-2:])}")
    if at.device != a.device:
        raise ValueError(f"sddmm: the operands live on {a.device}, the mask on {at.device}")
    batch = _broadcast(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    own = at.indptr.ndim > 1
    if not own:  # members that share a pattern are as many results
        batch = _broadcast(batch, at.shape[:-2])
    else:
        if _broadcast(batch, at.shape[:-2]) != at.shape[:-2]:
            raise ValueError(
                f"sddmm: batch dimensions {batch} do not broadcast to the mask's {at.shape[:-2]}"
            )
        batch = at.shape[:-2]
    if at._t:  # the blocks of the transpose, at what is stored
        made = sddmm(b.mT, a.mT, at.T)
        return made.T
    members = (math.prod(batch),) if batch else ()
    a, b = (one.expand(*batch, *one.shape[-2:]).reshape(*members, *one.shape[-2:]) for one in (a, b))
    indptr = at.indptr.reshape(-1, at.indptr.shape[-1]) if own else at.indptr
    data = products.sdd(a, b, at.indices, indptr, *at.blocksize)
    if batch and not own:
        data = data.reshape(*batch, *data.shape[1:])
    return BSR._wrap(data, at.indices, at.indptr, (*batch, m, n))


def _pattern(mask: BlockMask, like: Tensor) -> BSR:
    """Return a mask's pattern as that of an operand, whose values are one without a place of their own."""
    indices, indptr = blocks.from_mask(mask, like.device)
    lead = () if indptr.ndim > 1 else mask.shape[:-2]
    nothing = like.new_empty(()).expand(*lead, indices.shape[0], *mask.blocksize)
    return BSR._wrap(nothing, indices, indptr, mask.shape)


# Steps they share ----------------------------------------------------------------------------------------


def activate(name: str | None) -> Any:
    """Return torch's function of an activation's name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name is None:
        return _same
    if name not in ACTIVATIONS:
        known = ", ".join(repr(one) for one in sorted(ACTIVATIONS))
        raise ValueError(f"activation must be one of {known} or None, got {name!r}")
    return getattr(torch.nn.functional, name)


def _same(x: Tensor) -> Tensor:
    return x


def cast(*operands: Any) -> tuple[Any, ...]:
    """Return operands as they are, or in autocast's dtype where it is on; float64 stays, as in torch."""
    kind = next(one.device.type for one in operands if one is not None)
    if kind not in _AUTOCAST or not torch.is_autocast_enabled(kind):
        return operands
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        one if one is None or one.dtype in (dtype, torch.float64) else one.to(dtype) for one in operands
    )


def refuse_tangent(value: Tensor, name: str) -> None:
    """Raise where forward-mode differentiation comes: operations of libraries have none in torch.

    Without a word torch would take their derivatives for 0.

    Raises
    ------
    NotImplementedError
        If the tensor has a tangent.
    """
    if unpack_dual(value).tangent is not None:
        raise NotImplementedError(
            f"{name} has a tangent, but forward-mode differentiation (torch.func.jvp, jacfwd) is not there; "
            "torch.autograd.grad differentiates backward, twice if need be"
        )


def without_autocast(x: Tensor, w: Tensor) -> Tensor:
    """Return ``x @ w.T`` in the operands' dtype, under autocast as well."""
    kind = x.device.type
    if kind not in _AUTOCAST:
        return torch.nn.functional.linear(x, w)
    with torch.autocast(kind, enabled=False):
        return torch.nn.functional.linear(x, w)


def as_operand(value: Any, name: str) -> Any:
    if isinstance(value, BSR):
        refuse_tangent(value.data, name)
        return value
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor or a prunus.torch.BSR, got {type(value).__name__}"
            + ("; BSR.from_array takes it" if hasattr(value, "indptr") else "")
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold floats, got {value.dtype}")
    refuse_tangent(value, name)
    return value


def check_alike(first: Any, *others: Any) -> None:
    for one in others:
        if one is None:
            continue
        if one.device != first.device:
            raise ValueError(f"expected operands on one device, got {first.device} and {one.device}")
        if one.dtype != first.dtype:
            raise TypeError(
                f"expected operands of one dtype, got {first.dtype} and {one.dtype}; convert with .to()"
            )


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(a, b))
    except RuntimeError:
        raise ValueError(f"batch dimensions {tuple(a)} and {tuple(b)} do not broadcast") from None


def product(w: BSR, x: Tensor, bias: Tensor | None, *, flip: bool) -> Tensor:
    """Return ``w @ x``, or with ``flip`` ``x @ w.T + bias``."""
    vector = x.ndim == 1
    if vector:
        x = x[None] if flip else x[:, None]
    if x.ndim < 2:
        raise ValueError("matmul takes operands of at least one dimension; use * for scalars")
    k, inner = w.shape[-1], x.shape[-1 if flip else -2]
    if inner != k:
        left, right = (inner, k) if flip else (k, inner)
        raise ValueError(f"matmul: the inner sizes differ, a has {left} columns and b has {right} rows")
    y = _members(w, x, bias, flip)
    return y.squeeze(-2 if flip else -1) if vector else y


def _members(w: BSR, x: Tensor, bias: Tensor | None, flip: bool) -> Tensor:
    batch = w.shape[:-2]
    stored = w._stored[-2], w._stored[-1], w._t
    lead = tuple(x.shape[:-2])
    if not batch:
        if not lead:
            return products.dsd(w.data, w.indices, w.indptr, *stored, x, bias, flip)
        if flip:
            y = products.dsd(w.data, w.indices, w.indptr, *stored, x.flatten(0, -2), bias, True)
            return y.unflatten(0, x.shape[:-1])
        # All members' columns side by side.
        wide = x.movedim(-2, 0)
        y = products.dsd(w.data, w.indices, w.indptr, *stored, wide.flatten(1), bias, False)
        return y.unflatten(1, wide.shape[1:]).movedim(0, -2)
    whole = _broadcast(batch, lead)
    own = w.indptr.ndim > 1
    extra = len(whole) - len(batch)
    if own and whole[extra:] != batch:
        raise ValueError(
            f"a BSR with a pattern for each member, {batch}, does not repeat along {whole[extra:]}; batch "
            "dimensions in front of its own do"
        )
    x = x.expand(*whole, *x.shape[-2:])
    data, indptr = w.data, w.indptr
    if own:
        indptr = indptr.reshape(math.prod(batch), indptr.shape[-1])
    else:
        data = data.expand(*whole[extra:], *data.shape[-3:])
        data = data.reshape(math.prod(whole[extra:]), *data.shape[-3:])
    inner = len(batch)
    # Dimensions that w has not are more columns of the same product.
    front, columns = tuple(range(extra)), x.shape[-2 if flip else -1]
    place = tuple(range(inner, inner + extra)) if flip else tuple(range(inner + 1, inner + 1 + extra))
    wide = math.prod(whole[:extra]) * columns
    x = x.movedim(front, place).reshape(
        math.prod(batch_of_w := whole[extra:]),
        *((wide, x.shape[-1]) if flip else (x.shape[-2], wide)),
    )
    y = products.dsd(data, w.indices, indptr, *stored, x, bias, flip)
    sizes = (*whole[:extra], columns)
    y = y.reshape(*batch_of_w, *((*sizes, y.shape[-1]) if flip else (y.shape[-2], *sizes)))
    return y.movedim(place, front)


def _sparse(a: BSR, b: BSR) -> BSR:
    """Return the product of two BSRs."""
    if a.ndim > 2 or b.ndim > 2:
        raise ValueError(f"a BSR times a BSR takes two dimensions, got {a.shape} and {b.shape}")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul: the inner sizes differ, a has {a.shape[1]} columns, b {b.shape[0]} rows")
    if a.blocksize[1] != b.blocksize[0]:
        raise ValueError(
            f"matmul: a's blocks are {a.blocksize[1]} wide and b's {b.blocksize[0]} high; they must be equal"
        )
    left = (a.data, a.indices, a.indptr, *a._stored, a._t)
    right = (b.data, b.indices, b.indptr, *b._stored, b._t)
    data, indices, indptr = products.ssd(*left, *right)
    return BSR._wrap(data, indices, indptr, (a.shape[0], b.shape[1]))


def torch_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what torch asks of a BSR among its operands; NotImplemented where it is no product."""
    if function in (Tensor.matmul, Tensor.__matmul__) and torch.compiler.is_dynamo_compiling():
        # Dynamo knows no reverse of `@`: it hands over `W @ x` as it does `x @ W`, operands swapped.
        raise TypeError("torch.compile swaps the operands of @ with a BSR: write prunus.torch.matmul(a, b)")
    products = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, operator.matmul)
    if function in products and len(args) == 2:  # the last one is what a strict export asks for
        return matmul(*args, **kwargs)
    if function is Tensor.__rmatmul__ and len(args) == 2:
        return matmul(args[1], args[0])
    if function in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__) and len(args) == 2:
        w, scale = args if isinstance(args[0], BSR) else args[::-1]
        return w.__mul__(scale)
    if function is torch.nn.functional.linear:
        return _linear(*args, **kwargs)
    return NotImplemented


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    return linear(input, weight, bias) if isinstance(weight, BSR) else NotImplemented
