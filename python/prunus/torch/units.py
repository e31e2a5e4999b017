"""Which hidden units are live, decided by policies in plain torch operations; it has no gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus._layout import blocks_along
from prunus.pruning.policies import Fixed, Policy, Threshold, TopK, as_policy

__all__ = ["check_policies", "live_units", "spread"]


def check_policies(
    prune: Any, experts: int, rows: int | None = None
) -> tuple[list[Policy | None], Policy | None]:
    """Return the policy of each expert, and that of shared ones, for a call with ``rows`` rows if given.

    Raises
    ------
    ValueError
        If there are not as many as experts, or one pools rows: which of them are neighbours is an accident.
    TypeError
        If one is of a kind that is not decided here.
    """
    if not isinstance(prune, (list, tuple)):
        common = _checked(prune, rows)
        return [common] * experts, common
    if len(prune) != experts:
        raise ValueError(f"prune has {len(prune)} policies for {experts} experts")
    return [_checked(one, rows) for one in prune], None


def _checked(prune: Any, rows: int | None) -> Policy | None:
    policy = as_policy(prune)
    if policy is None:
        return None
    if type(policy).select not in (Threshold.select, TopK.select, Fixed.select):
        raise TypeError(f"prune must be a Threshold, a TopK or a Fixed here, got {policy!r}")
    if policy.rows > 1:
        raise ValueError(
            f"{policy!r} pools {policy.rows} neighbouring rows, but the rows that chose an expert are "
            "neighbours by accident: moe takes policies with rows=1"
        )
    if isinstance(policy, Fixed) and policy.mask.ndim == 2 and rows not in (None, len(policy.mask)):
        raise ValueError(
            f"Fixed has a mask of shape {policy.mask.shape}: in moe one of two dimensions has a row for each "
            f"of the {rows} rows of x"
        )
    return policy


@torch.no_grad()
def live_units(
    policies: Sequence[Policy | None], h: Tensor, branch: int, at: Tensor | None, expert: Tensor | None
) -> Tensor:
    """Return live branches (copies, branches) of hidden units.

    Parameters
    ----------
    policies : sequence
        One for each expert; None: all are live.
    h : Tensor
        Shape (copies, units): activations.
    branch : int
        Units in a branch.
    at : Tensor, optional
        Which row each copy is of. None: its own.
    expert : Tensor, optional
        Which expert each copy runs through. None: there is one.
    """
    h = h.detach()
    kinds: dict[int, list[int]] = {}
    for e, policy in enumerate(policies):
        kinds.setdefault(id(policy), []).append(e)
    if len(kinds) == 1:
        return _live(policies[0], h, branch, at)
    assert expert is not None
    count = len(policies)
    live = torch.ones(h.shape[0], blocks_along(h.shape[1], branch), dtype=torch.bool, device=h.device)
    for members in kinds.values():
        mine = torch.zeros(count + 1, dtype=torch.bool, device=h.device)
        mine[members] = True
        own = _live(policies[members[0]], h, branch, at)
        live = torch.where(mine[expert][:, None], own, live)
    return live


def _live(policy: Policy | None, h: Tensor, branch: int, at: Tensor | None) -> Tensor:
    rows, branches = h.shape[0], blocks_along(h.shape[1], branch)
    if policy is None:
        return torch.ones(rows, branches, dtype=torch.bool, device=h.device)
    if isinstance(policy, Fixed):
        mask = torch.from_numpy(policy.mask).to(h.device)
        if mask.shape[-1] != branches:
            raise ValueError(f"Fixed has a mask of shape {tuple(mask.shape)}; there are {branches} branches")
        if mask.ndim == 1:
            return mask.expand(rows, branches)
        return mask if at is None else mask.index_select(0, at)
    norms = _norms(h, branch, policy.norm)
    if isinstance(policy, Threshold):
        # In double precision: a threshold that single precision cannot hold must not become another one.
        return ~(norms.double() <= policy.tau)
    assert isinstance(policy, TopK)
    wanted = policy.count
    if wanted is None:
        assert policy.fraction is not None
        # A share such as 0.1 of 30 is 3: rounding up must not see the rounding of the share.
        wanted = max(math.ceil(policy.fraction * branches * (1 - 1e-12)), 1)
    # Of equal ones the first; NaN comes before all.
    order = torch.sort(norms, dim=1, descending=True, stable=True).indices[:, : min(wanted, branches)]
    return torch.zeros_like(norms, dtype=torch.bool).scatter(1, order, True)


def _norms(h: Tensor, branch: int, norm: str) -> Tensor:
    """Return the statistic of each branch (rows, branches), in float32 or float64."""
    h = h if h.dtype == torch.float64 else h.float()
    branches = blocks_along(h.shape[1], branch)
    padded = torch.nn.functional.pad(h, (0, branches * branch - h.shape[1]))
    each = padded.reshape(h.shape[0], branches, branch)
    return each.abs().amax(-1) if norm == "max" else each.square().sum(-1).sqrt()


def spread(live: Tensor, branch: int, units: int) -> Tensor:
    """Return live units (rows, units) of live branches."""
    return live if branch == 1 else live.repeat_interleave(branch, 1)[:, :units]
