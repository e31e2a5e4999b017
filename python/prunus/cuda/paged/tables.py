"""Tables on disk, a row for each unit, and tensors on a GPU: ``linear``, ``ffn``, experts.

As :mod:`prunus.paged.tables`, on tensors: a table that decides streams whole, and which units are live is
decided on the GPU; of the others only rows of units that any row of the batch needs leave the disk. Which
these are is read back once, when the first table asks: a disk is read by the host.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from prunus._dtypes import Array
from prunus._layout import blocks_along
from prunus.cuda import dense, dtypes, policies, rows
from prunus.cuda.branches import Found, settle
from prunus.cuda.deciding import room, spread
from prunus.cuda.finishing import finish
from prunus.cuda.paged.units import (
    ALIGNED,
    Got,
    Live,
    Parts,
    Piece,
    chosen,
    columns,
    live_of,
    neighbours,
    stream,
)
from prunus.cuda.runtime import Place, empty
from prunus.cuda.streaming import Ring, borrowed
from prunus.paged.tables import Table, live_units
from prunus.pruning.policies import Fixed, Policy

if TYPE_CHECKING:
    import torch

__all__ = ["Judged", "combine", "contribute", "find", "foreseen", "linear", "project"]


class Judged:
    """Which branches are live: for each row on the GPU, and for any row on the host, when that is asked for.

    Parameters
    ----------
    each : Tensor of bool
        Shape (rows, branches).
    branch : int
        Units of a branch.
    mask : ndarray of bool, optional
        What the host knows of it: (rows, branches), or (1, branches) for all rows.
    """

    def __init__(self, each: torch.Tensor, branch: int, mask: Array | None = None) -> None:
        self.each, self.branch = each, branch
        self._live: Live | None = None
        if mask is not None:
            same = len(mask) == 1 or mask.strides[0] == 0
            self._live = Live(each, np.logical_or.reduce(mask, axis=0), same)

    @property
    def live(self) -> Live:
        """What a disk is read by; waits for the GPU the first time."""
        if self._live is None:
            self._live = Live(self.each, read_back(self.each), len(self.each) == 1)
        return self._live


def read_back(each: torch.Tensor) -> Array:
    """Wait for the GPU: which branches any row needs."""
    needed: Array = each.any(dim=0).cpu().numpy()
    return needed


def foreseen(where: Place, policy: Policy, x: torch.Tensor, units: int, branch: int) -> Judged | None:
    """Return what a policy knows before anything is multiplied, or None."""
    branches = blocks_along(units, branch)
    each = policies.foreseen(policy, x, branches, where)
    if each is None:
        return None
    return Judged(each, branch, policy._fit(len(x), branches) if isinstance(policy, Fixed) else None)


def find(
    where: Place,
    policy: Policy,
    x: torch.Tensor,
    w: Table,
    out: torch.Tensor,
    branch: int,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    clear: bool = True,
) -> tuple[Judged, bool]:
    """Compute units, and which branches of them are live; as :func:`prunus.cuda.deciding.find`.

    Returns
    -------
    live : Judged
        Which are.
    known : bool
        Whether the policy foresaw it.

    Raises
    ------
    OSError
        If the file cannot be read; nothing is under way then.
    PrunusError
        If the pager's budget is too small, or the call is captured in a CUDA graph.
    MemoryError
        If there is no room for buffers.
    """
    units = len(w)
    judged = foreseen(where, policy, x, units, branch)
    if judged is not None:
        project(where, x, w, out, judged, bias, activation, clear=clear)
        return judged, True
    sums = rows.sums_of(x.dtype, dtypes.torch_of(w.dtype), out.dtype)
    found = room(where, policy, len(x), units, branch, sums)
    with borrowed(where, w.row_bytes) as ring:
        most = _most(ring, w)
        step = most // branch * branch or most
        # Branches that no piece has whole are judged when all of them are there.
        late = step % branch != 0 and step < units
        target = out if not late or out.dtype == sums else empty(tuple(out.shape), sums, where)
        with closing(stream(ring, w, step, branch)) as pieces:
            for at, table in pieces:
                rows.dots(
                    where,
                    x,
                    table,
                    target[:, at],
                    bias=None if bias is None else bias[at],
                    activation=activation,
                    found=None if late else _part_of(found, at),
                )
    if late:
        settle(where, target, out, found)
    if found.live is not None:
        return Judged(found.live, branch), False
    live = policies.decide(policy, found.norms, where=where)
    if clear:
        out.masked_fill_(~spread(live, branch, units), 0)
    return Judged(live, branch), False


def project(
    where: Place,
    x: torch.Tensor,
    w: Table,
    out: torch.Tensor,
    live: Judged | None = None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    scale: torch.Tensor | None = None,
    *,
    clear: bool = True,
) -> None:
    """Write ``activation(x @ w.T + bias) * scale`` where it is live; as :func:`prunus.cuda.rows.dots`.

    Raises
    ------
    OSError, PrunusError, MemoryError
        As :func:`find`.
    """
    if live is not None and clear:
        out.zero_()
    with borrowed(where, _least(w)) as ring, closing(_pieces(ring, w, live)) as pieces:
        for piece, got, part in pieces:
            (table,), at = got.tables, _slice(piece)
            apart = got.units is not None
            h = empty((len(x), len(piece.units)), out.dtype, where) if apart else out[:, at]
            rows.dots(
                where,
                x,
                table,
                h,
                part,
                piece.branch,
                None if bias is None else columns(bias[None], piece, got.units)[0],
                activation,
                None if scale is None else columns(scale, piece, got.units),
                clear=clear,
            )
            if got.units is not None:
                out.index_copy_(1, got.units, h)


def linear(
    where: Place,
    x: torch.Tensor,
    w: Table,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Write ``activation(x @ w.T + bias)``, every unit; as :func:`prunus.cuda.dense.linear`.

    Raises
    ------
    OSError, PrunusError, MemoryError
        As :func:`find`.
    """
    with borrowed(where, w.row_bytes) as ring, closing(stream(ring, w, _most(ring, w), 1)) as pieces:
        for at, table in pieces:
            part = None if bias is None else bias[at]
            out[:, at].copy_(dense.linear(where, x, table, part, out.dtype, activation))


