"""Patterns of a fixed density that move: the weakest blocks go, and as many others come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunus._construct import as_fraction, count_of
from prunus.torch.learning.learner import Layers, Learner, as_count, norms_of, strongest
from prunus.torch.learning.patterns import Change, absent_keys, agreed, keys_of, move, pattern_of
from prunus.torch.learning.schedules import cosine
from prunus.torch.nn.linear import BlockSparseLinear
from prunus.torch.nn.probe import Probe

__all__ = ["SET", "RigL"]


class _DropAndGrow(Learner):
    """Replaces some blocks of each layer by as many others, every so many steps."""

    def __init__(
        self,
        layers: Layers,
        optimizer: torch.optim.Optimizer | None,
        every: int,
        end: int,
        fraction: float,
        begin: int,
        grown: str,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(layers, optimizer)
        self.every, self.end = as_count(every, "every", 1), as_count(end, "end", 1)
        self.begin = as_count(begin, "begin", 0)
        self.fraction = as_fraction(fraction, "fraction")
        if grown not in ("zeros", "kaiming_uniform"):
            raise ValueError(f"grown must be 'zeros' or 'kaiming_uniform', got {grown!r}")
        self.grown = grown
        self.generator = generator

    def due(self, step: int) -> bool:
        """Say whether blocks are replaced at a step."""
        return step % self.every == 0 and self.begin <= step < self.end

    def fraction_at(self, step: int) -> float:
        """Return the share of blocks that is replaced at a step."""
        raise NotImplementedError

    def _update(self) -> list[Change]:
        return [self._replace(name, layer) for name, layer in self.layers.items()]

    def _replace(self, name: str, layer: BlockSparseLinear) -> Change:
        count = layer.nnzb
        new = self._grow(layer, int(self.fraction_at(self.steps) * count))
        moved = len(new)
        if moved:
            kept = keys_of(layer)[strongest(norms_of(layer.values), count - moved)]
            keys = torch.sort(torch.cat([kept, new])).values
            move(layer, keys, self.optimizer, self.grown, together=True)
        return Change(name, self.steps, count, count, moved, moved, layer.density)

    def _grow(self, layer: BlockSparseLinear, count: int) -> Tensor:
        """Return places of at most so many blocks that the layer has not."""
        raise NotImplementedError

    def _drawn(self, keys: Tensor, count: int) -> Tensor:
        """Return so many places of some, at random, in order; the same in all processes."""
        device = "cpu" if self.generator is None else self.generator.device
        order = torch.randperm(len(keys), generator=self.generator, device=device)[:count]
        return agreed(keys[torch.sort(order).values.to(keys.device)])

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on; patterns are in the model's state."""
        drawn = None if self.generator is None else self.generator.get_state()
        return {**super().state_dict(), "generator": drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; load those of the model and the optimiser before."""
        self._require(state, "generator")
        super().load_state_dict(state)
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])


class RigL(_DropAndGrow):
    """Drops the weakest blocks and grows those whose gradient is largest (Evci et al., 2020).

    At each multiple of ``every`` before ``end``, a share of each layer's blocks (cosine decay from
    ``fraction`` to 0) of the smallest norm goes, and as many absent blocks come, those with the largest norm
    of the loss's gradient. That gradient is computed at absent blocks only, by a product at chosen blocks
    (SDD) in the backward pass, and only in the step that needs it: until then layers cost what they always
    do. Backward passes between two steps add up. Blocks that go are not candidates of the same step.

    Parameters
    ----------
    layers : Module, mapping or iterable
        A model, all of whose :class:`BlockSparseLinear` are meant, or the layers.
    optimizer : torch.optim.Optimizer or None
        Whose states follow.
    every : int
        Steps between two changes.
    end : int
        The step from which on patterns stay; Evci et al. take three quarters of the training.
    fraction : float
        The share that is replaced at first.
    candidates : int or float, optional
        How many absent blocks of each layer, drawn at random each time, may come, or which share of them;
        all otherwise.
    begin : int
        The first step at which patterns may change.
    grown : {"zeros", "kaiming_uniform"}
        Values of new blocks.
    generator : torch.Generator, optional
        Source of randomness for ``candidates``.

    Raises
    ------
    ValueError, TypeError
        If numbers are out of range, an optimiser's states cannot follow, or it has none of the parameters.

    Notes
    -----
    While another step follows in which patterns change, layers hold a gradient for all candidates: memory of
    the dense weights for one step if all are. Where ``torch.distributed`` is initialised, it is summed over
    all processes, and what is drawn at random is drawn by process 0 for all, so that layers stay equal: each
    process must have such a learner, and call it as often.
    :meth:`close` ends that without a change.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> layer = pt.nn.BlockSparseLinear(64, 64, blocksize=8, density=0.25)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> rigl = pt.learning.RigL(layer, optimizer, every=2, end=100)
    >>> for step in range(2):
    ...     optimizer.zero_grad()
    ...     layer(torch.randn(8, 64)).square().mean().backward()
    ...     optimizer.step()
    ...     for change in rigl.step():
    ...         print(change.step, change.dropped, change.grown, change.after)
    2 4 4 16
    """

    def __init__(
        self,
        layers: Layers,
        optimizer: torch.optim.Optimizer | None,
        every: int,
        end: int,
        fraction: float = 0.3,
        candidates: int | float | None = None,
        *,
        begin: int = 0,
        grown: str = "zeros",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(layers, optimizer, every, end, fraction, begin, grown, generator)
        if isinstance(candidates, float):
            self.candidates: int | float | None = as_fraction(candidates, "candidates")
        else:
            self.candidates = None if candidates is None else as_count(candidates, "candidates", 1)
        self._before: Tensor | None = None
        self._armed = self._waiting = False
        self._prepare()

    def due(self, step: int) -> bool:
        """Say whether blocks are replaced at a step, unless gradients turn out not to be finite."""
        return super().due(step) or (self._waiting and self.begin <= step < self.end)

    def fraction_at(self, step: int) -> float:
        """Return the share of blocks that is replaced at a step: see :func:`cosine`."""
        return cosine(step, self.end, self.fraction)

    def step(self) -> list[Change]:
        """Count a step, and change patterns where it is time; call it after each ``optimizer.step()``.

        Returns
        -------
        list of Change
            What became of each layer; empty where nothing was due. A layer that no gradient reached keeps
            its pattern. Where gradients are infinite or NaN, as while a ``GradScaler`` looks for its scale,
            nothing changes, and the next step tries again.

        Raises
        ------
        RuntimeError
            If it is time, and no gradient reached any layer since the last step, or patterns were changed
            by somebody else.
        """
        changes = super().step()
        self._prepare()
        return changes

    def close(self) -> None:
        """Stop computing gradients at absent blocks; patterns stay."""
        for layer in self.layers.values():
            layer._probe = None
        self._armed = False

    def _prepare(self) -> None:
        """Have the next backward passes compute gradients at candidates, if the next step needs them."""
        if not self.due(self.steps + 1):
            return
        # A run that begins here again draws the same candidates.
        self._before = None if self.generator is None else self.generator.get_state()
        for layer in self.layers.values():
            keys = absent_keys(layer)
            if isinstance(self.candidates, float):
                keys = self._drawn(keys, count_of(self.candidates, len(keys)))
            elif self.candidates is not None:
                keys = self._drawn(keys, self.candidates)
            wanted = len(keys) and layer.nnzb and layer.values.requires_grad
            layer._probe = (
                Probe(keys, *pattern_of(keys, layer.grid), layer.blocksize, layer.values.dtype)
                if wanted
                else None
            )
        self._armed = True
        self._probes = {name: layer._probe for name, layer in self.layers.items()}

    def _update(self) -> list[Change]:
        if not self._armed:
            raise RuntimeError("close() was called, or the state was loaded: no gradients were recorded")
        lost = [name for name, layer in self.layers.items() if layer._probe is not self._probes[name]]
        if lost:
            raise RuntimeError(
                f"the patterns of {lost} were changed or moved since the last step, and the gradients at "
                "absent blocks are gone; load states of the model and move it before those of RigL"
            )
        wanted = [probe for probe in self._probes.values() if probe is not None]
        if wanted and all(probe.at.grad is None for probe in wanted):
            raise RuntimeError(
                "no gradient reached any layer since the last step: call step() after backward and "
                "optimizer.step(), once each"
            )
        self._norms = {id(layer): self._norms_at_candidates(layer) for layer in self.layers.values()}
        found = [norms.isfinite().all() for norms in self._norms.values() if norms is not None]
        self._waiting = not all(bool(one) for one in found)
        changes = [] if self._waiting else super()._update()
        self._norms = {}
        self.close()
        return changes

    def _norms_at_candidates(self, layer: BlockSparseLinear) -> Tensor | None:
        """Return the norms of gradients at candidates, of all processes together; None without one."""
        probe, group = layer._probe, torch.distributed
        if probe is None:
            return None
        grad = probe.at.grad
        if group.is_available() and group.is_initialized():
            grad = torch.zeros_like(probe.at) if grad is None else grad  # other processes may have one
            group.all_reduce(grad)
        return None if grad is None else norms_of(grad)

    def _grow(self, layer: BlockSparseLinear, count: int) -> Tensor:
        probe, norms = layer._probe, self._norms[id(layer)]
        if probe is None or norms is None:
            return torch.zeros(0, dtype=torch.int64, device=layer.values.device)
        return probe.keys[strongest(norms, count)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy, whose layers come without places of gradients."""
        self.__dict__.update(state)
        if self._armed:
            for name, layer in self.layers.items():
                layer._probe = self._probes[name]

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on; patterns are in the model's state."""
        state = super().state_dict()
        if self._armed and self._before is not None:
            state["generator"] = self._before
        return {**state, "waiting": self._waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; load those of the model and the optimiser before."""
        super().load_state_dict(state)
        self._waiting = bool(state.get("waiting", False))
        self.close()
        self._prepare()


class SET(_DropAndGrow):
    """Drops the weakest blocks and grows others at random (Mocanu et al., 2018).

    At each multiple of ``every`` before ``end``, ``fraction`` of each layer's blocks go, those of the
    smallest norm, and as many absent ones come.

    Parameters
    ----------
    layers, optimizer, every, end, begin, grown
        As for :class:`RigL`.
    fraction : float
        The share that is replaced each time.
    generator : torch.Generator, optional
        Source of randomness.

    Raises
    ------
    ValueError, TypeError
        As for :class:`RigL`.

    Notes
    -----
    Where ``torch.distributed`` is initialised, process 0 draws for all, as for :class:`RigL`.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> layer = pt.nn.BlockSparseLinear(64, 64, blocksize=8, density=0.25)
    >>> moving = pt.learning.SET(layer, None, every=1, end=10, fraction=0.5)
    >>> [(change.dropped, change.grown) for change in moving.step()]
    [(8, 8)]
    """

    def __init__(
        self,
        layers: Layers,
        optimizer: torch.optim.Optimizer | None,
        every: int,
        end: int,
        fraction: float = 0.3,
        *,
        begin: int = 0,
        grown: str = "zeros",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(layers, optimizer, every, end, fraction, begin, grown, generator)

    def fraction_at(self, step: int) -> float:
        """Return the share of blocks that is replaced: the same at each step."""
        return self.fraction

    def _grow(self, layer: BlockSparseLinear, count: int) -> Tensor:
        return self._drawn(absent_keys(layer), count)
