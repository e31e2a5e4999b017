"""Block-sparse layers as torch modules."""

from __future__ import annotations

from prunus.torch.nn import init
from prunus.torch.nn.linear import BlockSparseLinear

__all__ = ["BlockSparseLinear", "init"]
