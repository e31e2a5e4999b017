"""Rows sorted by expert, and their products with the experts' matrices, of tensors.

Dropless, and without copies that pad (MegaBlocks: Gale et al., 2022, arXiv:2211.15841): rows are read where
they stand, and how many an expert has stays on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import dtypes, moe_configs
from prunus.cuda.configs import Tile, power
from prunus.cuda.keeping import check_uploads, hold
from prunus.cuda.products import operands_of, precision, triton_of
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = [
    "ROWS",
    "Matrices",
    "Routes",
    "by_themselves",
    "computed_in",
    "constant",
    "everything",
    "gather_sum",
    "outer",
    "project",
    "project_live",
    "route",
]

#: Rows of tiles that stand one under the other.
ROWS: Final = 8


class Routes(NamedTuple):
    """Which rows run through which experts. A row has a copy for each expert that it chose.

    Attributes
    ----------
    offsets : Tensor of int32
        Shape (E + 1,): where the copies of each expert begin; they are in the order of their rows.
    rows : Tensor of int32 or None
        Shape (copies,): which row each is of; None: there is one expert, and all rows run through it.
    scales : Tensor
        Shape (copies,): weights, float32 or float64.
    slots : Tensor of int32
        Shape (T, top): each row's copies by ascending expert; -1 where a row chose fewer.
    live : Tensor of bool
        Shape (T, E): what was chosen.
    copies : int
        How many there are room for; ``offsets`` ends with how many there are.
    """

    offsets: torch.Tensor
    rows: torch.Tensor | None
    scales: torch.Tensor | None
    slots: torch.Tensor | None
    live: torch.Tensor | None
    copies: int

    @property
    def experts(self) -> int:
        """How many there are."""
        return int(self.offsets.shape[0]) - 1


class Matrices(NamedTuple):
    """A matrix of each expert, all of a shape and with the same strides.

    Attributes
    ----------
    like : Tensor
        The stack (E, out, in), or where they stand by themselves one of them, (out, in).
    table : Tensor of int64 or None
        Shape (E,): where each begins, where they stand by themselves.
    aligned : int
        With a table, what divides all addresses, up to 16 bytes; else 0.
    """

    like: torch.Tensor
    table: torch.Tensor | None = None
    aligned: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        return int(self.like.shape[-2]), int(self.like.shape[-1])

    @property
    def strides(self) -> tuple[int, int, int]:
        """From expert to expert, and along rows and columns of a matrix."""
        stack = self.like if self.like.ndim > 2 else self.like[None]
        return stack.stride(0), stack.stride(1), stack.stride(2)


def constant(values: tuple[int, ...], name: str, where: Place) -> torch.Tensor:
    """Return integers on the device, of a dtype by name.

    They are kept: what is uploaded in a call makes the host wait, and cannot be part of a CUDA graph.

    Raises
    ------
    PrunusError
        If they are not there yet, and the current stream is being captured.
    """
    made = _constant(values, name, where)
    hold(made, where)  # others may crowd it out
    return made


@lru_cache(maxsize=4096)
def _constant(values: tuple[int, ...], name: str, where: Place) -> torch.Tensor:
    torch = libraries().torch
    check_uploads(where)
    return torch.tensor(values, dtype=getattr(torch, name), device=where.device)


def by_themselves(matrices: Sequence[torch.Tensor], where: Place) -> Matrices:
    """Return matrices of one shape, dtype and strides, each by itself in memory."""
    addresses = tuple(w.data_ptr() for w in matrices)
    aligned = math.gcd(16, *addresses)
    return Matrices(matrices[0], constant(addresses, "int64", where), aligned)


def everything(rows: int, where: Place) -> Routes:
    """Return the routes of an expert that all rows run through."""
    offsets = empty((2,), libraries().torch.int32, where).fill_(rows)
    offsets[:1].zero_()
    return Routes(offsets, None, None, None, None, rows)


def route(
    where: Place, x: torch.Tensor, router: torch.Tensor | None, top: int, renormalize: bool, experts: int
) -> Routes:
    """Return which experts rows choose: the ``top`` with the largest logits, of equal ones the first.

    Parameters
    ----------
    where : Place
        Where the operands live.
    x : Tensor
        Shape (T, d), any strides; logits (T, E) where there is no router.
    router : Tensor or None
        Shape (E, d): logits are ``x @ router.T``, summed in float32, or float64 if an operand is.
    top : int
        Experts for each row; those whose logit is -inf are not chosen.
    renormalize : bool
        Whether a row's weights sum to 1, or are what a softmax over all experts gave them.
    experts : int
        E.
    """
    from prunus.cuda.kernels import routing as kernels

    torch = libraries().torch
    rows = len(x)
    kind = dtypes.result(x.dtype, x.dtype if router is None else router.dtype)
    kept = torch.float64 if kind == torch.float64 else torch.float32
    copies = rows * top
    live = empty((rows, experts), torch.bool, where)
    offsets = empty((experts + 1,), torch.int32, where)
    sorted_rows, scales = empty((copies,), torch.int32, where), empty((copies,), kept, where)
    slots = empty((rows, top), torch.int32, where)
    found = Routes(offsets, sorted_rows, scales, slots, live, copies)
    if not rows:
        offsets.zero_()
        return found
    tile = moe_configs.routing(where, rows, experts, kind.itemsize * 8)
    chunks = blocks_along(rows, tile.m)
    one = chunks == 1
    weights = scales if one else empty((rows, experts), kept, where)
    counts = offsets if one else empty((experts, chunks), torch.int32, where)
    right = x if router is None else router
    compute, sums = computed_in(kind, where)
    launch(
        where,
        kernels.route,
        (chunks,),
        x,
        right,
        live.view(torch.uint8),
        weights,
        counts,
        offsets,
        sorted_rows,
        scales,
        slots,
        rows,
        experts,
        int(x.shape[1]),
        chunks,
        *x.stride(),
        *right.stride(),
        PRODUCT=router is not None,
        TOP=top,
        RENORMALIZE=renormalize,
        ONE=one,
        COMPUTE=compute,
        SUMS=sums,
        KEPT=triton_of(kept),
        PRECISION=precision(),
        TM=tile.m,
        TE=tile.n,
        TK=tile.k,
        WIDE=power(top, 1, 1 << 16),
        **tile.options,
    )
    if not one:
        ends = torch.cumsum(counts.reshape(-1), 0)
        launch(
            where,
            kernels.sort,
            (chunks,),
            live.view(torch.uint8),
            weights,
            counts,
            ends,
            offsets,
            sorted_rows,
            scales,
            slots,
            rows,
            experts,
            chunks,
            TOP=top,
            TM=tile.m,
            TE=tile.n,
            WIDE=power(top, 1, 1 << 16),
            num_warps=tile.warps,
        )
    return found


def project(
    where: Place,
    x: torch.Tensor,
    routes: Routes,
    w: Matrices,
    out: torch.Tensor,
    *,
    gate: Matrices | None = None,
    gather: bool = True,
    activation: str | None = None,
    scale: torch.Tensor | None = None,
    live: torch.Tensor | None = None,
    branch: int = 1,
    active: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Write ``activation(x @ w.T)``, or ``activation(x @ gate.T) * (x @ w.T)``, for each copy and its expert.

    Parameters
    ----------
    where : Place
        Where the operands live.
    x : Tensor
        Shape (T, d), any strides: rows that copies are of; with ``gather=False`` the copies themselves.
    routes : Routes
        Who runs through what.
    w, gate : Matrices
        Shape (units, d) each, with the same strides.
    out : Tensor
        Shape (copies, units), contiguous: written as far as there are copies.
    activation : str, optional
        "relu", "gelu" or "silu".
    scale : Tensor, optional
        Shape (copies, units), contiguous: multiplies the result.
    live : Tensor of bool, optional
        Shape (copies, branches), contiguous: elsewhere the result is 0.
    branch : int
        Units of a branch.
    active : Tensor of int32, optional
        Shape (E,): which experts to compute; copies of others are left alone.
    bias : Tensor, optional
        Shape (E, units), contiguous: added to ``x @ w.T``.
    """
    from prunus.cuda.kernels import grouped as kernels

    torch = libraries().torch
    units, inner = w.size
    if 0 in out.shape:
        return
    kind = dtypes.result(x.dtype, w.like.dtype)
    if gate is not None:
        kind = dtypes.result(kind, gate.like.dtype)
    compute, sums = computed_in(kind, where)
    tile, programs = _tile(where, routes, (units, inner), kind, gate is not None, False)
    wide = torch.float64 if dtypes.sums(kind) == torch.float64 else torch.float32
    gathered = gather and routes.rows is not None
    first, second = (w, w) if gate is None else (gate, w)
    launch(
        where,
        kernels.grouped,
        (programs,),
        x,
        routes.rows if gathered else routes.offsets,
        routes.offsets,
        routes.offsets if active is None else active,
        first.like,
        routes.offsets if first.table is None else first.table,
        second.like,
        routes.offsets if second.table is None else second.table,
        out if scale is None else scale,
        routes.offsets if live is None else live.view(torch.uint8),
        out if bias is None else bias,
        out,
        routes.experts,
        units,
        inner,
        1 if live is None else int(live.shape[1]),
        branch,
        *x.stride(),
        *first.strides,
        *second.strides,
        GATHER=gathered,
        ACTIVE=active is not None,
        TABLE=w.aligned if gate is None else math.gcd(w.aligned, gate.aligned),
        GATED=gate is not None,
        SCALED=scale is not None,
        LIVE=live is not None,
        BIAS=bias is not None,
        ACTIVATION=activation,
        COMPUTE=compute,
        SUMS=sums,
        WIDE=triton_of(wide),
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        TE=power(routes.experts, 1, 1 << 16),
        ROWS=ROWS,
        **tile.options,
    )