def combine(
    where: Place,
    h: torch.Tensor,
    w: Table,
    out: torch.Tensor,
    live: Judged | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Write ``h @ w + bias`` over live units; as :func:`prunus.cuda.rows.combine`.

    Raises
    ------
    OSError, PrunusError, MemoryError
        As :func:`find`.
    """
    kind = rows.sums_of(h.dtype, dtypes.torch_of(w.dtype), out.dtype)
    sums = out if out.dtype == kind and bias is None else empty(tuple(out.shape), kind, where)
    begun = False
    with borrowed(where, _least(w)) as ring, closing(_pieces(ring, w, live)) as pieces:
        for piece, got, part in pieces:
            (table,) = got.tables
            mine = columns(h, piece, got.units)
            rows.combine(where, mine, table, sums, part, piece.branch, add=begun)
            begun = True
    if not begun:
        sums.zero_()
    if sums is not out:
        finish(where, sums.T, out.T, bias)


def contribute(
    where: Place,
    h: torch.Tensor,
    w: Table,
    out: torch.Tensor,
    live: Judged | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Write ``h @ w.T + bias`` where only live units take part; as :func:`prunus.cuda.dense.contribute`.

    For weights (out, units) that lie by outputs: they are read whole.

    Raises
    ------
    OSError, PrunusError, MemoryError
        As :func:`find`.
    """
    with borrowed(where, w.row_bytes) as ring, closing(stream(ring, w, _most(ring, w), 1)) as pieces:
        for at, table in pieces:
            part = empty((len(h), len(table)), out.dtype, where)
            some = None if bias is None else bias[at]
            if live is None:
                dense.linear(where, h, table, some, out.dtype, out=part)
            else:
                dense.contribute(where, h, table, part, live.each, live.branch, some)
            out[:, at].copy_(part)


def _pieces(
    ring: Ring, table: Table, live: Judged | None
) -> Generator[tuple[Piece, Got, torch.Tensor | None], None, None]:
    """Yield the pieces with units that are wanted, on their way, and which of them are live for each row."""
    units, branch = len(table), 1 if live is None else live.branch
    found = None if live is None else live.live
    needed = None if found is None else live_units(np.flatnonzero(found.any), branch, units)
    whole = needed is None or table.is_coming or table.is_mostly(needed)
    if not whole:
        table.forget()  # fewer are live than whoever began it thought: its memory is wanted
    most = max((ring.size - 4 * ALIGNED) // (table.row_bytes + 2 * 8), 1)
    if found is None or whole:
        plan = list(neighbours(units, most, branch))
    else:
        plan = list(chosen(np.flatnonzero(found.any), most, branch, units))
    with closing(Parts([table], plan, whole, branch)) as source:
        for piece, there in ring.pieces(plan, source.fill):
            got = source.split(piece, there)
            yield piece, got, live_of(found, piece, got.branches, branch)


def _slice(piece: Piece) -> slice:
    return slice(int(piece.units[0]), int(piece.units[-1]) + 1)


def _most(ring: Ring, w: Table) -> int:
    """Return how many rows of a table a buffer holds."""
    return max(ring.size // max(w.row_bytes, 1), 1)


def _least(w: Table) -> int:
    """Return the bytes that a buffer must have: a row, and which unit and branch it is of."""
    return w.row_bytes + 8 * ALIGNED


def _part_of(found: Found, at: slice) -> Found:
    part = slice(at.start // found.branch, blocks_along(at.stop, found.branch))
    return found._replace(
        norms=found.norms[:, part], live=None if found.live is None else found.live[:, part]
    )
