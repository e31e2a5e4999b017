"""Averages of a model's weights along the way, where patterns move."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import swa_utils

from prunus.torch.learning.patterns import keys_of, move
from prunus.torch.nn.linear import BlockSparseLinear

__all__ = ["AveragedModel"]


class AveragedModel(swa_utils.AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` whose block-sparse layers follow the model's patterns.

    Torch's own averages tensors place by place: after a pattern has moved, values of different blocks. Here
    blocks that the model no longer has go, and those that came begin at 0, the value of an absent block;
    then values are averaged.

    Parameters
    ----------
    model : Module
        The model; a copy of it is kept.
    *args, **kwargs
        As torch's: ``device``, ``avg_fn``, ``multi_avg_fn``, ``use_buffers``. Patterns are never averaged.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> model = pt.nn.BlockSparseLinear(32, 32, blocksize=8, density=0.25)
    >>> decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    >>> average = pt.learning.AveragedModel(model, multi_avg_fn=decay)
    >>> moving = pt.learning.SET(model, None, every=1, end=10)
    >>> for step in range(3):
    ...     _ = moving.step()                    # after the optimiser's
    ...     average.update_parameters(model)
    >>> torch.equal(average.module.indices, model.indices)
    True
    """

    def __init__(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)

    def update_parameters(self, model: torch.nn.Module) -> None:
        """Take the model's weights of now into the average; call it after the learner's step.

        The model may be wrapped meanwhile, as ``torch.compile`` and ``DistributedDataParallel`` do.

        Raises
        ------
        ValueError
            If its block-sparse layers are not those of the average.
        """
        pairs = _pairs(self.module, model)
        for mine, layer in pairs:
            keys = keys_of(layer).to(mine.indices.device)
            if not torch.equal(keys_of(mine), keys):
                move(mine, keys, None)
        super().update_parameters(model)
        for mine, layer in pairs:  # with use_buffers=True what torch made of them are averages
            mine.indices.copy_(layer.indices)
            mine.indptr.copy_(layer.indptr)


def _pairs(
    average: torch.nn.Module, model: torch.nn.Module
) -> list[tuple[BlockSparseLinear, BlockSparseLinear]]:
    """Return the layers of both by their order, as torch averages parameters: a wrapper changes names."""
    both = [
        [one for one in module.modules() if isinstance(one, BlockSparseLinear)] for module in (average, model)
    ]
    own, given = ([(one.out_features, one.in_features, one.blocksize) for one in part] for part in both)
    if own != given:
        raise ValueError(
            "the model's block-sparse layers are not those of the average: expected (out_features, "
            f"in_features, blocksize) {own}, got {given}"
        )
    return list(zip(*both, strict=True))
