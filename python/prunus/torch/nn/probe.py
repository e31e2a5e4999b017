"""A place for the gradient that a layer would have at blocks that it has not."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.torch.functional import cast
from prunus.torch.ops.watching import watch

__all__ = ["Probe"]


class Probe:
    """A place for a layer's gradient at blocks that it has not; several backward passes add up.

    Parameters
    ----------
    keys : Tensor
        Ascending places of blocks, row times ``across`` plus column, (c,), int64.
    indices, indptr : Tensor
        The same as a pattern.
    block : tuple of int
        Rows and columns of a block.
    dtype : torch.dtype
        In which gradients are summed.
    """

    def __init__(
        self, keys: Tensor, indices: Tensor, indptr: Tensor, block: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.keys, self.indices, self.indptr = keys, indices, indptr
        self.at = torch.zeros(len(indices), *block, dtype=dtype, device=indices.device, requires_grad=True)

    def watch(self, x: Tensor, y: Tensor) -> Tensor:
        """Return a layer's output as it is, and have its gradient seen; x (*lead, in), y (*lead, out)."""
        x, at = cast(x, self.at)
        rows = y.reshape(-1, y.shape[-1])
        seen = watch(rows, x.reshape(-1, x.shape[-1]), at, self.indices, self.indptr)
        return seen.reshape(y.shape)
