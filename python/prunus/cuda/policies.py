"""Policies on a device: which branches are live, decided there from tensors of statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunus._errors import PrunusError
from prunus.cuda.runtime import place_of
from prunus.cuda.transfer import upload
from prunus.cuda.versions import libraries
from prunus.pruning.policies import Fixed, Policy, Threshold, TopK

if TYPE_CHECKING:
    import torch

__all__ = ["decide", "foreseen"]


def decide(
    policy: Policy, norms: torch.Tensor, visible: torch.Tensor | None = None, norm: str | None = None
) -> torch.Tensor:
    """Return which branches are live (rows, branches); as :func:`prunus.pruning.policies.decide`.

    Raises
    ------
    PrunusError
        If the policy is none that is known here.
    """
    torch = libraries().torch
    if type(policy) is Threshold and policy.rows == 1:
        live = ~(norms.double() <= policy.tau)
    elif type(policy) is TopK and policy.rows == 1:
        rows, branches = norms.shape
        seen = torch.full((rows,), branches, device=norms.device) if visible is None else visible.sum(1)
        if policy.count is not None:
            wanted = seen.clamp(max=min(policy.count, branches))
        else:
            assert policy.fraction is not None
            share = (policy.fraction * seen.double() * (1 - 1e-12)).ceil().long()
            wanted = torch.minimum(torch.maximum(share, seen.clamp(max=1)), seen)
        # NaN comes first, of equal norms the first branch, and what is not visible last.
        order = torch.where(norms.isnan(), torch.inf, norms)
        hidden = torch.zeros_like(order, dtype=torch.bool) if visible is None else ~visible
        order = torch.where(hidden, -torch.inf, order)
        first = torch.sort(order, dim=1, descending=True, stable=True)[1]
        ranks = torch.argsort(first, dim=1)
        live = ranks < wanted[:, None]
    else:
        raise PrunusError(f"{policy!r} cannot decide on a GPU yet")
    return live if visible is None else live & visible


def foreseen(policy: Policy, x: torch.Tensor, branches: int) -> torch.Tensor | None:
    """Return what a policy knows before anything is multiplied, (rows, branches), or None."""
    if isinstance(policy, Fixed):
        live = policy.foresee(x, branches)  # only its length is looked at
        return upload(live.copy(), place_of(x))
    if type(policy).foresee is Policy.foresee:
        return None
    raise PrunusError(f"{policy!r} cannot decide on a GPU yet")
