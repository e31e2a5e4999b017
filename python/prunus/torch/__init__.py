"""Block-sparse operations and layers for PyTorch, with gradients.

Block-sparse operands are :class:`BSR`: component tensors, on the CPU or on a CUDA GPU. Operations are
registered with ``torch.library``, so that autograd, ``torch.compile``, ``torch.export`` and ``torch.func``
know them. There is no forward mode: operands with a tangent raise.

Examples
--------
>>> import torch
>>> import prunus.torch as pt
>>> W = pt.BSR.from_dense(torch.eye(4), blocksize=2).requires_grad_()
>>> x = torch.ones(3, 4)
>>> (x @ W).sum().backward()
>>> W.data.grad[0]
tensor([[3., 3.],
        [3., 3.]])
"""

from __future__ import annotations

from prunus.torch import _installed as _installed  # first: it tells where torch is missing
from prunus.torch import learning, nn, teams
from prunus.torch.arrays import BSR
from prunus.torch.attending import attention, softmax
from prunus.torch.experts import load_balancing_loss, moe
from prunus.torch.functional import linear, matmul, sddmm
from prunus.torch.nn import LearnedThreshold, live_penalty
from prunus.torch.pruned import ffn, gate
from prunus.torch.saving import load_weights_, save_weights
from prunus.torch.swapping import sparsify_

__all__ = [
    "BSR",
    "LearnedThreshold",
    "attention",
    "ffn",
    "gate",
    "learning",
    "linear",
    "live_penalty",
    "load_balancing_loss",
    "load_weights_",
    "matmul",
    "moe",
    "nn",
    "save_weights",
    "sddmm",
    "softmax",
    "sparsify_",
]

teams.follow()
teams.borrow()
