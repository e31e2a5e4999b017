"""Products of rows with tables of units, of tensors: which kernels, cut how, on which lists.

A table has a row for each unit. ``dots`` computes units from inputs and ``combine`` adds what units
contribute; dead units are neither read nor multiplied, and nothing about them is asked back from the GPU.

A few rows (see :mod:`prunus.cuda.plans`) are computed each by itself, more in tiles, on matrix units. A row's
values are the same whatever other rows are computed with it in batches of the same class: few rows, or tiles
of one height. Between classes the order of sums differs, and liveness is decided in each one's own
arithmetic. Where ``live`` is one row for all (a stride of 0), the units that it keeps are packed, which is
one more class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._layout import blocks_along
from prunus.cuda import dtypes, plans
from prunus.cuda.branches import Found, as_bytes, fuses, same_for_all, settle
from prunus.cuda.branches import needed as needed_by
from prunus.cuda.configs import power
from prunus.cuda.products import precision, triton_of
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["combine", "dots", "rowwise", "sums_of"]


def sums_of(*kinds: Any) -> Any:
    """Return torch's dtype that sums of products of these dtypes are kept in."""
    torch = libraries().torch
    return torch.float64 if torch.float64 in kinds else torch.float32


def _tiles(kind: Any, sums: Any, where: Place) -> dict[str, Any]:
    """Return what tiles are multiplied and summed in, and how.

    The interpreter multiplies with NumPy, whose BLAS gives a row other bits in another place of a tile. In
    double precision what it gives differs by so little that the rounded sums are the same.
    """
    torch = libraries().torch
    if where.interpreted:
        kind = sums = torch.float64
    return {"COMPUTE": triton_of(kind), "SUMS": triton_of(sums), "PRECISION": precision()}


