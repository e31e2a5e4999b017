"""Layers in which nothing is pruned: products by torch's library, activations in few launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus.cuda import rows
from prunus.cuda.runtime import Place, empty
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["activated", "linear"]


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
    return activated(made, activation)


def activated(h: torch.Tensor, activation: str | None) -> torch.Tensor:
    """Return an activation by name, written over what it is of."""
    torch = libraries().torch
    if activation == "relu":
        return torch.relu_(h)
    if activation == "gelu":
        return torch.ops.aten.gelu_(h)
    if activation == "silu":
        return torch.nn.functional.silu(h, inplace=True)
    return h
