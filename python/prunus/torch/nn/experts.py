"""``MoE``: a mixture of experts with its router."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from prunus.pruning._checks import check_count
from prunus.torch.experts import load_balancing_loss, moe
from prunus.torch.functional import activate, without_autocast
from prunus.torch.units import check_policies

__all__ = ["MoE"]


class MoE(torch.nn.Module):
    """A feed-forward layer of experts, of which each row runs through the ``top_k`` that a router chooses.

    No row is dropped; only chosen experts are multiplied, forward and backward: see
    :func:`prunus.torch.moe`. Weights are initialised uniformly within ``1 / sqrt(fan in)`` of an expert, as
    those of ``torch.nn.Linear``.

    Parameters
    ----------
    d_model : int
        Features of rows and results.
    hidden : int
        Hidden units of an expert.
    experts : int
        How many there are.
    top_k : int, default 2
        Experts for each row.
    gated : bool, default False
        Whether experts have a gate: ``(activation(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T``.
    activation : {"relu", "gelu", "silu"} or None
        "relu" unless told.
    renormalize : bool, default True
        Whether the weights of a row's experts sum to 1.
    prune : policy, or a list with one for each expert, optional
        Which hidden units are live: ``Threshold``, ``TopK`` or ``Fixed``.
    branch : int, default 1
        Hidden units that live and die together.
    device, dtype : optional
        Of parameters, as torch's modules take them.

    Attributes
    ----------
    router : Parameter
        Shape (experts, d_model).
    w_up, w_gate : Parameter
        Shape (experts, hidden, d_model); ``w_gate`` is None without gates.
    w_down : Parameter
        Shape (experts, d_model, hidden).

    Raises
    ------
    ValueError, TypeError
        If a size is no positive integer, ``top_k`` is more than ``experts``, or ``activation`` or ``prune``
        are not known.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> layer = pt.nn.MoE(16, 64, experts=8, top_k=2, gated=True, activation="silu")
    >>> y, balance = layer(torch.randn(3, 10, 16), with_loss=True)
    >>> (y.square().mean() + 0.01 * balance).backward()
    >>> layer.router.grad.shape
    torch.Size([8, 16])
    """

    def __init__(
        self,
        d_model: int,
        hidden: int,
        experts: int,
        top_k: int = 2,
        gated: bool = False,
        activation: str | None = "relu",
        *,
        renormalize: bool = True,
        prune: Any = None,
        branch: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = ((d_model, "d_model"), (hidden, "hidden"), (experts, "experts"), (top_k, "top_k"))
        self.d_model, self.hidden, self.experts, self.top_k = (check_count(n, name) for n, name in sizes)
        if self.top_k > self.experts:
            raise ValueError(f"top_k must be from 1 to the number of experts, {experts}; got {top_k}")
        activate(activation)  # raises where there is none of that name
        check_policies(prune, self.experts)
        self.activation, self.renormalize = activation, bool(renormalize)
        self.prune, self.branch = prune, check_count(branch, "branch")

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.router = parameter(self.experts, self.d_model)
        self.w_up = parameter(self.experts, self.hidden, self.d_model)
        if gated:
            self.w_gate = parameter(self.experts, self.hidden, self.d_model)
        else:
            self.register_parameter("w_gate", None)
        self.w_down = parameter(self.experts, self.d_model, self.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters anew."""
        for weight in self.parameters():
            bound = 1 / math.sqrt(weight.shape[-1])
            torch.nn.init.uniform_(weight, -bound, bound)

    def logits(self, x: Tensor) -> Tensor:
        """Return the router's logits (*B, experts) of rows (*B, d_model), in float32 or float64."""
        wide = torch.float64 if torch.float64 in (x.dtype, self.router.dtype) else torch.float32
        return without_autocast(x.to(wide), self.router.to(wide))

    def forward(self, x: Tensor, with_loss: bool = False) -> Any:
        """Return the experts' mixture for rows, and if asked how unevenly they were chosen.

        Parameters
        ----------
        x : Tensor
            Shape (*B, d_model).
        with_loss : bool, default False
            Return also :func:`prunus.torch.load_balancing_loss`, to be added to the model's loss.

        Returns
        -------
        Tensor, or tuple of Tensor
            Shape (*B, d_model); with ``with_loss`` also one value.
        """
        if not x.ndim or x.shape[-1] != self.d_model:
            raise ValueError(f"expected x (*B, {self.d_model}), got shape {tuple(x.shape)}")
        logits = self.logits(x)
        y = moe(
            x,
            None,
            self.w_up,
            self.w_down,
            self.w_gate,
            self.top_k,
            logits=logits,
            activation=self.activation,
            renormalize=self.renormalize,
            prune=self.prune,
            branch=self.branch,
        )
        return (y, load_balancing_loss(logits, self.top_k)) if with_loss else y

    def extra_repr(self) -> str:
        """Return what is said of it when it is printed."""
        parts = [f"{self.d_model}, {self.hidden}, experts={self.experts}, top_k={self.top_k}"]
        if self.w_gate is not None:
            parts.append("gated=True")
        parts.append(f"activation={self.activation!r}")
        if self.prune is not None:
            parts.append(f"prune={self.prune!r}")
        return ", ".join(parts)