def rowwise(w: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose last axis is contiguous: itself, or a copy."""
    return w if w.shape[-1] < 2 or w.stride(-1) == 1 else w.contiguous()


def dots(
    where: Place,
    x: torch.Tensor,
    w: torch.Tensor,
    out: torch.Tensor,
    live: torch.Tensor | None = None,
    branch: int = 1,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    scale: torch.Tensor | None = None,
    found: Found | None = None,
    clear: bool = True,
) -> None:
    """Write ``activation(x @ w.T + bias) * scale`` where it is live, and 0 elsewhere.

    Parameters
    ----------
    where : Place
        Where the operands live.
    x : Tensor
        Shape (rows, k), floats, any strides.
    w : Tensor
        Shape (units, k).
    out : Tensor
        Shape (rows, units), the last axis contiguous: written.
    live : Tensor of bool, optional
        Shape (rows, branches); a stride of 0 says that it is the same for all rows.
    branch : int
        Units in a branch of ``live``.
    bias : Tensor, optional
        Shape (units,).
    activation : str, optional
        "relu", "gelu" or "silu".
    scale : Tensor, optional
        Shape (rows, units).
    found : Found, optional
        Where to write norms and liveness of the result.
    clear : bool
        Whether dead units are 0 in ``out``; else what they hold may be anything.
    """
    from prunus.cuda.kernels import few as few_kernels
    from prunus.cuda.kernels import rows as kernels

    rows, units, k = int(x.shape[0]), int(w.shape[0]), int(x.shape[1])
    if found is not None and 0 in found.norms.shape:
        found = None
    if rows == 0 or units == 0:
        return
    w, out_kind = rowwise(w), out.dtype
    kind = dtypes.compute(x.dtype, w.dtype, out_kind)
    sums = sums_of(x.dtype, w.dtype, out_kind)
    bits = kind.itemsize * 8
    few = plans.is_few(where, rows)
    tile = plans.dots(where, rows, bits, live is not None)
    width = 1 if found is None else found.branch
    fused = live is None and fuses(found, 128 if few else tile.n)
    if found is not None and not fused:
        # Branches that tiles do not hold whole: values first, as sums have them, and then their norms.
        whole = empty((rows, units), sums, where)
        dots(where, x, w, whole, live, branch, bias, activation, scale)
        settle(where, whole, out, found)
        return
    mask = None if live is None else as_bytes(live)
    bias = None if bias is None else bias.contiguous()
    scale = None if scale is None else rowwise(scale)
    alive = None
    if fused and found is not None and found.live is not None:
        alive = found.live.view(libraries().torch.uint8)
    optional = (
        out if bias is None else bias,
        out if scale is None else scale,
        out if not fused or found is None else found.norms,
        out if alive is None else alive,
        0.0 if found is None else float(found.tau),
    )
    branches = blocks_along(units, width)
    strides = (
        x.stride(0),
        x.stride(1),
        w.stride(0),
        out.stride(0),
        0 if mask is None else mask.stride(0),
        0 if scale is None else scale.stride(0),
        0 if not fused or found is None else found.norms.stride(0),
        0 if alive is None else alive.stride(0),
    )
    common = {
        "BIAS": bias is not None,
        "ACTIVATION": activation,
        "SCALE": scale is not None,
        "NORM": found.norm if fused and found is not None else None,
        "FOUND": alive is not None,
        "WIDTH": width if fused else 1,
    }
    per = branch if mask is not None else 1
    if few:
        cut = plans.dots_few(where, k, width if fused else 1, w.element_size() * 8, units)
        launch(
            where,
            few_kernels.dots_few,
            (rows * blocks_along(units, cut.span),),
            x,
            w,
            out,
            out if mask is None else mask,
            *optional,
            rows,
            units,
            k,
            per,
            branches,
            *strides,
            LIVE=mask is not None,
            **common,
            SUMS=triton_of(sums),
            SPAN=cut.span,
            STEP=cut.step,
            TK=cut.wide,
            **cut.options,
        )
        return
    needed = None
    if mask is not None:
        needed = needed_by(where, mask, units, branch, tile.m, 1, units)
        if clear:
            out.zero_()
    down, across = blocks_along(rows, tile.m), blocks_along(units, tile.n)
    launch(
        where,
        kernels.dots,
        (down * across,),
        x,
        w,
        out,
        out if mask is None else mask,
        out if needed is None else needed.units,
        out if needed is None else needed.counts,
        *optional,
        rows,
        units,
        k,
        per,
        branches,
        down,
        across,
        *strides,
        LISTED=needed is not None,
        **common,
        **_tiles(kind, sums, where),
        WIDE=triton_of(sums),
        TM=tile.m,
        TN=tile.n,
        TK=tile.k,
        **tile.options,
    )


def combine(
    where: Place,
    h: torch.Tensor,
    w: torch.Tensor,
    out: torch.Tensor,
    live: torch.Tensor | None = None,
    branch: int = 1,
    bias: torch.Tensor | None = None,
    add: bool = False,
    zeroed: bool = False,
) -> None:
    """Write ``h @ w + bias``, where only live units of each row take part.

    Parameters
    ----------
    where : Place
        Where the operands live.
    h : Tensor
        Shape (rows, units), floats, the last axis contiguous. What dead units hold is not looked at.
    w : Tensor
        Shape (units, n), the last axis contiguous; or (panels, units, columns of a panel) in C order.
    out : Tensor
        Shape (rows, n), the last axis contiguous: written.
    live : Tensor of bool, optional
        Shape (rows, branches); a stride of 0 says that it is the same for all rows.
    branch : int
        Units in a branch.
    bias : Tensor, optional
        Shape (n,).
    add : bool
        Go on from what ``out`` holds, of the dtype that sums have.
    zeroed : bool
        ``h`` is what :func:`dots` left with this ``live``, or found it with: dead units are 0 where it wrote.
    """
    from prunus.cuda.kernels import few as few_kernels
    from prunus.cuda.kernels import rows as kernels

    rows, n = (int(size) for size in out.shape)
    units = int(h.shape[1])
    if rows == 0 or n == 0:
        return
    h, w = rowwise(h), rowwise(w)
    kind = dtypes.compute(h.dtype, w.dtype, out.dtype)
    sums = sums_of(h.dtype, w.dtype, out.dtype)
    mask = None if live is None or units == 0 else as_bytes(live)
    bias = None if bias is None else bias.contiguous()
    panels = w.ndim == 3
    width = int(w.shape[-1]) if panels else n
    table = (w.stride(0) if panels else 0, w.stride(-2))
    per = branch if mask is not None else 1
    few = plans.is_few(where, rows)
    if few:
        cut = plans.combine_few(where, rows, n, units, w.element_size() * 8)
        tile, parts, unit = None, cut.segments, cut.span
    else:
        tile, parts = plans.combine(where, rows, n, units, kind.itemsize * 8, mask is not None)
        unit = tile.k
    segment = max(blocks_along(blocks_along(units, parts), unit), 1) * unit
    parts = max(blocks_along(units, segment), 1)
    target = out if parts == 1 else empty((parts, rows, n), sums, where)
    last = parts == 1
    common = {
        "PANELS": panels,
        "BIAS": last and bias is not None,
        "ADD": last and add,
    }
    biased = out if bias is None else bias
    part = 0 if last else target.stride(0)
    if few:
        across = blocks_along(n, cut.wide)
        launch(
            where,
            few_kernels.combine_few,
            (rows * across * parts,),
            h,
            w,
            target,
            out if mask is None else mask,
            biased,
            rows,
            units,
            n,
            per,
            width,
            segment,
            across,
            h.stride(0),
            *table,
            part,
            target.stride(-2),
            0 if mask is None else mask.stride(0),
            LIVE=mask is not None,
            **common,
            SUMS=triton_of(sums),
            SPAN=cut.span,
            STEP=cut.step,
            TN=cut.wide,
            **cut.options,
        )
    else:
        assert tile is not None
        shared = mask is not None and same_for_all(mask)
        needed = None
        if mask is not None:
            needed = needed_by(where, mask, units, branch, tile.m, plans.grain(where, shared, tile), segment)
        down = blocks_along(rows, tile.m)
        masked = needed is not None and not shared
        noted = None
        if masked:
            noted = empty((parts, down * blocks_along(n, tile.n)), libraries().torch.int32, where)
        # Tiles with what is not finite are computed again: a dead unit may have met an infinity.
        for exact in (False, True) if masked else (False,):
            wide = plans.exact(where, tile) if exact else tile
            across = blocks_along(n, tile.n) * (tile.n // wide.n)
            launch(
                where,
                kernels.combine,
                (down * across * parts,),
                h,
                w,
                target,
                out if mask is None else mask,
                out if needed is None else needed.units,
                out if needed is None else needed.counts,
                out if noted is None else noted,
                biased,
                rows,
                units,
                n,
                per,
                width,
                segment,
                down,
                across,
                h.stride(0),
                *table,
                part,
                target.stride(-2),
                0 if mask is None else mask.stride(0),
                0 if needed is None else needed.units.stride(0),
                0 if needed is None else needed.counts.stride(0),
                0 if noted is None else noted.stride(0),
                LISTED=needed is not None,
                MASKED=masked,
                ZEROED=zeroed,
                EXACT=exact,
                **common,
                **_tiles(kind, sums, where),
                TM=wide.m,
                TN=wide.n,
                TK=wide.k,
                FIRST=tile.n,
                **wide.options,
            )
    if last:
        return
    columns = power(n, 16, 512)
    across = blocks_along(n, columns)
    launch(
        where,
        kernels.join,
        (rows * across,),
        target,
        out,
        biased,
        rows,
        n,
        parts,
        across,
        target.stride(0),
        target.stride(1),
        out.stride(0),
        BIAS=bias is not None,
        ADD=add,
        TN=columns,
        num_warps=4,
    )
