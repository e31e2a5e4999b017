"""Branches of rows, of tensors: which are live and what their norms are; which units tiles of rows need."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda.configs import power
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Found", "Needed", "as_bytes", "fuses", "needed", "restrict", "same_for_all", "settle"]


class Found(NamedTuple):
    """Where ``dots`` writes which branches are live; :class:`prunus.engines.base.Found` of tensors.

    Attributes
    ----------
    branch : int
        Neighbouring units that live and die together.
    norm : str
        "max" or "l2".
    norms : Tensor
        Shape (rows, branches), float32, or float64 where sums are: written.
    live : Tensor of bool, optional
        Shape (rows, branches): written, ``not (norm <= tau)``.
    tau : float
        The threshold.
    """

    branch: int
    norm: str
    norms: torch.Tensor
    live: torch.Tensor | None = None
    tau: float = 0.0


class Needed(NamedTuple):
    """The units that each tile of rows needs, in each segment of them; -1 stands for none."""

    units: torch.Tensor
    counts: torch.Tensor


def as_bytes(live: torch.Tensor) -> torch.Tensor:
    """Return booleans as bytes, one a branch and neighbouring ones side by side; a view where it can be."""
    live = live.view(libraries().torch.uint8)
    return live if live.shape[1] < 2 or live.stride(1) == 1 else live.contiguous()


def same_for_all(live: torch.Tensor) -> bool:
    """Say whether liveness is one row for all (a stride of 0)."""
    return bool(live.shape[0] > 1 and live.stride(0) == 0)


def needed(
    where: Place, live: torch.Tensor, units: int, branch: int, height: int, grain: int, segment: int
) -> Needed:
    """List what each tile of ``height`` rows needs; ``live`` is bytes."""
    from prunus.cuda.kernels import branches as kernels

    torch = libraries().torch
    rows = len(live)
    tiles, cuts = blocks_along(rows, height), blocks_along(units, segment)
    shared = same_for_all(live)
    # Of rows that all need the same, one is looked at.
    looked = 1 if shared else rows
    each = 1 if shared else height
    flags = empty((blocks_along(looked, each), units), torch.uint8, where)
    wide = power(units, 16, max(16, (1 << 18) // each if where.interpreted else 4096 // each))
    across = blocks_along(units, wide)
    launch(
        where,
        kernels.union,
        (len(flags) * across,),
        live,
        flags,
        looked,
        units,
        branch,
        across,
        live.stride(0),
        TM=each,
        TU=wide,
        num_warps=4,
    )
    listed = empty((tiles, cuts * segment), torch.int32, where)
    counts = empty((tiles, cuts), torch.int32, where)
    launch(
        where,
        kernels.compact,
        (tiles * cuts,),
        flags,
        listed,
        counts,
        units,
        segment,
        cuts,
        0 if shared else units,
        GRAIN=grain,
        BLOCK=power(blocks_along(segment, grain), 1, max(1, 4096 // grain)),
        num_warps=8,
    )
    return Needed(listed, counts)


def fuses(found: Found | None, most: int) -> bool:
    """Say whether branches of a result are whole in tiles of ``most`` columns."""
    return found is not None and found.branch <= most and found.branch & (found.branch - 1) == 0


def restrict(
    where: Place, indptr: torch.Tensor, live: torch.Tensor, branch: int, units: int, height: int, wide: int
) -> torch.Tensor:
    """Return where lists of lines of units begin and end for each tile of rows, empty where none is live.

    Parameters
    ----------
    where : Place
        Where the tensors live.
    indptr : Tensor of int32 or int64
        Shape (lines + 1,): where the lists begin and end, whatever is live.
    live : Tensor of bool
        Shape (rows, branches); a stride of 0 says that it is the same for all rows.
    branch, units : int
        Units of a branch, and all of them.
    height : int
        Neighbouring units of a line.
    wide : int
        Rows of a tile, a power of two.

    Returns
    -------
    Tensor
        Shape (tiles, lines, 2), of the dtype of ``indptr``.
    """
    from prunus.cuda.kernels import branches as kernels

    mask, rows, lines = as_bytes(live), len(live), len(indptr) - 1
    tiles = blocks_along(rows, wide)
    ends = empty((tiles, lines, 2), indptr.dtype, where)
    tm = min(wide, 1 << 12 if where.interpreted else 32)
    tb = power(lines, 1, (1 << 17) // tm if where.interpreted else 2048 // tm)
    across = blocks_along(lines, tb)
    launch(
        where,
        kernels.restrict,
        (tiles * across,),
        mask,
        indptr,
        ends,
        rows,
        units,
        branch,
        lines,
        height,
        (height - 1) // branch + 2,
        across,
        mask.stride(0),
        WIDE=wide,
        TM=tm,
        TB=tb,
        num_warps=4,
    )
    return ends


def settle(where: Place, h: torch.Tensor, out: torch.Tensor | None, found: Found) -> None:
    """Write norms of branches of ``h``, which are live, and to ``out`` its values with 0 where they are dead.

    Parameters
    ----------
    where : Place
        Where the operands live.
    h : Tensor
        Shape (rows, units), float32 or float64 as ``found.norms``, the last axis contiguous.
    out : Tensor, optional
        Shape (rows, units), the last axis contiguous: written; it may be ``h``.
    found : Found
        The rest of what is written.
    """
    from prunus.cuda.kernels import branches as kernels

    rows, units = (int(size) for size in h.shape)
    if 0 in (rows, units):
        return
    torch = libraries().torch
    branches = blocks_along(units, found.branch)
    most = 1 << 18 if where.interpreted else 1 << 11
    wide = power(found.branch, 1, 512 if where.interpreted else 256)
    tb = power(branches, 1, max(1, min(64, most // wide)))
    tm = power(rows, 1, max(1, min(64, most // (wide * tb))))
    across = blocks_along(branches, tb)
    alive = None if found.live is None else found.live.view(torch.uint8)
    launch(
        where,
        kernels.settle,
        (blocks_along(rows, tm) * across,),
        h,
        h if out is None else out,
        found.norms,
        h if alive is None else alive,
        float(found.tau),
        rows,
        units,
        found.branch,
        branches,
        across,
        h.stride(0),
        h.stride(0) if out is None else out.stride(0),
        found.norms.stride(0),
        0 if alive is None else alive.stride(0),
        NORM=found.norm,
        LIVE=alive is not None,
        STORE=out is not None,
        TM=tm,
        TB=tb,
        TU=wide,
        num_warps=4,
    )
