"""``LearnedThreshold``: what decides which branches are live, trained with the rest of a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from prunus.pruning._checks import check_bound, check_count, check_norm
from prunus.pruning.policies import Threshold
from prunus.torch.pruned import check_window, gate

__all__ = ["LearnedThreshold"]


class LearnedThreshold(torch.nn.Module):
    """A threshold that learns, for ``prune=`` of ``ffn`` and :class:`PrunedFFN`, or a layer by itself.

    A branch is live unless its norm is at most ``tau = exp(log_tau)``. How ``tau`` learns is told at
    :func:`prunus.torch.gate`: it rises where that lowers the loss, so a penalty on what is live
    (:func:`prunus.torch.live_penalty`) raises it until the loss objects.

    Parameters
    ----------
    tau : float, default 0.05
        Where it begins, above 0: about the norm of branches that matter little.
    branches : int, optional
        A threshold for each branch; None: one for all.
    bandwidth : float, default 0.05
        Width of the window that gradients are estimated from, in units of the norm.
    norm : {"max", "l2"}
        Largest absolute value, or root of the sum of squares, of a branch.
    device, dtype
        Of the parameter; float32 by default, whatever the layer has: steps of thresholds are small.

    Attributes
    ----------
    log_tau : Parameter
        Shape () or (branches,).

    Raises
    ------
    ValueError
        If a number is out of range, or ``norm`` unknown.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> pt.LearnedThreshold(0.5)(torch.tensor([0.2, 0.7]))
    tensor([0.0000, 0.7000], grad_fn=<...>)
    """

    bandwidth: float
    norm: str

    def __init__(
        self,
        tau: float = 0.05,
        branches: int | None = None,
        bandwidth: float = 0.05,
        norm: str = "max",
        device: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        start = check_bound(tau, "tau")
        if not start:
            raise ValueError("tau must be above 0: its logarithm learns")
        self.bandwidth, self.norm = check_window(bandwidth), check_norm(norm)
        shape = () if branches is None else (check_count(branches, "branches"),)
        self.log_tau = torch.nn.Parameter(torch.full(shape, math.log(start), device=device, dtype=dtype))

    @property
    def tau(self) -> Tensor:
        """The threshold."""
        return self.log_tau.exp()

    def policy(self) -> Threshold:
        """Return ``prunus.Threshold`` at what was learned, for inference; of one threshold only.

        Raises
        ------
        ValueError
            If there is one for each branch.
        """
        if self.log_tau.ndim:
            raise ValueError("a policy has one threshold, here is one for each branch")
        return Threshold(float(self.tau.detach()), norm=self.norm)

    def forward(self, a: Tensor, branch: int = 1) -> Tensor:
        """Return activations (*lead, units), 0 where dead: see :func:`prunus.torch.gate`."""
        return gate(a, self.tau, branch=branch, norm=self.norm, bandwidth=self.bandwidth)

    def extra_repr(self) -> str:
        """Return what it was made with."""
        shape = f"branches={len(self.log_tau)}, " if self.log_tau.ndim else ""
        return f"{shape}bandwidth={self.bandwidth:g}, norm={self.norm!r}"
