"""Layers in which nothing is pruned: products by torch's library, activations in few launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._layout import blocks_along
from prunus.cuda import rows
from prunus.cuda.configs import power
from prunus.cuda.products import triton_of
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["contribute", "gated", "linear"]


def linear(
    where: Place,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    kind: Any,
    activation: str | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``activation(x @ w.T + bias)``, every unit of every row.

    torch's library (cuBLAS) multiplies operands of one dtype, as fast as anything does. It rounds sums to
    that dtype before the activation. Operands of several dtypes are converted as a kernel of this package
    reads them, rather than in a copy.

    Parameters
    ----------
    where : Place
        Where the operands live.
    x : Tensor
        Shape (rows, k), floats, any strides.
    w : Tensor
        Shape (units, k), any strides.
    bias : Tensor or None
        Shape (units,).
    kind : torch.dtype
        Of the result.
    activation : str, optional
        "relu", "gelu" or "silu".
    out : Tensor, optional
        Shape (rows, units), contiguous: where to write.
    """
    torch = libraries().torch
    same = x.dtype == w.dtype == kind
    if not same:
        result = empty((len(x), len(w)), kind, where) if out is None else out
        rows.dots(where, x, w, result, None, 1, bias, activation)
        return result
    if bias is None:
        made = torch.mm(x, w.T) if out is None else torch.mm(x, w.T, out=out)
    else:
        bias = bias.to(kind)
        made = torch.addmm(bias, x, w.T) if out is None else torch.addmm(bias, x, w.T, out=out)
    return _activated(made, activation)


def _activated(h: torch.Tensor, activation: str | None) -> torch.Tensor:
    """Return an activation by name, written over what it is of."""
    torch = libraries().torch
    if activation == "relu":
        return torch.relu_(h)
    if activation == "gelu":
        return torch.ops.aten.gelu_(h)
    if activation == "silu":
        return torch.nn.functional.silu(h, inplace=True)
    return h


def gated(
    where: Place,
    gate: torch.Tensor,
    up: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Write ``activation(gate) * (up + bias)``, in one pass.

    Parameters
    ----------
    where : Place
        Where the operands live.
    gate, up, out : Tensor
        Shape (rows, units), the last axis contiguous; ``out`` may be one of the others.
    bias : Tensor, optional
        Shape (units,).
    activation : str, optional
        "relu", "gelu" or "silu".
    """
    from prunus.cuda.kernels import layers as kernels

    count, units = (int(size) for size in out.shape)
    tu = power(units, 16, 4096 if where.interpreted else 1024)
    tm = power(count, 1, (1 << 16) // tu if where.interpreted else max(1, 2048 // tu))
    across = blocks_along(units, tu)
    launch(
        where,
        kernels.gated,
        (blocks_along(count, tm) * across,),
        gate,
        up,
        out,
        out if bias is None else bias.contiguous(),
        count,
        units,
        across,
        gate.stride(0),
        up.stride(0),
        out.stride(0),
        BIAS=bias is not None,
        ACTIVATION=activation,
        WIDE=triton_of(rows.sums_of(gate.dtype, up.dtype, out.dtype)),
        TM=tm,
        TU=tu,
        num_warps=4,
    )


def contribute(
    where: Place,
    h: torch.Tensor,
    w: torch.Tensor,
    out: torch.Tensor,
    live: torch.Tensor,
    branch: int,
    bias: torch.Tensor | None = None,
) -> None:
    """Write ``h @ w.T + bias``, where only live units of each row take part.

    For weights that lie by outputs: a dead unit's column shares cache lines with live ones, so they are read
    whole. Where its 0 met an infinity or NaN of ``w``, results are computed again without dead units.

    Parameters
    ----------
    where : Place
        Where the operands live.
    h : Tensor
        Shape (rows, units), the last axis contiguous, 0 where it is dead.
    w : Tensor
        Shape (n, units), any strides.
    out : Tensor
        Shape (rows, n), contiguous: written.
    live : Tensor of bool
        Shape (rows, branches); a stride of 0 says that it is the same for all rows.
    branch : int
        Units in a branch.
    bias : Tensor, optional
        Shape (n,).
    """
    from prunus.cuda.kernels import layers as kernels

    torch = libraries().torch
    count, n = (int(size) for size in out.shape)
    linear(where, h, w, bias, out.dtype, out=out)
    if not h.shape[1]:
        return
    mask = live.view(torch.uint8)
    mask = mask if mask.shape[1] < 2 or mask.stride(1) == 1 else mask.contiguous()
    tn, tk = (power(n, 16, 1024), 64) if where.interpreted else (64, 64)
    across = blocks_along(n, tn)
    launch(
        where,
        kernels.repair,
        (count * across,),
        h,
        mask,
        w,
        out,
        out if bias is None else bias.contiguous(),
        int(h.shape[1]),
        n,
        branch,
        across,
        h.stride(0),
        mask.stride(0),
        *w.stride(),
        out.stride(0),
        BIAS=bias is not None,
        SUMS=triton_of(rows.sums_of(h.dtype, w.dtype, out.dtype)),
        TN=tn,
        TK=tk,
        num_warps=4,
    )
