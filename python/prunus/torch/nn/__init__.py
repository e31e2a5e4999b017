"""Layers with block-sparse weights and dynamic pruning, as ``torch.nn`` has dense ones."""

from __future__ import annotations

from prunus.torch.nn import init
from prunus.torch.nn.attention import BlockSparseAttention
from prunus.torch.nn.experts import MoE
from prunus.torch.nn.ffn import PrunedFFN, live_penalty
from prunus.torch.nn.linear import BlockSparseLinear
from prunus.torch.nn.threshold import LearnedThreshold

__all__ = [
    "BlockSparseAttention",
    "BlockSparseLinear",
    "LearnedThreshold",
    "MoE",
    "PrunedFFN",
    "init",
    "live_penalty",
]
