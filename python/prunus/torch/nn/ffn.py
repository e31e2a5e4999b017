"""``PrunedFFN``: a feed-forward layer that skips dead hidden units in training and in inference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from prunus._device import on_device
from prunus._layout import blocks_along
from prunus.interop.torch import as_array
from prunus.pruning.packed import FFN
from prunus.pruning.policies import Fixed, Policy
from prunus.torch.functional import activate
from prunus.torch.pruned import (
    as_policy_or_learned,
    check_decide,
    check_width,
    feed_forward,
    penalty_of,
)

__all__ = ["PrunedFFN", "live_penalty"]


class PrunedFFN(torch.nn.Module):
    """A feed-forward layer whose dead hidden units are skipped, forward and backward.

    ``down(activation(up x))``, or gated ``down(activation(gate x) * up x)``: see :func:`prunus.torch.ffn`.

    Parameters
    ----------
    d_model : int
        Length of an input.
    hidden : int
        Hidden units.
    d_out : int, optional
        Length of an output; ``d_model`` by default.
    gated : bool
        Whether there is a gate.
    activation : {"relu", "gelu", "silu"} or None
        Of the gate, or of the up-projection.
    prune : policy, mask, function or LearnedThreshold, optional
        What decides; ``prunus.Threshold(0.0)`` by default. A mask, and ``Fixed``, become the buffer ``mask``,
        which moves with the layer and is not part of its state.
    branch : int, default 1
        Neighbouring hidden units that live and die together.
    bias : bool
        Whether there are biases ``b_up`` and ``b_down``.
    decide : {"up", "gate", "predictor"}, optional
        Which product decides; the gate by default, where there is one.
    straight_through : bool
        Whether gradients flow as if nothing had been pruned.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    w_up, w_gate : Parameter
        Shape (hidden, d_model); initialised as ``torch.nn.Linear``'s.
    w_down : Parameter
        Shape (d_out, hidden).
    b_up, b_down : Parameter or None
        Shapes (hidden,) and (d_out,).
    live_fraction : Tensor or None
        Share of rows' branches that were live in the last call: a tensor, so that nothing waits for it.

    Raises
    ------
    ValueError, TypeError
        If sizes, names or the policy are not what they can be.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> layer = pt.nn.PrunedFFN(8, 32, prune=pr.TopK(fraction=0.25), branch=4)
    >>> y = layer(torch.randn(3, 8))
    >>> y.shape, layer.live_fraction
    (torch.Size([3, 8]), tensor(0.2500))
    >>> loss = y.square().mean() + 0.01 * pt.live_penalty(layer)
    >>> loss.backward()
    """

    mask: Tensor | None
    live_fraction: Tensor | None
    _penalty: Tensor | None
    # The mask in host memory while the buffer is on the meta device, which holds no values.
    _host: Tensor | None

    def __init__(
        self,
        d_model: int,
        hidden: int,
        d_out: int | None = None,
        gated: bool = False,
        activation: str | None = "relu",
        prune: Any = None,
        branch: int = 1,
        bias: bool = True,
        decide: str | None = None,
        straight_through: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        like = {"device": device, "dtype": dtype}
        out = d_model if d_out is None else d_out
        self.w_up = torch.nn.Parameter(torch.empty(hidden, d_model, **like))
        self.w_down = torch.nn.Parameter(torch.empty(out, hidden, **like))
        self.register_parameter(
            "w_gate", torch.nn.Parameter(torch.empty(hidden, d_model, **like)) if gated else None
        )
        for name, length in (("b_up", hidden), ("b_down", out)):
            made = torch.nn.Parameter(torch.empty(length, **like)) if bias else None
            self.register_parameter(name, made)
        self._configure(activation, prune, branch, decide, straight_through, device)
        self.reset_parameters()

    def _configure(
        self,
        activation: str | None,
        prune: Any,
        branch: int,
        decide: str | None,
        straight_through: bool,
        device: Any,
    ) -> None:
        """Set what is no weight."""
        activate(activation)
        self.activation = activation
        self.branch = check_width(branch, self.hidden)
        self.decide = check_decide(decide, self.gated)
        self.straight_through = bool(straight_through)
        mask: Tensor | None = None
        prune = as_policy_or_learned(prune)
        self._host = None
        if type(prune) is Fixed:
            mask = torch.tensor(prune.mask, device=device)
            if mask.is_meta:
                self._host = torch.tensor(prune.mask, device="cpu")
        elif isinstance(getattr(prune, "mask", None), Tensor):
            mask = prune.mask
        if straight_through and not isinstance(prune, Policy):
            raise ValueError(
                "straight_through is for policies: a LearnedThreshold has an estimate of its own"
            )
        branches = blocks_along(self.hidden, self.branch)
        if mask is not None and mask.shape[-1:] != (branches,):
            raise ValueError(f"the mask has shape {tuple(mask.shape)}; there are {branches} branches")
        self.register_buffer("mask", mask, persistent=False)
        self.prune = None if mask is not None else prune
        self.live_fraction = self._penalty = None

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return int(self.w_up.shape[0])

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self.w_gate is not None

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, as ``torch.nn.Linear`` does."""
        for w, b in ((self.w_up, self.b_up), (self.w_gate, None), (self.w_down, self.b_down)):
            if w is None:
                continue
            bound = 1 / math.sqrt(w.shape[1]) if w.shape[1] else 0.0
            torch.nn.init.uniform_(w, -bound, bound)
            if b is not None:
                torch.nn.init.uniform_(b, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (*lead, d_out) for ``x`` (*lead, d_model).

        Raises
        ------
        ValueError, TypeError
            As :func:`prunus.torch.ffn`; and if there are both a mask and a policy.
        """
        if self.mask is not None and self.prune is not None:
            raise ValueError("there are a mask and a policy: set layer.mask or layer.prune to None")
        passed = feed_forward(
            x,
            self.w_up,
            self.w_down,
            self.w_gate,
            self.b_up,
            self.b_down,
            self.activation,
            self.prune if self.mask is None else self.mask,
            self.branch,
            self.decide,
            self.straight_through,
        )
        if not _is_exported():  # a program has no attributes
            with torch.no_grad():
                self.live_fraction = passed.live.sum() / max(passed.live.numel(), 1)
        # What is recorded holds the graph: only where somebody trains.
        self._penalty = None
        if self.training and torch.is_grad_enabled():
            norm = getattr(self.prune, "norm", "max")
            penalty = penalty_of(passed, self.branch, norm)
            # A checkpoint that runs it again, in the backward pass, has saved this much and wants it again.
            # Kept, it would be the very graph that was to be spared.
            if not _is_in_backward():
                self._penalty = penalty
        return passed.y

    # Other forms -------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        linear_up: torch.nn.Linear,
        linear_down: torch.nn.Linear,
        linear_gate: torch.nn.Linear | None = None,
        *,
        activation: str | None = "relu",
        prune: Any = None,
        branch: int = 1,
        decide: str | None = None,
        straight_through: bool = False,
    ) -> Self:
        """Return a layer of the very parameters of dense ones: what trains them trains it, nothing is copied.

        Parameters
        ----------
        linear_up, linear_gate : torch.nn.Linear
            From d_model to hidden units; the gate has no bias.
        linear_down : torch.nn.Linear
            From hidden units to outputs.
        activation, prune, branch, decide, straight_through
            As of the class.

        Raises
        ------
        TypeError
            If something else than a ``torch.nn.Linear`` comes.
        ValueError
            If sizes do not fit, or the gate has a bias.
        """
        gate = linear_gate
        for one, name in ((linear_up, "linear_up"), (linear_down, "linear_down"), (gate, "linear_gate")):
            if not isinstance(one, torch.nn.Linear) and not (one is None and name == "linear_gate"):
                raise TypeError(f"{name} must be a torch.nn.Linear, got {type(one).__name__}")
        if linear_down.in_features != linear_up.out_features:
            raise ValueError(
                f"linear_down takes {linear_down.in_features} units, linear_up gives {linear_up.out_features}"
            )
        if gate is not None and gate.bias is not None:
            raise ValueError("linear_gate has a bias, which gates of a PrunedFFN have not")
        if gate is not None and gate.weight.shape != linear_up.weight.shape:
            raise ValueError(
                f"linear_gate has weights {tuple(gate.weight.shape)}, "
                f"linear_up {tuple(linear_up.weight.shape)}"
            )
        self = cls.__new__(cls)
        torch.nn.Module.__init__(self)
        parts = {
            "w_up": linear_up.weight,
            "w_down": linear_down.weight,
            "w_gate": None if gate is None else gate.weight,
            "b_up": linear_up.bias,
            "b_down": linear_down.bias,
        }
        for name, part in parts.items():
            self.register_parameter(name, part)
        where = linear_up.weight.device
        self._configure(activation, prune, branch, decide, straight_through, where)
        return self

    def pack(self, dtype: Any = None) -> Any:
        """Return a ``prunus.FFN`` of copies of the weights, for inference: packed as ``decide`` says.

        Its calls take activation, policy and branch; on a GPU it is a ``prunus.cuda.FFN``.

        Parameters
        ----------
        dtype : dtype-like, optional
            To keep the weights in; their own by default.
        """
        parts = [self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down]
        given: list[Any] = [None if part is None else part.detach() for part in parts]
        if not on_device(given[0]):
            given = [None if part is None else as_array(part) for part in given]
        up, down, gate, b_up, b_down = given
        return FFN.pack(up, down, gate, self.decide, dtype, b_up=b_up, b_down=b_down)

    # Module ------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert parameters, and move the mask, which no conversion of dtype or memory changes."""
        mask = self.mask if self._host is None else self._host
        super()._apply(fn, recurse)
        if self.mask is None or mask is None:
            return self
        if self.mask.is_meta:  # it holds no values there
            self._host = None if mask.is_meta else mask.cpu()
            self.mask = mask.to("meta")
        else:
            self._host = None
            # `to_empty` gives memory without values, `type` another dtype.
            if self.mask is not mask and not mask.is_meta:
                self.mask = mask.to(self.mask.device)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set whether it trains; in evaluation what was recorded goes, and its graph with it."""
        if not mode:
            self._penalty = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: not what the last call left, which belongs to its graph."""
        return {**self.__dict__, "live_fraction": None, "_penalty": None}

    def extra_repr(self) -> str:
        """Return sizes, and what decides."""
        prune = f"mask of {tuple(self.mask.shape)}" if self.mask is not None else repr(self.prune)
        learned = isinstance(self.prune, torch.nn.Module)
        parts = [
            f"{self.w_up.shape[1]} -> {self.hidden} -> {self.w_down.shape[0]}",
            f"gated={self.gated}" if self.gated else "",
            f"activation={self.activation!r}",
            "" if learned else f"prune={prune}",
            f"branch={self.branch}",
            f"bias={self.b_up is not None}",
            f"decide={self.decide!r}" if self.gated or self.decide == "predictor" else "",
            "straight_through=True" if self.straight_through else "",
        ]
        return ", ".join(part for part in parts if part)


def _is_in_backward() -> bool:
    """Say whether a backward pass is running: a checkpoint computes again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _is_exported() -> bool:
    """Say whether torch.export is looking.

    Not by ``torch.compiler.is_exporting()``, which torch 2.11's compiler takes for true whatever it traces.
    """
    return bool(torch.compiler._is_exporting_flag)


def live_penalty(model: torch.nn.Module) -> Tensor:
    """Return the sum, over a model's PrunedFFNs, of what is live: add it to the loss, and more dies.

    For each layer the mean over rows and branches of the norms of live branches, in its last forward in
    training: an L1 penalty on what decides, as of sparse autoencoders. Gradients reach live branches, which
    they make smaller, and thresholds that learn, which they raise.

    Parameters
    ----------
    model : torch.nn.Module
        One that has run in training mode with gradients since it was made, copied or evaluated.

    Returns
    -------
    Tensor
        A scalar, float32 or float64, in the graph of the last forward.

    Raises
    ------
    ValueError
        If it has no PrunedFFN, or one that has recorded nothing.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> layer = pt.nn.PrunedFFN(4, 16)
    >>> _ = layer(torch.randn(2, 4))
    >>> pt.live_penalty(layer).requires_grad
    True
    """
    layers = [one for one in model.modules() if isinstance(one, PrunedFFN)]
    if not layers:
        raise ValueError("the model has no PrunedFFN")
    found = [one._penalty for one in layers]
    if any(one is None for one in found):
        raise ValueError(
            "a PrunedFFN has recorded nothing: run the model in training mode, with gradients, before this"
        )
    return torch.stack([one for one in found if one is not None]).sum()
