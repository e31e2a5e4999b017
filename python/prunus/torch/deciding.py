"""Which branches of tensors are live: policies of :mod:`prunus.pruning.policies`, asked about tensors.

Thresholds, TopK and masks are tensor operations that compile. A predictor and what a user wrote are asked as
elsewhere in the package, once an operation, in code that ``torch.compile`` does not look into.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus._device import on_device
from prunus._layout import blocks_along
from prunus.pruning import policies
from prunus.pruning.policies import Fixed, Policy, Threshold, TopK
from prunus.torch.ops import live as ops
from prunus.torch.ops.kernels import host

__all__ = ["as_prune", "decide", "foreseen", "largest_of", "norms_of", "sums_dtype"]


class _Mask(Policy):
    """A mask of a tensor's: it stays where it is."""

    scope = "row"

    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise TypeError(f"prune must be a policy or a mask of booleans, got dtype {mask.dtype}")
        if mask.ndim not in (1, 2):
            raise ValueError(
                f"the mask must have shape (branches,) or (rows, branches), got {tuple(mask.shape)}"
            )
        self.mask = mask

    def select(self, statistics: Any) -> Any:
        raise TypeError("a mask needs no statistics")  # it is foreseen

    def __repr__(self) -> str:
        return f"<a mask of shape {tuple(self.mask.shape)}>"


def as_prune(prune: Any) -> Policy:
    """Return a policy; of a tensor of booleans one that keeps it where it is.

    Raises
    ------
    TypeError, ValueError
        As :func:`prunus.pruning.policies.as_policy`.
    """
    if isinstance(prune, Tensor):
        return _Mask(prune)
    if isinstance(prune, torch.nn.Module):
        raise TypeError(
            f"prune must be a policy, a mask, a LearnedThreshold or a function, got the module "
            f"{type(prune).__name__}; a function of norms may call it"
        )
    # The common ones need no look, and torch.compile follows.
    if type(prune) in (Threshold, TopK, Fixed, _Mask):
        return prune
    policy = policies.as_policy(prune)
    assert policy is not None
    return policy


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that norms of values of a dtype are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norms_of(h: Tensor, branch: int, norm: str) -> Tensor:
    """Return the norms (rows, branches) of branches of ``h`` (rows, units), in float32 or float64.

    Gradients flow through; that of "max" goes to the largest value.
    """
    h = h.to(sums_dtype(h.dtype)).abs()
    rows, units = h.shape
    if branch == 1:
        return h
    branches = blocks_along(units, branch)
    if branches * branch > units:
        h = torch.nn.functional.pad(h, (0, branches * branch - units))
    if units == 0:
        return h.new_zeros((rows, 0))
    h = h.reshape(rows, branches, branch)
    most = h.amax(2)
    if norm == "max":
        return most
    # Shares of the largest value: squares of what is very large or small are out of range.
    held = most.detach()
    finite = held.isfinite()
    unit = torch.where((held > 0) & finite, held, 1)
    inner = (h / unit[:, :, None]).square().sum(2)
    # The root of 0 has no derivative: such a branch gets none.
    zero = inner == 0
    norms = torch.where(zero, 0, unit * torch.where(zero, 1, inner).sqrt())
    return torch.where(finite, norms, most)


def largest_of(h: Tensor, branch: int) -> Tensor:
    """Return the largest value of each branch of ``h`` (rows, units), in memory of its own."""
    rows, units = h.shape
    if branch == 1 or units == 0:
        return h.clone()
    branches = blocks_along(units, branch)
    if branches * branch > units:
        h = torch.nn.functional.pad(h, (0, branches * branch - units), value=-torch.inf)
    return h.reshape(rows, branches, branch).amax(2)


def decide(policy: Policy, norms: Tensor) -> Tensor:
    """Return which branches are live, in booleans, from norms (rows, branches) in float32 or float64.

    The rules are :func:`prunus.pruning.policies.decide`'s. A user's policy sees ndarrays of norms in host
    memory, and tensors on a GPU, as everywhere in the package.

    Raises
    ------
    TypeError, ValueError
        If the policy returns anything but booleans of the right shape.
    """
    rows, branches = norms.shape
    kind = type(policy).select
    if kind not in (Threshold.select, TopK.select):
        return _asked(policy, norms)
    group = min(policy.rows, max(rows, 1))
    if group > 1 and rows:
        groups = blocks_along(rows, group)
        # Past the last row, that row again.
        at = torch.arange(groups * group, device=norms.device).clamp(max=rows - 1)
        norms = norms[at].reshape(groups, group, branches).amax(1)
    if kind is Threshold.select:
        live = ops.above(norms, policy.tau)  # type: ignore[attr-defined]
    else:
        live = ops.largest(norms, _count(policy, branches))
    return live.repeat_interleave(group, 0)[:rows] if group > 1 and rows else live


def foreseen(policy: Policy, x: Tensor, branches: int) -> Tensor | None:
    """Return what a policy knows of ``x`` (rows, d) before anything is multiplied, (rows, branches), or None.

    Raises
    ------
    TypeError, ValueError
        If it is anything but booleans of that shape.
    """
    if type(policy).foresee is Policy.foresee and type(policy) is not _Mask:
        return None
    if isinstance(policy, _Mask):
        mask = policy.mask
        if mask.device != x.device:
            raise ValueError(f"x lives on {x.device}, the mask on {mask.device}: expected one device")
        expected = (branches,) if mask.ndim == 1 else (x.shape[0], branches)
        if tuple(mask.shape) != expected:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}; there are {x.shape[0]} rows of {branches} branches"
            )
        return mask.expand(x.shape[0], branches)
    return _foreseen(policy, x, branches)


@torch.compiler.disable
def _asked(policy: Policy, norms: Tensor) -> Tensor:
    norms = norms.detach()
    if on_device(norms):
        from prunus.cuda.policies import decide as there

        return there(policy, norms)
    return torch.from_numpy(np.ascontiguousarray(policies.decide(policy, host(norms))))


@torch.compiler.disable
def _foreseen(policy: Policy, x: Tensor, branches: int) -> Tensor | None:
    x = x.detach()
    if on_device(x):
        from prunus.cuda.policies import foreseen as there

        return there(policy, x, branches)
    live = policies.foreseen(policy, host(x), branches)
    # A copy where it cannot be shared: masks of policies are read-only to torch.
    return None if live is None else torch.from_numpy(np.array(live))


def _count(policy: Any, branches: int) -> int:
    if policy.count is not None:
        return min(policy.count, branches)
    # A share such as 0.1 of 30 is 3: rounding up must not see the rounding of the share.
    share = policy.fraction * branches * (1 - 1e-12)
    wanted = int(share)
    wanted += wanted < share
    return min(max(wanted, 1), branches)
