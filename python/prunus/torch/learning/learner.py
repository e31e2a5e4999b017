"""What all that change patterns have in common: layers, an optimiser, a count of steps."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from prunus.torch.learning.patterns import Change, check_states
from prunus.torch.nn.linear import BlockSparseLinear

__all__ = ["Layers", "Learner", "as_count", "strongest"]

Layers: TypeAlias = "torch.nn.Module | Mapping[str, BlockSparseLinear] | Iterable[BlockSparseLinear]"


class Learner:
    """Changes the patterns of layers every so many steps of an optimiser.

    Attributes
    ----------
    layers : dict of str to BlockSparseLinear
        The layers by name.
    steps : int
        How many times :meth:`step` was called.
    """

    layers: dict[str, BlockSparseLinear]
    steps: int

    def __init__(self, layers: Layers, optimizer: torch.optim.Optimizer | None) -> None:
        self.layers = _named(layers)
        self.optimizer = optimizer
        self.steps = 0
        for layer in self.layers.values():
            check_states(layer, optimizer)
        if optimizer is not None:
            known = {id(one) for group in optimizer.param_groups for one in group["params"]}
            if not any(id(layer.values) in known for layer in self.layers.values()):
                raise ValueError(
                    "the optimizer has no parameter of these layers: make it after sparsify_, which makes "
                    "new ones, or pass None"
                )

    def step(self) -> list[Change]:
        """Count a step, and change patterns where it is time; call it after each ``optimizer.step()``.

        Returns
        -------
        list of Change
            What became of each layer; empty where nothing was due.
        """
        self.steps += 1
        changes = []
        if self.due(self.steps):
            for layer in self.layers.values():
                check_states(layer, self.optimizer)
            changes = self._update()
        return changes

    def due(self, step: int) -> bool:
        """Say whether patterns change at a step, the first one being 1."""
        raise NotImplementedError

    def _update(self) -> list[Change]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on; patterns are in the model's state."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; load those of the model and the optimiser before."""
        self._require(state, "steps")
        self.steps = operator.index(state["steps"])

    def _require(self, state: Mapping[str, Any], name: str) -> None:
        """Raise ValueError unless a state has what this kind of learner saves."""
        if name not in state:
            raise ValueError(
                f"the state has no {name!r}: it is not of a {type(self).__name__}; it has {sorted(state)}"
            )


def strongest(norms: Tensor, count: int) -> Tensor:
    """Return the positions of the largest norms; ties: the first ones; NaN counts as the largest."""
    return torch.sort(norms.nan_to_num(torch.inf), descending=True, stable=True).indices[:count]


def norms_of(blocks: Tensor) -> Tensor:
    """Return each block's Frobenius norm, (n,), in float64."""
    return torch.linalg.vector_norm(blocks.detach(), dim=(-2, -1), dtype=torch.float64)


def as_count(value: Any, name: str, least: int) -> int:
    """Return a whole number of at least so much.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return count


def _named(layers: Layers) -> dict[str, BlockSparseLinear]:
    if isinstance(layers, torch.nn.Module):
        named = {
            name.removeprefix("_orig_mod").removeprefix("."): module
            for name, module in layers.named_modules()
            if isinstance(module, BlockSparseLinear)
        }
        if not named:
            raise ValueError(
                f"{type(layers).__name__} has no BlockSparseLinear; prunus.torch.sparsify_ makes them"
            )
        return named
    named = dict(layers) if isinstance(layers, Mapping) else {str(at): one for at, one in enumerate(layers)}
    for name, layer in named.items():
        if not isinstance(layer, BlockSparseLinear):
            raise TypeError(f"layer {name!r} must be a BlockSparseLinear, got {type(layer).__name__}")
    if not named:
        raise ValueError("expected at least one layer")
    if len({id(layer) for layer in named.values()}) < len(named):
        raise ValueError("a layer comes more than once")
    return named