def project_live(
    where: Place,
    h: torch.Tensor,
    routes: Routes,
    w: Matrices,
    live: torch.Tensor,
    branch: int,
    out: torch.Tensor,
    active: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Write ``h @ w.T`` for each copy and its expert, where only live units take part.

    Parameters
    ----------
    h : Tensor
        Shape (copies, units), contiguous. What dead units hold is not read.
    w : Matrices
        Shape (n, units).
    live : Tensor of bool
        Shape (copies, branches), contiguous.
    out : Tensor
        Shape (copies, n), contiguous.
    bias : Tensor, optional
        Shape (E, n), contiguous: added to the result.
    where, routes, branch, active
        As in :func:`project`.
    """
    from prunus.cuda.kernels import grouped as kernels

    torch = libraries().torch
    n, units = w.size
    if 0 in out.shape:
        return
    kind = dtypes.result(h.dtype, w.like.dtype)
    compute, sums = computed_in(kind, where)
    tile, programs = _tile(where, routes, (n, units), kind, False, True)
    launch(
        where,
        kernels.grouped_live,
        (programs,),
        h,
        routes.offsets,
        routes.offsets if active is None else active,
        live.view(torch.uint8),
        w.like,
        routes.offsets if w.table is None else w.table,
        out if bias is None else bias,
        out,
        routes.experts,
        n,
        units,
        int(live.shape[1]),
        branch,
        *w.strides,
        ACTIVE=active is not None,
        TABLE=w.aligned,
        BIAS=bias is not None,
        COMPUTE=compute,
        SUMS=sums,
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        TE=power(routes.experts, 1, 1 << 16),
        ROWS=ROWS,
        **tile.options,
    )


def gather_sum(where: Place, y: torch.Tensor, routes: Routes, out: torch.Tensor) -> None:
    """Write the sum of each row's copies in ``y`` (copies, n), times their weights, by ascending experts.

    A row that chose no expert gets NaN.

    Parameters
    ----------
    out : Tensor
        Shape (T, n), any strides.
    """
    from prunus.cuda.kernels import routing as kernels

    torch = libraries().torch
    if 0 in out.shape:
        return
    assert routes.slots is not None
    rows, n = (int(size) for size in out.shape)
    tile = moe_configs.gather_sum(where, n)
    across = blocks_along(n, tile.n)
    launch(
        where,
        kernels.gather_sum,
        (blocks_along(rows, tile.m) * across,),
        y,
        routes.slots,
        routes.scales,
        out,
        rows,
        n,
        across,
        *out.stride(),
        TOP=int(routes.slots.shape[1]),
        SUMS=triton_of(torch.float64 if y.dtype == torch.float64 else torch.float32),
        TM=tile.m,
        TN=tile.n,
        **tile.options,
    )


def outer(where: Place, a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``a.T @ b`` over the rows of each expert: gradients of experts' matrices.

    Each sum is over an expert's rows in their order, whatever other experts have.

    Parameters
    ----------
    where : Place
        Where the operands live.
    a, b : Tensor
        Shapes (copies, n) and (copies, k), any strides.
    offsets : Tensor of int32
        Shape (E + 1,): where each expert's rows begin.
    out : Tensor
        Shape (E, n, k), contiguous: written, 0 where an expert has no rows.
    """
    from prunus.cuda.kernels import grouped_outer as kernels

    if 0 in out.shape:
        return
    experts, n, k = out.shape
    kind = dtypes.result(a.dtype, b.dtype)
    compute, sums = computed_in(kind, where)
    tile = moe_configs.grouped_outer(where, n, k, kind.itemsize * 8)
    down, across = blocks_along(n, tile.m), blocks_along(k, tile.n)
    launch(
        where,
        kernels.grouped_outer,
        (experts * down * across,),
        a,
        b,
        offsets,
        out,
        n,
        k,
        down,
        across,
        *a.stride(),
        *b.stride(),
        COMPUTE=compute,
        SUMS=sums,
        PRECISION=precision(),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        **tile.options,
    )


def computed_in(kind: Any, where: Place) -> tuple[Any, Any]:
    """Return Triton's dtypes that products are taken and summed in.

    The interpreter multiplies with NumPy, whose BLAS gives a row other bits in another place of a tile. In
    double precision what it gives differs by so little that the rounded sums are the same.
    """
    torch = libraries().torch
    if where.interpreted:
        return triton_of(torch.float64), triton_of(torch.float64)
    return operands_of(kind, where), triton_of(dtypes.sums(kind))


def _tile(
    where: Place, routes: Routes, size: tuple[int, int], kind: Any, gated: bool, pruned: bool
) -> tuple[Tile, int]:
    """Return how a product is cut, and how many programs walk its tiles.

    The height of tiles follows from how many copies an expert has on average; so in batches of sizes that
    differ much, sums may have another order.
    """
    units, inner = size
    average = blocks_along(routes.copies, routes.experts)
    tile, programs = moe_configs.grouped(where, average, units, inner, kind.itemsize * 8, gated, pruned)
    # No more than there are tiles, were each expert's last one not full.
    down = min(blocks_along(routes.copies, tile.m) + routes.experts, routes.copies)
    return tile, min(programs, down * blocks_along(units, tile.n))
