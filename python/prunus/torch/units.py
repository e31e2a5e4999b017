"""Which hidden units of experts are live: a policy for each expert; it has no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.pruning.policies import Fixed, Policy, Threshold, TopK, as_policy
from prunus.torch.deciding import decide, norms_of

__all__ = ["check_policies", "foreseen_units", "live_units"]


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


def foreseen_units(
    policies: Sequence[Policy | None],
    rows: int,
    branches: int,
    device: torch.device,
    at: Tensor | None,
    expert: Tensor | None,
) -> Tensor:
    """Return which branches (rows, branches) may be live by what is known before anything is multiplied.

    ``Fixed`` knows; others may let all live. ``at`` and ``expert`` are as in :func:`live_units`.
    """

    def known(policy: Policy | None) -> Tensor:
        if not isinstance(policy, Fixed):
            return torch.ones(rows, branches, dtype=torch.bool, device=device)
        mask = torch.from_numpy(policy.mask).to(
            device, copy=True
        )  # the policy may be written before backward
        if mask.shape[-1] != branches:
            raise ValueError(f"Fixed has a mask of shape {tuple(mask.shape)}; there are {branches} branches")
        if mask.ndim == 1:
            return mask.expand(rows, branches)
        return mask if at is None else mask.index_select(0, at)

    return _each([one if isinstance(one, Fixed) else None for one in policies], known, expert)


@torch.no_grad()
def live_units(
    policies: Sequence[Policy | None], h: Tensor, branch: int, reach: Tensor, expert: Tensor | None
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
    reach : Tensor of bool
        Shape (copies, branches): what :func:`foreseen_units` says.
    expert : Tensor, optional
        Which expert each copy runs through. None: there is one.
    """
    h = h.detach()

    def decided(policy: Policy | None) -> Tensor:
        if policy is None or isinstance(policy, Fixed):
            return reach
        return decide(policy, norms_of(h, branch, policy.norm))

    return _each(policies, decided, expert)


def _each(policies: Sequence[Policy | None], ask: Callable[[Policy | None], Tensor], expert: Any) -> Tensor:
    """Return what each copy's policy says; one that many experts have is asked once."""
    kinds: dict[int, list[int]] = {}
    for e, policy in enumerate(policies):
        kinds.setdefault(0 if policy is None else id(policy), []).append(e)
    live: Tensor | None = None
    for members in kinds.values():
        own = ask(policies[members[0]])
        if live is None:
            live = own
            continue
        mine = torch.zeros(len(policies) + 1, dtype=torch.bool, device=own.device)
        mine[members] = True
        live = torch.where(mine[expert][:, None], own, live)
    assert live is not None
    return live
