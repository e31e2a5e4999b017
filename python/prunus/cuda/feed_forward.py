"""Feed-forward layers of which is known what is live: products of rows with tables, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._layout import blocks_along
from prunus.cuda import plans
from prunus.cuda.branches import as_bytes
from prunus.cuda.products import triton_of
from prunus.cuda.rows import combine, dots, rowwise, sums_of
from prunus.cuda.runtime import Place, empty, launch

if TYPE_CHECKING:
    import torch

__all__ = ["feed_forward", "gated_few"]


def gated_few(
    where: Place,
    x: torch.Tensor,
    up: torch.Tensor,
    gate: torch.Tensor,
    out: torch.Tensor,
    live: torch.Tensor,
    branch: int,
    b_up: torch.Tensor | None,
    activation: str | None,
) -> None:
    """Write ``activation(x @ gate.T) * (x @ up.T + b_up)`` where it is live, and 0 elsewhere.

    In one launch, for a few rows (see :mod:`prunus.cuda.plans`), with ``out`` of the dtype that sums have.
    """
    from prunus.cuda.kernels import few as kernels

    rows, units = (int(size) for size in out.shape)
    if 0 in (rows, units):
        return
    mask, up, gate = as_bytes(live), rowwise(up), rowwise(gate)
    k = int(x.shape[1])
    cut = plans.dots_few(where, k, 1, up.element_size() * 8)
    launch(
        where,
        kernels.gated_few,
        (rows * blocks_along(units, cut.span),),
        x,
        gate,
        up,
        out,
        mask,
        out if b_up is None else b_up.contiguous(),
        rows,
        units,
        k,
        branch,
        x.stride(0),
        x.stride(1),
        gate.stride(0),
        up.stride(0),
        out.stride(0),
        mask.stride(0),
        BIAS=b_up is not None,
        ACTIVATION=activation,
        SUMS=triton_of(out.dtype),
        SPAN=cut.span,
        STEP=cut.step,
        TK=max(cut.wide // 2, 16),  # of each table: threads have room for as many sums as with one
        **cut.options,
    )


def feed_forward(
    where: Place,
    x: torch.Tensor,
    up: torch.Tensor,
    gate: torch.Tensor | None,
    down: torch.Tensor,
    out: torch.Tensor,
    live: torch.Tensor | None = None,
    branch: int = 1,
    b_up: torch.Tensor | None = None,
    b_down: torch.Tensor | None = None,
    activation: str | None = None,
    inner: Any = None,
) -> None:
    """Write ``h @ down + b_down``, with ``h = activation(x @ gate.T) * (x @ up.T + b_up)`` where live.

    The same, to the bit, as :func:`dots` and :func:`combine` one after the other; but for a few rows of a
    gated layer, whose two products are one launch with an order of sums of its own (the same for any of these
    rows). Without a gate the activation is the units' own. ``inner`` is the dtype that hidden units are kept
    in: that of sums, if None.
    """
    sums = sums_of(x.dtype, up.dtype)
    h = empty((len(x), len(up)), inner or sums, where)
    if gate is None:
        dots(where, x, up, h, live, branch, b_up, activation, clear=False)
    elif live is not None and h.dtype == sums and plans.is_few(where, len(x)) and gate.dtype == up.dtype:
        gated_few(where, x, up, gate, h, live, branch, b_up, activation)
    else:
        first = empty((len(x), len(up)), inner or sums, where)
        dots(where, x, gate, first, live, branch, None, activation, clear=False)
        dots(where, x, up, h, live, branch, b_up, None, first, clear=False)
    combine(where, h, down, out, live, branch, b_down, zeroed=inner is not None)
