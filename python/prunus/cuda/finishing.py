"""The end of products whose sums went on from one launch to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunus._layout import blocks_along
from prunus.cuda.configs import power
from prunus.cuda.products import flat, triton_of
from prunus.cuda.runtime import Place, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["finish"]


def finish(
    where: Place,
    sums: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Write ``activation(sums + bias[:, None])``, to the bit what :func:`prunus.cuda.products.dsd` would.

    Parameters
    ----------
    where : Place
        Where the operands live.
    sums : Tensor
        Shape (m, n) or (members, m, n), of the dtype that sums have, any strides.
    out : Tensor
        Of the same shape, any strides and dtype: written.
    bias : Tensor, optional
        Shape (m,).
    activation : str, optional
        "relu", "gelu" or "silu".
    """
    if 0 in out.shape:
        return
    from prunus.cuda.kernels import finishing as kernels

    torch = libraries().torch
    sums, out = flat(sums), flat(out)
    members, m, n = out.shape
    wide = torch.float64 if sums.dtype == torch.float64 else torch.float32
    if sums.dtype == out.dtype == torch.int32:
        wide = torch.int32
    # Neighbouring threads write neighbours, whichever way the result lies.
    turned = out.stride(1) < out.stride(2)
    most = 512 if where.interpreted else 64
    tm, tn = (power(m, 16, most), 16) if turned else (16, power(n, 16, most))
    if where.interpreted:
        tm, tn = power(m, 16, most), power(n, 16, most)
    rows, columns = blocks_along(m, tm), blocks_along(n, tn)
    launch(
        where,
        kernels.finishing,
        (members * rows * columns,),
        sums,
        out,
        out if bias is None else bias.contiguous(),
        m,
        n,
        rows,
        columns,
        *sums.stride(),
        *out.stride(),
        BIAS=bias is not None,
        ACTIVATION=activation,
        WIDE=triton_of(wide),
        TM=tm,
        TN=tn,
        num_warps=4,
    )
