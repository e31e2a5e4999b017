"""Gradual magnitude pruning: blocks of the smallest norm go, little by little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunus._construct import as_fraction, count_of
from prunus.torch.learning.learner import Layers, Learner, as_count, norms_of, strongest
from prunus.torch.learning.patterns import Change, keys_of, move
from prunus.torch.learning.schedules import cubic

__all__ = ["GradualMagnitude"]


class GradualMagnitude(Learner):
    """Prunes layers to a final density while they train, on the cubic schedule of Zhu and Gupta (2017).

    At steps ``begin``, ``begin + every``, ... and at ``end``, each layer keeps ``ceil(density * blocks)`` of
    its blocks, those of the largest Frobenius norm, where ``density`` follows :func:`cubic`. Parameters and
    optimiser states become smaller with it. A layer that has fewer blocks already keeps them all.

    Parameters
    ----------
    layers : Module, mapping or iterable
        A model, all of whose :class:`BlockSparseLinear` are meant, or the layers.
    optimizer : torch.optim.Optimizer or None
        Whose states follow.
    final_density : float
        From 0 to 1.
    begin, end : int
        First and last step of pruning, counted by calls of :meth:`step`.
    every : int
        Steps between two prunings.
    initial_density : float, optional
        Where the schedule begins; each layer's density now otherwise.
    distribution : {"uniform", "global"}
        Whether each layer has that density, or all layers together: then norms compete across layers, which
        must have blocks of one size.

    Raises
    ------
    ValueError, TypeError
        If numbers are out of range, ``end`` is not after ``begin``, an optimiser's states cannot follow, or
        it has none of the parameters.

    Notes
    -----
    A compiled model is compiled again for each number of blocks, and torch allows eight versions. With
    ``torch._dynamo.config.force_parameter_static_shapes = False`` two of them serve for all numbers.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> layer = pt.nn.BlockSparseLinear(64, 64, blocksize=8, density=1)
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> pruning = pt.learning.GradualMagnitude(layer, optimizer, 0.25, begin=0, end=4, every=2)
    >>> for step in range(4):
    ...     optimizer.zero_grad()
    ...     layer(torch.randn(8, 64)).square().mean().backward()
    ...     optimizer.step()
    ...     for change in pruning.step():
    ...         print(change.step, change.density)
    2 0.34375
    4 0.25
    """

    def __init__(
        self,
        layers: Layers,
        optimizer: torch.optim.Optimizer | None,
        final_density: float,
        begin: int,
        end: int,
        every: int,
        initial_density: float | None = None,
        distribution: str = "uniform",
    ) -> None:
        super().__init__(layers, optimizer)
        self.final_density = as_fraction(final_density, "final_density")
        self.begin, self.end = as_count(begin, "begin", 0), as_count(end, "end", 1)
        self.every = as_count(every, "every", 1)
        if self.end <= self.begin:
            raise ValueError(f"end must come after begin, got {begin} and {end}")
        if distribution not in ("uniform", "global"):
            raise ValueError(f"distribution must be 'uniform' or 'global', got {distribution!r}")
        self.distribution = distribution
        sizes = {layer.blocksize for layer in self.layers.values()}
        if distribution == "global" and len(sizes) > 1:
            raise ValueError(f"norms of blocks of one size compete, here are {sorted(sizes)}")
        now = {name: layer.density for name, layer in self.layers.items()}
        if initial_density is not None:
            now = dict.fromkeys(now, as_fraction(initial_density, "initial_density"))
        self._initial = now

    def due(self, step: int) -> bool:
        """Say whether blocks go at a step."""
        return self.begin <= step <= self.end and (step == self.end or (step - self.begin) % self.every == 0)

    def density_at(self, step: int, name: str) -> float:
        """Return the density that a layer is to have at a step, by the schedule."""
        return cubic(step, self.begin, self.end, self._initial[name], self.final_density)

    def _update(self) -> list[Change]:
        wanted = {
            name: count_of(self.density_at(self.steps, name), layer.grid[0] * layer.grid[1])
            for name, layer in self.layers.items()
        }
        if self.distribution == "global":
            kept = self._compete(sum(wanted.values()))
        else:
            kept = {
                name: strongest(norms_of(layer.values), wanted[name]) for name, layer in self.layers.items()
            }
        return [self._prune(name, kept[name]) for name in self.layers]

    def _compete(self, count: int) -> dict[str, Tensor]:
        """Return which blocks of each layer are among the strongest of all."""
        norms = [norms_of(layer.values) for layer in self.layers.values()]
        first = norms[0].device
        order = strongest(torch.cat([one.to(first) for one in norms]), count)
        kept, start = {}, 0
        for name, one in zip(self.layers, norms, strict=True):
            own = order[(order >= start) & (order < start + len(one))]
            kept[name] = (own - start).to(one.device)
            start += len(one)
        return kept

    def _prune(self, name: str, kept: Tensor) -> Change:
        layer = self.layers[name]
        before = layer.nnzb
        if len(kept) < before:
            move(layer, torch.sort(keys_of(layer)[kept]).values, self.optimizer)
        return Change(name, self.steps, before, layer.nnzb, before - layer.nnzb, 0, layer.density)

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on; patterns are in the model's state."""
        return {**super().state_dict(), "initial": dict(self._initial)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises
        ------
        ValueError
            If it is of other layers.
        """
        self._require(state, "initial")
        if set(state["initial"]) != set(self._initial):
            raise ValueError(
                f"the state is of the layers {sorted(state['initial'])}, here are {sorted(self._initial)}"
            )
        super().load_state_dict(state)
        self._initial = dict(state["initial"])
