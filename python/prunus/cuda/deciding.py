"""Units of a layer, and which branches of them are live: what a policy foresees, or what it says of norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunus._layout import blocks_along
from prunus.cuda.branches import Found, settle
from prunus.cuda.policies import decide, foreseen
from prunus.cuda.rows import dots, sums_of
from prunus.cuda.runtime import Place, empty
from prunus.cuda.versions import libraries
from prunus.pruning.policies import Policy, Threshold

if TYPE_CHECKING:
    import torch

__all__ = ["decides_as_stored", "find", "judge", "room", "spread"]


def spread(live: torch.Tensor, branch: int, units: int) -> torch.Tensor:
    """Return the liveness of every unit (rows, units) from that of branches."""
    if branch == 1:
        return live
    rows, branches = live.shape
    wide = live[:, :, None].expand(rows, branches, branch)
    return wide.reshape(rows, branches * branch)[:, :units]


def decides_as_stored(policy: Policy) -> bool:
    """Say whether a kernel decides as it stores: then dead units are 0.

    A class derived from Threshold may select otherwise.
    """
    return isinstance(policy, Threshold) and type(policy).select is Threshold.select and policy.rows == 1


def room(where: Place, policy: Policy, rows: int, units: int, branch: int, sums: object) -> Found:
    """Return room for norms, and for liveness where a kernel decides."""
    shape = rows, blocks_along(units, branch)
    norms = empty(shape, sums, where)
    if isinstance(policy, Threshold) and decides_as_stored(policy):
        live = empty(shape, libraries().torch.bool, where)
        return Found(branch, policy.norm, norms, live, float(policy.tau))
    return Found(branch, policy.norm, norms)


def find(
    where: Place,
    policy: Policy,
    x: torch.Tensor,
    w: torch.Tensor,
    out: torch.Tensor,
    branch: int,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    ask: bool = True,
    clear: bool = True,
) -> tuple[torch.Tensor, bool]:
    """Compute units, and which branches of them are live; as :func:`prunus.pruning._rows.find`.

    What the policy foresees is all that is computed. A threshold is decided as the units are stored, other
    policies see the norms of all rows afterwards; nothing is read back in either case.

    Parameters
    ----------
    where : Place
        Where the operands live.
    policy : Policy
        Who decides.
    x : Tensor
        Shape (rows, k), floats, any strides.
    w : Tensor
        Shape (units, k).
    out : Tensor
        Shape (rows, units), the last axis contiguous: written.
    branch : int
        Units in a branch.
    bias : Tensor, optional
        Shape (units,).
    activation : str, optional
        "relu", "gelu" or "silu".
    ask : bool
        Whether the policy may foresee.
    clear : bool
        Whether dead units are 0 in ``out``; else what they hold may be anything.

    Returns
    -------
    live : Tensor of bool
        Shape (rows, branches).
    known : bool
        Whether the policy foresaw it.
    """
    rows, units = (int(size) for size in out.shape)
    live = foreseen(policy, x, blocks_along(units, branch), where) if ask else None
    if live is not None:
        dots(where, x, w, out, live, branch, bias, activation, clear=clear)
        return live, True
    found = room(where, policy, rows, units, branch, sums_of(x.dtype, w.dtype, out.dtype))
    dots(where, x, w, out, None, branch, bias, activation, None, found)
    if found.live is not None:
        return found.live, False
    live = decide(policy, found.norms, where=where)
    if clear:
        out.masked_fill_(~spread(live, branch, units), 0)
    return live, False


def judge(where: Place, policy: Policy, h: torch.Tensor, branch: int) -> torch.Tensor:
    """Return which branches of ``h`` (rows, units), in the dtype that sums have, are live."""
    rows, units = (int(size) for size in h.shape)
    found = room(where, policy, rows, units, branch, h.dtype)
    settle(where, h, None, found)
    return decide(policy, found.norms, where=where) if found.live is None else found.live
